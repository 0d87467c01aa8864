"""Checkpoints that survive whatever interrupts their writing, and runs that stop without losing work."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from genlab.callbacks.measured import measured
from genlab.callbacks.record import find_recorder
from genlab.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, Diverged
from genlab.files import replacing
from genlab.runs.headline import Headline, headline_of, named

CHECK_CLOCK_EVERY = 50  # batches: the processes of a run agree on the time only by a collective


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: a file is the old one or the new one, never half of it.

    Lightning writes to the system's temporary folder; where that is another file system its last step is a
    copy, and a kill in the middle of it destroys both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class RunCheckpoints(Checkpoint):
    """Keeps `last.ckpt` up to date and `best.ckpt` at the best score.

    Args:
        monitor: Short name of the score to be best in, such as `fid`; None for the headline of what the
            first evaluation measures (`genlab.runs.headline`).
        mode: "min" where lower is better, "max" where higher is; None for what is known of the score.
        every_minutes: Most work, in minutes, that a killed run can lose.
    """

    def __init__(
        self, monitor: str | None = None, mode: str | None = None, every_minutes: float = 5.0
    ) -> None:
        if mode not in (None, "min", "max"):
            raise ValueError(f'checkpoints.mode must be "min", "max" or null, got "{mode}".')
        if mode is not None and monitor is None:
            raise ValueError(
                f'checkpoints.mode is "{mode}" of no score: name it as checkpoints.monitor, or leave both.'
            )
        self.monitor = monitor
        self.mode = mode
        self.every_minutes = every_minutes
        self.best: float | None = None
        self._saved_at = time.monotonic()
        self._saved_images = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.should_stop or trainer.global_step == trainer.max_steps:
            self.save(trainer, "last.ckpt")
        elif batch_idx % CHECK_CLOCK_EVERY == 0:
            due = time.monotonic() - self._saved_at > 60 * self.every_minutes
            if trainer.strategy.reduce_boolean_decision(due, all=False):
                self.save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        improved = self._improved(trainer)
        self.save(trainer, "last.ckpt")
        folder = self._folder(trainer)
        if improved and folder is not None and trainer.is_global_zero:
            copy(folder / "last.ckpt", folder / "best.ckpt")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        # In the middle of an epoch Lightning has by now counted the epoch as done, and could not resume.
        if self._saved_images != pl_module.examples_seen:
            self.save(trainer, "last.ckpt")

    def save(self, trainer: Any, name: str) -> None:
        """Writes one checkpoint, unless its weights are no longer finite."""
        folder = self._folder(trainer)
        if folder is None:
            return
        if not weights_are_finite(trainer.lightning_module):
            raise Diverged(f"The weights are not finite; {name} keeps the last finite ones.")
        trainer.save_checkpoint(folder / name, weights_only=False)
        self._saved_at = time.monotonic()
        self._saved_images = trainer.lightning_module.examples_seen

    def _improved(self, trainer: Any) -> bool:
        values = measured(trainer)
        headline = self._headline(values)
        found = headline and headline.found_in(values)
        if not headline or not found:
            return False
        better = self.best is None or headline.cost(found[1]) < headline.cost(self.best)
        if better:
            self.best = found[1]
        return better

    def _headline(self, values: dict[str, float]) -> Headline | None:
        # Once there is a best value, it is compared with values of the same score only.
        if self.monitor is None and (measured := headline_of(values)):
            self.monitor = measured.key
        if self.monitor is None:
            return None
        lower = named(self.monitor).lower_is_better if self.mode is None else self.mode == "min"
        return Headline(self.monitor, self.monitor, lower)

    @staticmethod
    def _folder(trainer: Any) -> Path | None:
        recorder = find_recorder(trainer)
        return None if recorder is None else recorder.run.checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self.monitor = self.monitor or state_dict.get("monitor")


class StopCleanly(Callback):
    """Ends a run on Ctrl-C or SIGTERM after the batch in hand, with a checkpoint and the signal's exit code.

    Lightning exits with code 0 on SIGTERM and saves nothing. A second Ctrl-C stops at once.

    Args:
        checkpoints: Writes the last checkpoint.
    """

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.exit_code = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._ask_to_stop)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        asked = trainer.strategy.reduce_boolean_decision(bool(self.exit_code), all=False)
        if asked:
            self.checkpoints.save(trainer, "last.ckpt")
            raise SystemExit(self.exit_code or EXIT_TERMINATED)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _ask_to_stop(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.exit_code:
            raise KeyboardInterrupt
        self.exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED


def copy(source: Path, target: Path) -> None:
    """Copies a checkpoint in one step."""
    with replacing(target) as partial:
        shutil.copyfile(source, partial)


def weights_are_finite(model: Any) -> bool:
    """Returns whether every weight is a number, waiting for the device once."""
    floats = [p.detach() for p in model.parameters() if p.is_floating_point()]
    return not floats or bool(torch.stack(torch._foreach_norm(floats)).isfinite().all())
