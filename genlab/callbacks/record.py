"""Everything that a run leaves behind: its record, its numbers and its pictures."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.clock import TrainingClock
from genlab.callbacks.divergence import read_losses, require_finite_losses
from genlab.data.base import DataModule
from genlab.errors import Diverged
from genlab.families.base import Model
from genlab.files import write_json, write_text
from genlab.runs.environment import environment
from genlab.runs.folder import Run
from genlab.runs.metrics_file import MetricsFile
from genlab.runs.settings import facts_of


class RunRecorder(Callback):
    """Writes a run's configuration, environment, numbers and outcome, and passes numbers to every logger.

    Plain files are always written; the trainer's loggers (wandb, TensorBoard) get the same numbers, with
    images seen as their step. Losses are read from the device only on the steps that are written.

    Args:
        run: The run's folder.
        config: The resolved configuration, as YAML.
        clock: Keeps the seconds spent on training alone.
    """

    def __init__(self, run: Run, config: str, clock: TrainingClock) -> None:
        self.run = run
        self.config = config
        self.clock = clock
        self.file = MetricsFile(run)
        self.latest: dict[str, float] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero:
            return
        write_text(self.run.config, self.config)
        write_json(self.run.environment, {**environment(), **device_facts(trainer)})
        data: DataModule = trainer.datamodule
        self.run.update(
            status="running",
            error=None,
            experiment=self.run.path.parent.name,
            family=type(pl_module).__name__,
            spec=pl_module.spec.summary(),
            data=data.describe(),
            **device_facts(trainer),
            parameters=sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            uses_labels=pl_module.uses_labels,
            seed=pl_module.seed,
            **facts_of(self.config),
        )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero and pl_module.examples_seen:
            self.file.truncate_after(pl_module.examples_seen)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.fit_loop.total_batch_idx + 1) % trainer.log_every_n_steps == 0:
            self.write_losses(trainer, pl_module, batch)

    def write_losses(self, trainer: Any, model: Model, batch: Any) -> None:
        """Writes the last training losses, and stops a run whose losses are no longer finite."""
        losses = read_losses(model.latest)
        self.write(trainer, model, {f"train/{name}": value for name, value in losses.items()})
        require_finite_losses(model, losses, batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        values = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")
        }
        self.write(trainer, pl_module, values)

    def write(self, trainer: Any, model: Model, values: dict[str, float]) -> None:
        """Writes numbers to the run's files and to every logger."""
        self.latest.update(values)
        if not values or not trainer.is_global_zero:
            return
        seconds = self.clock.seconds
        self.file.write(values, model.examples_seen, trainer.global_step, seconds)
        for logger in trainer.loggers:
            logger.log_metrics({**values, "training_seconds": seconds}, step=model.examples_seen)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.is_global_zero:
            self.file.write_csv()
            self._outcome(pl_module, "finished")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if trainer.is_global_zero and trainer.state.fn == "fit":
            self.file.write_csv()
            status = _status_of(exception)
            error = None if status == "stopped" else str(exception) or type(exception).__name__
            self._outcome(pl_module, status, error=error)

    def _outcome(self, model: Model, status: str, **more: Any) -> None:
        values = {name: value for name, value in self.latest.items() if name.startswith("val/")}
        self.run.update(
            status=status,
            examples_seen=model.examples_seen,
            training_seconds=round(self.clock.seconds, 3),
            validation=values,
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
        with recorder.run.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


def log_image(trainer: Any, key: str, picture: np.ndarray, examples_seen: int) -> Path | None:
    """Saves a picture in the run's `samples/` and shows it to whichever loggers are on.

    Args:
        trainer: Its recorder knows the folder, its loggers are shown the picture.
        key: What the picture shows, such as `samples`; becomes the start of the file's name.
        picture: (height, width) or (height, width, 3), uint8.
        examples_seen: The picture's place in the run.

    Returns:
        The file, or None where nothing is written (another rank, or a fast_dev_run).
    """
    recorder = find_recorder(trainer)
    if recorder is None or not trainer.is_global_zero:
        return None
    path = recorder.run.samples / f"{key}_{examples_seen:010d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    for logger in trainer.loggers:
        if hasattr(logger, "log_image"):  # wandb
            logger.log_image(key, [str(path)], step=examples_seen)
        elif hasattr(logger.experiment, "add_image"):  # TensorBoard
            formats = "HW" if picture.ndim == 2 else "HWC"
            logger.experiment.add_image(key, picture, examples_seen, dataformats=formats)
    return path


def log_text(trainer: Any, key: str, text: str, examples_seen: int) -> Path | None:
    """Saves a text in the run's `samples/` and shows it to whichever loggers are on; see `log_image`."""
    recorder = find_recorder(trainer)
    if recorder is None or not trainer.is_global_zero:
        return None
    path = recorder.run.samples / f"{key}_{examples_seen:010d}.txt"
    write_text(path, text + "\n")
    for logger in trainer.loggers:
        if hasattr(logger, "log_text"):  # wandb
            logger.log_text(key, columns=["text"], data=[[text]], step=examples_seen)
        elif hasattr(logger.experiment, "add_text"):  # TensorBoard
            logger.experiment.add_text(key, text, examples_seen)
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
    }


def _status_of(exception: BaseException) -> str:
    if isinstance(exception, Diverged):
        return "diverged"
    return "stopped" if isinstance(exception, SystemExit | KeyboardInterrupt) else "failed"
