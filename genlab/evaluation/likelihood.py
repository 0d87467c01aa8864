"""How probable a model finds images that it has not seen, in nats and in bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from genlab.data.base import DataModule
from genlab.distributed import joined_sum, place
from genlab.families.base import Model
from genlab.progress import watched
from genlab.shapes import IGNORED, Batch, observed, predicted


@dataclass
class Likelihood:
    """The mean negative log-likelihood of a split, with the protocol it was measured by.

    Attributes:
        values: `nll` in nats per item; for images `bits_per_dim` = nll / (dimensions log 2). For tokens
            instead `nll_per_token`, `perplexity` = exp of it, and `bits_per_byte` where the data know their
            bytes.
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
    total = torch.zeros(3, dtype=torch.float64, device=model.device)
    num_items = len(data.items(split))
    share = -(-min(num_items, max_items or num_items) // world_size)
    batches = data.loader(split, rank, world_size, batch_size, max_items)
    for batch in watched(batches, "likelihood", share, "item", lambda batch: len(batch["index"])):
        batch = data.to_device_batch(batch, model.device)
        with model.numbered(batch["index"]):
            log_prob = model.log_prob(observed(batch), **model.given_of(batch)).double()  # type: ignore[operator]
        total[0] -= log_prob.sum()
        total[1] += len(log_prob)
        total[2] += num_predicted(batch)
    nats, num, num_tokens = joined_sum(total).tolist()
    spec = model.spec
    protocol = {
        "kind": model.likelihood_kind,
        "shape": list(spec.shape),
        "levels": spec.levels,
        "split": split,
        "num_real": int(num),
        "data": spec.name,
        "data_fingerprint": data.fingerprint(split)[:16],
        "estimator": model.likelihood_estimator,
    }
    if spec.kind == "tokens":
        is_whole = num == len(data.items(split))
        num_bytes = data.num_bytes(split) if is_whole else None
        protocol["num_tokens"] = int(num_tokens)
        return Likelihood(values_of_text(nats, num_tokens, num_bytes), protocol)
    values = {"nll": nats / num}
    if spec.kind == "image":
        values["bits_per_dim"] = nats / num / (math.prod(spec.shape) * math.log(2))
    return Likelihood(values, protocol)


def num_predicted(batch: Batch) -> int:
    """Returns how many tokens of a batch are predicted, without the padding; or 0."""
    return int((predicted(batch["tokens"]) != IGNORED).sum()) if "tokens" in batch else 0


def values_of_text(nats: float, num_tokens: float, num_bytes: int | None) -> dict[str, float]:
    """Returns the likelihood of a text for each of its tokens, and of its bytes where their number is known.

    Args:
        nats: Negative log-likelihood of the whole text.
        num_tokens: Tokens predicted in it, which depend on the vocabulary.
        num_bytes: Bytes that they stand for, which do not: bits per byte compare over vocabularies.
    """
    per_token = nats / num_tokens
    values = {"nll_per_token": per_token, "perplexity": math.exp(min(per_token, 700.0))}
    return values if num_bytes is None else {**values, "bits_per_byte": nats / math.log(2) / num_bytes}
