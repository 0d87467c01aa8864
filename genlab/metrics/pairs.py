"""How near a translated image comes to the one that it should be."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchmetrics.utilities import dim_zero_cat

from genlab.colour import luminance
from genlab.metrics.base import Drawn, SampleMetric
from genlab.shapes import levels_to_bytes

DATA_RANGE = 255.0
"""Largest value of an 8-bit level, against which errors are measured."""

SSIM_SIDE = 11
"""Side of the window of SSIM; smaller images have none."""


class PairedQuality(SampleMetric):
    """The mean over images of a quality of each, beside its target; both as 8-bit levels.

    Its plain name is that of all channels and pixels. Where a border is left out, as of enlarged images, and
    of the luma alone, the channels are part of the name (`psnr_rgb`, `psnr_y`): the two differ by about 2 dB.

    Args:
        channels: "rgb" compares all channels, "y" the luma (BT.601) of coloured images alone, as papers on
            super-resolution do.
        border: Pixels left out along each side, by convention as many as the factor of enlargement.

    Shapes:
        drawn.x, drawn.target: (batch, 1 or 3, height, width), levels as uint8.
    """

    higher_is_better = True
    needs = frozenset({"pixels", "target"})
    kind: str
    quality: list[Tensor]

    def __init__(self, channels: Literal["rgb", "y"] = "rgb", border: int = 0) -> None:
        super().__init__()
        if channels not in ("rgb", "y"):
            raise ValueError(f"channels must be rgb or y, got {channels}.")
        if border < 0:
            raise ValueError(f"border must be at least 0, got {border}.")
        self.channels = channels
        self.border = border
        self.add_state("quality", [], dist_reduce_fx="cat")

    @property
    def name(self) -> str:
        """What the score is called."""
        is_plain = self.channels == "rgb" and not self.border
        return self.kind if is_plain else f"{self.kind}_{self.channels}"

    @abstractmethod
    def measure(self, x: Tensor, target: Tensor) -> Tensor:
        """Returns the quality of each image, (batch,), float64; NaN where there is none."""

    def update(self, drawn: Drawn) -> None:
        if drawn.target is None:
            raise ValueError(f"{type(self).__name__} compares with targets, and there are none.")
        x, target = (self.compared(images) for images in (drawn.x, drawn.target.to(drawn.x.device)))
        # None at all is a process's share of few samples.
        found = self.measure(x, target) if len(x) else x.new_zeros(0)
        self.quality.append(found.double())
        self.index.append(drawn.index.to(found.device))

    def compute(self) -> dict[str, float]:
        mean = float(dim_zero_cat(self.quality)[self.numbers().argsort()].mean())
        return {} if mean != mean else {self.name: mean}

    def protocol(self) -> dict[str, Any]:
        return {"channels": self.channels, "border": self.border, "data_range": DATA_RANGE}

    def compared(self, levels: Tensor) -> Tensor:
        """Returns the numbers that are compared, in 0 ... 255: without the border, and the luma alone."""
        assert self._spec is not None
        x = levels_to_bytes(levels, self._spec.levels).double()
        if self.border:
            x = x[..., self.border : -self.border, self.border : -self.border]
        return luma(x) if self.channels == "y" and x.shape[1] == 3 else x


class PSNR(PairedQuality):
    """Peak signal-to-noise ratio in decibels, 10 log10(255^2 / mean squared error). Higher is better.

    Of equal images it is infinite; levels hide errors of 1/12 on the average, so 58.9 is the most.
    """

    kind = "psnr"

    def measure(self, x: Tensor, target: Tensor) -> Tensor:
        found = peak_signal_noise_ratio(x, target, data_range=DATA_RANGE, reduction="none", dim=(1, 2, 3))
        return found.clamp(max=self.largest)

    @property
    def largest(self) -> float:
        """The ratio of an error of a twelfth: the variance of what rounding to levels takes away."""
        return 10.0 * torch.tensor(12.0 * DATA_RANGE**2).log10().item()

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "largest": round(self.largest, 2)}


class SSIM(PairedQuality):
    """Structural similarity of local means, contrasts and structures, from -1 to 1. Higher is better.

    Wang et al. 2004 (10.1109/TIP.2003.819861), equation 13, with their window: normal, sigma 1.5, of 11
    pixels; the mean over those that lie inside of the image. Images with a shorter side have none.
    """

    kind = "ssim"

    def measure(self, x: Tensor, target: Tensor) -> Tensor:
        if min(x.shape[2:]) < SSIM_SIDE:
            return x.new_full((len(x),), torch.nan)
        arguments: dict[str, Any] = {"sigma": 1.5, "kernel_size": SSIM_SIDE, "data_range": DATA_RANGE}
        _, values = structural_similarity_index_measure(
            x, target, **arguments, reduction="none", return_full_image=True
        )
        edge = SSIM_SIDE // 2  # the library mirrors images to have windows there too
        return values[..., edge:-edge, edge:-edge].flatten(1).mean(dim=1)


def luma(rgb: Tensor) -> Tensor:
    """Returns Y of BT.601, from 16 to 235, of red, green and blue in 0 ... 255: one channel."""
    return 16.0 + 219.0 / 255.0 * luminance(rgb)
