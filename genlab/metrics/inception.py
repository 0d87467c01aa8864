"""The Inception-v3 of the FID paper: the TensorFlow graph of 2015-12-05.

Szegedy et al. 2015 (arXiv:1512.00567). Published FID, IS and KID mean this very graph, whose pooling
differs from the paper's in the border and in the last block, with its resizing and its 1008 logits.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

from genlab.metrics.features import Extractor, Features, MissingWeights, extractor_digest
from genlab.shapes import levels_to_bytes

_SIZE = 299
_RESIZE = "tf1-bilinear-299"
_ARCHITECTURE = "inception-v3-2015-12-05"
_DAMAGED = (
    *(TypeError, RuntimeError, ValueError, LookupError, AttributeError),
    *(
        EOFError,
        OSError,
        pickle.UnpicklingError,
        SafetensorError,
    ),
)


class InceptionExtractor(Extractor):
    """Features (2048) and bias-free logits (1008) of the FID Inception; its input is RGB bytes.

    Grey images are repeated to three channels, other level counts are mapped to bytes first. Batch norms
    are folded into the convolutions, which changes float32's rounding only.

    Args:
        weights: The public file's state dict.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        digest = extractor_digest(weights, _ARCHITECTURE, _RESIZE)
        super().__init__("inception", 2048, 1008, _RESIZE, digest)
        self.network = InceptionV3()
        self.network.load_state_dict(fold_batch_norms(weights))
        self.network.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def extract(self, levels: Tensor, num_levels: int) -> Features:
        if levels.shape[1] not in (1, 3):
            raise ValueError(f"Inception reads grey or RGB images, got {levels.shape[1]} channels.")
        x = levels_to_bytes(levels, num_levels).float().expand(-1, 3, -1, -1)
        x = (resize_like_tensorflow1(x, _SIZE) - 128.0) / 128.0
        pool = self.network(x.contiguous(memory_format=torch.channels_last))
        # Without the bias, as the graph's own score computes it.
        return Features(pool, pool @ self.network.fc.weight.mT)


def resize_like_tensorflow1(x: Tensor, size: int) -> Tensor:
    """Returns images at size x size by TensorFlow 1's bilinear rule: output i reads input i * old / new.

    There is neither a half-pixel shift nor antialiasing, so a smaller picture skips pixels; a different
    resizing moves FID by whole points. Positions are computed in float32, as there.

    Shapes:
        x: (batch, channels, height, width). Returns (batch, channels, size, size).
    """
    for dim in (3, 2):
        old = x.shape[dim]
        place = torch.arange(size, dtype=torch.float32, device=x.device) * (old / size)
        low = place.long()
        shape = [1, 1, 1, 1]
        shape[dim] = size
        weight = (place - low).reshape(shape)
        near, far = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(old - 1))
        x = near + (far - near) * weight
    return x


