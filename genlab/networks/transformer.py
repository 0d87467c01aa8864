"""A decoder-only transformer over tokens, and what it remembers of a text while that grows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from genlab.networks.conditioning import required
from genlab.shapes import DataSpec


class CausalTransformer(nn.Module):
    """Blocks of attention and perceptron that see only earlier tokens: p(x_i | x_0 ... x_{i-1}) at every i.

    GPT-2 (Radford et al. 2019), section 2.3: norms before each branch and at the end, learned positions,
    GELU, weights from N(0, 0.02), those that end a branch divided by sqrt(2 num_layers), and one matrix for
    reading tokens and for scoring them (Press and Wolf 2017, arXiv:1608.05859). A label's vector is added at
    every position.

    Args:
        spec: The texts: as many tokens as `levels`, the longest input of `shape[0]` tokens; with classes, the
            network needs a label.
        num_layers: Number of blocks.
        num_heads: Attention heads of a block; must divide the width.
        width: Length of a token's vector; the perceptrons are four times as wide.
        dropout: Share of numbers set to 0 in training: of the vectors read, the attention and each branch.
        bias: Whether linear maps and norms also add a learned vector, as GPT-2's do; little is lost without.

    Attributes:
        context: The longest input; further back, nothing is seen.

    Shapes:
        tokens: (batch, length), int64, with length at most the context; label: (batch,). Returns logits,
        (batch, length, vocabulary): those at position i are of token i + 1. With a cache, positions count
        from the last token that it holds.

    Raises:
        ValueError: If the data are not texts, or num_heads does not divide the width.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_layers: int = 4,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if spec.kind != "tokens" or len(spec.shape) != 1:
            raise ValueError(
                f"CausalTransformer needs texts of shape (length,) and levels, but {spec.name} has shape "
                f"{spec.shape} and levels {spec.levels}; flatten a map of codes first."
            )
        if width % num_heads:
            raise ValueError(f"num_heads must divide width, got {num_heads} and {width}; try 4 and 128.")
        self.num_classes, self.context = spec.num_classes, spec.shape[0]
        self.token = nn.Embedding(spec.levels, width)
        self.position = nn.Embedding(self.context, width)
        self.label = nn.Embedding(spec.num_classes, width) if spec.num_classes else None
        self.dropout = nn.Dropout(dropout)
        blocks = [_Block(width, num_heads, dropout, bias) for _ in range(num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, bias=bias)
        self.apply(_initialise)
        for block in blocks:
            block.shrink_branches(math.sqrt(2 * num_layers))

    def forward(self, tokens: Tensor, label: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        first = 0 if cache is None else cache.length
        end = self._fitting(first + tokens.shape[1])
        h = self.token(tokens) + self.position.weight[first:end]
        if self.label is not None:
            h = h + self.label(required(label, self.num_classes))[:, None]
        h = self.dropout(h)
        for block, memory in zip(self.blocks, cache or repeat(None), strict=False):
            h = block(h, memory)
        if cache is not None:
            cache.length = end
        return linear(self.norm(h), self.token.weight)

    def new_cache(self) -> Cache:
        """Returns an empty memory, to be given to each call that reads on in the same texts."""
        return Cache(len(self.blocks), self.context)

    def _fitting(self, end: int) -> int:
        if end > self.context:
            raise ValueError(
                f"length must be at most the context of {self.context} tokens, got {end}; give the last "
                f"{self.context} without a cache, or train with longer texts."
            )
        return end


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
        self._memories = [_Memory(self) for _ in range(num_layers)]

    def __iter__(self) -> Iterator[_Memory]:
        return iter(self._memories)

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another token."""
        return self.length == self.context

    def clear(self) -> None:
        """Forgets the tokens and keeps the memory."""
        self.length = 0


class _Memory:
    """One block's keys and values, (batch, heads, context, head_dim) each."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.stored: Tensor | None = None

    def extend(self, keys_values: Tensor) -> Tensor:
        """Appends (2, batch, heads, new, head_dim) and returns all that is held, new ones included."""
        first = self.cache.length
        end = first + keys_values.shape[3]
        if self.stored is None:
            two, batch, heads, _, dim = keys_values.shape
            self.stored = keys_values.new_empty(two, batch, heads, self.cache.context, dim)
        self.stored[:, :, :, first:end] = keys_values
        return self.stored[:, :, :, :end]


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.attention = _Attention(width, num_heads, dropout, bias)
        self.widen, self.narrow = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: _Memory | None) -> Tensor:
        x = x + self.dropout(self.attention(self.norms[0](x), memory))
        return x + self.dropout(self.narrow(gelu(self.widen(self.norms[1](x)))))

    def shrink_branches(self, factor: float) -> None:
        """Divides the weights that end a branch, so that the sum over all branches keeps its scale."""
        with torch.no_grad():
            self.attention.output.weight.div_(factor)
            self.narrow.weight.div_(factor)


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.to_qkv, self.output = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor, memory: _Memory | None) -> Tensor:
        qkv = self.to_qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, (k, v) = qkv[0], qkv[1:] if memory is None else memory.extend(qkv[1:])
        h = self._attend(q, k, v)
        return self.output(h.transpose(1, 2).flatten(2))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout, new, held = self.dropout if self.training else 0.0, q.shape[2], k.shape[2]
        if new == held:
            return scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        # is_causal aligns the first query with the first key; here the last ones belong together.
        mask = torch.ones(new, held, dtype=torch.bool, device=q.device).tril(held - new)
        return scaled_dot_product_attention(q, k, v, mask if new > 1 else None, dropout)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
