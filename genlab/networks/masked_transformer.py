"""A transformer that says what may stand at the hidden places of a map of codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from genlab.networks.transformer import BidirectionalTransformer
from genlab.shapes import DataSpec


class MaskedTransformer(nn.Module):
    """A BidirectionalTransformer over all places of a map, and over a text that comes with it.

    Chang et al. 2022 (arXiv:2202.04200), section 3.2: each place has a learned position, and one matrix reads
    codes and scores them. A text stands behind the map in one sequence, in which all see all; its tokens and
    positions have vectors of their own. What fills up a text is seen by nobody.

    Args:
        spec: The maps: (height, width) of `levels` codes. With classes, the network needs a label, of which
            number `num_classes` stands for "any class"; with a source of tokens, it needs that, of which
            negative tokens stand for nothing, so that a row of them is "any text".
        num_layers: Number of blocks.
        num_heads: Attention heads of a block; must divide the width.
        width: Length of a token's vector; the perceptrons are four times as wide.
        dropout: Share of numbers set to 0 in training.

    Shapes:
        codes: (batch, height, width), int64, where number `levels` hides a code; label: (batch,); source:
        (batch, at most source length). Returns logits, (batch, height, width, levels).

    Raises:
        ValueError: If the data are no maps of codes, the source is no text, or num_heads does not divide the
            width.
    """

    def __init__(
        self, spec: DataSpec, num_layers: int = 4, num_heads: int = 4, width: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if spec.kind != "tokens" or len(spec.shape) != 2:
            raise ValueError(
                f"MaskedTransformer needs maps of codes of shape (height, width), but {spec.name} has shape "
                f"{spec.shape} and levels {spec.levels}."
            )
        self.levels, self.num_places, self.first_word = spec.levels, math.prod(spec.shape), spec.levels + 1
        length, num_tokens = self.num_places, self.first_word
        if spec.source is not None:
            if spec.source.kind != "tokens" or len(spec.source.shape) != 1:
                raise ValueError(
                    f"MaskedTransformer reads a source of text, and {spec.source.name} has shape "
                    f"{spec.source.shape}: leave source out of model.given."
                )
            self.pad = spec.source.padding
            length, num_tokens = length + spec.source.shape[0], num_tokens + spec.source.levels
        read = DataSpec(spec.name, (length,), spec.num_classes, num_tokens)
        self.reader = BidirectionalTransformer(read, num_layers, num_heads, width, dropout)
        self.bias = nn.Parameter(torch.zeros(spec.levels))

    def forward(self, codes: Tensor, label: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        tokens, seen = codes.flatten(1), None
        if source is not None:
            is_text = (source != self.pad) & (source >= 0)
            seen = torch.cat([torch.ones_like(tokens, dtype=torch.bool), is_text], dim=1)
            tokens = torch.cat([tokens, self.first_word + source.clamp_min(0)], dim=1)
        h = self.reader(tokens, seen, label)[:, : self.num_places]
        logits = linear(h, self.reader.token.weight[: self.levels], self.bias)
        return logits.unflatten(1, codes.shape[1:])
