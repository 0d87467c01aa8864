"""How many translations are right, where the right one is known and looks like nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.colour import luminance_correlation
from genlab.metrics.base import Drawn, SampleMetric
from genlab.metrics.duplicates import nearest_distances
from genlab.shapes import levels_to_bytes

_DARK = 0.25


class RightTranslations(SampleMetric):
    """The shares of samples with the right shape, colour and place: one bright thing on a dark ground each.

    `right_shape`: nearer to the target than the source is, and than to the source, as pixels. `right_place`:
    centres of what is bright differ by at most `max_shift`. `right_colour`: where the target is brightest, no
    channel's mean differs by more than `max_shade`. `right`: all of it. Besides, `inverted` are those that
    are bright where their source is dark, by the sign of their luminances' correlation, and `collapsed` those
    that are nearer to another sample than any two targets are to each other.

    Args:
        max_shift: Largest right distance of centres, in pixels.
        max_shade: Largest right difference of a channel's mean, as a share of its range.

    Shapes:
        drawn.x, drawn.target: (batch, channels, height, width), levels as uint8; drawn.source: as floats.
    """

    higher_is_better = True
    needs = frozenset({"pixels", "target"})
    found: list[Tensor]
    rows: list[Tensor]
    targets: list[Tensor]

    def __init__(self, max_shift: float = 1.0, max_shade: float = 0.125) -> None:
        super().__init__()
        self.max_shift, self.max_shade = max_shift, max_shade
        for name in ("found", "rows", "targets"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, drawn: Drawn) -> None:
        if drawn.target is None or drawn.source is None:
            raise ValueError(f"{type(self).__name__} compares with sources and targets, and there are none.")
        x, target = self._shares(drawn.x), self._shares(drawn.target.to(drawn.x.device))
        source = (drawn.source.to(x) + 1.0) / 2.0
        error = _squares(x - target)
        shape = (error < _squares(x - source)) & (error < _squares(source - target))
        place = (centre(x) - centre(target)).norm(dim=1) <= self.max_shift
        colour = (_shade(x, target) - _shade(target, target)).abs().amax(dim=1) <= self.max_shade
        inverted = luminance_correlation(x, source) < 0
        self.found.append(torch.stack([shape & place & colour, shape, place, colour, inverted], dim=1))
        self.rows.append(x.flatten(1))
        self.targets.append(target.flatten(1))
        self.index.append(drawn.index.to(x.device))

    def compute(self) -> dict[str, float]:
        shares = self.in_order(self.found).double().mean(dim=0).tolist()
        names = ("right", "right_shape", "right_place", "right_colour", "inverted")
        least = nearest_distances(self.in_order(self.targets)).min()
        collapsed = (nearest_distances(self.in_order(self.rows)) < least).double().mean()
        return {**dict(zip(names, shares, strict=True)), "collapsed": float(collapsed)}

    def protocol(self) -> dict[str, Any]:
        return {"max_shift": self.max_shift, "max_shade": self.max_shade}

    def _shares(self, levels: Tensor) -> Tensor:
        assert self._spec is not None
        return levels_to_bytes(levels, self._spec.levels).float() / 255.0


def centre(x: Tensor) -> Tensor:
    """Returns the centre of what is bright in each image, (batch, 2): row and column, in pixels.

    Shapes:
        x: (batch, channels, height, width), in [0, 1].
    """
    bright = (x.amax(dim=1) - _DARK).clamp(min=0.0)
    total = bright.sum(dim=(1, 2)).clamp(min=1e-6)
    rows = (bright.sum(dim=2) * torch.arange(x.shape[2], device=x.device)).sum(dim=1) / total
    columns = (bright.sum(dim=1) * torch.arange(x.shape[3], device=x.device)).sum(dim=1) / total
    return torch.stack([rows, columns], dim=1)


def _squares(x: Tensor) -> Tensor:
    return x.square().sum(dim=(1, 2, 3))


def _shade(x: Tensor, target: Tensor) -> Tensor:
    """Returns the mean of each channel where the target is at least nine tenths as bright as anywhere."""
    bright = target.amax(dim=1, keepdim=True)
    inside = (bright >= 0.9 * bright.amax(dim=(2, 3), keepdim=True)).to(x)
    return (x * inside).sum(dim=(2, 3)) / inside.sum(dim=(2, 3))
