"""The U-Net of diffusion models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from genlab.networks.embeddings import ConditionEmbedding
from genlab.shapes import DataSpec


class UNet(nn.Module):
    """Residual blocks at falling and rising sizes, joined by skips, with attention at some sizes.

    Ho et al. 2020 (arXiv:2006.11239), appendix B. The defaults are the paper's for CIFAR-10, 35.7 million
    parameters.

    Args:
        spec: The images; with classes, the network needs a label, and the label num_classes means any.
        channels: Width at each size, from the image's own down; each further one halves it.
        num_blocks: Residual blocks at each size on the way down; the way up has one more.
        attention: Sides, in pixels, at which every block is followed by attention.
        head_dim: Channels of an attention head; None for a single head.
        num_groups: Of each group norm; fewer where a width has no such divisor.
        dropout: Inside each residual block; the paper's 0.1 for CIFAR-10.
        learned_variance: Also return the v of a learned variance, in as many channels again.

    Shapes:
        x: (batch, channels, height, width); t: (batch,), about 0 ... 1,000; label: (batch,). Returns x's.

    Raises:
        ValueError: If the data are not images, or a side cannot be halved that often.
    """

    def __init__(
        self,
        spec: DataSpec,
        channels: Sequence[int] = (128, 256, 256, 256),
        num_blocks: int = 2,
        attention: Sequence[int] = (16,),
        head_dim: int | None = None,
        num_groups: int = 32,
        dropout: float = 0.0,
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        side = _smallest_side(spec, len(channels))
        first, width = channels[0], 4 * channels[0]
        self.condition = ConditionEmbedding(first, width, spec.num_classes)

        def block(inputs: int, outputs: int, at: int) -> nn.Module:
            attends = AttentionBlock(outputs, head_dim, num_groups) if at in attention else None
            return Stage(ResidualBlock(inputs, outputs, width, num_groups, dropout), attends)

        self.input = nn.Conv2d(spec.shape[0], first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, now, at = [first], first, min(spec.shape[1:])
        for number, outputs in enumerate(channels):
            if number:
                self.down.append(Downsample(now))
                skips.append(now)
                at //= 2
            for _ in range(num_blocks):
                self.down.append(block(now, outputs, at))
                skips.append(outputs)
                now = outputs
        assert at == side
        self.middle = nn.ModuleList(
            [
                Stage(
                    ResidualBlock(now, now, width, num_groups, dropout),
                    AttentionBlock(now, head_dim, num_groups),
                ),
                ResidualBlock(now, now, width, num_groups, dropout),
            ]
        )
        for number, outputs in reversed(list(enumerate(channels))):
            for _ in range(num_blocks + 1):
                self.up.append(block(now + skips.pop(), outputs, at))
                now = outputs
            if number:
                self.up.append(Upsample(now))
                at *= 2
        outputs = spec.shape[0] * (2 if learned_variance else 1)
        self.output = nn.Sequential(
            group_norm(now, num_groups), nn.SiLU(), zeroed(nn.Conv2d(now, outputs, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        condition = self.condition(t, label)
        h = self.input(x)
        skips = [h]
        for layer in self.down:
            h = layer(h, condition)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, condition)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, skips.pop()], dim=1), condition)
        return self.output(h)


class Stage(nn.Module):
    """A residual block and, at some sizes, attention."""

    def __init__(self, block: nn.Module, attention: nn.Module | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.block(x, condition)
        return h if self.attention is None else self.attention(h)


class ResidualBlock(nn.Module):
    """Two convolutions, the condition added between them; begins as the identity.

    Args:
        inputs, outputs: Channels.
        width: Length of the condition.
        num_groups: Of each group norm.
        dropout: Before the second convolution.
    """

    def __init__(self, inputs: int, outputs: int, width: int, num_groups: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(
            group_norm(inputs, num_groups), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, outputs))
        self.second = nn.Sequential(
            group_norm(outputs, num_groups),
            nn.SiLU(),
            nn.Dropout(dropout),
            zeroed(nn.Conv2d(outputs, outputs, 3, padding=1)),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.first(x) + self.condition(condition)[:, :, None, None]
        return self.skip(x) + self.second(h)


class AttentionBlock(nn.Module):
    """Every pixel looks at every other one; begins as the identity.

    Args:
        channels: Width.
        head_dim: Channels of a head; None for a single head.
        num_groups: Of the group norm.
    """

    def __init__(self, channels: int, head_dim: int | None, num_groups: int) -> None:
        super().__init__()
        if head_dim is not None and channels % head_dim:
            raise ValueError(f"head_dim must divide the width {channels}, got {head_dim}.")
        self.num_heads = channels // head_dim if head_dim else 1
        self.norm = group_norm(channels, num_groups)
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.output = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # With channels innermost in memory, both moves are views.
        h = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        qkv = self.to_qkv(h).reshape(batch, height * width, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        h = scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height, width, channels)
        return x + self.output(h).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves the sides by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.layer(x)


class Upsample(nn.Module):
    """Doubles the sides by repeating pixels, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.layer(interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    """Returns a group norm with the most groups, up to num_groups, that divide the width."""
    return nn.GroupNorm(math.gcd(channels, num_groups), channels, eps=1e-6)


def zeroed(layer: nn.Module) -> nn.Module:
    """Sets a layer to 0, so that the branch which it ends begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _smallest_side(spec: DataSpec, num_sizes: int) -> int:
    if not spec.is_grid:
        raise ValueError(f"UNet needs images, but {spec.name} has shape {spec.shape}; use MLPDenoiser.")
    factor = 2 ** (num_sizes - 1)
    height, width = spec.shape[1:]
    if height % factor or width % factor:
        raise ValueError(
            f"UNet with {num_sizes} sizes needs sides that are a multiple of {factor}, got "
            f"{height} x {width}; give fewer channels or resize the images."
        )
    return min(height, width) // factor
