"""Diffusion models, score-based models and flow matching: one loss over any process."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from genlab import randomness
from genlab.families.base import (
    Model,
    NetworkFactory,
    averaged_copy,
    evaluating,
    indices,
    scheduled,
)
from genlab.processes.base import Level, Process, score_of
from genlab.processes.chain import DiscreteChain
from genlab.processes.denoiser import NetworkDenoiser, split_variance
from genlab.processes.grids import RatioGrid
from genlab.processes.likelihood import Likelihood, ProbabilityFlow, VariationalBound
from genlab.processes.prediction import Prediction, PredictNoise, Weighting
from genlab.processes.variance import variance_loss
from genlab.samplers.ancestral import Ancestral
from genlab.samplers.base import Noise, Sampler
from genlab.samplers.ode import RungeKutta, encode
from genlab.shapes import Batch, DataSpec, observed

VALIDATION_RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
"""sigma / alpha at which the validation error of x is measured, whatever the process."""


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
        network: From (x, t, label) to F; with `learned_variance`, twice the channels.
        process: How data become noise.
        optimizer: Optimiser without its parameters.
        prediction: What F is.
        weighting: Weight of each noise level; 1 without it.
        sampler: How samples are drawn.
        likelihood: How log p(x) is estimated; the flow for vectors, the bound of 100 steps for images.
        conditional: Give the network the labels.
        label_dropout: Share of labels hidden in training, each on its own, so that sampling can be guided.
        guidance: Of samples by labels; 1 is the conditional model, higher fits labels better and varies less.
        clip: Keep the estimates of images in [-1, 1] while sampling.
        dequantise: Spread each level of an image uniformly over its interval in training, which the flow's
            likelihood needs; rounding the samples takes it back.
        variance_weight: Of the bound that teaches the variance where the network has one; published 0.001.
        ema_decay: Decay, per optimiser step, of the averaged network that samples and scores come from;
            0 takes the network itself.
        warmup_images: Images over which the learning rate grows from 0; the paper's 5,000 steps of 128.
        decay_images: Images at which the learning rate has fallen to 0 along a cosine, usually the budget's;
            0 for no fall.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
        z: As x, standard normal: the noise that a deterministic sampler starts from.
    """

    latent_type = "noise"

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        process: Process,
        optimizer: OptimizerCallable,
        prediction: Prediction | None = None,
        weighting: Weighting | None = None,
        sampler: Sampler | None = None,
        likelihood: Likelihood | None = None,
        conditional: bool = False,
        label_dropout: float = 0.0,
        guidance: float = 1.0,
        clip: bool = True,
        dequantise: bool = False,
        variance_weight: float = 1e-3,
        ema_decay: float = 0.9999,
        warmup_images: int = 0,
        decay_images: int = 0,
    ) -> None:
        super().__init__(spec)
        if conditional and not spec.num_classes:
            raise ValueError(f"conditional needs labels, and {spec.name} has none: set conditional to false.")
        if not 0.0 <= label_dropout < 1.0:
            raise ValueError(f"label_dropout must be in [0, 1), got {label_dropout}.")
        if guidance != 1.0 and not (conditional and label_dropout):
            raise ValueError(
                f"guidance {guidance} needs conditional true and label_dropout above 0, such as 0.1."
            )
        self.uses_labels = conditional
        self.network = network(spec if conditional else spec.unconditional())
        self.average = averaged_copy(self.network, ema_decay) if ema_decay else None
        self.process, self.prediction = process, prediction or PredictNoise()
        self.weighting, self.sampler = weighting, sampler or Ancestral()
        # The decoder tells levels apart from noise of about half their distance on; below it steps cost bits.
        bound = VariationalBound(RatioGrid(100, smallest=0.6 / max(1, spec.levels - 1)))
        self.likelihood = likelihood or (bound if spec.kind == "image" else ProbabilityFlow())
        self.optimizer_factory = optimizer
        self.label_dropout, self.guidance = label_dropout, guidance
        self.clip = clip and spec.kind == "image"
        self.dequantise = dequantise and spec.kind == "image"
        self.variance_weight = variance_weight
        self.warmup_images, self.decay_images = warmup_images, decay_images

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self.network.parameters())
        return scheduled(self, optimizer, self.warmup_images, self.decay_images)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not after each batch: with accumulation a step has several batches.
        self.update_average()

    def update_average(self) -> None:
        """Moves the averaged network towards the network, once for each optimiser step."""
        if self.average is not None:
            self.average.update_parameters(self.network)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the weighted loss; in evaluation also the error of x at fixed noise levels."""
        x, label = self._spread(observed(batch)), self._hidden_label(batch)
        t = self.process.training_time(self.draw_uniform("time", len(x)))
        if self.training:
            return self._loss(self.network, x, t, label)
        with evaluating(self.sampling_network):
            return self._loss(self.sampling_network, x, t, label) | self._errors(x, label)

    def sample(self, index: int | Tensor, seed: int = 0, label: Tensor | None = None) -> Tensor:
        """Returns sample i of the seed for every i in index; without labels, class i mod num_classes."""
        return self.sample_with(self.sampler, index, seed, label)

    @torch.no_grad()
    def sample_with(
        self,
        sampler: Sampler,
        index: int | Tensor,
        seed: int = 0,
        label: Tensor | None = None,
        clip: bool | None = None,
    ) -> Tensor:
        """Returns samples by another sampler than the model's own; clip overrides the model's."""
        index = indices(index, self.device)
        if label is None and self.uses_labels:
            label = index % self.spec.num_classes
        network = self.sampling_network
        with evaluating(network):
            return self._bounded(
                sampler(self.process, self.denoiser(label, clip), Noise(seed, index, self.spec.shape))
            )

    def denoiser(self, label: Tensor | None = None, clip: bool | None = None) -> NetworkDenoiser:
        """Returns the averaged network as the denoiser that samplers walk with."""
        return NetworkDenoiser(
            self.sampling_network,
            self.process,
            self.prediction,
            label if self.uses_labels else None,
            self.guidance if label is not None else 1.0,
            self.spec.num_classes if self.label_dropout else None,
            self.clip if clip is None else clip,
        )

    @torch.no_grad()
    def score(self, x_t: Tensor, level: Level, label: Tensor | None = None) -> Tensor:
        """Returns grad log p(x_t), the direction in which noised data become more probable."""
        with evaluating(self.sampling_network):
            return score_of(x_t, self.denoiser(label, clip=False)(x_t, level), level)

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns the noise that sample i of the seed starts from, for every i in index."""
        index = indices(index, self.device)
        return randomness.normal(randomness.key(seed, "latent"), index, self.spec.shape)

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns what a deterministic walk makes of noise: the sampler, or the flow where it draws."""
        sampler = self.sampler if self.sampler.is_deterministic else RungeKutta(50)
        levels = sampler.grid.levels(self.process)
        noise = Noise(0, torch.arange(len(z), device=z.device), self.spec.shape)
        x = self.process.prior_std(levels[0]) * z
        with evaluating(self.sampling_network):
            return self._bounded(sampler.walk(self.process, self.denoiser(label), x, levels, noise))

    @torch.no_grad()
    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the noise that the flow takes data to; the flow returns to the data (DDIM, section 5.4)."""
        with evaluating(self.sampling_network):
            return encode(self.process, self.denoiser(label, clip=False), x, 50)

    @property
    def likelihood_kind(self) -> str:
        """Dequantisation makes the likelihood of a level a bound; a density of numbers is exact."""
        return "<=" if self.likelihood.is_bound or self.spec.kind == "image" else "exact"

    @property
    def likelihood_estimator(self) -> str:
        return self.likelihood.estimator

    @torch.no_grad()
    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns log p(x) in nats: of their levels for images."""
        levels = self.spec.levels if self.spec.kind == "image" else 0
        # A test runs without derivatives, which the flow's divergence is made of; its tensors are copied.
        with torch.inference_mode(False), evaluating(self.sampling_network):
            x, label = x.clone(), None if label is None else label.clone()
            # The flow must be smooth and its divergence that of the network.
            clip = False if isinstance(self.likelihood, ProbabilityFlow) else None
            return self.likelihood.log_prob(
                x,
                self.denoiser(label, clip),
                self.process,
                lambda name: self.draw_normal(name, len(x), self.spec.shape),
                levels,
            )

    @property
    def sampling_weights(self) -> str:
        return "ema" if self.average is not None else "raw"

    @property
    def sampling_network(self) -> Any:
        """The network that samples and scores come from."""
        return self.network if self.average is None else self.average

    def _loss(self, network: Any, x: Tensor, t: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        noise = self.draw_normal("noise", len(x), self.spec.shape)
        alpha, sigma = self.process.coefficients(t, x)
        x_t = alpha * x + sigma * noise
        output = network(
            self.prediction.input_scale(alpha, sigma) * x_t, self.process.network_time(t).float(), label
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

    def _errors(self, x: Tensor, label: Tensor | None) -> dict[str, Tensor]:
        denoise, found = self.denoiser(label), {}
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

    def _hidden_label(self, batch: Batch) -> Tensor | None:
        if not self.uses_labels:
            return None
        if not (self.training and self.label_dropout):
            return batch["label"]
        hidden = self.draw_uniform("hide label", len(batch["label"])) < self.label_dropout
        return batch["label"].masked_fill(hidden, self.spec.num_classes)

    def _bounded(self, x: Tensor) -> Tensor:
        return x.clamp(-1.0, 1.0) if self.spec.kind == "image" else x
