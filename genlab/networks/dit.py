"""A transformer over patches for diffusion models, and a perceptron for vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from genlab.networks.attention import Cosine, CrossAttention
from genlab.networks.conditioning import refuse_source, required_source
from genlab.networks.embeddings import ConditionEmbedding, sinusoids
from genlab.networks.text_reader import TextReader, Words
from genlab.networks.unet import zeroed
from genlab.shapes import DataSpec


class DiT(nn.Module):
    """Attention and perceptrons over patches, scaled and shifted by the condition.

    Peebles and Xie 2023 (arXiv:2212.09748), section 3, adaLN-Zero: each block begins as the identity. A
    source that is a text is looked at in each block, between attention and perceptron (PixArt-alpha, Chen et
    al. 2024, arXiv:2310.00426, section 2.3), and reaches the output in no other way.

    Args:
        spec: The images; with classes, the network needs a label, and the label num_classes means any; with a
            text as its source, it needs that, and a text of nothing but padding means any.
        patch_size: Side of a patch in pixels; halving it quadruples the tokens.
        width: Length of a token.
        depth: Number of blocks.
        num_heads: Attention heads.
        learned_variance: Also return the v of a learned variance, in as many channels again.
        qk_norm: Whether scores of patches are the cosines of queries and keys, times what each head learns.
        text: Makes the reader of a source that is a text, of its spec.

    Shapes:
        x: (batch, channels, height, width); t, label: (batch,); source: (batch, length) tokens. Returns x's
        shape.
    """

    def __init__(
        self,
        spec: DataSpec,
        patch_size: int = 2,
        width: int = 256,
        depth: int = 6,
        num_heads: int = 4,
        learned_variance: bool = False,
        qk_norm: bool = False,
        text: Callable[[DataSpec], TextReader] = TextReader,
    ) -> None:
        super().__init__()
        if spec.source is not None and (spec.source.kind != "tokens" or len(spec.source.shape) != 1):
            refuse_source(spec, "DiT", "no source but texts")
        if not spec.is_grid or any(side % patch_size for side in spec.shape[1:]):
            raise ValueError(
                f"DiT needs images with sides of whole patches of {patch_size}, got {spec.shape}."
            )
        if width % num_heads or width % 4:
            raise ValueError(f"width must be a multiple of num_heads and of 4, got {width} and {num_heads}.")
        channels, self.patch = spec.shape[0], patch_size
        self.outputs = channels * (2 if learned_variance else 1)
        self.condition = ConditionEmbedding(256, width, spec.num_classes)
        self.input = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        rows, columns = (side // patch_size for side in spec.shape[1:])
        self.register_buffer("place", _places(rows, columns, width), persistent=False)
        self.text = None if spec.source is None else text(spec.source)
        text_width = None if self.text is None else self.text.width
        longest = rows * columns if qk_norm else None
        self.blocks = nn.ModuleList([_Block(width, num_heads, longest, text_width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 2 * width)))
        self.output = zeroed(nn.Linear(width, patch_size**2 * self.outputs))

    @property
    def output_weight(self) -> Tensor:
        """The matrix that makes patches, (patch_size^2 channels, width)."""
        return self.output.weight  # type: ignore[return-value]

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        condition = self.condition(t, label)
        words = None if self.text is None else self.text(required_source(source))
        h = self.input(x)
        rows, columns = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            h = block(h, condition, words)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)
        h = self.output(self.norm(h) * (1 + scale) + shift)
        h = h.reshape(len(x), rows, columns, self.patch, self.patch, self.outputs)
        return h.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, *x.shape[2:])


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int, qk_norm: int | None, text_width: int | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.cosine = None if qk_norm is None else Cosine(num_heads, width // num_heads, qk_norm)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.to_qkv, self.to_output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), zeroed(nn.Linear(width, 6 * width)))
        self.across = None
        if text_width is not None:
            self.across = CrossAttention(width, num_heads, 0.0, text_width)
            zeroed(self.across.output)

    def forward(self, x: Tensor, condition: Tensor, words: Words | None) -> Tensor:
        parts = self.modulation(condition)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_after, scale_after, gate_after = parts
        x = x + gate * self._attend(self.norm(x) * (1 + scale) + shift)
        if self.across is not None:
            assert words is not None
            x = x + self.across(self.norm(x), self.across.read(words.vectors), words.seen)
        return x + gate_after * self.perceptron(self.norm(x) * (1 + scale_after) + shift_after)

    def _attend(self, h: Tensor) -> Tensor:
        batch, length, width = h.shape
        qkv = self.to_qkv(h).reshape(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k = qkv[:2] if self.cosine is None else self.cosine(qkv[:2])
        v = qkv[2]
        h = scaled_dot_product_attention(q, k, v)
        return self.to_output(h.transpose(1, 2).reshape(batch, length, width))


class MLPDenoiser(nn.Module):
    """A perceptron from a noisy vector, its noise level and its label to the vector's own shape.

    Args:
        spec: The data; with classes, the network needs a label, and the label num_classes means any.
        hidden: Widths of the hidden layers.
        time_dim: Length of the sinusoids of time.

    Shapes:
        x: (batch, *spec.shape); t, label: (batch,). Returns x's shape.
    """

    def __init__(self, spec: DataSpec, hidden: Sequence[int] = (128, 128, 128), time_dim: int = 64) -> None:
        super().__init__()
        refuse_source(spec, "MLPDenoiser")
        size = math.prod(spec.shape)
        self.condition = ConditionEmbedding(time_dim, hidden[0], spec.num_classes)
        self.input = nn.Linear(size, hidden[0])
        layers = [nn.Sequential(nn.SiLU(), nn.Linear(a, b)) for a, b in pairwise(hidden)]
        self.hidden = nn.Sequential(*layers, nn.SiLU(), nn.Linear(hidden[-1], size))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.input(x.flatten(1)) + self.condition(t, label)
        return self.hidden(h).reshape(x.shape)


def _places(rows: int, columns: int, width: int) -> Tensor:
    """Returns a fixed code of each patch's row and column, (rows * columns, width)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.cat([sinusoids(row.flatten(), width // 2), sinusoids(column.flatten(), width // 2)], dim=1)
