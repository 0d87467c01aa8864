"""Classifiers of one's own domain, whose features then measure generated images of that domain."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from genlab.families.base import Model, NetworkFactory
from genlab.shapes import Batch, DataSpec


class Classifier(Model):
    """Learns labels from images by cross-entropy.

        loss = -sum_k q_k log softmax(logits)_k,     q_k = (1 - s) [k = label] + s / num_classes

    Szegedy et al. 2016 (arXiv:1512.00567), section 7, for the label smoothing s.

    Args:
        spec: The data, linked from the data module.
        network: Gives logits for images; its `features(x)` are what an extractor returns.
        optimizer: Built from the network's parameters.
        label_smoothing: s above; 0 trusts the labels, larger values keep the logits small.
        augment: Applied to training images, for example RandomShift for small data sets.
        compile: Compile the network, as in every model.
    """

    conditions = ()
    cannot_sample = "it tells classes apart and draws nothing"

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        optimizer: OptimizerCallable,
        label_smoothing: float = 0.0,
        augment: nn.Module | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(spec, compile=compile)
        self.extractor_network = network(spec)
        self.augment = augment or nn.Identity()
        self.optimizer = optimizer
        self.label_smoothing = label_smoothing

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        label = batch["label"]
        x = self.augment(batch["image"]) if self.training else batch["image"]
        logits = self.extractor_network(x).float()
        loss = cross_entropy(logits, label, label_smoothing=self.label_smoothing)
        return {"loss": loss, "accuracy": (logits.argmax(dim=1) == label).float().mean()}

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.extractor_network.parameters())
