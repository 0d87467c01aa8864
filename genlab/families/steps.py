"""What is worth knowing of an optimiser's step: how long its gradient is, and how far it goes along it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from genlab.families.sharding import whole


def gradient_norm(optimizer: Optimizer) -> Tensor | None:
    """Returns the Euclidean norm of the gradient of all of an optimiser's parameters together.

    It stays on the device, which is not waited for. None where no parameter has a gradient.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    return whole(get_total_norm(gradients)).detach().float() if gradients else None


def unscaled(norm: Tensor, optimizer: Optimizer, precision: Any) -> Tensor:
    """Returns a gradient's norm without the scale of 16 bits, which fused optimisers undo in their step."""
    scaler = getattr(precision, "scaler", None)
    if scaler is None or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return norm
    return norm / scaler.get_scale()


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """Returns an optimiser's learning rate, by "" where its groups share it and by "/number" where not.

    Groups share it if they began with the same one: a schedule brings all of them to 0.
    """
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    first = {float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups}
    return {"": rates[0]} if len(first) == 1 else {f"/{number}": rate for number, rate in enumerate(rates)}


def logs_within(trainer: Any, batches: int) -> bool:
    """Returns whether a line is logged after this batch or one of the next, so many with this one."""
    every = trainer.log_every_n_steps
    return bool(every) and -(trainer.fit_loop.total_batch_idx + 1) % every < batches
