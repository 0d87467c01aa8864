"""The checkpoint that a training command goes on from."""

from __future__ import annotations

from pathlib import Path

import yaml
from pytorch_lightning import Trainer

from genlab.callbacks.budget import spent_limit
from genlab.callbacks.record import Resumption
from genlab.errors import CheckpointError
from genlab.evaluation.checkpoint import read_checkpoint, restoring
from genlab.evaluation.load import check_vocabulary, check_weights
from genlab.families.base import Model
from genlab.runs.changes import TrainedWith
from genlab.runs.folder import Run, open_run, shown_path
from genlab.runs.metrics_file import MetricsFile


class GoingOn:
    """What a checkpoint says to the command that goes on from it.

    Args:
        checkpoint: The file.
        accepts: Go on although settings or data have changed.

    Attributes:
        state: What the file holds, until its weights have been compared.
        run: The run that it lies in, None for one that lies elsewhere.
        resumption: What it was trained with.

    Raises:
        CheckpointError: It is damaged or not of genlab's making.
    """

    def __init__(self, checkpoint: Path, accepts: bool) -> None:
        self.checkpoint = checkpoint
        self.state = read_checkpoint(checkpoint)
        self.run = run_of(checkpoint)
        self.resumption = Resumption.of(checkpoint, self.state, accepts)

    def require_class(self, asked: str) -> None:
        """Refuses a configuration that asks for another class of model."""
        stored = self.state["genlab"]["model"]
        if stored and stored.get("class_path") != asked:
            raise CheckpointError(
                f"{self.checkpoint} holds a {stored.get('class_path')}, the configuration asks for {asked}: "
                f"give the configuration of the checkpoint's own run (config.yaml beside it)."
            )

    def require_weights_of(self, model: Model) -> None:
        """Refuses a model whose weights or vocabulary are not the checkpoint's, and lets go of these."""
        check_vocabulary(model, self.state, self.checkpoint)
        check_weights(model, self.state, self.checkpoint)
        self.state = {}  # as much memory as the model and its optimisers

    def spent_limit(self, config: str) -> str:
        """Returns the limit that the training has reached, such as `budget.examples`, "" for none.

        Args:
            config: What is asked for now, as YAML.
        """
        limits = TrainedWith.of(yaml.safe_load(config), {}).limits
        with restoring(self.checkpoint):
            spent = spent_limit(self.state, limits)
        # A run may also have ended early, by a callback or the time it was given.
        has_ended = self.run is not None and self.run.status == "finished"
        ended = has_ended and limits == self.resumption.trained_with.limits
        return spent or (next((k for k, v in limits.items() if v not in (None, -1)), "") if ended else "")

    def say_complete(self, spent: str, unit: str) -> None:
        """Says that nothing is left to train; a run that was killed after its last step is finished now.

        Args:
            spent: The limit that was reached.
            unit: Of examples, as people read it.
        """
        seen = self.resumption.examples_seen
        if self.run is not None and self.run.status != "finished":
            MetricsFile(self.run).write_csv()
            self.run.update(status="finished", error=None, examples_seen=seen)
        place = shown_path(self.run.path if self.run is not None else self.checkpoint)
        print(f"{place} is complete after {seen:,} {unit}; extend it with --{spent} N")

    def blame(self, trainer: Trainer) -> None:
        """Lets errors of what a trainer restores from the checkpoint name the file."""
        connector = trainer._checkpoint_connector
        for name in ("restore_model", "restore_callbacks", "restore_training_state"):
            setattr(connector, name, restoring(self.checkpoint)(getattr(connector, name)))


def run_of(checkpoint: Path) -> Run | None:
    """Returns the run that a checkpoint lies in, None for one that lies elsewhere."""
    try:
        return open_run(checkpoint)
    except ValueError:
        return None
