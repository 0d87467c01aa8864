"""The U-Net of diffusion models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from genlab.networks.attention import CrossAttention
from genlab.networks.conditioning import required_source
from genlab.networks.embeddings import ConditionEmbedding
from genlab.networks.text_reader import TextReader, Words
from genlab.shapes import DataSpec


class UNet(nn.Module):
    """Residual blocks at falling and rising sizes, joined by skips, with attention at some sizes.

    Ho et al. 2020 (arXiv:2006.11239), appendix B. The defaults are the paper's for CIFAR-10, 35.7 million
    parameters. A source that is a text is looked at wherever there is attention (Rombach et al. 2022,
    arXiv:2112.10752, section 3.3), and reaches the output in no other way; one that is an image is stacked on
    x (Saharia et al. 2021, SR3, arXiv:2104.07636).

    Args:
        spec: The images, or codes on a grid; with classes, the network needs a label, and the label
            num_classes means any; with a source, it needs that, and a text of nothing but padding means any.
        channels: Width at each size, from the image's own down; each further one halves it.
        num_blocks: Residual blocks at each size on the way down; the way up has one more.
        attention: Sides, in pixels, at which every block is followed by attention.
        head_dim: Channels of an attention head; None for a single head.
        num_groups: Of each group norm; fewer where a width has no such divisor.
        dropout: Inside each residual block; the paper's 0.1 for CIFAR-10.
        learned_variance: Also return the v of a learned variance, in as many channels again.
        text: Makes the reader of a source that is a text, of its spec.
        coordinates: Whether the first convolution also sees each pixel's row and column, in [-1, 1]
            (CoordConv, Liu et al. 2018, arXiv:1807.03247): convolutions know places from the edges' zeros
            alone, too faintly to put what a text says to the left on the left.

    Shapes:
        x: (batch, channels, height, width); t: (batch,), about 0 ... 1,000; label: (batch,); source: (batch,
        length) tokens, or (batch, source channels, height, width). Returns x's.

    Raises:
        ValueError: If the data are not images, a side cannot be halved that often, or the source is neither a
            text nor an image of the same sides.
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
        text: Callable[[DataSpec], TextReader] = TextReader,
        coordinates: bool = False,
    ) -> None:
        super().__init__()
        side = _smallest_side(spec, len(channels))
        first, width = channels[0], 4 * channels[0]
        self.condition = ConditionEmbedding(first, width, spec.num_classes)
        words, image = _sources(spec)
        self.text = None if words is None else text(words)
        self.has_image = image is not None

        def looks(channels: int) -> tuple[nn.Module, nn.Module | None]:
            at_pixels, size = AttentionBlock(channels, head_dim, num_groups), (head_dim, num_groups)
            return at_pixels, None if self.text is None else TextAttention(channels, self.text.width, *size)

        def stage(inputs: int, outputs: int, at: int) -> nn.Module:
            found = looks(outputs) if at in attention else (None, None)
            return Stage(ResidualBlock(inputs, outputs, width, num_groups, dropout), *found)

        self.coordinates = coordinates
        seen = spec.shape[0] + (image.shape[0] if image else 0) + 2 * coordinates
        self.input = nn.Conv2d(seen, first, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, now, at = [first], first, min(spec.shape[1:])
        for number, outputs in enumerate(channels):
            if number:
                self.down.append(Downsample(now))
                skips.append(now)
                at //= 2
            for _ in range(num_blocks):
                self.down.append(stage(now, outputs, at))
                skips.append(outputs)
                now = outputs
        assert at == side
        self.middle = nn.ModuleList(
            [
                Stage(ResidualBlock(now, now, width, num_groups, dropout), *looks(now)),
                ResidualBlock(now, now, width, num_groups, dropout),
            ]
        )
        for number, outputs in reversed(list(enumerate(channels))):
            for _ in range(num_blocks + 1):
                self.up.append(stage(now + skips.pop(), outputs, at))
                now = outputs
            if number:
                self.up.append(Upsample(now))
                at *= 2
        outputs = spec.shape[0] * (2 if learned_variance else 1)
        self.output = nn.Sequential(
            group_norm(now, num_groups), nn.SiLU(), zeroed(nn.Conv2d(now, outputs, 3, padding=1))
        )

    @property
    def output_weight(self) -> Tensor:
        """The filters that make the output."""
        return self.output[-1].weight  # type: ignore[return-value]

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, source: Tensor | None = None
    ) -> Tensor:
        words = None if self.text is None else self.text(required_source(source))
        told = Told(self.condition(t, label), words)
        seen = [x, required_source(source)] if self.has_image else [x]
        if self.coordinates:
            seen.append(_coordinates(x))
        h = self.input(torch.cat(seen, dim=1))
        skips = [h]
        for layer in self.down:
            h = layer(h, told)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, told)
        for layer in self.up:
            h = layer(h if isinstance(layer, Upsample) else torch.cat([h, skips.pop()], dim=1), told)
        return self.output(h)


