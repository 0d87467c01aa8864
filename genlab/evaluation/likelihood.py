"""How probable a model finds images that it has not seen, in nats and in bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from genlab.data.base import DataModule
from genlab.evaluation.score import place
from genlab.families.base import Model
from genlab.shapes import observed


@dataclass
class Likelihood:
    """The mean negative log-likelihood of a split, with the protocol it was measured by.

    Attributes:
        values: `nll` in nats per item; for images `bits_per_dim` = nll / (dimensions log 2).
        protocol: What must be equal for two such numbers to be compared: resolution, levels, and whether
            the numbers are exact or upper bounds.
    """

    values: dict[str, float]
    protocol: dict[str, Any]


@torch.no_grad()
def score_likelihood(
    model: Model, data: DataModule, split: str = "test", max_items: int | None = None, batch_size: int = 100
) -> Likelihood:
    """Returns the mean negative log-likelihood of a split under a model with the capability `HasLikelihood`.

    Each item is scored with noise of its own number, so the result does not depend on the batch size or on
    the number of devices.

    Args:
        model: Gives `log_prob` in nats, of the discrete levels for images.
        data: Holds the split.
        split: Name of the split.
        max_items: Score only so many items, evenly spaced, for estimators that take long; None for all.
        batch_size: Items at a time on each device.
    """
    rank, world_size = place()
    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    for batch in data.loader(split, rank, world_size, batch_size, max_items):
        batch = data.to_device_batch(batch, model.device)
        with model.numbered(batch["index"]):
            log_prob = model.log_prob(observed(batch), **model.given_of(batch)).double()  # type: ignore[operator]
        total += torch.stack([-log_prob.sum(), torch.ones_like(log_prob).sum()])
    if world_size > 1:
        dist.all_reduce(total)
    nll = float(total[0] / total[1])
    spec = model.spec
    values = {"nll": nll}
    if spec.kind == "image":
        values["bits_per_dim"] = nll / (math.prod(spec.shape) * math.log(2))
    protocol = {
        "kind": model.likelihood_kind,
        "shape": list(spec.shape),
        "levels": spec.levels,
        "split": split,
        "num_real": int(total[1]),
        "data": spec.name,
        "data_fingerprint": data.fingerprint(split)[:16],
        "estimator": model.likelihood_estimator,
    }
    return Likelihood(values, protocol)
