"""First stages that other runs have trained: found by name, kept in the run that stands on them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from genlab.configuration import experiments
from genlab.evaluation.checkpoint import PARTS, read_checkpoint
from genlab.families.base import Model
from genlab.families.codes import FirstStage
from genlab.files import replacing, write_json, write_text
from genlab.runs.checkpoint_files import LAST
from genlab.runs.folder import NotARun, Run, folder_name, list_runs, open_run, outputs_root, shown_path
from genlab.runs.tests import FIRST_STAGE


class TrainedStage(FirstStage):
    """The first stage of a finished training, loaded once it is asked for.

    Args:
        name: A run's folder, or the name of an experiment: its newest finished run.
        load: Takes a run and a checkpoint of it to the model.
    """

    def __init__(self, name: str, load: Callable[[Run, Path], Model]) -> None:
        self.name, self.load = str(name), load

    def __str__(self) -> str:
        return self.name

    def __deepcopy__(self, memo: Any) -> TrainedStage:
        return self  # a parser copies its values many times over

    @cached_property
    def run(self) -> Run:
        """The run.

        Raises:
            ValueError: There is none.
        """
        return found_run(self.name, FIRST_STAGE)

    @cached_property
    def checkpoint(self) -> Path:
        """Its best checkpoint, where one was chosen, else its last one."""
        return self.run.best_checkpoint or self.run.checkpoint()

    @cached_property
    def model(self) -> Model:
        return self.load(self.run, self.checkpoint)

    def facts(self) -> dict[str, Any]:
        """Returns what a run's record says of the first stage it stands on."""
        names = ("experiment", "family", "settings_digest", "examples_seen", "training_seconds")
        record = self.run.read()
        return {**{name: record.get(name) for name in names}, "digest": self.digest}

    def copy_into(self, run: Run) -> None:
        """Copies configuration, record and weights into a run, which then needs no other folder."""
        own = Run(run.output(FIRST_STAGE))
        if self.run.path == own.path:
            return
        state = read_checkpoint(self.checkpoint)
        with replacing(own.checkpoints / LAST) as partial, partial.open("wb") as file:
            torch.save({name: state[name] for name in PARTS}, file)
        write_text(own.config, self.run.config.read_text(encoding="utf-8"))
        write_json(own.record, self.run.read())


def found_run(name: str, setting: str) -> Run:
    """Returns the run of a path, or the newest finished one of an experiment of this name.

    Args:
        name: The path or the experiment.
        setting: What it was given as, for the message.

    Raises:
        ValueError: There is none.
    """
    try:
        return open_run(name)
    except NotARun as error:
        if "/" in name or not name:
            raise ValueError(f"{setting}: {error}") from None
    folder = outputs_root() / folder_name(name)
    runs = [run for run in list_runs(folder) if run.status == "finished"] if folder.is_dir() else []
    if not runs:
        raise ValueError(
            f"{setting}: {name} is neither a run nor an experiment with a finished run in "
            f"{shown_path(outputs_root())}. {_how_to_train(name)}"
        )
    return runs[-1]


def _how_to_train(name: str) -> str:
    if experiments.find(name) is None:
        return experiments.nearest_names(name)
    return f"Train it first: genlab fit --config {name}"