class Told(NamedTuple):
    """What every layer hears of beside the image.

    Attributes:
        condition: Noise level and label, (batch, width).
        words: The text, where there is one.
    """

    condition: Tensor
    words: Words | None


class Stage(nn.Module):
    """A residual block and, at some sizes, attention to the pixels and then to the words."""

    def __init__(self, block: nn.Module, attention: nn.Module | None, words: nn.Module | None) -> None:
        super().__init__()
        self.block, self.attention, self.words = block, attention, words

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.block(x, told)
        if self.attention is not None:
            h = self.attention(h)
        return h if self.words is None else self.words(h, told.words)


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

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.first(x) + self.condition(told.condition)[:, :, None, None]
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
        self.num_heads = _num_heads(channels, head_dim)
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


class TextAttention(nn.Module):
    """Every pixel looks at the words of a text; begins as the identity.

    Args:
        channels: Width.
        text_width: Length of a word's vector.
        head_dim: Channels of a head; None for a single head.
        num_groups: Of the group norm.
    """

    def __init__(self, channels: int, text_width: int, head_dim: int | None, num_groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, num_groups)
        self.across = CrossAttention(channels, _num_heads(channels, head_dim), 0.0, text_width)
        zeroed(self.across.output)

    def forward(self, x: Tensor, words: Words) -> Tensor:
        h = self.norm(x).permute(0, 2, 3, 1)
        looked = self.across(h.flatten(1, 2), self.across.read(words.vectors), words.seen)
        return x + looked.view_as(h).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halves the sides by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        return self.layer(x)


class Upsample(nn.Module):
    """Doubles the sides by repeating pixels, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        return self.layer(interpolate(x, scale_factor=2.0, mode="nearest"))


def _coordinates(x: Tensor) -> Tensor:
    """Returns the row and the column of each pixel, in [-1, 1], (batch, 2, height, width)."""
    height, width = (torch.linspace(-1, 1, side, device=x.device, dtype=x.dtype) for side in x.shape[2:])
    grid = torch.stack(torch.meshgrid(height, width, indexing="ij"))
    return grid.expand(len(x), *grid.shape)


def _num_heads(channels: int, head_dim: int | None) -> int:
    if head_dim is not None and channels % head_dim:
        raise ValueError(f"head_dim must divide the width {channels}, got {head_dim}.")
    return channels // head_dim if head_dim else 1


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


def _sources(spec: DataSpec) -> tuple[DataSpec | None, DataSpec | None]:
    """Returns the source as a text to look at, or as an image to be stacked on x; None for what it is not."""
    source = spec.source
    if source is None:
        return None, None
    if source.kind == "tokens" and len(source.shape) == 1:
        return source, None
    if source.is_grid and source.shape[1:] == spec.shape[1:]:
        return None, source
    raise ValueError(
        f"UNet reads texts and images of the sides of {spec.name}, {spec.shape[1]} x {spec.shape[2]}, as a "
        f"source, but {source.name} has shape {source.shape}: resize it, or leave source out of model.given."
    )
