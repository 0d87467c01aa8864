"""Normalizing flows: an invertible network and the exact density that follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from genlab import randomness
from genlab.bijections.base import Bijection, BijectionFactory
from genlab.bijections.densities import Density, StandardNormal
from genlab.bijections.dequantisation import Dequantisation, DequantisationFactory, UniformDequantisation
from genlab.families.base import Model, indices
from genlab.families.weights import evaluating
from genlab.shapes import Batch, DataSpec, observed, to_float


class Flow(Model):
    """Learns an invertible map f from the data to a known density, by maximum likelihood.

        log p(x) = log p_z(f(x)) + log |det df/dx|                (Dinh et al. 2017, arXiv:1605.08803, eq. 2)

    An image's level k becomes v = (k + u) / levels in (0, 1), with u drawn by the dequantisation, and

        log P(k) >= log p(v) - log q(u | k) - dimensions log levels

    in expectation: bits per dimension are an upper bound. Vectors are used as they are; there it is exact.
    The loss is in bits per dimension for images, in nats for vectors.

    Args:
        bijection: The map f, from (0, 1) for images.
        optimizer: Optimiser without its parameters.
        base: Density of the latent.
        dequantisation: How levels become numbers; uniform by default. Vectors have none.
        temperature: Factor on the latent when sampling; below 1 samples are likelier and less diverse.
        num_draws: Draws of u for a likelihood at test: the mean of exp(log-likelihood) over them comes
            closer to P(k) from below.
        model: Arguments of every model; everything but training uses the average.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
        z: (batch, dimensions); of an image, channels * height * width.
    """

    latent_type = "bijection"
    conditions = ("label",)
    signs = ("inverse_error",)

    def __init__(
        self,
        spec: DataSpec,
        bijection: BijectionFactory,
        optimizer: OptimizerCallable,
        base: Density | None = None,
        dequantisation: DequantisationFactory | None = None,
        temperature: float = 1.0,
        num_draws: int = 1,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {num_draws}.")
        if temperature < 0.0:
            raise ValueError(f"temperature must be at least 0, got {temperature}.")
        parts: dict[str, nn.Module] = {"bijection": bijection(self.seen_spec)}
        if self.is_discrete:
            parts["dequantisation"] = (dequantisation or UniformDequantisation)(self.seen_spec)
        self.parts = nn.ModuleDict(parts)
        self.keep_average(self.parts)
        self.optimizer_factory = optimizer
        self.base = base or StandardNormal()
        self.temperature = temperature
        self.num_draws = num_draws
        self.latent_dim = math.prod(spec.shape)

    @property
    def is_discrete(self) -> bool:
        """Whether the data are images with levels, which need dequantisation."""
        return self.spec.kind == "image"

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer_factory(self.parts.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood; in evaluation also how far the inverse misses the data."""
        x, label = observed(batch), self.given_of(batch).get("label")
        parts = self.parts if self.training else self._averaged
        # Networks may learn in half precision; what is reported is computed without it.
        with nullcontext() if self.training else torch.autocast(self.device.type, enabled=False):
            v, log_volume = self._continuous(parts, x, label, "dequantisation")
            z, log_prob = self._log_density(parts, v, label)
            loss = -(log_prob + log_volume).mean() / self._units
            if self.training:
                return {"loss": loss}
            back, _ = _bijection(parts).inverse(z, label)
            return {"loss": loss, "inverse_error": (back - v).abs().flatten(1).amax(1).mean()}

    @property
    def likelihood_kind(self) -> str:
        """Dequantisation makes the likelihood of a level a bound; a density of numbers is exact."""
        return "<=" if self.is_discrete else "exact"

    @property
    def likelihood_estimator(self) -> str:
        return (
            f"{self._dequantisation.name}, k = {self.num_draws}"
            if self.is_discrete
            else "change of variables"
        )

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p(x) in nats: for images of their levels, from `num_draws` dequantisations."""
        parts, label = self._averaged, self.told(given).get("label")
        num_draws = self.num_draws if self.is_discrete else 1
        found = []
        with evaluating(parts):
            for number in range(num_draws):
                v, log_volume = self._continuous(parts, x, label, f"draw {number}")
                found.append(self._log_density(parts, v, label)[1] + log_volume)
        return torch.stack(found).logsumexp(0) - math.log(num_draws)

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the latent of an image, from the middle of its bins; `decode` returns the very image."""
        v = (self._levels(x) + 0.5) / self.spec.levels if self.is_discrete else x
        with evaluating(self._averaged):
            return _bijection(self._averaged)(v, self.told(given).get("label"))[0]

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the image or vector of a latent; images as one of their levels, in [-1, 1]."""
        v = self.unrounded(z, **given)
        if not self.is_discrete:
            return v
        levels = (v * self.spec.levels).floor().clamp(0, self.spec.levels - 1)
        return to_float(levels, self.spec.levels)

    @torch.no_grad()
    def unrounded(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the numbers of a latent as the bijection gives them, those of images in (0, 1)."""
        with evaluating(self._averaged):
            return _bijection(self._averaged).inverse(z, self.told(given).get("label"))[0]

    def draw_latent(self, index: int | Tensor, seed: int = 0, temperature: float | None = None) -> Tensor:
        """Returns latent number i of the seed for every i in index."""
        index = indices(index, self.device)
        temperature = self.temperature if temperature is None else temperature
        return self.base.draw(randomness.key(seed, "latent"), index, self.latent_dim) * temperature

    def sample(
        self, index: int | Tensor, seed: int = 0, temperature: float | None = None, **given: Any
    ) -> Tensor:
        """Returns sample i of the seed for every i in index."""
        return self.decode(self.draw_latent(index, seed, temperature), **given)

    @torch.no_grad()
    def explain(self, batch: Batch) -> str:
        """Returns which layer first gives a value that is not finite, and the usual remedies."""
        with first_not_finite(self.parts) as found:
            self.losses(batch)
        where = "the base density" if not found else f"layer {found[0]}"
        if not observed(batch).isfinite().all():
            where = "the data"
        return (
            f"{where} gives the first such value; a smaller learning rate, schedule.warmup, "
            f"trainer.gradient_clip_val or a smaller bound of the transform are the usual remedies."
        )

    @property
    def _averaged(self) -> nn.ModuleDict:
        return self.parts if self.average is None else self.average.module  # type: ignore[return-value]

    @property
    def _dequantisation(self) -> Dequantisation:
        return self.parts["dequantisation"]  # type: ignore[return-value]

    @property
    def _units(self) -> float:
        """Nats of one unit of the loss."""
        return self.latent_dim * math.log(2) if self.spec.kind == "image" else 1.0

    def _levels(self, x: Tensor) -> Tensor:
        return ((x.float() + 1.0) * ((self.spec.levels - 1) / 2)).round()

    def _continuous(
        self, parts: nn.ModuleDict, x: Tensor, label: Tensor | None, stream: str
    ) -> tuple[Tensor, Tensor]:
        """Returns numbers in (0, 1) for an image's levels, and log P(levels) - log p(numbers)."""
        if not self.is_discrete:
            x = x.float() if x.dtype.itemsize < 4 else x
            return x, x.new_zeros(len(x))
        # In float32 numbers just below 1 are 1, which belongs to the next level.
        uniform = self.draw_uniform(stream, len(x), tuple(x.shape[1:])).clamp(1e-7, 1 - 1e-7)
        k = self._levels(x) / self.spec.levels
        u, log_q = parts["dequantisation"](uniform, k, label)
        return k + u / self.spec.levels, -log_q - self.latent_dim * math.log(self.spec.levels)

    def _log_density(self, parts: nn.ModuleDict, v: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns the latent and log p(v)."""
        z, log_det = _bijection(parts)(v, label)
        return z, self.base.log_prob(z) + log_det


def _bijection(parts: nn.ModuleDict) -> Bijection:
    return parts["bijection"]  # type: ignore[return-value]


@contextmanager
def first_not_finite(network: nn.Module) -> Iterator[list[str]]:
    """Collects the names of layers whose output is not finite, in the order in which they are computed."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def note(module: nn.Module, inputs: Any, outputs: Any) -> None:
            values = outputs if isinstance(outputs, tuple) else (outputs,)
            if not all(value.isfinite().all() for value in values):
                found.append(name)

        return note

    handles = [m.register_forward_hook(watch(name)) for name, m in network.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
