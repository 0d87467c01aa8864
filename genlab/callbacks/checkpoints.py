"""Checkpoints that survive whatever interrupts their writing, and runs that stop without losing work."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from genlab.callbacks.divergence import require_finite_state
from genlab.callbacks.measured import measured
from genlab.callbacks.record import find_recorder
from genlab.errors import EXIT_INTERRUPTED, EXIT_TERMINATED
from genlab.files import replacing
from genlab.runs.checkpoint_files import BEST, LAST, PREVIOUS
from genlab.runs.headline import Headline, headline_of, named

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows has only the first two
ONE_REQUEST = 1.0  # seconds in which a second Ctrl-C is the same request: wrappers pass it on twice


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, then renames: a file is the old one or the new one, never half of it.

    Lightning writes to the system's temporary folder; where that is another file system its last step is a
    copy, and a kill in the middle of it destroys both.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class StopRequest(Callback):
    """Remembers that the run was asked to stop, by Ctrl-C or a signal.

    SIGHUP says that a terminal was closed; by SIGUSR1 clusters announce the end of a job's time. Lightning
    exits with code 0 on SIGTERM and saves nothing. Here whoever saves asks `code` at the end of a step. A
    second Ctrl-C stops at once, unless a checkpoint is being written: then once it is. Stands before what
    evaluates the untrained model, which may take long.

    Attributes:
        code: The exit code that was asked for first; 0 for no request.
    """

    def __init__(self) -> None:
        self.code = 0
        self._asked_at = 0.0
        self._is_saving = self._at_once = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._handlers or threading.current_thread() is not threading.main_thread():
            return
        known = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        for number in known:
            if _is_ours(number):
                self._handlers[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets what is begun in the block be finished, whatever is asked in the meantime."""
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False
        if self._at_once:
            raise SystemExit(self.code)

    def _ask(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        again = bool(self.code) and number == signal.SIGINT and now - self._asked_at > ONE_REQUEST
        if not self.code:
            self.code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED
            self._asked_at = now
            if number == signal.SIGINT:  # by os.write: print may be what was interrupted
                os.write(2, b"\n! Stopping at the end of this step; Ctrl-C again stops at once.\n")
        self._at_once |= again
        if again and not self._is_saving:
            raise SystemExit(self.code)


def _is_ours(number: signal.Signals) -> bool:
    current = signal.getsignal(number)
    if number.name == "SIGUSR1":  # whoever requeues by it, such as Lightning under Slurm, keeps it
        return current == signal.SIG_DFL
    return current != signal.SIG_IGN  # as nohup asks


class RunCheckpoints(Checkpoint):
    """Keeps `last.ckpt`, the `previous.ckpt` before it and the `best.ckpt` by score; stops the run.

    Lightning calls checkpoint callbacks last: whatever the others do after a batch or an evaluation is done,
    and is saved, when a run stops. Where an evaluation follows a batch, it is saved and stopped after that.

    Args:
        monitor: Short name of the score to be best in, such as `fid`; None for the headline of what the
            first evaluation measures (`genlab.runs.headline`).
        mode: "min" where lower is better, "max" where higher is; None for what is known of the score, which
            must be given where nothing is, such as of a metric of one's own.
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
        self.request = StopRequest()
        self._saved_at = time.monotonic()
        self._saved_images = -1

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit" or self.monitor is None or self.mode is not None:
            return
        if not named(self.monitor).has_direction:
            raise ValueError(
                f'checkpoints.monitor is "{self.monitor}", of which it is not known whether lower or '
                "higher is better: give --checkpoints.mode min or max."
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._saved_at = time.monotonic()
        folder = self._folder(trainer)
        if folder is not None and trainer.ckpt_path and Path(trainer.ckpt_path).absolute() == folder / LAST:
            self._saved_images = pl_module.examples_seen  # this very state lies in the file

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if evaluation_follows(trainer):
            return
        # One question a batch, for the devices of a run agree only by waiting for each other.
        is_done, is_due = is_ending(trainer), self._is_due()
        if not (agreed(trainer, bool(self.request.code) or is_due) or is_done):
            return
        is_asked = self._is_asked(trainer)
        self.save(trainer)
        if is_asked and not is_done:
            raise SystemExit(self.request.code or EXIT_TERMINATED)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.save(trainer, is_best=self._improved(trainer))
        # What is asked during the last evaluation comes too late: the run is finished.
        if self._is_asked(trainer) and not is_ending(trainer):
            raise SystemExit(self.request.code or EXIT_TERMINATED)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        # In the middle of an epoch Lightning has by now counted the epoch as done, and could not resume.
        if self._saved_images != pl_module.examples_seen:
            self.save(trainer)

    def save(self, trainer: Any, is_best: bool = False) -> None:
        """Writes the last checkpoint, and the best one before it, unless its weights are no longer finite.

        A run that is cut in between goes on from the checkpoint before, and finds the best one again. The
        other way round it would know of a best score whose weights were never kept.
        """
        folder = self._folder(trainer)
        if folder is None:
            return
        require_finite_state(trainer.lightning_module)
        with self.request.held():
            if is_best:
                trainer.save_checkpoint(folder / BEST, weights_only=False)
            # A file that this run neither wrote nor began with may be damaged, and replaces no good one.
            if trainer.is_global_zero and self._saved_images >= 0 and (folder / LAST).exists():
                keep(folder / LAST, folder / PREVIOUS)
            if not is_best:
                trainer.save_checkpoint(folder / LAST, weights_only=False)
            elif trainer.is_global_zero:
                copy(folder / BEST, folder / LAST)
            self._saved_at = time.monotonic()
            self._saved_images = trainer.lightning_module.examples_seen

    def _is_asked(self, trainer: Any) -> bool:
        return agreed(trainer, bool(self.request.code))

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved_at > 60 * self.every_minutes

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


def agreed(trainer: Any, says: bool) -> bool:
    """Returns whether any device of a run says so; all must ask."""
    return bool(trainer.strategy.reduce_boolean_decision(says, all=False))


def evaluation_follows(trainer: Any) -> bool:
    """Returns whether the trainer evaluates before its next batch.

    A checkpoint written before would lose that evaluation: Lightning resumes with the next batch.
    """
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def is_ending(trainer: Any) -> bool:
    """Returns whether this batch was the run's last one."""
    is_last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
    ends_epoch = is_last_epoch and trainer.fit_loop.epoch_loop._num_ready_batches_reached()
    return trainer.should_stop or ends_epoch or trainer.global_step == trainer.max_steps


def copy(source: Path, target: Path) -> None:
    """Copies a checkpoint in one step."""
    with replacing(target) as partial:
        shutil.copyfile(source, partial)


def keep(source: Path, target: Path) -> None:
    """Keeps a file that is about to be replaced under another name, without writing it again."""
    with replacing(target) as partial:
        try:
            os.link(source, partial)
        except OSError:  # a file system without links
            shutil.copyfile(source, partial)
