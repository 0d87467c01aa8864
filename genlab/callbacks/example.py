"""An item for Lightning's summaries of a model to send through it."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.callbacks import Callback, ModelSummary


class ExampleInput(Callback):
    """Gives a model one validation item where it is summarised, for shapes and FLOPs.

    Without one a summary says "Total FLOPs: 0". They are those of the losses of one item, without gradients.
    To stand before all summaries.
    """

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if any(isinstance(callback, ModelSummary) for callback in trainer.callbacks):
            loader = trainer.datamodule.loader("val", batch_size=1, at_most=1)
            pl_module.example_input_array = next(iter(loader))
