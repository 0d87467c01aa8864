"""Training that has left the numbers is noticed before anything is made of it."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from genlab.distributed import joined_sum
from genlab.errors import Diverged
from genlab.families.base import Model
from genlab.families.sharding import local

REMEDIES = "a smaller learning rate, `clip` or 32-bit precision are the usual remedies."
LEAST_SCALE = 2.0**-10
"""Of the losses in half precision, which begins at 2^16 and is halved for every step that overflows."""


class DivergenceGuard(Callback):
    """Ends a run whose losses or weights are no longer finite, before an evaluation is made of them.

    The device is waited for at evaluations and at the end alone; the recorder looks at the losses it writes,
    and a checkpoint at the weights it keeps.
    """

    def __init__(self) -> None:
        self._batch: Any = None

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.check(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.check(trainer, pl_module)

    def check(self, trainer: Any, model: Model) -> None:
        """Looks at the last losses and at all that a checkpoint would keep.

        Raises:
            Diverged: One of them is not finite, or no step is taken any more.
        """
        require_scale(trainer)
        require_finite_losses(model, read_losses(model.latest), self._batch)
        require_finite_state(model)


def require_finite_losses(model: Model, losses: dict[str, float], batch: Any) -> None:
    """Raises `Diverged` for losses that are not finite, with what the model knows of the cause."""
    broken = next((name for name, value in losses.items() if not math.isfinite(value)), None)
    if broken is None:
        return
    with torch.compiler.set_stance("force_eager"):  # layers that are compiled together cannot be told apart
        reason = (model.explain(batch) if batch is not None else "") or REMEDIES
    raise Diverged(
        f"The {'' if broken == 'loss' else f'{broken} '}loss is not finite after {model.examples_seen:,} "
        f"{model.spec.unit}. The last checkpoint is untouched; {reason}"
    )


def require_scale(trainer: Any) -> None:
    """Raises `Diverged` where gradients overflow half precision whatever they are scaled by.

    Such steps are left out, and a training of nothing else would look like one that learns nothing.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and scaler.get_scale() < LEAST_SCALE:
        raise Diverged(
            f"Gradients overflow half precision even at a scale of {scaler.get_scale():.2g}: no step counts. "
            "The last checkpoint is untouched; --trainer.precision bf16-mixed has the range of 32 bits."
        )


def require_finite_state(model: Model) -> None:
    """Raises `Diverged` for a weight, an average or a running statistic that is not finite."""
    name = not_finite(model)
    if name:
        raise Diverged(
            f"{name} is not finite after {model.examples_seen:,} {model.spec.unit}. "
            f"The last checkpoint is untouched; {REMEDIES}"
        )


def not_finite(model: Any) -> str:
    """Returns the first part of a model's state with a number that is not finite, "" where there is none.

    The device is waited for once.
    """
    tensors = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    floats = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not floats:
        return ""
    # The largest absolute value: a sum of squares overflows for large weights that are finite.
    held = [part if part.numel() else part.new_zeros(1) for part in map(local, floats.values())]
    broken = torch.stack([~value.isfinite() for value in torch._foreach_norm(held, math.inf)]).float()
    if getattr(model, "sharded", ()):  # each process looks at its part
        broken = joined_sum(broken)
    return next((name for name, count in zip(floats, broken.tolist(), strict=True) if count), "")


def read_losses(losses: dict[str, Tensor]) -> dict[str, float]:
    """Returns losses as numbers, waiting for the device once rather than once for each."""
    if not losses:
        return {}
    values = torch.stack([value.float() for value in losses.values()]).tolist()
    return dict(zip(losses, values, strict=True))
