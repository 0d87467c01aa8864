"""Lightning's EarlyStopping and ModelCheckpoint on scores that come with the first evaluation."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from genlab.callbacks.measured import measured
from genlab.text import similar


class Monitors(Callback):
    """Lets monitors wait for the first evaluation, and refuses names that it does not bring.

    Runs are evaluated in the middle of epochs, too. So EarlyStopping looks after each evaluation, where
    `check_on_train_epoch_end` does not say otherwise: at the end of an epoch it would count one evaluation
    several times, or none. To stand before all other callbacks.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, str] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        for callback in trainer.callbacks:
            name = type(callback).__name__
            if isinstance(callback, EarlyStopping):
                if callback.strict:
                    self._waiting[callback.monitor] = name
                callback.strict = False
                if callback._check_on_train_epoch_end is None:
                    callback._check_on_train_epoch_end = False
            elif isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                self._waiting[callback.monitor] = name

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.fast_dev_run:
            return
        waiting, self._waiting = self._waiting, {}
        names = [*trainer.callback_metrics, "epoch", "step"]  # the last two are ModelCheckpoint's own
        for monitor, callback in waiting.items():
            if monitor not in names:
                near = similar(monitor, names) or list(measured(trainer))
                raise ValueError(
                    f"{callback} monitors {monitor}, which no evaluation measures; there is "
                    f"{', '.join(near)}."
                )
