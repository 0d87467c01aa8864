"""Does a model repeat the images that it was trained on?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import Reference
from genlab.metrics.features import Extractor
from genlab.metrics.neighbours import nearest_rows

QUANTILE = 0.05
NUM_NEIGHBOURS = 3
NUM_BINS = 40
TRAINING_FEATURES = 2**31  # bytes: beyond, a chosen part of the training images is compared with


@dataclass(frozen=True)
class Copies:
    """How near samples come to the training images, beside how near unseen real images come to them.

    Attributes:
        threshold: The distance that only 5 % of the unseen images are nearer by.
        edges: Of the histograms of both distances; the last bin also holds all that lie beyond.

    Shapes:
        distances: (samples, 3) to the nearest training images, the nearest first; neighbours: their places.
        test_distances: (unseen images,).
    """

    distances: Tensor
    neighbours: Tensor
    test_distances: Tensor

    @property
    def threshold(self) -> float:
        return float(self.test_distances.quantile(QUANTILE))

    @property
    def share(self) -> float:
        """The share of samples as near to a training image as only 5 % of the unseen images are."""
        return float((self.distances[:, 0] <= self.threshold).double().mean())

    @property
    def edges(self) -> Tensor:
        return torch.linspace(0.0, 1.5 * max(float(self.test_distances.max()), 1e-12), NUM_BINS + 1)

    def summary(self, space: str, num_train: int) -> dict[str, Any]:
        """Returns the numbers for a record.

        Args:
            space: The features in which distances are taken.
            num_train: Training images compared with.
        """
        nearest, edges = self.distances[:, 0], self.edges
        middle = float(self.test_distances.median())
        return {
            "share": self.share,
            "threshold": f"{QUANTILE:.0%} quantile of test-to-train".replace("%", " %"),
            "threshold_distance": self.threshold,
            "median_ratio": float(nearest.median()) / middle if middle else None,
            "num": len(nearest),
            "num_test": len(self.test_distances),
            "num_train": num_train,
            "space": space,
            "histogram": {
                "edges": edges.tolist(),
                "samples": counts(nearest, edges),
                "test": counts(self.test_distances, edges),
            },
        }


def find_copies(samples: Tensor, train: Tensor, test: Tensor) -> Copies:
    """Returns how near samples come to training images, with unseen images as the yardstick.

        share of i with  min_j |f_i - f_j|  <=  the 5 % quantile over unseen images t of  min_j |f_t - f_j|

    About 0.05 for samples that are as new as the unseen images, 1 for copies of the training images.

    Shapes:
        samples: (n, d), train: (m, d), test: (k, d): features.
    """
    distances, neighbours = nearest_rows(samples, train, min(NUM_NEIGHBOURS, len(train)))
    test_distances, _ = nearest_rows(test, train, 1)
    return Copies(distances.cpu(), neighbours.cpu(), test_distances[:, 0].cpu())


def count_copies(
    samples: Reference, train: Reference, test: Reference, extractor: Extractor, device: torch.device
) -> tuple[Copies, dict[str, Any]]:
    """Returns how near samples come to training images in an extractor's features, and its record.

    Args:
        samples: Has their features, as the other two have theirs.
        train: The training images, at most `num_compared` of them.
        test: The unseen images.
        extractor: What computed the features.
        device: Where distances are taken.
    """
    copies = find_copies(*(part.features.to(device) for part in (samples, train, test)))
    return copies, copies.summary(f"{extractor.name} {extractor.digest[:8]}", len(train.index))


def num_compared(extractor: Extractor) -> int:
    """Returns how many training images have features that fit into memory."""
    return TRAINING_FEATURES // (4 * extractor.num_features)


def counts(values: Tensor, edges: Tensor) -> list[int]:
    """Returns how many values lie in each bin; the last bin also holds all that lie beyond it."""
    place = torch.bucketize(values.double().contiguous(), edges[1:-1].double(), right=True)
    return torch.bincount(place, minlength=len(edges) - 1).tolist()
