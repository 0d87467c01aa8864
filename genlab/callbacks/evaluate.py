"""Scores a model while it trains and when it is tested."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.measured import stable_names
from genlab.callbacks.record import find_recorder, say
from genlab.data.base import DataModule
from genlab.distributed import distributed
from genlab.errors import MetricError
from genlab.evaluation.examine import Examination
from genlab.evaluation.first_stage import found_run
from genlab.evaluation.load import load_run
from genlab.evaluation.reranking import Ranking
from genlab.evaluation.score import Scores
from genlab.families.base import Model
from genlab.families.capabilities import can_be_sampled
from genlab.metrics.base import SampleMetric, needs_extractor
from genlab.metrics.duplicates import DuplicateShare
from genlab.metrics.extractors import extractor_available, load_extractor
from genlab.metrics.features import Extractor, Identity
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.frechet_noise import FrechetNoise
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.inception_weights import WEIGHTS_VARIABLE
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.pairs import PSNR, SSIM
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.text import BLEU
from genlab.metrics.wasserstein import WassersteinDistance
from genlab.shapes import DataSpec

SMALLEST = 8  # samples of a fast_dev_run: enough for every metric to run, too few to mean anything


@dataclass(frozen=True)
class Drawing:
    """How the samples of a score are drawn.

    Attributes:
        seed: Their seed; another one gives other samples of the same model.
        batch_size: Samples at a time on each device; no score depends on it.
        best_of: Samples of each caption, of which the ranker chooses one (Ramesh et al. 2021,
            arXiv:2102.12092, section 2.6).
        ranker: A contrastive model's run, or its experiment, on the same data.
    """

    seed: int = 0
    batch_size: int = 100
    best_of: int = 1
    ranker: str | None = None

    def __post_init__(self) -> None:
        if self.best_of < 1:
            raise ValueError(f"evaluate.drawing.best_of must be at least 1, got {self.best_of}.")
        if (self.best_of > 1) != (self.ranker is not None):
            raise ValueError(
                "evaluate.drawing.best_of and ranker: give both, how many samples a caption and who chooses."
            )

    @cached_property
    def ranking(self) -> Ranking | None:
        """Who chooses among several samples, loaded once; None without."""
        if self.ranker is None:
            return None
        run = found_run(self.ranker, "evaluate.drawing.ranker")
        return Ranking(load_run(run, run.best_checkpoint), self.best_of)


class Evaluate(Callback):
    """Draws samples, compares them with real images and logs the scores, each with its protocol.

    All metrics share one pass and one feature extraction. Where Inception's weights cannot be had this is
    said before training, and the scores stay empty; an extractor that was asked for must be there.

    Args:
        extractor: "inception", "digits", or the folder of a classifier's run; None for Inception if it can be
            had. Points are their own features.
        metrics: What to compute, by name, so that a later configuration file can change one of them; None
            for what suits the samples. Images: FID, KID, IS, precision and recall, share of duplicates; of a
            source image whose translation is known, PSNR and SSIM too, and where it is smaller both on the
            luma and on all channels, without a border as wide as the sides grow by. Texts of a source: BLEU;
            others: their likelihood alone.
        num_samples: Generated images for a score during training.
        num_test_samples: Generated images for a score at test; more make FID comparable with the literature.
        split: Real images to compare with while the model trains and by `genlab validate`; `genlab test`
            alone compares with "test". Not "train", against which a model that memorised it would win.
        drawing: Seed and batch size of the samples.
        at_start: Score the untrained model too, so that curves begin at 0 images.
        num_likelihood: Items of the split, evenly spaced, whose likelihood is estimated at test, where the
            model has one; None for all.
    """

    def __init__(
        self,
        extractor: str | None = None,
        metrics: dict[str, SampleMetric] | None = None,
        num_samples: int = 2_048,
        num_test_samples: int = 10_000,
        split: str = "val",
        drawing: Drawing = Drawing(),
        at_start: bool = True,
        num_likelihood: int | None = None,
    ) -> None:
        for name, value in (("num_samples", num_samples), ("num_test_samples", num_test_samples)):
            if value < 2:
                raise ValueError(f"evaluate.{name} must be at least 2 for a covariance, got {value}.")
        self.source = extractor
        self.metrics: list[Any] | None = list(metrics.values()) if metrics is not None else None
        self.num_samples = num_samples
        self.num_test_samples = num_test_samples
        self.split = split
        self.drawing = drawing
        self.at_start = at_start
        self.num_likelihood = num_likelihood
        self.last: Scores | None = None
        self.extractor: Extractor | None = None
        self.missing: str | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.prepare(pl_module)
        if self.missing is not None:
            say(trainer, f"No scores by features in this run: {self.missing}")

    def require_unseen_test(self) -> None:
        """Refuses to let a training see what its model is scored on at the end."""
        if self.split == "test":
            raise ValueError(
                "evaluate.split must not be test in a training: the best checkpoint would be chosen by "
                "what it is scored on; use --evaluate.split val."
            )

    def prepare(self, model: Model) -> None:
        """Loads what the model's scores need; `missing` is why the default extractor cannot be had.

        Raises:
            MetricError: The extractor that was asked for cannot be had.
        """
        if not can_be_sampled(model) or self.extractor is not None:
            return
        if self.metrics is None:
            self.metrics = default_metrics(model.seen_spec, model.has_targets)
        spec = model.spec
        if not needs_extractor(self.metrics):
            return
        if spec.kind == "point":
            self.extractor = Identity(spec.shape[0])
            return
        self.missing = extractor_available(self.source)
        if self.missing is not None and (self.source or os.environ.get(WEIGHTS_VARIABLE)):
            raise MetricError(
                f"{self.missing}\nWithout evaluate.extractor a run goes on without such scores."
            )
        if self.missing is None:
            self.extractor = load_extractor(self.source)
            # A wrong extractor is an error now and not after the first hour of training.
            self.extractor(torch.zeros(1, *spec.shape, dtype=torch.uint8), spec.levels)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        recorder = find_recorder(trainer)
        if recorder is not None and self.at_start and not pl_module.examples_seen:
            scores = self.score(trainer, pl_module)
            if scores is not None:
                values = _prefixed("val", scores)
                recorder.write(trainer, pl_module, values)
                trainer.callback_metrics.update(
                    {name: torch.tensor(v) for name, v in {**values, **stable_names(values)}.items()}
                )

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        synchronise_buffers(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        synchronise_buffers(pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        scores = self.score(trainer, pl_module)
        if scores is not None:
            values = _prefixed("val", scores)
            pl_module.log_dict({**values, **stable_names(values)}, logger=False, rank_zero_only=False)

    def score(self, trainer: Any, model: Model) -> Scores | None:
        """Returns the model's scores during training, None where it or the extractor cannot give any."""
        num = SMALLEST if trainer.fast_dev_run else self.num_samples
        examination = replace(self.examination(trainer.datamodule), split=self.split, num_samples=num)
        was_training = model.training
        model.eval()
        try:
            self.last = examination.scores(model)
        finally:
            model.train(was_training)
        return self.last

    def examination(self, data: DataModule, run: Path | None = None, is_trial: bool = False) -> Examination:
        """Returns what a test asks, for the model that was prepared for.

        Args:
            data: The run's data.
            run: Its folder, where pictures go.
            is_trial: Take as few samples as run at all.
        """
        return Examination(
            data,
            self.extractor,
            self.metrics or [],
            "test",
            SMALLEST if is_trial else self.num_test_samples,
            self.drawing.batch_size,
            self.drawing.seed,
            SMALLEST if is_trial else self.num_likelihood,
            run,
            self.drawing.ranking,
        )

    def add_noise(self) -> None:
        """Measures the sampling noise of FID too, where FID is measured."""
        kinds = {type(metric) for metric in self.metrics or ()}
        if FrechetDistance in kinds and FrechetNoise not in kinds:
            self.metrics = [*(self.metrics or ()), FrechetNoise()]


