"""The Inception score: are single images recognised, and all classes met?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.metrics.base import Drawn, SampleMetric, exact, features_of


class InceptionScore(SampleMetric):
    """IS: how far the class of one image differs from the classes of all. Higher is better.

        IS = exp(E_x KL(p(y|x) || p(y))) = exp(H(y) - H(y|x)),    from 1 to the number of classes

    Salimans et al. 2016 (arXiv:1606.03498), section 4: the mean over equal splits of the samples. It knows
    no real images, and grows with the size of a split.

    Args:
        num_splits: Splits to average over; at most one a sample.
        seed: Of the permutation before splitting; 2020 draws the splits of torch-fidelity.
    """

    higher_is_better = True
    needs = frozenset({"logits"})
    logits: list[Tensor]

    def __init__(self, num_splits: int = 10, seed: int = 2020) -> None:
        super().__init__()
        if num_splits < 1:
            raise ValueError(f"num_splits must be at least 1, got {num_splits}.")
        self.num_splits = num_splits
        self.seed = seed
        self._applied_splits = num_splits
        self.add_state("logits", [], dist_reduce_fx="cat")

    def update(self, drawn: Drawn) -> None:
        logits = features_of(drawn).logits
        if logits is None:
            raise ValueError("InceptionScore needs an extractor that classifies; this one has no logits.")
        self.logits.append(logits)
        self.index.append(drawn.index.to(logits.device))

    def compute(self) -> dict[str, float]:
        logits = exact(self.in_order(self.logits))
        order = np.random.RandomState(self.seed).permutation(len(logits))
        shuffled = logits[torch.from_numpy(order).to(logits.device)]
        scores = [_score(part) for part in shuffled.tensor_split(self._bounds(len(logits)))]
        return {"is": float(np.mean(scores)), "is_std": float(np.std(scores))}

    def protocol(self) -> dict[str, Any]:
        return {"num_splits": self._applied_splits, "seed": self.seed}

    def _bounds(self, num: int) -> list[int]:
        splits = self._applied_splits = min(self.num_splits, num)
        return [i * num // splits for i in range(1, splits)]


def _score(logits: Tensor) -> float:
    p = logits.softmax(dim=1)
    entropy_given_image = torch.special.entr(p).sum(dim=1).mean()
    entropy = torch.special.entr(p.mean(dim=0)).sum()
    return float((entropy - entropy_given_image).exp())