def fold_batch_norms(weights: Mapping[str, Tensor], eps: float = 1e-3) -> dict[str, Tensor]:
    """Returns the state dict in which every convolution has absorbed the batch norm behind it.

    gain = weight / sqrt(var + eps):   w' = gain w,   b' = bias - gain mean
    """
    folded = {name: weights[name] for name in ("fc.weight", "fc.bias")}
    for name in (key.removesuffix(".conv.weight") for key in weights if key.endswith(".conv.weight")):
        gain, bias, mean, variance = (
            weights[f"{name}.bn.{part}"].double()
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = gain / (variance + eps).sqrt()
        convolution = weights[f"{name}.conv.weight"].double() * gain[:, None, None, None]
        folded[f"{name}.weight"], folded[f"{name}.bias"] = convolution.float(), (bias - gain * mean).float()
    return folded


class Convolution(nn.Conv2d):
    """A convolution with its rectifier; keeps the size unless it has a stride or is told to shrink."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        shrink: bool = False,
    ) -> None:
        kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if shrink or stride > 1 else (kernel[0] // 2, kernel[1] // 2)
        super().__init__(in_channels, channels, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return relu(super().forward(x), inplace=True)


Unit = tuple[int, int | tuple[int, int]] | tuple[int, int | tuple[int, int], int]
"""Channels, kernel and, if not 1, stride of a convolution."""


class Mixed(nn.Module):
    """An Inception block: branches side by side, their channels joined.

    Args:
        in_channels: Channels of the input.
        pool: What the last branch does before its convolution.
        branches: For every branch, its steps; a step is one convolution, or several that fork. Named as in
            the public weights: name_1, name_2, a fork name_2a, name_2b, a single step just name.
    """

    def __init__(
        self, in_channels: int, pool: Callable[[Tensor], Tensor], branches: Mapping[str, list[list[Unit]]]
    ) -> None:
        super().__init__()
        self.pool = pool
        self.branches: dict[str, list[list[str]]] = {}
        for name, steps in branches.items():
            channels = in_channels
            self.branches[name] = []
            for number, step in enumerate(steps, start=1):
                names = _unit_names(name, number, len(steps), len(step))
                for unit_name, unit in zip(names, step, strict=True):
                    self.add_module(unit_name, Convolution(channels, *unit))
                self.branches[name].append(names)
                channels = sum(unit[0] for unit in step)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self._branch(name, x) for name in self.branches]
        if "branch_pool" not in self.branches:
            outputs.append(self.pool(x))
        return torch.cat(outputs, dim=1)

    def _branch(self, name: str, x: Tensor) -> Tensor:
        if name == "branch_pool":
            x = self.pool(x)
        for step in self.branches[name]:
            x = torch.cat([self.get_submodule(unit)(x) for unit in step], dim=1)
        return x


def _unit_names(branch: str, number: int, num_steps: int, num_forks: int) -> list[str]:
    if num_steps == 1:
        return [branch]
    if num_forks == 1:
        return [f"{branch}_{number}"]
    return [f"{branch}_{number}{letter}" for letter in "ab"]


def _average(x: Tensor) -> Tensor:
    # TensorFlow's average leaves the padding out; the paper's and torchvision's counts it as zeros.
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    # The last block of this graph takes the maximum where its twin, and the paper, take the average.
    return max_pool2d(x, 3, stride=1, padding=1)


def _halve(x: Tensor) -> Tensor:
    return max_pool2d(x, 3, stride=2)


def _chain(*units: Unit) -> list[list[Unit]]:
    return [[unit] for unit in units]


def _block_a(in_channels: int, pool_channels: int) -> Mixed:
    branches = {
        "branch1x1": _chain((64, 1)),
        "branch5x5": _chain((48, 1), (64, 5)),
        "branch3x3dbl": _chain((64, 1), (96, 3), (96, 3)),
        "branch_pool": _chain((pool_channels, 1)),
    }
    return Mixed(in_channels, _average, branches)


def _block_b(in_channels: int) -> Mixed:
    branches = {
        "branch3x3": _chain((384, 3, 2)),
        "branch3x3dbl": _chain((64, 1), (96, 3), (96, 3, 2)),
    }
    return Mixed(in_channels, _halve, branches)


def _block_c(in_channels: int, inner: int) -> Mixed:
    row, column = (1, 7), (7, 1)
    branches = {
        "branch1x1": _chain((192, 1)),
        "branch7x7": _chain((inner, 1), (inner, row), (192, column)),
        "branch7x7dbl": _chain((inner, 1), (inner, column), (inner, row), (inner, column), (192, row)),
        "branch_pool": _chain((192, 1)),
    }
    return Mixed(in_channels, _average, branches)


def _block_d(in_channels: int) -> Mixed:
    branches = {
        "branch3x3": _chain((192, 1), (320, 3, 2)),
        "branch7x7x3": _chain((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
    }
    return Mixed(in_channels, _halve, branches)


def _block_e(in_channels: int, pool: Callable[[Tensor], Tensor]) -> Mixed:
    fork: list[Unit] = [(384, (1, 3)), (384, (3, 1))]
    branches = {
        "branch1x1": _chain((320, 1)),
        "branch3x3": [*_chain((384, 1)), fork],
        "branch3x3dbl": [*_chain((448, 1), (384, 3)), fork],
        "branch_pool": _chain((192, 1)),
    }
    return Mixed(in_channels, pool, branches)


class InceptionV3(nn.Module):
    """The network, batch norms folded; module names are the public file's.

    Shapes:
        x: (batch, 3, 299, 299), values in [-1, 1]. Returns (batch, 2048).
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, shrink=True)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, shrink=True)
        self.Mixed_5b = _block_a(192, pool_channels=32)
        self.Mixed_5c = _block_a(256, pool_channels=64)
        self.Mixed_5d = _block_a(288, pool_channels=64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b = _block_c(768, inner=128)
        self.Mixed_6c = _block_c(768, inner=160)
        self.Mixed_6d = _block_c(768, inner=160)
        self.Mixed_6e = _block_c(768, inner=192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b = _block_e(1280, _average)
        self.Mixed_7c = _block_e(2048, _maximum)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_halve(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_halve(x))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


def load_inception(path: Path) -> InceptionExtractor:
    """Returns the extractor with the weights in a file of the public file's format."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return InceptionExtractor(weights)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise MissingWeights(f"{path} does not hold the FID Inception's weights: {reason}") from None
