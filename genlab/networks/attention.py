"""Attention inside of a text and between two, its positions, and what it remembers while a text grows."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention


class SelfAttention(nn.Module):
    """Every token of a text looks at all of it, or at the earlier ones and itself.

    Vaswani et al. 2017 (arXiv:1706.03762), section 3.2.2: softmax(q k^T / sqrt(head_dim)) v in each head.

    Args:
        width: Length of a token's vector.
        num_heads: Heads; must divide the width.
        dropout: Share of attention set to 0 in training.
        bias: Whether the linear maps add a vector.
        causal: Whether later tokens are not seen.
        rotation: Turns queries and keys by their positions; None for nothing.
        qk_norm: The longest text, where the scores are g times the cosine of query and key; see `Cosine`.
            None leaves them as they are.

    Shapes:
        x: (batch, length, width); seen: (batch, 1, 1, length), False at tokens that are no text, which get
        exactly no attention. Returns (batch, length, width).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        dropout: float,
        bias: bool,
        causal: bool = True,
        rotation: Rotation | None = None,
        qk_norm: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.causal = num_heads, dropout, causal
        self.rotation = rotation
        self.cosine = None if qk_norm is None else Cosine(num_heads, width // num_heads, qk_norm)
        self.to_qkv, self.output = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor, memory: Memory | None = None, seen: Tensor | None = None) -> Tensor:
        qkv = self.to_qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        qkv = self._placed(qkv, 0 if memory is None else memory.cache.length)
        q, (k, v) = qkv[0], qkv[1:] if memory is None else memory.extend(qkv[1:])
        h = self._attend(q, k, v, seen)
        return self.output(h.transpose(1, 2).flatten(2))

    def _placed(self, qkv: Tensor, first: int) -> Tensor:
        """Returns queries and keys of one length and turned by their positions, where that is asked for."""
        if self.rotation is None and self.cosine is None:
            return qkv
        qk = qkv[:2] if self.cosine is None else self.cosine(qkv[:2])
        return torch.cat([qk if self.rotation is None else self.rotation(qk, first), qkv[2:]])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        dropout, new, held = self.dropout if self.training else 0.0, q.shape[2], k.shape[2]
        if not self.causal:
            return scaled_dot_product_attention(q, k, v, seen, dropout)
        if new == held:
            return scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        # is_causal aligns the first query with the first key; here the last ones belong together.
        mask = torch.ones(new, held, dtype=torch.bool, device=q.device).tril(held - new)
        return scaled_dot_product_attention(q, k, v, mask if new > 1 else None, dropout)


class Cosine(nn.Module):
    """Brings queries and keys to one length: a score is g cos(q, k), whatever they were.

    Henry et al. 2020 (arXiv:2010.04245), equation 2, with a learned g for each head that begins at log2(L^2 -
    L): from the start, a token can give nearly all of its attention to one among L. Without g, scores would
    end at sqrt(head_dim): a head of 24 numbers could give no more than a third to one of 256 tokens.

    Args:
        num_heads: Heads.
        head_dim: Length of a query.
        length: L above, the longest text.

    Shapes:
        qk: (2, batch, heads, length, head_dim). Returns the same.
    """

    def __init__(self, num_heads: int, head_dim: int, length: int) -> None:
        super().__init__()
        first = math.log2(max(2, length * length - length)) / math.sqrt(head_dim)
        self.gain = nn.Parameter(torch.full((num_heads,), first))

    def forward(self, qk: Tensor) -> Tensor:
        # Both have the length sqrt(head_dim), and attention divides their product by it.
        gains = torch.stack([self.gain, torch.ones_like(self.gain)])
        return rms_norm(qk, qk.shape[-1:]) * gains[:, None, :, None, None]


class CrossAttention(nn.Module):
    """Every token of a text, or place of a picture, looks at all of another text, its source.

    Args:
        width: Length of a token's vector.
        num_heads: Heads; must divide the width.
        dropout: Share of attention set to 0 in training.
        source_width: Length of a vector of the source; the same where it is left out.

    Shapes:
        x: (batch, length, width); keys_values: (2, batch, heads, source length, head_dim), of `read`; seen:
        (batch, 1, 1, source length), False at tokens that are no text, which get exactly no attention.
        Returns (batch, length, width).
    """

    def __init__(self, width: int, num_heads: int, dropout: float, source_width: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.to_q, self.to_kv = nn.Linear(width, width), nn.Linear(source_width or width, 2 * width)
        self.output = nn.Linear(width, width)

    def read(self, source: Tensor) -> Tensor:
        """Returns the keys and values of a source, (batch, source length, source width)."""
        return self.to_kv(source).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys_values: Tensor, seen: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        h = scaled_dot_product_attention(self._queries(x), keys_values[0], keys_values[1], seen, dropout)
        return self.output(h.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, keys_values: Tensor, seen: Tensor) -> Tensor:
        """Returns how much each token looks at each of the source, (batch, heads, length, source length)."""
        scores = self._queries(x) @ keys_values[0].mT / math.sqrt(keys_values.shape[-1])
        return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)

    def _queries(self, x: Tensor) -> Tensor:
        return self.to_q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class Rotation(nn.Module):
    """Turns pairs of numbers of a vector at position p by the angles p / 10,000^(2 i / dim), i = 0, 1, ...

    The product of a vector turned at position p and another at q depends on p - q alone. Su et al. 2021
    (arXiv:2104.09864), equation 34, with number i and number i + dim / 2 as a pair.

    Args:
        length: Positions.
        dim: Length of a vector, even.

    Shapes:
        x: (..., new, dim), of positions first ... first + new - 1. Returns the same.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        rates = 10_000.0 ** (-torch.arange(0, dim, 2).double() / dim)
        angles = torch.arange(length).double()[:, None] * rates
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(self, x: Tensor, first: int = 0) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        cos, sin = (part[first : first + x.shape[-2]].to(x.dtype) for part in (self.cos, self.sin))
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Cache:
    """The keys and values of the tokens that a transformer has read, so that each is read once.

    The memory for a whole context is taken at the first call, in the type and on the device of what is
    stored. Positions are absolute, so that a full cache cannot drop its first token: clear it and read the
    window that is left again. It is for sampling, without gradients.

    Args:
        num_layers: Blocks that remember.
        context: Tokens that fit.

    Attributes:
        length: Tokens that it holds.
    """

    def __init__(self, num_layers: int, context: int) -> None:
        self.context, self.length = context, 0
        self._memories = [Memory(self) for _ in range(num_layers)]

    def __iter__(self) -> Iterator[Memory]:
        return iter(self._memories)

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another token."""
        return self.length == self.context

    def clear(self) -> None:
        """Forgets the tokens and keeps the memory."""
        self.length = 0

    def take(self, rows: Tensor) -> None:
        """Takes rows of these numbers in place of all, as a beam search does."""
        for memory in self:
            if memory.stored is not None:
                memory.stored = memory.stored.index_select(1, rows)


class Memory:
    """One block's keys and values, (batch, heads, context, head_dim) each."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.stored: Tensor | None = None

    def extend(self, keys_values: Tensor) -> Tensor:
        """Appends (2, batch, heads, new, head_dim) and returns all that is held, new ones included."""
        first = self.cache.length
        end = first + keys_values.shape[3]
        if self.stored is None or self.stored.shape[1] != keys_values.shape[1]:
            two, batch, heads, _, dim = keys_values.shape
            self.stored = keys_values.new_empty(two, batch, heads, self.cache.context, dim)
        self.stored[:, :, :, first:end] = keys_values
        return self.stored[:, :, :, :end]
