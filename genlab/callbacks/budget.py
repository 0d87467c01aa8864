"""How much a run may train, in the units that families share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytorch_lightning.callbacks import Callback, Timer

from genlab.amounts import Examples, Seconds
from genlab.callbacks.clock import TrainingClock

NEVER = 1 << 62  # batches


class Budget(Callback):
    """Ends training after a number of examples or seconds, and spaces evaluations evenly over it.

    A batch is one step's examples on all devices, so a budget of N examples with batches of B makes
    ceil(N / B) batches for every family, whatever its number of optimisers.

    Args:
        examples: Examples to train on, in the data's unit (`DataSpec.unit`), such as 320000, 320k or 1e6;
            None for no such limit.
        seconds: Seconds of training alone, without evaluation, such as 90 or 5m; None for no such limit.
        evaluate_every: Examples between two evaluations; None evaluates after each epoch.
        evaluations: Number of evaluations, spaced evenly over the examples or else over the seconds, in place
            of `evaluate_every`. Families of different speed are then evaluated equally often.
    """

    def __init__(
        self,
        examples: Examples | None = None,
        seconds: Seconds | None = None,
        evaluate_every: Examples | None = None,
        evaluations: int | None = None,
    ) -> None:
        given: dict[str, float | None] = {"examples": examples, "seconds": seconds}
        given |= {"evaluate_every": evaluate_every, "evaluations": evaluations}
        for name, value in given.items():
            if value is not None and value <= 0:
                raise ValueError(f"budget.{name} must be positive, got {value}; leave it out for no limit.")
        if evaluations and evaluate_every:
            raise ValueError(
                f"budget.evaluations {evaluations} and budget.evaluate_every {evaluate_every} both space the "
                f"evaluations: set one of them to null."
            )
        if evaluations and not (examples or seconds):
            raise ValueError("budget.evaluations needs a budget to divide: give budget.examples or .seconds.")
        self.examples = examples
        self.seconds = seconds
        self.evaluate_every = evaluate_every
        self.evaluations = evaluations
        self.clock = TrainingClock()
        self._evaluated: int | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit" or trainer.fast_dev_run:
            return
        timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]
        timed = any(timer.time_remaining() is not None for timer in timers)  # also of --trainer.max_time
        unlimited = trainer.max_epochs in (-1, None) and trainer.max_steps == -1
        if unlimited and not (self.examples or self.seconds or timed):
            raise ValueError(
                "The run would never end: give --budget.examples, --budget.seconds or --trainer.max_epochs."
            )
        if self.evaluate_every or self.evaluations:
            trainer.check_val_every_n_epoch = None
            trainer.val_check_interval = self._batches_between_evaluations(examples_per_batch(trainer))

    def _batches_between_evaluations(self, per_batch: int) -> int:
        if self.examples is not None:
            # A whole number of intervals, so that the last evaluation is the one at the end.
            num_evaluations = self.evaluations or max(1, round(self.examples / self.evaluate_every))  # type: ignore[operator]
            return math.ceil(math.ceil(self.examples / per_batch) / num_evaluations)
        if self.evaluate_every is not None:
            return max(1, round(self.evaluate_every / per_batch))
        return NEVER  # the clock decides after each batch

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.examples is not None and pl_module.examples_seen >= self.examples:
            trainer.should_stop = True
        if self.seconds is not None and trainer.strategy.reduce_boolean_decision(
            self.clock.seconds >= self.seconds, all=False
        ):
            trainer.should_stop = True
        if self.evaluations and self.examples is None:
            self._evaluate_when_due(trainer)

    def _evaluate_when_due(self, trainer: Any) -> None:
        assert self.seconds is not None and self.evaluations is not None
        passed = int(self.clock.seconds * self.evaluations / self.seconds)
        if self._evaluated is None:  # the first batch, or the first one after a resumption
            self._evaluated = passed
        due = trainer.strategy.reduce_boolean_decision(passed > self._evaluated, all=False)
        trainer.val_check_batch = trainer.fit_loop.total_batch_idx + 1 if due else NEVER
        if due:  # on every device, also where the clock is a little behind
            self._evaluated = max(passed, self._evaluated + 1)

    def total_examples(self, trainer: Any) -> float:
        """Returns how many examples the whole run will see, infinity where only the clock decides."""
        per_batch = examples_per_batch(trainer)
        limits = [float("inf") if self.examples is None else float(self.examples)]
        if trainer.max_epochs not in (-1, None):
            limits.append(trainer.max_epochs * trainer.num_training_batches * per_batch)
        if trainer.max_steps > 0:
            limits.append(trainer.max_steps * trainer.lightning_module.batches_per_step * per_batch)
        return min(limits)


def spent_limit(state: dict[str, Any], limits: Mapping[str, Any]) -> str:
    """Returns the key of a limit that a checkpoint's training has reached, "" where it may go on.

    Args:
        state: The checkpoint.
        limits: `runs.changes.LIMITS` by key; null and -1 are none.
    """
    loops = state["loops"]["fit_loop"]
    epochs, batches = loops["epoch_progress"]["current"], loops["epoch_loop.batch_progress"]
    # Within its last batch an epoch is begun and not yet counted.
    ended = epochs["started"] > epochs["processed"] and batches["is_last_batch"]
    spent = {
        "budget.examples": state["examples_seen"],
        "budget.seconds": state["callbacks"].get(TrainingClock.__name__, {}).get("seconds", 0.0),
        "trainer.max_steps": state["global_step"],
        "trainer.max_epochs": epochs["processed"] + ended,
    }
    return next((k for k, v in spent.items() if limits.get(k) not in (None, -1) and v >= limits[k]), "")


def examples_per_batch(trainer: Any) -> int:
    """Returns the examples of one step, over all devices."""
    data = trainer.datamodule
    return data.batch_size * data.spec.units * trainer.world_size
