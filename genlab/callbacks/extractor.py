"""Trained classifiers become rulers for generated images of their domain."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback
from torch import nn

from genlab.callbacks.record import find_recorder
from genlab.metrics.classifier_extractor import save_extractor


class ExportExtractor(Callback):
    """Writes `extractor.safetensors` into the run, which `--extractor RUN` then reads.

    Asks the model for its `extractor_network`, whose `features` are measured by.
    """

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        recorder = find_recorder(trainer)
        network = getattr(pl_module, "extractor_network", None)
        if recorder is None or not isinstance(network, nn.Module) or not trainer.is_global_zero:
            return
        config = pl_module.config.get("init_args", {}).get("network", {})
        metadata = {
            "init_args": config.get("init_args", {}),
            "name": f"{pl_module.spec.name}-classifier",
            "command": f"genlab fit --config experiments/{recorder.run.experiment}.yaml",
            "examples_seen": pl_module.examples_seen,
            "validation": {k: v for k, v in recorder.latest.items() if k.startswith("val/")},
        }
        save_extractor(recorder.run.path / "extractor.safetensors", network, pl_module.spec, metadata)
