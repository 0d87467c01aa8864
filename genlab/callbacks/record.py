"""Everything that a run leaves behind: its record, its numbers and its pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger

import genlab
from genlab.callbacks.clock import TrainingClock
from genlab.callbacks.divergence import read_losses, require_finite_losses, require_scale
from genlab.callbacks.loggers import adopt, show_config, show_image, show_settings_of, show_text
from genlab.callbacks.measured import measured
from genlab.callbacks.run_logger import RunLogger
from genlab.data.base import SPLITS, DataModule
from genlab.errors import DataError, Diverged, StorageError
from genlab.evaluation.first_stage import TrainedStage
from genlab.families.base import Model
from genlab.families.steps import logs_within
from genlab.files import replacing, write_json, write_text
from genlab.runs.changes import Change, TrainedWith, data_changes, refusal, step_changes
from genlab.runs.environment import environment, private
from genlab.runs.folder import Run
from genlab.runs.metrics_file import MetricsFile
from genlab.runs.settings import facts_of


@dataclass(frozen=True)
class Resumption:
    """What a command goes on from, and whether the user accepts to go on otherwise.

    Args:
        checkpoint: The file.
        trained_with: What it was trained with.
        examples_seen: How far it had come.
        version: Of genlab, which wrote it.
        accepts: Whether changes were accepted.
        steps: How far it had come in optimiser steps.
    """

    checkpoint: Path
    trained_with: TrainedWith
    examples_seen: int
    version: str
    accepts: bool
    steps: int = 0

    @classmethod
    def of(cls, checkpoint: Path, state: dict[str, Any], accepts: bool) -> Resumption:
        """Returns what a checkpoint's contents say."""
        version = str(state["genlab"]["version"])
        trained_with, steps = TrainedWith.read(state), state["global_step"]
        return cls(checkpoint, trained_with, state["examples_seen"], version, accepts, steps)

    def check(self, data: DataModule, config: str | None = None, devices: int | None = None) -> list[Change]:
        """Returns how data and configuration differ from before, where that was accepted.

        Args:
            data: The data of this command.
            config: Its configuration, as YAML; None to compare the data alone.
            devices: How many share its steps; None where that does not matter.

        Raises:
            ValueError: A setting differs that shapes the curve.
            DataError: The data differ.
        """
        splits = [name for name in self.trained_with.data if name in SPLITS]
        now = {name: data.fingerprint(name) for name in splits}
        of_data, of_settings = data_changes(self.trained_with.data, now), []
        if config is not None:
            asked = TrainedWith.of(yaml.safe_load(config), now, devices)
            of_settings = step_changes(self.trained_with, asked, self.version == genlab.__version__)
        unfit = next((change for change in of_settings if change.is_of_optimizer_class), None)
        if unfit is not None:
            raise ValueError(
                f"{self.checkpoint} cannot go on with {unfit}: the state of one optimiser says nothing to "
                f"another. Train anew with it."
            )
        if (of_settings or of_data) and not self.accepts:
            kind = ValueError if of_settings else DataError
            raise kind(refusal([*of_settings, *of_data], str(self.checkpoint)))
        return [*of_settings, *of_data]


class SameData(Callback):
    """Compares the data of a validation or a test with those that the checkpoint was trained on.

    Args:
        resumed: The checkpoint.
    """

    def __init__(self, resumed: Resumption) -> None:
        self.resumed = resumed

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.resumed.check(trainer.datamodule)


