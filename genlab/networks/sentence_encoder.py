"""What a sentence is, in one vector."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.networks.transformer import BidirectionalTransformer, Positions
from genlab.shapes import DataSpec


class SentenceEncoder(nn.Module):
    """A `BidirectionalTransformer` whose vectors are averaged over a sentence, then one linear map.

    Padding gets no attention and has no part in the mean, so that a sentence has one vector, however far its
    row is filled up.

    Args:
        spec: The sentences, whose vocabulary says which token fills up.
        num_outputs: Length of the vector.
        num_layers, num_heads, width, dropout: Of the transformer.
        positions: Of the transformer: learned ones tell places from the first step on, rotary ones which
            words are neighbours, as a colour and what has it are.

    Shapes:
        tokens: (batch, length), int64. Returns (batch, num_outputs).

    Raises:
        ValueError: If the data are not sentences, or num_heads does not divide the width.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        num_layers: int = 2,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        positions: Positions = "both",
    ) -> None:
        super().__init__()
        self.pad = spec.padding
        self.transformer = BidirectionalTransformer(spec, num_layers, num_heads, width, dropout, positions)
        self.output = nn.Linear(width, num_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = tokens != self.pad
        seen[:, 0] = True  # of an empty sentence: attention to nothing is no number
        h = self.transformer(tokens, seen)
        shares = seen / seen.sum(dim=1, keepdim=True)
        return self.output((h * shares[..., None]).sum(dim=1))
