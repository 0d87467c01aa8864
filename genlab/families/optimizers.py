"""Optimisers that torch lacks: several as one, and Muon in the precision of its matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer


def decay_groups(parameters: Iterable[Tensor]) -> list[dict[str, Any]]:
    """Returns parameters as groups for an optimiser: matrices, and vectors, whose weight decay is 0."""
    learned = [p for p in parameters if p.requires_grad]
    matrices = {"params": [p for p in learned if p.dim() > 1]}
    vectors = {"params": [p for p in learned if p.dim() < 2], "weight_decay": 0.0}
    return [group for group in (matrices, vectors) if group["params"]]


def optimizer_of(
    network: nn.Module, optimizer: OptimizerCallable, matrix_optimizer: OptimizerCallable | None
) -> Optimizer:
    """Returns the optimiser of a network: one of all, or another one of its matrices between vectors.

    Those, and the filters of convolutions, are what Muon is for; tables of tokens and what makes the output
    are not (Jordan et al. 2024).
    """
    if matrix_optimizer is None:
        return optimizer(decay_groups(network.parameters()))
    between, others = _matrices_and_others(network)
    return Joined([matrix_optimizer(between), optimizer(decay_groups(others))])


def _matrices_and_others(network: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what maps vectors to vectors, and all others: tables, the output, norms, biases."""
    apart = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    apart.add(id(getattr(network, "output_weight", None)))
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for parameter in network.parameters():
        if parameter.requires_grad:
            parts[parameter.dim() < 2 or id(parameter) in apart].append(parameter)
    return parts


class Joined(Optimizer):
    """Optimisers of different parameters as one, such as Muon for matrices with AdamW for the rest.

    Groups and states are shared with the parts: a schedule that changes a group here changes it there, and
    what is saved and restored is all of it, in the form of every optimiser.

    Args:
        parts: The optimisers, none of which has a parameter of another one.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            part.state = self.state
            part.param_groups = self.param_groups[first : first + len(part.param_groups)]
            first += len(part.param_groups)


class Float32Muon(Optimizer):
    """Momentum that is made orthogonal before a matrix is moved along it: Muon (Jordan et al. 2024).

        B <- m B + (1 - m) G,   U = m B + (1 - m) G
        W <- (1 - lr d) W - lr sqrt(max(1, rows / columns)) O(U)

    O(U) has U's singular vectors and singular values of about 1, by five steps X <- a X + b A X + c A^2 X
    with A = X X^T, from U over its Frobenius norm. The same as torch.optim.Muon (torch 2.9), which computes O
    in bfloat16: on a processor without it, that takes many times as long as the rest of a small model's step.

    The filters of a convolution are a matrix with a row for each output, as in its author's program.

    Args:
        params: Matrices and filters.
        lr: Learning rate.
        weight_decay: d.
        momentum: m.

    Raises:
        ValueError: A parameter is no matrix.
    """

    def __init__(
        self, params: Any, lr: float = 0.02, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        shapes = [tuple(p.shape) for group in self.param_groups for p in group["params"] if p.dim() < 2]
        if shapes:
            raise ValueError(f"Float32Muon moves matrices, got a parameter of shape {shapes[0]}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for parameters in alike.values():
                self._move(parameters, group)
        return loss

    def _move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Moves matrices of one shape, whose directions are found together."""
        momentum, updates = group["momentum"], []
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            buffer = state["momentum_buffer"].lerp_(gradient, 1.0 - momentum)
            updates.append(gradient.lerp(buffer, momentum).flatten(1))
        rows, columns = updates[0].shape
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, direction in zip(parameters, orthogonalised(torch.stack(updates)), strict=True):
            direction = direction.view_as(parameter)
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=rate)


def orthogonalised(x: Tensor) -> Tensor:
    """Returns matrices of the same singular vectors and singular values of about 1, (n, rows, columns)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
