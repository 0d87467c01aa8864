"""Networks compiled where they train, and as they were for all else: samples, copies and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from genlab.text import shortened


class CompiledForward:
    """The `forward` of a network: compiled while it trains, as it was written while it evaluates.

    It stands in the place of the method alone, so that the network keeps its name and its weights theirs.
    What evaluates calls the method itself: its shapes differ, and its samples do not depend on a compiler. A
    copy of the network has its own, which compiles anew.

    Args:
        network: Whose it is.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._compiled: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = MethodType(type(self.network).forward, self.network)
        if not self.network.training:
            return plain(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(plain)
        return self._compiled(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {"network": self.network, "_compiled": None}


def compile_learning(model: nn.Module) -> None:
    """Has the networks of a model compiled at their first call in training; its weights keep their names."""
    for network in learning_networks(model):
        if "forward" not in vars(network):
            network.forward = CompiledForward(network)


def learning_networks(model: nn.Module) -> Iterator[nn.Module]:
    """Yields the largest parts of a model that learn and are called, but for models within it."""
    for part in model.children():
        if isinstance(part, pl.LightningModule) or not any(p.requires_grad for p in part.parameters()):
            continue
        if type(part).forward is nn.Module.forward:  # a list of parts
            yield from learning_networks(part)
        else:
            yield part


def require_compiler() -> None:
    """Compiles something small, so that what is missing is said before a training has begun.

    Raises:
        ValueError: It cannot be compiled.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(_doubled)(torch.ones(2, device=device))
    except Exception as error:  # each compiler has its own
        reason = shortened(" ".join(str(error).split()) or type(error).__name__, 200)
        raise ValueError(
            "model.compile needs a C++ compiler and the headers of Python (such as: apt install g++ "
            f"python3-dev), and compiling failed: {reason} Leave model.compile out to train without."
        ) from error


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return 2 * x
