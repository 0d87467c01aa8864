"""What autoregressive families share: a likelihood that is a product, and which weights decay."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from genlab.families.base import Model
from genlab.families.optimizers import optimizer_of


class ChainRule(Model):
    """A model whose likelihood is a product of what each part is given those before it.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)

    Exact: no bound and no sampling in it. Its network is one whose outputs see earlier parts alone.
    """

    network: Any
    optimizer_factory: OptimizerCallable
    matrix_optimizer_factory: OptimizerCallable | None = None

    likelihood_kind = "exact"
    likelihood_estimator = "chain rule"

    def configure_optimizers(self) -> Any:
        return self.scheduled(
            optimizer_of(self.network, self.optimizer_factory, self.matrix_optimizer_factory)
        )

    @property
    def sampling_network(self) -> Any:
        """The network that samples and scores come from."""
        return self.network if self.average is None else self.average.module

    @abstractmethod
    def predict(self, x: Tensor, **given: Any) -> Tensor:
        """Returns what the network says of each part of items, those before it being known."""
