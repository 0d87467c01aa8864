"""Training time, the part of a run that a comparison may charge to a model."""

from __future__ import annotations

import time
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback


class TrainingClock(Callback):
    """Counts the seconds of training alone: packing, compilation, evaluation and pictures are not in it.

    The first batch of each process is left out, for that is when networks are compiled and kernels chosen.

    Attributes:
        seconds: Training time so far, over all resumptions.
    """

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None
        self._is_warm = False

    @property
    def seconds(self) -> float:
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._before + running

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._since is None and self._is_warm:
            self._since = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._is_warm:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._is_warm, self._since = True, time.monotonic()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.pause()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.pause()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.pause()

    def pause(self) -> None:
        """Stops counting until the next training batch."""
        if torch.cuda.is_available() and self._since is not None:
            torch.cuda.synchronize()  # work still queued belongs to training
        self._before, self._since = self.seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = float(state_dict["seconds"])
