"""Diffusion models, score-based models and flow matching: one loss over any process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from genlab import randomness
from genlab.families.base import Model, NetworkFactory, hidden, indices
from genlab.families.optimizers import optimizer_of
from genlab.families.weights import Snapshot, evaluating
from genlab.processes.base import Denoiser, Level, Process, score_of
from genlab.processes.chain import DiscreteChain
from genlab.processes.denoiser import CountedPasses, Guide, NetworkDenoiser, split_variance
from genlab.processes.grids import RatioGrid
from genlab.processes.likelihood import Likelihood, ProbabilityFlow, VariationalBound
from genlab.processes.prediction import Prediction, PredictNoise, Weighting
from genlab.processes.variance import variance_loss
from genlab.samplers.ancestral import Ancestral
from genlab.samplers.base import Noise, Sampler
from genlab.samplers.conditioning import Space
from genlab.samplers.ode import RungeKutta, encode
from genlab.shapes import Batch, DataSpec, observed

LATENT_STEPS = 50
"""Steps of order 4 between the data and their latent noise."""

VALIDATION_RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""sigma / alpha at which the validation error of x is measured, whatever the process."""


@dataclass(frozen=True)
class Objective:
    """What the network is taught.

    Attributes:
        prediction: What F is; the noise without it.
        weighting: Weight of each noise level; 1 without it.
        variance_weight: Of the bound that teaches the variance where the network has one; published 0.001.
        dequantise: Spread each level of an image uniformly over its interval in training, which the flow's
            likelihood needs; rounding the samples takes it back.
    """

    prediction: Prediction | None = None
    weighting: Weighting | None = None
    variance_weight: float = 1e-3
    dequantise: bool = False


@dataclass(frozen=True)
class Guidance:
    """How the estimates that samples are made of are led away from those of a weaker model.

        E = E_weaker + scale (E - E_weaker)

    The weaker one is the model told nothing, which `dropout` makes it learn (Ho and Salimans 2022,
    arXiv:2207.12598); or with `guide_after` its own earlier state, told the same (autoguidance; Karras et al.
    2024, arXiv:2406.02507), which also guides models that are never told anything.

    Attributes:
        scale: 1 is the model itself, 0 the weaker one; higher fits what it is told better and varies less.
        dropout: Share of the items of which, in training, nothing is told: neither label nor source.
        clip: Keep the estimates of images in [-1, 1].
        interval: Where samples are guided: low < sigma / alpha <= high, everywhere without it (Kynkäänniemi
            et al. 2024, arXiv:2404.07724).
        guide_after: Examples after which a copy of the (averaged) network is kept as the guide; until then
            nothing is guided. 0 keeps none.
    """

    scale: float = 1.0
    dropout: float = 0.0
    clip: bool = True
    interval: tuple[float, float] | None = None
    guide_after: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"guidance.dropout must be in [0, 1), got {self.dropout}.")
        if self.interval is not None and not 0.0 <= self.interval[0] <= self.interval[1]:
            raise ValueError(
                f"guidance.interval must be 0 <= low <= high, of sigma / alpha, got {list(self.interval)}."
            )
        if self.guide_after < 0:
            raise ValueError(f"guidance.guide_after must not be negative, got {self.guide_after}.")


