"""The run's own files as one of Lightning's loggers, for callbacks that want a logger to write to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger


class RunLogger(Logger):
    """Gives what Lightning's callbacks log, such as learning rates, to the run's recorder.

    They join the next line of `metrics.jsonl`, whose position counts examples and not their steps.

    Args:
        folder: The run's, so that a ModelCheckpoint without a `dirpath` writes into its `checkpoints`; None
            where nothing is written.
        note: Takes the numbers.
    """

    experiment = None
    name = ""
    version = ""

    def __init__(self, folder: Path | None, note: Callable[[dict[str, float]], None] | None) -> None:
        super().__init__()
        self.folder, self.note = folder, note

    @property
    def save_dir(self) -> str | None:
        return None if self.folder is None else str(self.folder)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if self.note is not None:
            self.note({name: float(value) for name, value in metrics.items() if name != "epoch"})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: config.yaml holds them."""
