"""Steps of models whose batches hold unequally many units, such as sentences of unequal lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.distributed import joined_mean, joined_sum
from genlab.families.base import Model
from genlab.shapes import Batch


class EqualUnits(Model):
    """A model that learns from each unit alike, however they fall into batches and on devices.

        gradient of a step = sum over its batches of (units x gradient of their mean loss) / all their units

    A mean of the batches' means, which accumulation and several devices give, would let a token of a short
    batch count for more.

    Attributes:
        weight_in_hand: Units so far, over those that batches could hold, of an accumulation whose step is to
            come.
    """

    weight_in_hand: Tensor | None = None

    def most_units(self, batch: Batch) -> int:
        """Returns how many units a batch of this shape could hold."""
        raise NotImplementedError

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        if loss is None or self._batches_per_step == 1:
            return loss
        weight = torch.as_tensor(self.units(batch) / self.most_units(batch))
        self.weight_in_hand = weight if self.weight_in_hand is None else self.weight_in_hand + weight
        return loss * weight

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.weight_in_hand is None:
            return
        total, self.weight_in_hand = joined_sum(self.weight_in_hand), None
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad *= self._batches_per_step / total

    @property
    def _batches_per_step(self) -> int:
        """The number of batches whose mean the trainer takes: accumulated ones, on all devices."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.weight_in_hand is not None:
            # As the gradients in hand, a mean of all processes.
            checkpoint["weight_in_hand"] = joined_mean(self.weight_in_hand)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        weight = checkpoint.get("weight_in_hand")
        self.weight_in_hand = None if weight is None else weight.to(self.device)
