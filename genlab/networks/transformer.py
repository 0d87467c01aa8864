"""A decoder-only transformer over tokens, and an encoder that sees all of a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu

from genlab.networks.attention import Cache, Memory, Rotation, SelfAttention
from genlab.networks.conditioning import required
from genlab.shapes import DataSpec

Positions = Literal["learned", "rotary", "both"]
"""How tokens know where they are; see `CausalTransformer`."""


class CausalTransformer(nn.Module):
    """Blocks of attention and perceptron that see only earlier tokens: p(x_i | x_0 ... x_{i-1}) at every i.

    GPT-2 (Radford et al. 2019), section 2.3: norms before each branch and at the end, learned positions,
    GELU, weights from N(0, 0.02), those that end a branch divided by sqrt(2 num_layers), and one matrix for
    reading tokens and for scoring them (Press and Wolf 2017, arXiv:1608.05859). A label's vector is added at
    every position. The arguments from `positions` on are what later models changed.

    Args:
        spec: The texts: as many tokens as `levels`, the longest input of `shape[0]` tokens; with classes, the
            network needs a label.
        num_layers: Number of blocks.
        num_heads: Attention heads of a block; must divide the width.
        width: Length of a token's vector; the perceptrons are four times as wide.
        dropout: Share of numbers set to 0 in training: of the vectors read, the attention and each branch.
        bias: Whether linear maps and norms also add a learned vector, as GPT-2's do; little is lost without.
        positions: "learned" vectors, or "rotary": queries and keys turned by angles that grow with their
            position, so that attention knows distances only (RoFormer, Su et al. 2021, arXiv:2104.09864); or
            "both", for what depends on places as well, such as the codes of an image.
        norm: "layer", or "rms", which neither centres nor shifts (Zhang and Sennrich 2019, arXiv:1910.07467).
        qk_norm: Whether scores of attention are the cosines of queries and keys, times what each head learns
            (Henry et al. 2020, arXiv:2010.04245).
        activation: Of the perceptrons: "gelu", or "relu2", max(x, 0)^2 (So et al. 2021, arXiv:2109.08668).
        logit_cap: Logits become cap tanh(logit / cap) (Gemma 2, arXiv:2408.00118); None leaves them.
        tied: Whether one matrix reads tokens and scores them.

    Attributes:
        context: The longest input; further back, nothing is seen.

    Shapes:
        tokens: (batch, length), int64, with length at most the context; label: (batch,). Returns logits,
        (batch, length, vocabulary): those at position i are of token i + 1. With a cache, positions count
        from the last token that it holds.

    Raises:
        ValueError: If the data are not texts, num_heads does not divide the width, the rotary positions of a
            head cannot be paired, or logit_cap is not above 0.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_layers: int = 4,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        bias: bool = False,
        positions: Positions = "learned",
        norm: Literal["layer", "rms"] = "layer",
        qk_norm: bool = False,
        activation: Literal["gelu", "relu2"] = "gelu",
        logit_cap: float | None = None,
        tied: bool = True,
    ) -> None:
        super().__init__()
        require_text(spec, "CausalTransformer")
        require_heads(num_heads, width)
        if logit_cap is not None and not logit_cap > 0.0:
            raise ValueError(f"logit_cap must be above 0, got {logit_cap}; leave it out for no cap.")
        self.num_classes, self.context, self.logit_cap = spec.num_classes, spec.shape[0], logit_cap
        self.token = nn.Embedding(spec.levels, width)
        self.position = nn.Embedding(self.context, width) if positions != "rotary" else None
        self.label = nn.Embedding(spec.num_classes, width) if spec.num_classes else None
        self.dropout = nn.Dropout(dropout)
        new_norm = partial(nn.LayerNorm, bias=bias) if norm == "layer" else nn.RMSNorm
        rotation = rotation_of(positions, self.context, width // num_heads)
        longest = self.context if qk_norm else None
        blocks = [
            Block(
                SelfAttention(width, num_heads, dropout, bias, True, rotation, longest), new_norm, activation
            )
            for _ in range(num_layers)
        ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = new_norm(width)
        self.head = None if tied else nn.Linear(width, spec.levels, bias=False)
        self.apply(initialise)
        for block in blocks:
            block.shrink_branches(math.sqrt(2 * num_layers))

    def forward(self, tokens: Tensor, label: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        first = 0 if cache is None else cache.length
        end = self._fitting(first + tokens.shape[1])
        h = self.token(tokens)
        if self.position is not None:
            h = h + self.position.weight[first:end]
        if self.label is not None:
            h = h + self.label(required(label, self.num_classes))[:, None]
        h = self.dropout(h)
        for block, memory in zip(self.blocks, cache or repeat(None), strict=False):
            h = block(h, memory)
        if cache is not None:
            cache.length = end
        logits = linear(self.norm(h), self.output_weight)
        return logits if self.logit_cap is None else capped(logits, self.logit_cap)

    @property
    def output_weight(self) -> Tensor:
        """The matrix that scores tokens, (vocabulary, width)."""
        return (self.token if self.head is None else self.head).weight

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


class BidirectionalTransformer(nn.Module):
    """The same blocks, seeing a whole text from each of its places: what BERT and ELECTRA are made of.

    Devlin et al. 2019 (arXiv:1810.04805), with the norms before each branch. A label's vector is added at
    every place.

    Args:
        spec: The texts: as many tokens as `levels`, of at most `shape[0]` tokens; with classes, the network
            needs a label, of which number `num_classes` stands for "any class".
        num_layers: Number of blocks.
        num_heads: Attention heads of a block; must divide the width.
        width: Length of a token's vector.
        dropout: Share of numbers set to 0 in training.
        positions: As of a CausalTransformer: "learned", "both", or "rotary", by which a gap finds its
            neighbours early, where learned ones long leave it with what tokens are frequent.

    Attributes:
        width: Length of a token's vector.

    Shapes:
        tokens: (batch, length), int64; seen: (batch, length), False where there is no text; label: (batch,).
        Returns a vector for each place, (batch, length, width).

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
        positions: Positions = "learned",
    ) -> None:
        super().__init__()
        require_text(spec, "BidirectionalTransformer")
        require_heads(num_heads, width)
        self.width, self.num_classes = width, spec.num_classes
        self.token = nn.Embedding(spec.levels, width)
        self.position = nn.Embedding(spec.shape[0], width) if positions != "rotary" else None
        self.label = nn.Embedding(spec.num_classes + 1, width) if spec.num_classes else None
        self.dropout = nn.Dropout(dropout)
        rotation = rotation_of(positions, spec.shape[0], width // num_heads)
        attentions = [
            SelfAttention(width, num_heads, dropout, True, False, rotation) for _ in range(num_layers)
        ]
        self.blocks = nn.ModuleList(Block(each, nn.LayerNorm, "gelu") for each in attentions)
        self.norm = nn.LayerNorm(width)
        self.apply(initialise)

    def forward(self, tokens: Tensor, seen: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        h = self.token(tokens)
        if self.position is not None:
            h = h + self.position.weight[: tokens.shape[1]]
        if self.label is not None:
            h = h + self.label(required(label, self.num_classes))[:, None]
        h = self.dropout(h)
        for block in self.blocks:
            h = block(h, seen=None if seen is None else seen[:, None, None])
        return self.norm(h)


def rotation_of(positions: str, length: int, head_dim: int) -> Rotation | None:
    """Returns what turns queries and keys where positions are rotary.

    Raises:
        ValueError: Their length is odd.
    """
    if positions == "learned":
        return None
    if head_dim % 2:
        raise ValueError(f"width / num_heads must be even for rotary positions, got {head_dim}.")
    return Rotation(length, head_dim)


class Block(nn.Module):
    """Attention and a perceptron, each added to what comes in, which it sees with a norm before it.

    Args:
        attention: Between the tokens.
        new_norm: Makes a norm of a width.
        activation: Of the perceptron: "gelu" or "relu2".

    Shapes:
        x: (batch, length, width). Returns the same.
    """

    def __init__(
        self, attention: SelfAttention, new_norm: Callable[[int], nn.Module], activation: str
    ) -> None:
        super().__init__()
        width, bias = attention.output.in_features, attention.output.bias is not None
        self.attention = attention
        self.widen, self.narrow = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)
        self.norms = nn.ModuleList(new_norm(width) for _ in range(2))
        self.dropout = nn.Dropout(attention.dropout)
        self.activate = gelu if activation == "gelu" else _squared_relu

    def forward(self, x: Tensor, memory: Memory | None = None, seen: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norms[0](x), memory, seen))
        return x + self.dropout(self.narrow(self.activate(self.widen(self.norms[1](x)))))

    def shrink_branches(self, factor: float) -> None:
        """Divides the weights that end a branch, so that the sum over all branches keeps its scale."""
        with torch.no_grad():
            self.attention.output.weight.div_(factor)
            self.narrow.weight.div_(factor)


def capped(logits: Tensor, cap: float) -> Tensor:
    """Returns cap tanh(logits / cap): between -cap and cap, and nearly the same where they are small."""
    return cap * torch.tanh(logits / cap)


def _squared_relu(x: Tensor) -> Tensor:
    return relu(x).square()


def require_text(spec: DataSpec, name: str) -> None:
    """Refuses data that are not texts to the network of a name."""
    if spec.kind != "tokens" or len(spec.shape) != 1:
        raise ValueError(
            f"{name} needs texts of shape (length,) and levels, but {spec.name} has shape "
            f"{spec.shape} and levels {spec.levels}; flatten a map of codes first."
        )


def require_heads(num_heads: int, width: int) -> None:
    """Refuses heads that do not divide a width."""
    if width % num_heads:
        raise ValueError(f"num_heads must divide width, got {num_heads} and {width}; try 4 and 128.")


def initialise(module: nn.Module) -> None:
    """Gives a linear map or an embedding its first weights, from N(0, 0.02), and biases of 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, 0.0, 0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
