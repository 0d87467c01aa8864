"""`genlab test`: what still holds is kept, the rest is measured, and each result is written at once."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from genlab.callbacks.evaluate import Evaluate
from genlab.callbacks.loggers import show_table
from genlab.callbacks.record import Resumption, adopt_loggers, pass_on
from genlab.configuration.messages import readable
from genlab.data.base import DataModule
from genlab.distributed import place
from genlab.evaluation.checkpoint import read_checkpoint
from genlab.evaluation.examine import Examination
from genlab.evaluation.load import build_model, load_weights, mismatches, with_settings
from genlab.families.base import Model
from genlab.families.capabilities import can_be_sampled
from genlab.report.forms import as_markdown
from genlab.report.table import MetricsTable
from genlab.report.test_table import rows_of, table_of
from genlab.runs.changes import Change
from genlab.runs.folder import Run, folder_name
from genlab.runs.tests import Stamp, kept_test, kept_variants
from genlab.shapes import DataSpec


@dataclass
class TestedRun:
    """A run under test.

    Args:
        run: Where entries and pictures are written; None writes nothing.
        checkpoint: The weights' file, which variants load too.
        made_of: What the test is made of; entries made of the same are kept.
        model: The run's model, with its weights once the trainer has tested it.
        config: Its configuration.
        variants: Settings of each variant.
        data: The run's data.
        evaluate: Scores samples.
        device: Where measuring is done.
        again: Keep nothing.
        changes: How the data differ from those of the training, where that was accepted.
    """

    run: Run | None
    checkpoint: Path | None
    made_of: Stamp | None
    model: Model
    config: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    data: DataModule
    evaluate: Evaluate
    device: torch.device
    again: bool = False
    changes: Sequence[Change] = ()
    kept: dict[str, Any] | None = field(init=False, default=None)
    entries: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.run is not None and self.made_of is not None and not self.again:
            self.kept = kept_test(self.run, self.made_of)
            self.entries = kept_variants(self.run, self.made_of, self.variants)

    def measure(self, means: dict[str, float]) -> None:
        """Measures the run's model, with the means of its losses over the split."""
        model = self.model.to(self.device).eval()
        self.evaluate.add_noise()
        entry = self._stamped(self._examination().of_model(model, means), model)
        if place()[0] != 0:
            return
        self.kept = entry
        if self.run is not None:
            self.run.replace(test=self.kept, variants=self.entries)

    def measure_variants(self) -> None:
        """Measures the variants that are missing, with the weights of the checkpoint."""
        missing = {name: s for name, s in self.variants.items() if name not in self.entries}
        if not missing:
            return
        if self.checkpoint is None:
            raise ValueError("Variants are scored with trained weights: give --ckpt_path or a run.")
        state = read_checkpoint(self.checkpoint)
        self.evaluate.prepare(self.model)
        self.evaluate.add_noise()
        for name, settings in missing.items():
            if place()[0] == 0:
                print(f"Variant {name} ...", file=sys.stderr)
            model = built_variant(self.config, settings, self.model.spec, name)
            load_weights(model, state, self.checkpoint)
            self._measure_variant(name, model.to(self.device).eval())

    def table(self) -> MetricsTable:
        """Returns what was found."""
        return table_of(self.kept or {}, {name: self.entries[name] for name in self.variants})

    def log(self, trainer: Any, tested: Resumption) -> None:
        """Gives every logger the scores and their table, at the examples that the checkpoint has seen."""
        kept, seen = self.kept or {}, tested.examples_seen
        adopt_loggers(trainer, lambda: (seen, tested.steps))
        variants = {name: self.entries[name] for name in self.variants}
        found = {f"test/{name}": value for name, value in kept.get("values", {}).items()}
        for variant, entry in variants.items():
            found |= {f"test/{variant}/{name}": value for name, value in entry.get("values", {}).items()}
        rows, columns = rows_of(kept, variants)
        text = as_markdown(self.table())
        pass_on(trainer, lambda logger: logger.log_metrics(found, step=seen))
        pass_on(trainer, lambda logger: show_table(logger, "test/table", rows, columns, text, seen))

    def _measure_variant(self, name: str, model: Model) -> None:
        found = self._examination().of_variant(model, f"test/{folder_name(name)}")
        self.entries[name] = {**self._stamped(found, model), "settings": self.variants[name]}
        if self.run is not None and place()[0] == 0:
            self.run.replace(variants=self.entries)

    def _stamped(self, entry: dict[str, Any], model: Model) -> dict[str, Any]:
        made_of = {} if self.made_of is None else self.made_of.to_dict()
        if self.evaluate.missing is not None and can_be_sampled(model):
            made_of["checkpoint_digest"] = None  # incomplete: once there is an extractor, it is made again
        changed = {"changes": [change.to_dict() for change in self.changes]} if self.changes else {}
        return {**entry, **changed, **made_of}

    def _examination(self) -> Examination:
        return self.evaluate.examination(self.data, None if self.run is None else self.run.path)


def check_variants(model: Model, config: dict[str, Any], variants: dict[str, dict[str, Any]]) -> None:
    """Refuses variants that could not be made, or that are another network, before any training.

    Raises:
        ValueError: With the variant, the key and the nearest valid one.
    """
    for name, settings in variants.items():
        with torch.random.fork_rng():
            variant = built_variant(config, settings, model.spec, name)
        problems = mismatches(variant, model.state_dict())
        if problems:
            raise ValueError(f"variants.{name} changes the network: {'; '.join(problems[:2])}.")


def built_variant(config: dict[str, Any], settings: dict[str, Any], spec: DataSpec, name: str) -> Model:
    """Returns the model of a configuration with a variant's settings, without weights."""
    try:
        folder_name(name)
        return build_model(with_settings(config, settings), spec)
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"variants.{name}: {readable(error)}") from error
