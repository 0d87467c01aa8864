"""Trained classifiers become rulers for generated images of their domain."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback

from genlab.callbacks.record import find_recorder
from genlab.families.capabilities import Classifies, can
from genlab.metrics.classifier_extractor import save_extractor


class ExportExtractor(Callback):
    """Writes `extractor.safetensors` into the run, which `--extractor RUN` then reads.

    Asks the model for its `extractor_network`, whose `features` are measured by.
    """

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        recorder = find_recorder(trainer)
        if recorder is None or not can(pl_module, Classifies) or not trainer.is_global_zero:
            return
        config = pl_module.config.get("init_args", {}).get("network", {})
        metadata = {
            "init_args": config.get("init_args", {}),
            "name": f"{pl_module.spec.name}-classifier",
            "command": f"genlab fit --config experiments/{recorder.run.experiment}.yaml",
            "examples_seen": pl_module.examples_seen,
            "validation": {k: v for k, v in recorder.latest.items() if k.startswith("val/")},
        }
        file = recorder.run.path / "extractor.safetensors"
        save_extractor(file, pl_module.extractor_network, pl_module.spec, metadata)
