"""How the training loss answers to growing learning rates (Smith 2017, arXiv:1506.01186, section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.divergence import DivergenceGuard
from genlab.distributed import joined_mean
from genlab.evaluation.pictures import new_figure, rendered
from genlab.families.base import Schedule

WORSE = 4.0
"""The sweep ends where the loss has risen above its least by so many times what it began with."""

RECENT = 3
"""Batches in a row that must be so bad."""

SHARE = 0.15
"""Of the sweep that a slope is fitted to: of single batches it would be noise."""


class RateSweep(Callback):
    """Multiplies all learning rates by one factor that grows evenly in its logarithm, batch by batch.

    One factor for all optimisers and groups, so that alternating players keep the ratio of their rates. The
    schedule of the rates is left out, and epochs follow each other until there were enough batches.

    Args:
        batches: Of the sweep.
        least, most: The factor's ends.

    Attributes:
        factors: Of the batches so far.
        losses: Theirs, before the step that was taken with the factor.
        rates: What the factor multiplies, of each optimiser's groups.
    """

    def __init__(self, batches: int = 100, least: float = 1e-3, most: float = 1e3) -> None:
        if not 0.0 < least < most:
            raise ValueError(f"least must be above 0 and below most, got {least:g} and {most:g}.")
        self.batches, self.least, self.most = batches, least, most
        self.factors: list[float] = []
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # A trial, which leaves nothing behind, is one epoch at most: data may have fewer batches.
        trainer.fit_loop.max_epochs = trainer.fit_loop.epoch_loop.max_steps = -1
        trainer.limit_train_batches, trainer.limit_val_batches = 1.0, 0
        # What the sweep looks for is where training diverges.
        trainer.callbacks = [c for c in trainer.callbacks if not isinstance(c, DivergenceGuard)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.schedule = Schedule()
        self.rates = [
            [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        factor = self.least * (self.most / self.least) ** (len(self.factors) / max(1, self.batches - 1))
        self.factors.append(factor)
        for optimizer, rates in zip(trainer.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = group["initial_lr"] = factor * rate  # players start from the initial one

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Waits for the device: no network is asked to go on from weights that are no numbers.
        self.losses.append(float(joined_mean(pl_module.latest["loss"].float())))
        if len(self.losses) >= self.batches or self._has_diverged():
            trainer.should_stop = True

    def _has_diverged(self) -> bool:
        if not math.isfinite(self.losses[-1]):
            return True
        limit = min(self.losses) + WORSE * abs(self.losses[0])
        return len(self.losses) > RECENT and min(self.losses[-RECENT:]) > limit

    @property
    def suggested(self) -> float | None:
        """The factor where the loss falls fastest by the factor's logarithm; None where it never falls."""
        return steepest(self.factors, self.losses)

    def told(self) -> str:
        """Returns the suggestion in a sentence."""
        found = self.suggested
        if found is None:
            return "The loss falls nowhere: try other ends, or more batches."
        rates = [f"{found * rate:.2g}" for rates in self.rates for rate in dict.fromkeys(rates)]
        return f"The loss falls fastest at {found:.2g} times what is configured: {' and '.join(rates)}."

    def curve(self) -> np.ndarray:
        """Returns the loss over the factor as a picture, (height, width, 3)."""
        figure, axes = new_figure()
        factors, losses = _finite(self.factors, self.losses)
        axes.semilogx(factors, losses, marker=".", linewidth=1)
        if self.suggested is not None:
            axes.axvline(self.suggested, linestyle="--")
        axes.set_xlabel("times the configured learning rates")
        axes.set_ylabel("training loss")
        return rendered(figure)


def steepest(factors: Sequence[float], losses: Sequence[float]) -> float | None:
    """Returns the factor at which losses fall fastest by its logarithm, None where they never fall.

    The slope at a factor is that of a line through `SHARE` of all losses around it, by least squares: unlike
    a running mean, it does not lag behind. Nothing after the lowest of the fitted means is looked at.
    """
    x, y = _finite(factors, losses)
    x = np.log(x)
    width = max(3, round(SHARE * len(factors)))
    if len(y) < width:
        return None
    windows = [slice(start, start + width) for start in range(len(y) - width + 1)]
    lowest = int(np.argmin([y[part].mean() for part in windows]))
    slopes = [np.polyfit(x[part], y[part], 1)[0] for part in windows[: lowest + 1]]
    best = int(np.argmin(slopes))
    return float(np.exp(x[windows[best]].mean())) if slopes[best] < 0.0 else None


def _finite(factors: Sequence[float], losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    found = np.array(list(zip(factors, losses, strict=False)), dtype=float).reshape(-1, 2)
    found = found[np.isfinite(found[:, 1])]
    return found[:, 0], found[:, 1]
