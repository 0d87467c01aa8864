"""Pictures of any size through a network that was trained on small ones: whole, or in tiles without seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from genlab.families.weights import Average

LARGEST = 2**21
"""Pixels of a picture, or of what becomes of it, up to which it is translated in one piece."""

TILE = 1024
"""Side of the tiles of a larger one, in pixels of what becomes of it, without their overlap."""

SMALLEST = 8
"""Side up to which a smaller picture is filled up, since maps are mirrored at their borders."""

Progress = Callable[[int, int], None]
"""Is told how many of how many tiles are done."""


@dataclass(frozen=True)
class Tile:
    """A part of a picture and what surrounds it, in pixels of the source; bottom and right are exclusive.

    Attributes:
        top, bottom, left, right: What the network sees.
        core: The same four of the part that the tile answers for.
    """

    top: int
    bottom: int
    left: int
    right: int
    core: tuple[int, int, int, int]

    def of(self, picture: Tensor) -> Tensor:
        """Returns what the network sees of a picture, (..., height, width)."""
        return picture[..., self.top : self.bottom, self.left : self.right]

    def core_of(self, x: Tensor) -> Tensor:
        """Returns the core's part of a map of this tile, at whatever resolution.

        Raises:
            ValueError: The map's pixels do not lie on those of the source.
        """
        top, bottom, left, right = self.core
        rows = _on_map(x.shape[-2], top - self.top, bottom - self.top, self.bottom - self.top)
        columns = _on_map(x.shape[-1], left - self.left, right - self.left, self.right - self.left)
        return x[..., rows, columns]


class Translator:
    """Translates pictures of any size by a model that is told an image as its source.

    Sides that are no multiple of what the network takes are filled up by reflection at the bottom and on the
    right, and the result is cut. A large picture is cut into tiles whose cores cover it. Each sees `margin`
    more pixels on every side, aligned to `multiple`, so that its core is what the whole picture would give;
    where a tile ends at the picture's border, the network's own padding is the same.

    Instance norms take their means and variances from the whole picture nevertheless. With K of them there
    are K + 1 passes over the tiles: pass k knows those of the norms before, gathers those of norm k over the
    cores (Chan et al. 1979) and ends there; the last one gives the image.

    Args:
        model: Has the capability `Samples` and is told a source.
        tile: Side of the cores in pixels of the source, 0 for the whole picture in one piece; None takes
            tiles of `TILE` where a picture has more than `LARGEST` pixels and the network can be tiled.

    Raises:
        ValueError: The model translates no images, or its network cannot be tiled and must be.
    """

    def __init__(self, model: Any, tile: int | None = None) -> None:
        self.model, self.network = model, translating_network(model)
        self.multiple, self.scale = int(self.network.multiple), int(self.network.scale)
        self.margin: int | None = self.network.margin
        self.tile = tile
        if tile and self.margin is None:
            raise ValueError(
                f"{type(self.network).__name__} sees the whole picture in each of its pixels and cannot be "
                "tiled: leave --tile out, make the picture smaller, or give the machine more memory."
            )

    @torch.no_grad()
    def __call__(self, source: Tensor, progress: Progress | None = None) -> Tensor:
        """Returns the translation of one picture on the CPU.

        Args:
            source: (channels, height, width) in [-1, 1].
            progress: Is told of every tile of every pass.
        """
        height, width = source.shape[1:]
        padded = reflected(source, self._side(height, 1), self._side(width, 2))
        side = self._tile_side(padded)
        tiles = [whole(padded)] if not side else list(self._tiles(padded, side))
        image = self._translated(padded, tiles, progress or (lambda done, total: None))
        return image[:, : height * self.scale, : width * self.scale]

    def _side(self, side: int, axis: int) -> int:
        """Returns the next side that the network takes; the one it was trained on is never filled up."""
        least = min(max(2 * self.multiple, SMALLEST), self.model.spec.source.shape[axis])
        return -(-max(side, least) // self.multiple) * self.multiple

    def _tile_side(self, padded: Tensor) -> int:
        if self.tile is not None:
            return self.tile
        pixels = padded[0].numel() * self.scale**2
        return TILE // self.scale if pixels > LARGEST and self.margin is not None else 0

    def _tiles(self, padded: Tensor, side: int) -> Iterator[Tile]:
        assert self.margin is not None
        height, width = padded.shape[1:]
        margin = -(-self.margin // self.multiple) * self.multiple
        for (top, bottom), (left, right) in product(
            pairwise(_cuts(height, side, self.multiple)), pairwise(_cuts(width, side, self.multiple))
        ):
            yield Tile(
                max(0, top - margin),
                min(height, bottom + margin),
                max(0, left - margin),
                min(width, right + margin),
                (top, bottom, left, right),
            )

    def _translated(self, padded: Tensor, tiles: list[Tile], progress: Progress) -> Tensor:
        if len(tiles) == 1:
            return self._image(padded)
        height, width = padded.shape[1:]
        image = torch.empty(self.model.spec.shape[0], height * self.scale, width * self.scale)
        with WholeNorms(self.network) as norms:
            total, done = len(tiles) * (len(norms.norms) + 1), 0
            while not norms.complete:
                for tile in tiles:
                    with norms.of_tile(tile):
                        made = tile.core_of(self._image(tile.of(padded)))
                        top, bottom, left, right = (self.scale * place for place in tile.core)
                        image[:, top:bottom, left:right] = made
                    done += 1
                    progress(done, total)
                norms.finish_pass()
        return image

    def _image(self, source: Tensor) -> Tensor:
        number = torch.zeros(1, dtype=torch.int64, device=self.model.device)
        return self.model.sample(number, seed=0, source=source[None].to(self.model.device))[0].cpu()


class WholeNorms:
    """Lets a network's instance norms, called in the same order for each tile, see a whole picture.

    A context: in it, the norms whose statistics are known use them, and the first other one ends the tile's
    pass. Norms with running averages look at no picture and are left alone.

    Args:
        network: Whose layers are watched.

    Attributes:
        complete: Whether all statistics are known and used by a finished pass.
    """

    def __init__(self, network: nn.Module) -> None:
        self.norms = [
            layer
            for layer in network.modules()
            if isinstance(layer, nn.InstanceNorm2d) and not layer.track_running_stats
        ]
        self.complete = False
        self._known: list[tuple[Tensor, Tensor]] = []
        self._gathered = Moments()
        self._handles: list[RemovableHandle] = []
        self._tile: Tile | None = None
        self._calls = 0

    def __enter__(self) -> WholeNorms:
        self._handles = [norm.register_forward_hook(self._normalised) for norm in self.norms]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def of_tile(self, tile: Tile) -> Iterator[None]:
        """Lets one tile go through the network, as far as it can: what comes after that is left out."""
        self._tile, self._calls = tile, 0
        with suppress(_FarEnough):
            yield

    def finish_pass(self) -> None:
        """Makes what all tiles have gathered known; a pass that has gathered nothing was the last one."""
        self.complete = not self._gathered.num
        if not self.complete:
            self._known.append(self._gathered.mean_and_variance())
            self._gathered = Moments()

    def _normalised(self, norm: nn.InstanceNorm2d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        assert self._tile is not None
        x, number = inputs[0], self._calls
        self._calls += 1
        if number == len(self._known):
            self._gathered.add(self._tile.core_of(x))
            raise _FarEnough
        mean, variance = self._known[number]
        weight = None if norm.weight is None else norm.weight.to(x.dtype)
        bias = None if norm.bias is None else norm.bias.to(x.dtype)
        mean, variance = mean.to(x), variance.to(x)
        return functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=norm.eps)


class Moments:
    """Mean and variance of each channel over parts of a map, (1, channels, height, width), in float64."""

    def __init__(self) -> None:
        self.num = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0

    def add(self, x: Tensor) -> None:
        """Takes a part in; sums of squares are of differences from the mean, so that none cancels."""
        num = x.shape[2] * x.shape[3]
        variance, mean = (value[0].double().cpu() for value in torch.var_mean(x, dim=(2, 3), correction=0))
        total, apart = self.num + num, mean - self._mean
        self._squares = self._squares + num * variance + apart.square() * (self.num * num / total)
        self._mean = self._mean + apart * (num / total)
        self.num = total

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        """Returns both, (channels,)."""
        return self._mean, self._squares / self.num


class _FarEnough(Exception):  # noqa: N818 - a signal from inside of a network
    """A tile has met a norm whose statistics are not known yet."""


def translating_network(model: Any) -> Any:
    """Returns the network that makes a model's images of their sources.

    Raises:
        ValueError: The model is told no image, or something else beside it, or its network takes one size.
    """
    spec = model.spec
    if "source" not in model.given or spec.kind != "image" or spec.source.kind != "image":
        raise ValueError(
            f"This {type(model).__name__} of {spec.name} translates no images: it takes a model that is told "
            "an image as its source, such as experiments/pix2pix_facades.yaml trains."
        )
    if tuple(model.given) != ("source",):
        raise ValueError(
            f"This {type(model).__name__} is told {' and '.join(model.given)}: a picture alone is not enough."
        )
    network = getattr(model, "sampling_network", None)
    network = network.module if isinstance(network, Average) else network
    if not all(hasattr(network, name) for name in ("multiple", "scale", "margin")):
        raise ValueError(
            f"{type(network).__name__} does not say which sizes it takes: give it the attributes multiple, "
            "scale and margin, as UNetGenerator has them."
        )
    return network


def reflected(picture: Tensor, height: int, width: int) -> Tensor:
    """Returns a picture with rows and columns added by reflection, as often as needed.

    Args:
        picture: (channels, rows, columns), not larger.
        height: Rows to reach.
        width: Columns to reach.
    """
    if (height, width) == picture.shape[1:]:
        return picture
    rows, columns = _there_and_back(picture.shape[1], height), _there_and_back(picture.shape[2], width)
    return picture[:, rows][:, :, columns]


def whole(picture: Tensor) -> Tile:
    """Returns the tile that is a whole picture."""
    height, width = picture.shape[-2:]
    return Tile(0, height, 0, width, (0, height, 0, width))


def _there_and_back(num: int, length: int) -> Tensor:
    """Returns 0 ... num - 1 and back to 0, and so on: the borders are not repeated."""
    place = torch.arange(length) % max(1, 2 * num - 2)
    return torch.minimum(place, 2 * num - 2 - place) if num > 1 else torch.zeros_like(place)


def _cuts(length: int, side: int, multiple: int) -> list[int]:
    """Returns where a length is cut into parts of about one size, at most `side` where that is a multiple."""
    steps = length // multiple
    num = -(-steps // max(1, side // multiple))
    return [multiple * (steps * number // num) for number in range(num + 1)]


def _on_map(size: int, start: int, stop: int, length: int) -> slice:
    """Returns the part of a map's side that stands for a part of a tile's side."""
    if start * size % length or stop * size % length:
        raise ValueError(
            f"A map of {size} pixels does not lie on a tile of {length}: this network cannot be tiled; leave "
            "--tile out."
        )
    return slice(start * size // length, stop * size // length)
