"""One line that says where a run stands: images, speed, losses, last score and the time left."""

from __future__ import annotations

import math
import shutil
import sys
import time
from typing import Any

from pytorch_lightning.callbacks import ProgressBar

from genlab.callbacks.budget import Budget
from genlab.callbacks.divergence import read_losses
from genlab.callbacks.measured import measured
from genlab.runs.headline import SCORES, headline_of

REFRESH = 0.5  # seconds between two states of a terminal's line; each reads the losses from the device
REPORT = 30.0  # seconds between two lines where the output is a file


class ProgressLine(ProgressBar):
    """Shows a run's state on one line of a terminal, or as a line now and then in a log.

        312k/600k img 52% | 4,210 img/s | generator 1.21 discriminator 0.68 | fid@797 23.4 | 1m 12s left

    Args:
        budget: Knows how many examples the run will see.
    """

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        self.enabled = True
        self._live = sys.stderr.isatty()
        self._start = self._shown = 0.0
        self._start_images = 0
        self._start_seconds = 0.0

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if not self._start:  # not earlier: the untrained model is evaluated before the first batch
            self._start = self._shown = time.monotonic()
            self._start_images = pl_module.examples_seen
            self._start_seconds = self.budget.clock.seconds

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self.enabled and now - self._shown >= (REFRESH if self._live else REPORT):
            self._shown = now
            self._show(self.line(trainer, pl_module))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.enabled and self._live and not trainer.sanity_checking:
            self._show(f"{self.line(trainer, pl_module)} | evaluating ...")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.enabled and not trainer.sanity_checking and trainer.state.fn == "fit":
            self._shown = time.monotonic()
            self._show(self.line(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._finish_line()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._finish_line()

    def line(self, trainer: Any, model: Any) -> str:
        """Returns the run's state in one line."""
        seen, total = model.examples_seen, self.budget.total_examples(trainer)
        unit, elapsed = model.spec.unit, max(time.monotonic() - self._start, 1e-9)
        trained = self.budget.clock.seconds or elapsed
        shown = {name: model.latest[name] for name in model.shown_losses if name in model.latest}
        losses = read_losses(shown)
        parts = [
            f"{short(seen)}/{short(total)} {unit} {seen / total:.0%}"
            if math.isfinite(total)
            else f"{short(seen)} {unit}",
            f"{pace(seen / trained)} {unit}/s",
            " ".join(f"{name} {value:.3g}" for name, value in losses.items()),
            last_score(trainer),
            self._left(seen, total, elapsed),
        ]
        return " | ".join(filter(None, parts))

    def _left(self, seen: int, total: float, elapsed: float) -> str:
        # Shares of what was to be done when this process began, for so is the elapsed time.
        limits: list[tuple[float, float, float]] = [(seen, self._start_images, total)]
        if self.budget.seconds:
            limits.append((self.budget.clock.seconds, self._start_seconds, self.budget.seconds))
        shares = [(now - start) / (end - start) for now, start, end in limits if start < end < math.inf]
        share = max(shares, default=0.0)
        # Evaluation is in the elapsed time, so the time left counts the evaluations still to come.
        return f"{duration(elapsed * max(0.0, 1 - share) / share)} left" if share > 0 else ""

    def _show(self, text: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\033[K{text[:width]}")
        else:
            sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _finish_line(self) -> None:
        if self.enabled and self._live:
            sys.stderr.write("\n")


def last_score(trainer: Any) -> str:
    """Returns the last headline with its name, "" where there is none; a loss is on the line anyway."""
    values = measured(trainer)
    headline = headline_of(values, among=SCORES)
    found = headline and headline.found_in(values)
    return f"{found[0].removeprefix('val/')} {found[1]:.4g}" if found else ""


def short(number: float) -> str:
    """Returns a number of examples in three or four characters: 950, 12.8k, 4.81M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def pace(rate: float) -> str:
    """Returns examples a second: whole ones, or two digits of a slow rate."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """Returns a time span as its two largest units."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m {seconds % 60:02d}s"
    return f"{seconds // 3600}h {seconds % 3600 // 60:02d}m"
