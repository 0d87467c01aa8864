"""Weights beside those that learn: averages, networks that only answer, networks that are learned through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from genlab.families.sharding import local


class Average(nn.Module):
    """An exponential moving average of a network: weights averaged, buffers copied.

        ema <- d ema + (1 - d) weights,    d = min(2^(-examples / half_life), (1 + n) / (10 + n))

    at update number n > 0, `examples` after the one before; update 0 copies. A half-life in examples means
    the same for any batch size, number of devices and accumulation (Karras et al. 2022, arXiv:2206.00364,
    table 7); one in steps does not. The ramp lets the average forget the first weights even in runs shorter
    than the half-life.

    Args:
        network: What is averaged.
        half_life: Examples after which a weight counts for half: longer is smoother and later.

    Attributes:
        num_updates: n above. A plain number, and part of the state: on the device, reading it would wait.
    """

    def __init__(self, network: nn.Module, half_life: float) -> None:
        super().__init__()
        if not half_life > 0:
            raise ValueError(f"The half-life of an average must be positive, got {half_life}.")
        self.module = deepcopy(network).requires_grad_(False).eval()
        self.half_life = half_life
        self.num_updates = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, network: nn.Module, examples: int) -> None:
        """Moves the average towards the network, which has seen so many examples since the last time."""
        n = self.num_updates
        decay = min(0.5 ** (examples / self.half_life), (1 + n) / (10 + n)) if n else 0.0
        averaged, current = (list(map(local, each.parameters())) for each in (self.module, network))
        if decay:
            step = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(step, 1.0 - decay)
            torch._foreach_add_(averaged, step)
        else:
            torch._foreach_copy_(averaged, current)
        for kept, buffer in zip(self.module.buffers(), network.buffers(), strict=True):
            kept.copy_(buffer)
        self.num_updates += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.num_updates)

    def set_extra_state(self, state: Tensor) -> None:
        self.num_updates = int(state)


class Snapshot(nn.Module):
    """A network as it was after some examples; it never learns, drops nothing out and is part of the state.

    Args:
        network: What is kept a copy of; its first weights fill the place until then.
        after: Examples after which the copy is taken, at the next step.

    Attributes:
        is_taken: Whether it has been. A plain number, as an average's updates.
    """

    def __init__(self, network: nn.Module, after: int) -> None:
        super().__init__()
        self.module = deepcopy(network).requires_grad_(False).eval()
        self.after, self.is_taken = after, False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Snapshot:
        return super().train(False)

    @torch.no_grad()
    def offer(self, network: nn.Module, examples: int) -> None:
        """Copies the network where so many examples are enough and there is no copy yet."""
        if self.is_taken or examples < self.after:
            return
        for kept, value in zip(_values(self.module), _values(network), strict=True):
            kept.copy_(value)
        self.is_taken = True

    def get_extra_state(self) -> Tensor:
        return torch.tensor(int(self.is_taken))

    def set_extra_state(self, state: Tensor) -> None:
        self.is_taken = bool(state)


def _values(network: nn.Module) -> Iterator[Tensor]:
    yield from map(local, network.parameters())
    yield from network.buffers()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode for a while: batch norm by running statistics, no dropout."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


def mixes_rows(network: nn.Module) -> bool:
    """Returns whether what a network makes of an item depends, in training, on the others of its batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def together(network: nn.Module, *batches: Tensor, name: str | None = None) -> tuple[Tensor, ...]:
    """Returns what a network makes of several batches, in one pass where their rows do not mix.

    Args:
        network: Takes a batch as its first argument, or as the one of the given name.
        batches: Tensors that differ in their first side at most.
        name: Of the argument.
    """

    def made(x: Tensor) -> Tensor:
        return network(x) if name is None else network(**{name: x})

    if mixes_rows(network):
        return tuple(map(made, batches))
    return made(torch.cat(batches)).split([len(batch) for batch in batches])


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Keeps gradients out of a network's parameters while another one learns through it."""
    states = [parameter.requires_grad for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, state in zip(network.parameters(), states, strict=True):
            parameter.requires_grad_(state)


def translated(network: nn.Module, told: dict[str, Any]) -> Tensor:
    """Returns a network's images in evaluation mode."""
    with evaluating(network):
        return network(**told).float()
