"""Everything that one test finds out about a model, as the record of its run keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.data.base import DataModule
from genlab.evaluation import gallery
from genlab.evaluation.copies import find_copies
from genlab.evaluation.floor import floor_scores
from genlab.evaluation.latent_space import measure_latent
from genlab.evaluation.score import Scores, place, reference_of
from genlab.evaluation.speed import measure_speed
from genlab.families.base import Model
from genlab.families.capabilities import can_be_sampled
from genlab.metrics.base import Reference
from genlab.metrics.features import Extractor

TRAINING_FEATURES = 2**31  # bytes: beyond, a chosen part of the training images is compared with


@dataclass
class Examination:
    """What is asked of every model of one run: the data, the ruler, and where pictures go.

    Args:
        data: The run's data.
        extractor: The ruler; None where there is none.
        metrics: Those of the samples.
        split: Real images that samples were scored against.
        batch_size: Images at a time.
        seed: Of everything that is drawn.
        run: The run's folder, for pictures; None draws none.
    """

    data: DataModule
    extractor: Extractor | None
    metrics: Sequence[Any]
    split: str
    batch_size: int
    seed: int
    run: Path | None = None

    def of_sampling(self, model: Model, scores: Scores | None, folder: str = "test") -> dict[str, Any]:
        """Returns the parts of a test entry that depend on how samples are drawn.

        Args:
            model: The model with its way to sample.
            scores: Its scores, with what was drawn.
            folder: Of the pictures, below the run's.
        """
        if not can_be_sampled(model):
            return {}
        drawn = None if scores is None or self.extractor is None else scores.drawn
        if drawn is not None:
            train, test = self.train_reference(model), self.reference(model)  # by all processes together
        if place()[0] != 0:
            return {}
        found: dict[str, Any] = {"speed": measure_speed(model, seed=self.seed)}
        if drawn is None:
            return found
        assert self.extractor is not None
        features = (part.features.to(model.device) for part in (drawn.features, train, test))
        copies = find_copies(*features)
        found["copies"] = copies.summary(
            f"{self.extractor.name} {self.extractor.digest[:8]}", len(train.index)
        )
        found["floor"] = self.floor(train, test, drawn.features.num)
        if self.run is not None and model.spec.kind == "image":
            pictures = gallery.of_samples(model, self.data, drawn, copies, train, test)
            found["pictures"] = gallery.save(pictures, self.run / folder, self.run)
        return found

    def of_latents(self, model: Model, folder: str = "test") -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parts that depend on the weights alone, and the reconstruction with its protocol."""
        latent, reconstruction = measure_latent(model, self.data, self.extractor, self.batch_size, self.seed)
        found: dict[str, Any] = {"latent": latent} if latent else {}
        if self.run is not None and model.spec.kind == "image":
            pictures = gallery.of_latents(model, self.data, self.seed)
            found["pictures"] = gallery.save(pictures, self.run / folder, self.run)
        return found, reconstruction

    def reference(self, model: Model) -> Reference:
        """Returns the statistics of the images that samples are scored against."""
        assert self.extractor is not None
        return reference_of(self.data, self.extractor, self.split, self.batch_size, model.device)

    def train_reference(self, model: Model) -> Reference:
        """Returns the statistics of the training images, with all their features where they fit."""
        assert self.extractor is not None
        num = TRAINING_FEATURES // (4 * self.extractor.num_features)
        return reference_of(self.data, self.extractor, "train", self.batch_size, model.device, num)

    def floor(self, train: Reference, test: Reference, num_samples: int) -> dict[str, float]:
        """Returns the scores of training images in place of samples."""
        assert self.extractor is not None
        key = [self.data.fingerprint(split) for split in ("train", self.split)]
        key += [self.extractor.digest, self.extractor.resize]
        return floor_scores(train, test, self.metrics, num_samples, key)
