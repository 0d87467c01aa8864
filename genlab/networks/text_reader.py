"""Reads the text that a network of images is told, so that its pixels can look at the words."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from genlab.networks.transformer import BidirectionalTransformer, Positions
from genlab.shapes import DataSpec


class Words(NamedTuple):
    """What was read of texts.

    Attributes:
        vectors: (batch, length, width).
        seen: (batch, 1, 1, length), False where there is no text: what gets no attention.
    """

    vectors: Tensor
    seen: Tensor


class TextReader(nn.Module):
    """A transformer that sees a whole text from each of its tokens: the text encoder of cross-attention.

    Rombach et al. 2022 (arXiv:2112.10752), section 3.3. Before each text stands a mark that is never padding,
    so that there is always something to look at: in a text of nothing but padding, as guidance hides one,
    the mark's vector is what was learned of "no text".

    Args:
        spec: The texts: as many tokens as `levels`, of at most `shape[0]` tokens.
        num_layers: Blocks.
        num_heads: Attention heads of a block; must divide the width.
        width: Length of a token's vector.
        dropout: Share of numbers set to 0 in training.
        positions: "learned", "rotary" or "both", as of a BidirectionalTransformer: learned ones tell places
            from the first step on, rotary ones which words are neighbours, as a colour and what has it are. A
            U-Net that had been told 180,000 captions by learned ones alone erred no less with the colours in
            them exchanged; 20,000 more with both taught it whose is whose.

    Attributes:
        width: Length of a token's vector.

    Shapes:
        text: (batch, length), int64. Returns `Words` of length + 1 vectors, the mark's first.

    Raises:
        ValueError: If the data are not texts, or num_heads does not divide the width.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_layers: int = 2,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        positions: Positions = "both",
    ) -> None:
        super().__init__()
        self.padding, self.mark, self.width = spec.padding, spec.levels, width
        marked = DataSpec(spec.name, (spec.shape[0] + 1, *spec.shape[1:]), levels=spec.levels + 1)
        self.transformer = BidirectionalTransformer(marked, num_layers, num_heads, width, dropout, positions)

    def forward(self, text: Tensor) -> Words:
        seen = pad(text != self.padding, (1, 0), value=True)
        # Where no token stands for padding its number is none of a vector's; nobody sees the mark there.
        tokens = pad(text, (1, 0), value=self.mark).masked_fill(~seen, self.mark)
        return Words(self.transformer(tokens, seen), seen[:, None, None])
