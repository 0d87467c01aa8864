"""What a model is told when nobody says what: the one place that invents a condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.data.base import DataModule
from genlab.families.base import Model, indices


def given_for(
    model: Model, index: Tensor, data: DataModule | None = None, split: str = "test"
) -> dict[str, Any]:
    """Returns what samples number i are told, for every i in index, on the model's device.

    Without a source sample i has class i mod num_classes, so that all classes are met equally often. With
    one, it is told all that item i mod n of a split comes with: translation is sampling with a source.

    Args:
        model: Knows what it is told.
        index: Numbers of the samples.
        data: Holds the sources; only models that are told one need it.
        split: Name of the split that the sources are taken from.

    Raises:
        ValueError: There are no data to take sources from.
    """
    index = index.to(model.device)
    if "source" in model.given:
        if data is None:
            raise ValueError(f"A {type(model).__name__} is told a source: give the data to take them from.")
        return model.given_of(item_batch(data, split, index, model.device))
    return {"label": index % model.spec.num_classes} if "label" in model.given else {}


def item_batch(data: DataModule, split: str, index: Tensor, device: torch.device) -> Any:
    """Returns items of a split by their numbers, modulo their count, as a model expects them."""
    items = data.items(split)
    return data.to_device_batch(items.__getitems__(index.cpu() % len(items)), device)


class TellingSample:
    """The `sample` of a model for a person to call: what nobody says, `given_for` does.

    It stands in the place of the method alone, and what is told by name is told as it is.

    Args:
        model: What is sampled.
        data: Returns the data that sources are taken from, where the model is told one.
    """

    def __init__(self, model: Model, data: Callable[[], DataModule | None]) -> None:
        self.model, self.data = model, data

    def __call__(self, index: int | Tensor, seed: int = 0, **told: Any) -> Tensor:
        draw: Any = type(self.model).sample  # type: ignore[attr-defined]
        if set(self.model.given) <= told.keys():
            return draw(self.model, index, seed, **told)
        data = self.data() if "source" in self.model.given else None
        found = given_for(self.model, indices(index, self.model.device), data)
        return draw(self.model, index, seed, **{**found, **told})