class Diffusion(Model):
    """A network learns to see the data in their noised versions, and samples by removing noise step by step.

        loss = E weight || F(c_in x_t, t) - target ||^2,    x_t = alpha x + sigma eps

    Ho et al. 2020 (arXiv:2006.11239), equation 14, for `PredictNoise` on a `DiscreteChain`. Denoising score
    matching (Song et al. 2021, arXiv:2011.13456, equation 7, weight sigma^2) is the same loss on a
    `VPSDE`, `SubVPSDE`, `VESDE` or `NoiseLadder`, since score = -eps / sigma; EDM and flow matching with
    their own process and prediction. So the family is one, and the names are those of its parts.

    In validation the mean squared error of x is also measured at fixed ratios sigma / alpha, with noise that
    belongs to the image: `x_error@0.3` can be compared between processes, predictions and runs.

    Args:
        network: From (x, t) and what it is told by name to F; with `learned_variance`, twice the channels.
        process: How data become noise.
        optimizer: Optimiser without its parameters.
        matrix_optimizer: Another one for matrices and filters, such as Float32Muon: all of a network but
            embeddings, norms, biases and what makes its output.
        objective: What F is, and how its errors are weighed.
        sampler: How samples are drawn.
        likelihood: How log p(x) is estimated; the flow for vectors, the bound of 100 steps for images.
        guidance: Of samples, by labels, sources, an earlier network, and the range of images.
        model: Arguments of every model; the average is the network's.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
        z: As x, standard normal: the noise that a deterministic sampler starts from.
    """

    can_shard = True
    latent_type = "noise"

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        process: Process,
        optimizer: OptimizerCallable,
        matrix_optimizer: OptimizerCallable | None = None,
        objective: Objective = Objective(),
        sampler: Sampler | None = None,
        likelihood: Likelihood | None = None,
        guidance: Guidance = Guidance(),
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if guidance.scale != 1.0 and not (guidance.guide_after or (self.given and guidance.dropout)):
            raise ValueError(
                f"guidance.scale {guidance.scale} needs given [label] or [source] and guidance.dropout above "
                "0, as 0.1, or guidance.guide_after."
            )
        self.network = network(self.seen_spec)
        self.keep_average(self.network)
        self.earlier = Snapshot(self.network, guidance.guide_after) if guidance.guide_after else None
        self.process, self.prediction = process, objective.prediction or PredictNoise()
        self.weighting, self.sampler = objective.weighting, sampler or Ancestral()
        # The decoder tells levels apart from noise of about half their distance on; below it steps cost bits.
        bound = VariationalBound(RatioGrid(100, smallest=0.6 / max(1, spec.levels - 1)))
        self.likelihood = likelihood or (bound if spec.kind == "image" else ProbabilityFlow())
        self.optimizer_factory, self.matrix_optimizer_factory = optimizer, matrix_optimizer
        self.guidance, self._nothing = guidance, _nothing_of(spec)
        self.clip = guidance.clip and spec.kind == "image"
        self.dequantise = objective.dequantise and spec.kind == "image"
        self.variance_weight = objective.variance_weight

    def configure_optimizers(self) -> Any:
        if self.matrix_optimizer_factory is None:  # all parameters as one group, as they always were
            return self.scheduled(self.optimizer_factory(self.network.parameters()))
        return self.scheduled(
            optimizer_of(self.network, self.optimizer_factory, self.matrix_optimizer_factory)
        )

    def on_train_end(self) -> None:
        if self.earlier is not None and not self.earlier.is_taken:
            warnings.warn(
                f"The training ended after {self.examples_seen:,} examples, before guidance.guide_after "
                f"{self.guidance.guide_after:,}: samples are not guided."
            )

    def update_average(self) -> None:
        super().update_average()
        if self.earlier is not None:
            self.earlier.offer(self.sampling_network, self.examples_seen)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the weighted loss; in evaluation also the error of x at fixed noise levels."""
        x, given = self._spread(observed(batch)), self._hidden(self.given_of(batch))
        t = self.process.training_time(self.draw_uniform("time", len(x)))
        if self.training:
            return self._loss(self.network, x, t, given)
        with evaluating(self.sampling_network):
            return self._loss(self.sampling_network, x, t, given) | self._errors(x, given)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index."""
        return self.sample_with(self.sampler, index, seed, **given)

    @torch.no_grad()
    def sample_with(
        self, sampler: Sampler, index: int | Tensor, seed: int = 0, clip: bool | None = None, **given: Any
    ) -> Tensor:
        """Returns samples by another sampler than the model's own; clip overrides the model's."""
        noise = Noise(seed, indices(index, self.device), self.spec.shape)
        with evaluating(self.sampling_network):
            return self._bounded(sampler(self.process, self.denoiser(clip, **given), noise))

    @property
    def space(self) -> Space:
        """Where samplers walk: in the data themselves."""
        return Space(self.spec)

    def denoiser(self, clip: bool | None = None, **given: Any) -> NetworkDenoiser:
        """Returns the averaged network as the denoiser that samplers walk with."""
        given = self.told(given)
        return NetworkDenoiser(
            self.sampling_network,
            self.process,
            self.prediction,
            given,
            self._guide(given),
            self.clip if clip is None else clip,
        )

    def _guide(self, given: dict[str, Any]) -> Guide | None:
        """Returns what estimates of items, of which this is told, are led away from."""
        scale, interval = self.guidance.scale, self.guidance.interval or (0.0, math.inf)
        if scale == 1.0 or (self.earlier is not None and not self.earlier.is_taken):
            return None
        if self.earlier is not None:
            return Guide(scale, given, self.earlier, interval)
        nothing = {name: torch.full_like(value, self._nothing[name]) for name, value in given.items()}
        return Guide(scale, nothing, None, interval)

    @torch.no_grad()
    def score(self, x_t: Tensor, level: Level, **given: Any) -> Tensor:
        """Returns grad log p(x_t), the direction in which noised data become more probable."""
        with evaluating(self.sampling_network):
            return score_of(x_t, self.denoiser(clip=False, **given)(x_t, level), level)

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns the noise that sample i of the seed starts from, for every i in index."""
        index = indices(index, self.device)
        return randomness.normal(randomness.key(seed, "latent"), index, self.spec.shape)

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns what a deterministic walk makes of noise: the sampler, or the flow where it draws."""
        sampler = self._decoder
        levels = sampler.grid.levels(self.process)
        noise = Noise(0, torch.arange(len(z), device=z.device), self.spec.shape)
        x = self.process.prior_std(levels[0]) * z
        with evaluating(self.sampling_network):
            return self._bounded(sampler.walk(self.process, self.denoiser(**given), x, levels, noise))

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the noise that the flow takes data to; the flow returns to the data (DDIM, section 5.4)."""
        with evaluating(self.sampling_network):
            return encode(self.process, self.denoiser(clip=False, **given), x, LATENT_STEPS)

    def passes_with(self, sampler: Sampler) -> int:
        """Returns how often networks are evaluated for a sample by a sampler; guidance asks twice."""
        noise = Noise(0, torch.zeros(1, dtype=torch.long), self.spec.shape)
        return self._passes(sampler.passes(self.process), lambda ask: sampler(self.process, ask, noise))

    @property
    def passes(self) -> int:  # type: ignore[override]
        return self.passes_with(self.sampler)

    @property
    def encoding_passes(self) -> int:  # type: ignore[override]
        x = torch.zeros(1, *self.spec.shape)
        return self._passes(4 * LATENT_STEPS, lambda ask: encode(self.process, ask, x, LATENT_STEPS))

    @property
    def decoding_passes(self) -> int:  # type: ignore[override]
        return self.passes_with(self._decoder)

    @property
    def _decoder(self) -> Sampler:
        return self.sampler if self.sampler.is_deterministic else RungeKutta(LATENT_STEPS)

    def _passes(self, asked: int, walk: Callable[[Denoiser], Any]) -> int:
        """Returns the passes of a walk that asks so often, which is walked where guidance has an interval."""
        guide = self._guide({})
        if guide is None or self.guidance.interval is None:
            return asked if guide is None else 2 * asked
        counted = CountedPasses(guide)
        walk(counted)
        return counted.passes

    @property
    def likelihood_kind(self) -> str:
        """Dequantisation makes the likelihood of a level a bound; a density of numbers is exact."""
        return "<=" if self.likelihood.is_bound or self.spec.kind == "image" else "exact"

    @property
    def likelihood_estimator(self) -> str:
        return self.likelihood.estimator

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p(x) in nats: of their levels for images."""
        levels = self.spec.levels if self.spec.kind == "image" else 0
        # A test runs without derivatives, which the flow's divergence is made of; its tensors are copied.
        # Leaving that mode switches gradients on for the network's weights too, which nobody asks for.
        with torch.inference_mode(False), torch.no_grad(), evaluating(self.sampling_network):
            x, told = x.clone(), {name: value.clone() for name, value in self.told(given).items()}
            # The flow must be smooth and its divergence that of the network.
            clip = False if isinstance(self.likelihood, ProbabilityFlow) else None
            return self.likelihood.log_prob(
                x,
                self.denoiser(clip, **told),
                self.process,
                lambda name: self.draw_normal(name, len(x), self.spec.shape),
                levels,
            )

    @property
    def sampling_network(self) -> Any:
        """The network that samples and scores come from."""
        return self.network if self.average is None else self.average

    def _loss(self, network: Any, x: Tensor, t: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
        noise = self.draw_normal("noise", len(x), self.spec.shape)
        alpha, sigma = self.process.coefficients(t, x)
        x_t = alpha * x + sigma * noise
        output = network(
            self.prediction.input_scale(alpha, sigma) * x_t, self.process.network_time(t).float(), **given
        ).float()
        output, v = split_variance(output, x.shape[1])
        target = self.prediction.target(x, noise, alpha, sigma)
        error = (output - target).square().flatten(1).mean(1)
        if self.weighting is not None:
            c_out = self.prediction.scales(alpha, sigma)[1]
            error = error * self.weighting(alpha, sigma, c_out).flatten()
        losses = {"loss": error.mean()}
        if v is not None:
            losses |= self._variance_loss(x, x_t, t, output.detach(), v, losses["loss"])
        return losses

    def _variance_loss(
        self, x: Tensor, x_t: Tensor, t: Tensor, output: Tensor, v: Tensor, simple: Tensor
    ) -> dict[str, Tensor]:
        if not isinstance(self.process, DiscreteChain):
            raise ValueError(
                f"A learned variance needs the process DiscreteChain, got {type(self.process).__name__}; "
                "set learned_variance of the network to false."
            )
        alpha, sigma = self.process.coefficients(t, x)
        c_skip, c_out = self.prediction.scales(alpha, sigma)
        levels = self.spec.levels if self.spec.kind == "image" else 0
        bound = variance_loss(self.process, x, x_t, t, c_skip * x_t + c_out * output, v, levels)
        total = self.process.num_steps * bound.mean()
        return {"simple": simple, "bound": total, "loss": simple + self.variance_weight * total}

    def _errors(self, x: Tensor, given: dict[str, Any]) -> dict[str, Tensor]:
        # Unguided: guidance makes better samples of worse estimates.
        denoise = NetworkDenoiser(self.sampling_network, self.process, self.prediction, given, clip=self.clip)
        found = {}
        noise = self.draw_normal("fixed level", len(x), self.spec.shape)
        for ratio in VALIDATION_RATIOS:
            level = self.process.level_of(ratio)
            estimate = denoise(level.alpha * x + level.sigma * noise, level)
            found[f"x_error@{ratio:g}"] = (estimate - x).square().mean()
        return found

    def _spread(self, x: Tensor) -> Tensor:
        if not self.dequantise:
            return x
        bits = self.draw_normal("dequantisation", len(x), self.spec.shape)
        return x + 2.0 / (self.spec.levels - 1) * (torch.special.ndtr(bits) - 0.5)

    def _hidden(self, given: dict[str, Any]) -> dict[str, Tensor]:
        """Returns what the network is told in training, where all of some items is hidden."""
        if not (self.training and given and self.guidance.dropout):
            return given
        num = len(next(iter(given.values())))
        return hidden(given, self.draw_uniform("hidden", num) < self.guidance.dropout, self._nothing)

    def _bounded(self, x: Tensor) -> Tensor:
        return x.clamp(-1.0, 1.0) if self.spec.kind == "image" else x


def _nothing_of(spec: DataSpec) -> dict[str, int]:
    """Returns what a label and each number of a source are where nothing is told: padding, or grey."""
    source = spec.source
    hidden = source.padding if source is not None and source.kind == "tokens" else 0
    return {"label": spec.num_classes, "source": hidden}
