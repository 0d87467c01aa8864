"""Scores a model while it trains and when it is tested."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torchmetrics import Metric

from genlab.callbacks.record import find_recorder, say
from genlab.data.base import DataModule
from genlab.evaluation.likelihood import Likelihood, score_likelihood
from genlab.evaluation.score import Scores, score
from genlab.families.base import Model
from genlab.families.capabilities import HasLikelihood, can_be_sampled
from genlab.metrics.duplicates import DuplicateShare
from genlab.metrics.extractors import extractor_available, load_extractor
from genlab.metrics.features import Extractor, Identity
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.frechet_noise import FrechetNoise
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.wasserstein import WassersteinDistance

SMALLEST = 8  # samples of a fast_dev_run: enough for every metric to run, too few to mean anything


class Evaluate(Callback):
    """Draws samples, compares them with real images and logs the scores, each with its protocol.

    All metrics share one pass and one feature extraction. Where the extractor's weights cannot be had
    this is said before training, and the scores stay empty.

    Args:
        extractor: "inception", "digits", or the folder of a classifier's run. Points are their own features.
        metrics: What to compute, by name, so that a later configuration file can change one of them;
            None for FID, KID, IS, precision and recall, and the share of duplicates.
        num_samples: Generated images for a score during training.
        num_test_samples: Generated images for a score at test; more make FID comparable with the literature.
        split: Real images to compare with. The test split by default: a model that memorised the training
            split would win against the training split.
        seed: Seed of the samples.
        batch_size: Images drawn at a time on each device.
        at_start: Score the untrained model too, so that curves begin at 0 images.
        num_likelihood: Items of the split, evenly spaced, whose likelihood is estimated at test, where the
            model has one; None for all.
    """

    def __init__(
        self,
        extractor: str = "inception",
        metrics: dict[str, Metric] | None = None,
        num_samples: int = 2_048,
        num_test_samples: int = 10_000,
        split: str = "test",
        seed: int = 0,
        batch_size: int = 100,
        at_start: bool = True,
        num_likelihood: int | None = None,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("num_test_samples", num_test_samples)):
            if value < 2:
                raise ValueError(f"evaluate.{name} must be at least 2 for a covariance, got {value}.")
        self.source = extractor
        self.metrics = list(metrics.values()) if metrics is not None else None
        self.num_samples = num_samples
        self.num_test_samples = num_test_samples
        self.split = split
        self.seed = seed
        self.batch_size = batch_size
        self.at_start = at_start
        self.num_likelihood = num_likelihood
        self.likelihood: Likelihood | None = None
        self.last: Scores | None = None
        self.extractor: Extractor | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        reason = self.prepare(pl_module)
        if reason is not None:
            say(trainer, f"No sample scores in this run: {reason}")

    def prepare(self, model: Model) -> str | None:
        """Loads what the model's scores need; returns the reason where there can be none."""
        spec = model.spec
        if not can_be_sampled(model) or self.extractor is not None or spec.kind == "tokens":
            return None
        if self.metrics is None:
            self.metrics = default_metrics(model.spec.kind == "image")
        if spec.kind == "point":
            self.extractor = Identity(model.spec.shape[0])
            return None
        reason = extractor_available(self.source)
        if reason is None:
            self.extractor = load_extractor(self.source)
            # A wrong extractor is an error now and not after the first hour of training.
            self.extractor(torch.zeros(1, *spec.shape, dtype=torch.uint8), spec.levels)
        return reason

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        recorder = find_recorder(trainer)
        if recorder is not None and self.at_start and not pl_module.examples_seen:
            scores = self.score(trainer, pl_module, self.num_samples)
            if scores is not None:
                recorder.write(trainer, pl_module, _prefixed("val", scores))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        synchronise_buffers(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        synchronise_buffers(pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module, "val", self.num_samples)

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.fast_dev_run:
            self.add_noise()
        self._log(trainer, pl_module, "test", self.num_test_samples)
        if isinstance(pl_module, HasLikelihood):
            self._log_likelihood(trainer, pl_module)

    def score(self, trainer: Any, model: Model, num_samples: int) -> Scores | None:
        """Returns the model's scores, None where it or the extractor cannot give any."""
        num = SMALLEST if trainer.fast_dev_run else num_samples
        keep = trainer.state.fn == "test" and not trainer.fast_dev_run
        self.last = self.score_model(model, trainer.datamodule, num, keep)
        return self.last

    def score_model(
        self, model: Model, data: DataModule, num_samples: int | None = None, keep: bool = False
    ) -> Scores | None:
        """Returns a model's scores, by default of a test's number of samples; None without an extractor."""
        if self.extractor is None:
            return None
        num = num_samples or self.num_test_samples
        was_training = model.training
        model.eval()
        try:
            return score(
                model,
                data,
                self.extractor,
                self.metrics or [],
                num,
                self.split,
                self.seed,
                min(self.batch_size, num),
                keep,
            )
        finally:
            model.train(was_training)

    def add_noise(self) -> None:
        """Measures the sampling noise of FID too, where FID is measured."""
        kinds = {type(metric) for metric in self.metrics or ()}
        if FrechetDistance in kinds and FrechetNoise not in kinds:
            self.metrics = [*(self.metrics or ()), FrechetNoise()]

    def _log_likelihood(self, trainer: Any, model: Any) -> None:
        num = SMALLEST if trainer.fast_dev_run else self.num_likelihood
        self.likelihood = score_likelihood(model, trainer.datamodule, self.split, num, self.batch_size)
        values = {f"test/{name}": value for name, value in self.likelihood.values.items()}
        model.log_dict(values, logger=False, rank_zero_only=False)

    def _log(self, trainer: Any, model: Model, stage: str, num_samples: int) -> None:
        scores = self.score(trainer, model, num_samples)
        if scores is not None:
            model.log_dict(_prefixed(stage, scores), logger=False, rank_zero_only=False)


def default_metrics(are_images: bool) -> list[Metric]:
    """Returns the metrics of a run that names none: those that its samples allow."""
    if not are_images:
        return [
            FrechetDistance(),
            WassersteinDistance(),
            PrecisionRecall(num=2_000),
            DuplicateShare(num=2_000),
        ]
    return [FrechetDistance(), KernelDistance(), PrecisionRecall(), DuplicateShare(), InceptionScore()]


def synchronise_buffers(model: Any) -> None:
    """Gives every process the first one's buffers.

    Batch norm's running statistics differ between devices; scores of one model need one model.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _prefixed(stage: str, scores: Scores) -> dict[str, Any]:
    return {f"{stage}/{name}": value for name, value in scores.values.items()}