class RunRecorder(Callback):
    """Writes a run's configuration, environment, numbers and outcome, and passes numbers to every logger.

    Plain files are always written; the trainer's loggers (wandb, TensorBoard) get the same numbers, with
    examples seen as their step, and the configuration. Losses, the norms of gradients and learning rates are
    read from the device only on the steps that are written.

    Args:
        run: The run's folder.
        config: The resolved configuration, as YAML.
        clock: Keeps the seconds spent on training alone.
        resumed: Compares settings and data with those of the checkpoint that the run goes on from.
    """

    def __init__(
        self, run: Run, config: str, clock: TrainingClock, resumed: Resumption | None = None
    ) -> None:
        self.run = run
        self.resumed = resumed
        self.config = config
        self.clock = clock
        self.file = MetricsFile(run)
        self.latest: dict[str, float] = {}
        self.is_short_of_room = False
        self._noted: dict[str, float] = {}
        self._scores_are_known = False
        self.trained_with: TrainedWith | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        changes = []
        if self.resumed is not None:
            changes = self.resumed.check(trainer.datamodule, self.config, trainer.world_size)
        pl_module.renews_optimizers = any("optimizer" in c.key or "schedule" in c.key for c in changes)
        if not trainer.is_global_zero:
            return
        adopt_loggers(trainer, lambda: (pl_module.examples_seen, trainer.global_step))
        data: DataModule = trainer.datamodule
        described = data.describe()
        config, prints = yaml.safe_load(self.config), described["fingerprints"]
        self.trained_with = TrainedWith.of(config, prints, trainer.world_size)
        write_text(self.run.config, self.config)
        write_json(self.run.environment, {**environment(), **device_facts(trainer)})
        # Replaced and not merged: of other data, splits or classes before nothing is to stay.
        self.run.replace(
            status="running",
            error=None,
            experiment=self.run.path.parent.name,
            family=type(pl_module).__name__,
            spec=pl_module.spec.summary(),
            data=described,
            **device_facts(trainer),
            parameters=sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            uses_labels=pl_module.uses_labels,
            seed=pl_module.seed,
            **facts_of(self.config),
        )
        first_stage = getattr(pl_module, "first_stage", None)
        if isinstance(first_stage, TrainedStage):
            first_stage.copy_into(self.run)
            self.run.update(first_stage=first_stage.facts())
        if changes and self.resumed is not None:
            say(trainer, f"Goes on with changes: {'; '.join(map(str, changes))}.")
            self.run.record_changes(changes, self.resumed.examples_seen)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        seen, unit = pl_module.examples_seen, pl_module.spec.unit
        if not trainer.is_global_zero:
            return
        pass_on(trainer, lambda logger: show_config(logger, self.shown_config, seen))
        if not seen:
            return
        reached = self.file.truncate_after(seen)
        if reached > seen:
            lost = reached - seen
            say(trainer, f"Goes on from {seen:,} of {reached:,} {unit}: the last {lost:,} are learned again.")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.trained_with is not None:
            checkpoint["trained_with"] = self.trained_with.to_dict()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if logs_within(trainer, 1):
            self.write_losses(trainer, pl_module, batch)

    def write_losses(self, trainer: Any, model: Model, batch: Any) -> None:
        """Writes the last training losses, and stops a run whose losses are no longer finite."""
        read = read_losses({**model.latest, **model.gradient_norms})
        values = {**read, **model.learning_rates}
        self.write(trainer, model, {f"train/{name}": value for name, value in values.items()})
        # The losses alone: a gradient that overflows half precision makes no step, and ends nothing.
        losses = {name: read[name] for name in model.latest}
        require_finite_losses(model, losses, batch)
        require_scale(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        scores = measured(trainer)
        self.write(trainer, pl_module, scores)
        if not self._scores_are_known and trainer.is_global_zero:
            self._scores_are_known = True
            pass_on(trainer, lambda logger: show_settings_of(logger, self.shown_config, list(scores)))

    @property
    def shown_config(self) -> dict[str, Any]:
        """The configuration for loggers, which may lie elsewhere: without the user's name and home folder."""
        return private(yaml.safe_load(self.config))

    def note(self, values: dict[str, float]) -> None:
        """Keeps numbers for the next line, which says how many examples they belong to."""
        self._noted.update(values)

    def write(self, trainer: Any, model: Model, values: dict[str, float]) -> None:
        """Writes numbers to the run's files and to every logger."""
        self.latest.update(values)
        if not values or not trainer.is_global_zero:
            return
        seconds = self.clock.seconds
        noted, self._noted = self._noted, {}
        if not self.file.write({**noted, **values}, model.examples_seen, trainer.global_step, seconds):
            self.say_short_of_room(trainer, self.file.jsonl)
        shown = {**values, "training_seconds": seconds}
        pass_on(trainer, lambda logger: logger.log_metrics(shown, step=model.examples_seen))

    def say_short_of_room(self, trainer: Any, path: Path) -> None:
        """Says, once, that the storage has no room for a file that a training can do without for a while."""
        if not self.is_short_of_room:
            self.is_short_of_room = True
            say(
                trainer,
                f"{path} cannot be written, the storage is full: pictures are left out and numbers wait for "
                "room; training goes on.",
            )

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.file.write_csv()
            self._outcome(pl_module, "finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # What is refused before it begins leaves the run as it was.
        if self.trained_with is not None and trainer.state.fn == "fit":
            self.file.write_csv()
            status = _status_of(exception)
            error = None if status == "stopped" else str(exception) or type(exception).__name__
            self._outcome(pl_module, status, error=error)

    def _outcome(self, model: Model, status: str, **more: Any) -> None:
        values = {name: value for name, value in self.latest.items() if name.startswith("val/")}
        # Replaced and not merged: with other settings of the evaluation, scores have other names.
        scores = {"validation": values} if values else {}
        self.run.replace(
            status=status,
            examples_seen=model.examples_seen,
            training_seconds=round(self.clock.seconds, 3),
            **scores,
            **more,
        )


def find_recorder(trainer: Any) -> RunRecorder | None:
    """Returns the trainer's recorder; there is none in a fast_dev_run, which writes nothing."""
    return next((c for c in trainer.callbacks if isinstance(c, RunRecorder)), None)


def say(trainer: Any, text: str) -> None:
    """Tells the person at the terminal, and whoever reads the run's log.txt later."""
    if not trainer.is_global_zero:
        return
    print(f"! {text}", file=sys.stderr)
    recorder = find_recorder(trainer)
    if recorder is not None:
        with suppress(OSError), recorder.run.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def pass_on(trainer: Any, give: Callable[[Logger], Any]) -> None:
    """Gives something to every logger beside the run's own files; one that fails gets nothing any more."""
    for logger in others_of(trainer):
        try:
            give(logger)
        except Exception as error:
            leave_out(trainer, logger, error)


def others_of(trainer: Any) -> list[Logger]:
    """Returns the trainer's loggers beside the run's own files."""
    return [logger for logger in trainer.loggers if not isinstance(logger, RunLogger)]


def adopt_loggers(trainer: Any, position: Callable[[], tuple[int, int]]) -> None:
    """Gives every logger beside the run's own files the axis of examples; see `loggers.adopt`."""
    for logger in others_of(trainer):
        adopt(logger, position, lambda failed, error: leave_out(trainer, failed, error))


def leave_out(trainer: Any, logger: Logger, error: Exception) -> None:
    """Goes on without a logger that has failed, and says so once."""
    if logger not in trainer.loggers:
        return
    trainer.loggers = [other for other in trainer.loggers if other is not logger]
    reason = next(iter(str(error).splitlines()), "")
    say(
        trainer,
        f"{type(logger).__name__} failed ({type(error).__name__}: {reason}) and is left out from now "
        "on; the run's own files have everything.",
    )


@contextmanager
def spared(trainer: Any, path: Path) -> Iterator[None]:
    """Leaves a picture or a text out where the storage has no room for it."""
    try:
        yield
    except StorageError:
        recorder = find_recorder(trainer)
        assert recorder is not None
        recorder.say_short_of_room(trainer, path)


def log_image(trainer: Any, key: str, picture: np.ndarray, examples_seen: int) -> Path | None:
    """Saves a picture in the run's `samples/` and shows it to whichever loggers are on.

    Args:
        trainer: Its recorder knows the folder, its loggers are shown the picture.
        key: What the picture shows, such as `samples`; becomes the start of the file's name.
        picture: (height, width) or (height, width, 3), uint8.
        examples_seen: The picture's place in the run.

    Returns:
        The file, or None where nothing is written (another rank, a fast_dev_run, or a full storage).
    """
    recorder = find_recorder(trainer)
    if recorder is None or not trainer.is_global_zero:
        return None
    path = recorder.run.inside("samples", f"{key}_{examples_seen:010d}.png")
    with spared(trainer, path), replacing(path) as partial:
        Image.fromarray(picture).save(partial, "png")
    if not path.is_file():
        return None

    pass_on(trainer, lambda logger: show_image(logger, key, path, picture, examples_seen))
    return path


def log_text(trainer: Any, key: str, text: str, examples_seen: int) -> Path | None:
    """Saves a text in the run's `samples/` and shows it to whichever loggers are on; see `log_image`."""
    recorder = find_recorder(trainer)
    if recorder is None or not trainer.is_global_zero:
        return None
    path = recorder.run.samples / f"{key}_{examples_seen:010d}.txt"
    with spared(trainer, path):
        write_text(path, text + "\n")
    if not path.is_file():
        return None

    pass_on(trainer, lambda logger: show_text(logger, key, text, examples_seen))
    return path


def device_facts(trainer: Any) -> dict[str, Any]:
    """Returns what the training runs on, for the run's record."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "device": name,
        "num_devices": trainer.world_size,
        "precision": str(trainer.precision),
        "threads": torch.get_num_threads(),
        **({"compiled": True} if trainer.lightning_module.is_compiled else {}),
    }


def _status_of(exception: BaseException) -> str:
    if isinstance(exception, Diverged):
        return "diverged"
    return "stopped" if isinstance(exception, SystemExit | KeyboardInterrupt) else "failed"
