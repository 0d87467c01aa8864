"""Several samples for each caption, of which the one is kept that fits it best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab import randomness
from genlab.families.base import Model
from genlab.families.capabilities import Samples, TellsMatch
from genlab.families.codes import weights_digest


@dataclass(frozen=True)
class Ranking:
    """Who chooses among how many samples of each caption.

    Attributes:
        contrastive: Has the capability `TellsMatch`.
        num_candidates: Samples of each caption.
    """

    contrastive: Any
    num_candidates: int

    def sample(self, model: Any, index: Tensor, given: dict[str, Any], seed: int) -> Tensor:
        """Returns the chosen samples; see `best_of`."""
        return best_of(model, self.contrastive.to(index.device), index, given, self.num_candidates, seed)

    def protocol(self) -> dict[str, Any]:
        """Returns what the chosen samples depend on."""
        return {"best_of": self.num_candidates, "ranker_digest": weights_digest(self.contrastive)[:16]}


@torch.no_grad()
def best_of(
    model: Any, contrastive: Any, index: Tensor, given: dict[str, Any], num_candidates: int, seed: int = 0
) -> Tensor:
    """Returns for every i in index the most similar to its caption of num_candidates samples.

    Ramesh et al. 2021 (arXiv:2102.12092), section 2.6. Candidate 0 is sample i of the seed, and candidate j
    sample i of a seed made of (seed, j): which one is kept depends neither on the batch nor, among the first
    ones, on how many there are. Of equally similar ones the first is kept.

    Args:
        model: Has the capability `Samples`; is told a source.
        contrastive: Has the capability `TellsMatch`, for the same images and captions.
        index: Numbers of the samples.
        given: What they are told, one row for each of index.
        num_candidates: Samples to choose from; 1 gives the plain sample.
        seed: Of the samples.

    Raises:
        ValueError: There is nothing to choose from or by, or the two models have learned from other data.
    """
    _require_match(model, contrastive)
    if num_candidates < 1:
        raise ValueError(f"num_candidates must be at least 1, got {num_candidates}.")
    best = model.sample(index, seed=seed, **given)
    if num_candidates == 1:
        return best
    highest = contrastive.similarity(best, source=given["source"])
    for number in range(1, num_candidates):
        x = model.sample(index, seed=randomness.key(seed, "candidate", number), **given)
        similarity = contrastive.similarity(x, source=given["source"])
        is_better = similarity > highest
        highest = torch.where(is_better, similarity, highest)
        best = torch.where(is_better.reshape(-1, *[1] * (x.dim() - 1)), x, best)
    return best


def _require_match(model: Model, contrastive: Model) -> None:
    """Refuses models that have not seen images of one size with captions of one vocabulary."""
    name, judge = type(model).__name__, type(contrastive).__name__
    if not isinstance(model, Samples) or "source" not in model.given:
        raise ValueError(f"{name} draws no images of captions: take a model that is told its source.")
    if not isinstance(contrastive, TellsMatch):
        raise ValueError(f"{judge} does not tell which image fits a caption: take a Contrastive.")
    if model.spec.shape != contrastive.spec.shape or model.spec.source != contrastive.spec.source:
        raise ValueError(
            f"{judge} has seen {contrastive.spec.name} and {name} {model.spec.name}, of other sizes or "
            "captions: train both on the same data."
        )