def default_metrics(spec: DataSpec, has_targets: bool = True) -> list[SampleMetric]:
    """Returns the metrics of a run that names none: those that its samples allow.

    Args:
        spec: The data as the model sees them, with a source only where it is told one.
        has_targets: Whether what stands beside a source is what it is to become.
    """
    if spec.kind == "tokens":
        return [BLEU()] if spec.source is not None and spec.vocabulary else []
    if spec.kind == "point":
        few = [PrecisionRecall(num=2_000), DuplicateShare(num=2_000)]
        return [FrechetDistance(), WassersteinDistance(), *few]
    alone = [FrechetDistance(), KernelDistance(), PrecisionRecall(), DuplicateShare(), InceptionScore()]
    if not has_targets or spec.source is None or spec.source.kind != "image":
        return alone
    factor = spec.shape[1] // spec.source.shape[1]
    if factor < 2:
        return [PSNR(), SSIM(), *alone]
    return [*(kind(channels, factor) for kind in (PSNR, SSIM) for channels in ("y", "rgb")), *alone]


def synchronise_buffers(model: Any) -> None:
    """Gives every process the first one's buffers.

    Batch norm's running statistics differ between devices; scores of one model need one model.
    """
    if distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _prefixed(stage: str, scores: Scores) -> dict[str, Any]:
    return {f"{stage}/{name}": value for name, value in scores.values.items()}
