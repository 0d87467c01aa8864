"""The Transformer of 2017: an encoder that reads a sentence, a decoder that writes another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from genlab.networks.attention import Cache, CrossAttention, Memory, SelfAttention
from genlab.networks.seq2seq import source_of
from genlab.networks.transformer import require_heads
from genlab.shapes import DataSpec


class EncoderDecoderTransformer(nn.Module):
    """Attention inside the source, inside what is written, and from the one to the other.

    Vaswani et al. 2017 (arXiv:1706.03762): a norm after each branch is added, ReLU, fixed sinusoidal
    positions, and one matrix, times sqrt(width) where tokens are read, for the tokens of both sides and for
    scoring them; its first weights are of N(0, 0.02), so that at the start all tokens are nearly as likely.

    Args:
        spec: The pairs: sentences of tokens with a source of tokens of the same vocabulary.
        num_layers: Blocks of the encoder, and of the decoder.
        num_heads: Attention heads of a block; must divide the width.
        width: Length of a token's vector; the perceptrons are four times as wide.
        dropout: Share of numbers set to 0 in training: of the vectors read, the attention and each branch.

    Attributes:
        context: The longest sentence that is written.

    Shapes:
        tokens: (batch, length), source: (batch, source length), int64. Returns logits, (batch, length,
        vocabulary): those at position i are of token i + 1. Padding of a source gets exactly no attention.

    Raises:
        ValueError: If the data are not pairs of sentences of one vocabulary, or num_heads does not divide the
            width.
    """

    def __init__(
        self, spec: DataSpec, num_layers: int = 3, num_heads: int = 8, width: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        source = source_of(spec, "EncoderDecoderTransformer")
        require_heads(num_heads, width)
        if source.levels != spec.levels:
            raise ValueError(
                f"source and sentences of {spec.name} must share a vocabulary, but have {source.levels} and "
                f"{spec.levels} tokens."
            )
        self.pad, self.context = source.padding, spec.shape[0]
        self.token = nn.Embedding(spec.levels, width)
        self.register_buffer("positions", sinusoids(max(self.context, source.shape[0]), width), False)
        self.dropout = nn.Dropout(dropout)
        size = (width, num_heads, dropout)
        self.encoder = nn.ModuleList(_EncoderBlock(*size) for _ in range(num_layers))
        self.decoder = nn.ModuleList(_DecoderBlock(*size) for _ in range(num_layers))
        nn.init.normal_(self.token.weight, std=0.02)
        for module in [*self.encoder.modules(), *self.decoder.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    positions: Tensor

    def forward(self, tokens: Tensor, source: Tensor, cache: Sentences | None = None) -> Tensor:
        h = self._written(tokens, source, cache)
        return linear(h, self.token.weight)

    @torch.no_grad()
    def maps(self, tokens: Tensor, source: Tensor) -> Tensor:
        """Returns how much each token looks at each of the source, (batch, length, source length).

        Of the last block, a mean over its heads.
        """
        found: list[Tensor] = []
        self._written(tokens, source, None, found)
        return found[-1].mean(dim=1)

    def new_cache(self) -> Sentences:
        """Returns what is to be given to each call that reads on in the same texts."""
        return Sentences(len(self.decoder), self.context)

    def _written(
        self, tokens: Tensor, source: Tensor, cache: Sentences | None, maps: list[Tensor] | None = None
    ) -> Tensor:
        """Returns what is known at each token, (batch, length, width); `maps` gets each block's attention."""
        keys_values, seen = self._read(source) if cache is None else cache.read(self._read, source)
        memories: Sequence[Memory | None] = [None] * len(self.decoder) if cache is None else list(cache)
        h = self._placed(tokens, 0 if cache is None else cache.length)
        for block, memory, of_source in zip(self.decoder, memories, keys_values, strict=True):
            h = block(h, memory, of_source, seen, maps)
        if cache is not None:
            cache.length += tokens.shape[1]
        return h

    def _read(self, source: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns the source's keys and values for each block, and which of its tokens are no padding."""
        seen = (source != self.pad)[:, None, None]
        h = self._placed(source)
        for block in self.encoder:
            h = block(h, seen)
        return [block.across.read(h) for block in self.decoder], seen  # type: ignore[union-attr, operator]

    def _placed(self, tokens: Tensor, first: int = 0) -> Tensor:
        end = first + tokens.shape[1]
        if end > len(self.positions):
            raise ValueError(f"sentences must have at most {len(self.positions)} tokens, got {end}.")
        scale = math.sqrt(self.token.embedding_dim)
        return self.dropout(scale * self.token(tokens) + self.positions[first:end])


class Sentences(Cache):
    """What the decoder remembers: its own keys and values, and those of the source, read once."""

    def __init__(self, num_layers: int, context: int) -> None:
        super().__init__(num_layers, context)
        self.source: tuple[list[Tensor], Tensor] | None = None

    def read(self, reader: Callable[[Tensor], tuple[list[Tensor], Tensor]], source: Tensor) -> Any:
        """Returns what a reader finds in a source, at the first call, and then what it found."""
        if self.source is None:
            self.source = reader(source)
        return self.source

    def clear(self) -> None:
        """Forgets the tokens and the source."""
        super().clear()
        self.source = None

    def take(self, rows: Tensor) -> None:
        """Takes rows of these numbers in place of all, as a beam search does."""
        super().take(rows)
        if self.source is not None:
            keys_values, seen = self.source
            self.source = [x.index_select(1, rows) for x in keys_values], seen[rows]


class _EncoderBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, dropout, bias=True, causal=False)
        self.perceptron = _perceptron(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(x, seen=seen)))
        return self.norms[1](x + self.dropout(self.perceptron(x)))


class _DecoderBlock(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, dropout, bias=True)
        self.across = CrossAttention(width, num_heads, dropout)
        self.perceptron = _perceptron(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, memory: Memory | None, of_source: Tensor, seen: Tensor, maps: list[Tensor] | None
    ) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(x, memory)))
        if maps is not None:
            maps.append(self.across.weights(x, of_source, seen))
        x = self.norms[1](x + self.dropout(self.across(x, of_source, seen)))
        return self.norms[2](x + self.dropout(self.perceptron(x)))


def _perceptron(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))


def sinusoids(length: int, width: int) -> Tensor:
    """Returns sin and cos of p / 10,000^(2 i / width) at positions p, in turns, (length, width).

    Section 3.5 of the paper.
    """
    rates = 10_000.0 ** (-torch.arange(0, width, 2).double() / width)
    angles = torch.arange(length).double()[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width].float()
