"""Lightning's settings and callbacks that cannot do here what they do elsewhere, and what does it instead.

Asked before a run has a folder, so that a setting that is refused leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    DeviceStatsMonitor,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)

PRECISIONS = {
    "32-true": "32-true",
    "32": "32-true",
    "bf16-mixed": "bf16-mixed",
    "bf16": "bf16-mixed",
    "16-mixed": "16-mixed",
    "16": "16-mixed",
}
"""The precisions of a run by all names that Lightning has for them.

Noise, penalties, likelihoods and scores are float32 by intention, so the weights have to be.
"""

_AVERAGE = "scores and checkpoints would not know of its weights: --model.half_life keeps an average of them."
_REFUSED: dict[type[Callback], str] = {
    StochasticWeightAveraging: _AVERAGE,
    WeightAveraging: _AVERAGE,
    BatchSizeFinder: "its trials would count as training: give --data.batch_size.",
    LearningRateFinder: "its trials would count as training: give the optimiser's lr, "
    "or let `genlab bench --trials` choose.",
    BackboneFinetuning: "no model here has a part called `backbone`.",
    ModelPruning: "checkpoints would hold masks that no other command reads.",
}
_ALTERNATING: dict[type[Callback], str] = {
    GradientAccumulationScheduler: "two players take turns here: give a larger --data.batch_size.",
}


def check_precision(precision: Any) -> str:
    """Returns a precision by its full name.

    Raises:
        ValueError: Models do not train in it.
    """
    if str(precision) not in PRECISIONS:
        names = ", ".join(dict.fromkeys(PRECISIONS.values()))
        raise ValueError(f"trainer.precision must be one of {names}, got {precision}.")
    return PRECISIONS[str(precision)]


def check_trainer(trainer: Any, alternating: bool) -> None:
    """Refuses what the trainer's settings ask for and cannot be had.

    Args:
        trainer: The settings, with their callbacks built.
        alternating: Whether the model steps its optimisers itself.

    Raises:
        ValueError: With the way to the same end.
    """
    if trainer.get("enable_checkpointing") is False and not trainer.get("fast_dev_run"):
        raise ValueError(
            "trainer.enable_checkpointing is false, but a run keeps its checkpoints: leave it out. "
            "--trainer.fast_dev_run tries a configuration and writes nothing."
        )
    for limit in ("max_steps", "max_epochs"):
        if trainer.get(limit) == 0:
            raise ValueError(f"trainer.{limit} 0 trains nothing: --trainer.fast_dev_run tries one batch.")
    every = trainer.get("accumulate_grad_batches")
    if every is not None and every < 1:
        raise ValueError(f"trainer.accumulate_grad_batches must be at least 1, got {every}.")
    if alternating and trainer.get("gradient_clip_val") is not None:
        raise ValueError(
            "trainer.gradient_clip_val is of one optimiser, and two players take turns here: "
            f"use --model.balance.clip {trainer['gradient_clip_val']}."
        )
    if alternating and trainer.get("accumulate_grad_batches") != 1:
        raise ValueError(
            "trainer.accumulate_grad_batches is of one optimiser, and two players take turns here: "
            "give a larger --data.batch_size."
        )
    callbacks = trainer.get("callbacks") or []
    check_callbacks(callbacks if isinstance(callbacks, list) else [callbacks], alternating)


def check_callbacks(callbacks: Sequence[Callback], alternating: bool) -> None:
    """Refuses callbacks of Lightning's that cannot work here; see `check_trainer`."""
    for callback in callbacks:
        for kind, reason in {**_REFUSED, **(_ALTERNATING if alternating else {})}.items():
            if isinstance(callback, kind):
                raise ValueError(f"{type(callback).__name__} cannot be used: {reason}")
        if isinstance(callback, DeviceStatsMonitor) and not importlib.util.find_spec("psutil"):
            raise ValueError("DeviceStatsMonitor reads the processor by psutil: pip install psutil.")
