"""How much a run may train, in the units that families share."""

from __future__ import annotations

import math
from typing import Any

from pytorch_lightning.callbacks import Callback, Timer

from genlab.callbacks.clock import TrainingClock


class Budget(Callback):
    """Ends training after a number of images or seconds, and spaces evaluations evenly over it.

    A batch is one step's real images on all devices, so a budget of N images with batches of B makes
    ceil(N / B) batches for every family, whatever its number of optimisers.

    Args:
        images: Real images to train on; None for no such limit.
        seconds: Seconds of training alone, without evaluation; None for no such limit.
        evaluate_every: Images between two evaluations; None evaluates after each epoch.
    """

    def __init__(
        self, images: int | None = None, seconds: float | None = None, evaluate_every: int | None = None
    ) -> None:
        for name, value in (("images", images), ("seconds", seconds), ("evaluate_every", evaluate_every)):
            if value is not None and value <= 0:
                raise ValueError(f"budget.{name} must be positive, got {value}; leave it out for no limit.")
        self.images = images
        self.seconds = seconds
        self.evaluate_every = evaluate_every
        self.clock = TrainingClock()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:
            return
        timed = any(isinstance(callback, Timer) for callback in trainer.callbacks)  # --trainer.max_time
        unlimited = trainer.max_epochs in (-1, None) and trainer.max_steps == -1
        if unlimited and not (self.images or self.seconds or timed):
            raise ValueError(
                "The run would never end: give --budget.images, --budget.seconds or --trainer.max_epochs."
            )
        if self.evaluate_every:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_interval = self._batches_between_evaluations(images_per_batch(trainer))

    def _batches_between_evaluations(self, per_batch: int) -> int:
        assert self.evaluate_every is not None
        if self.images is None:
            return max(1, round(self.evaluate_every / per_batch))
        # A whole number of intervals, so that the last evaluation is the one at the end.
        num_evaluations = max(1, round(self.images / self.evaluate_every))
        return math.ceil(math.ceil(self.images / per_batch) / num_evaluations)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.images is not None and pl_module.images_seen >= self.images:
            trainer.should_stop = True
        if self.seconds is not None and trainer.strategy.reduce_boolean_decision(
            self.clock.seconds >= self.seconds, all=False
        ):
            trainer.should_stop = True

    def total_images(self, trainer: Any) -> float:
        """Returns how many images the whole run will see, infinity where only the clock decides."""
        per_batch = images_per_batch(trainer)
        limits = [float("inf") if self.images is None else float(self.images)]
        if trainer.max_epochs not in (-1, None):
            limits.append(trainer.max_epochs * trainer.num_training_batches * per_batch)
        if trainer.max_steps > 0:
            steps = getattr(trainer.lightning_module, "discriminator_steps", 1)
            limits.append(trainer.max_steps * steps * per_batch)
        return min(limits)


def images_per_batch(trainer: Any) -> int:
    """Returns the real images of one step, over all devices."""
    return trainer.datamodule.batch_size * trainer.world_size
