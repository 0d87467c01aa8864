"""Variational autoencoders: a latent variable model and the posterior that it is trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genlab import randomness
from genlab.families.base import CodingFactory, Model, indices
from genlab.families.weights import evaluating
from genlab.losses.divergences import DiagonalNormal, free_bits, importance_bound, standard_normal_log_prob
from genlab.losses.likelihoods import LikelihoodFactory
from genlab.shapes import Batch, DataSpec, observed, to_float, to_levels

SAMPLES_AT_A_TIME = 50  # of a posterior: the block that importance sampling numbers and draws together


@dataclass(frozen=True)
class Bound:
    """The lower bound on log p(x) that is trained and measured.

    Attributes:
        beta: Weight of the KL; above 1 the code says less, below 1 the loss is no bound.
        free_bits: Nats of KL that each dimension of z may use without being charged.
        warmup: Examples over which the KL's weight grows from 0; 0 charges it from the start.
        num_train_samples: k of the bound that is trained; 1 is the ELBO, with the KL in closed form.
        num_test_samples: k of the bound that `log_prob` returns; 5,000 is usual in papers, and slow.
    """

    beta: float = 1.0
    free_bits: float = 0.0
    warmup: int = 0
    num_train_samples: int = 1
    num_test_samples: int = 64

    def __post_init__(self) -> None:
        if min(self.num_train_samples, self.num_test_samples) < 1:
            raise ValueError("num_train_samples and num_test_samples must be at least 1.")
        if self.num_train_samples > 1 and (self.beta != 1.0 or self.free_bits or self.warmup):
            raise ValueError(
                f"num_train_samples {self.num_train_samples} trains the importance-weighted bound, which has "
                "no KL to weigh: leave beta, free_bits and warmup out."
            )


@dataclass(frozen=True)
class Augmentation:
    """Changed training images, for scarce data.

    Attributes:
        network: Changes images by given amounts, such as AffineAugment; None changes nothing.
        share: Share of the training images that are changed.
        told: Give both networks the amounts; False learns the changed images as if real.
    """

    network: nn.Module | None = None
    share: float = 0.8
    told: bool = True


class VAE(Model):
    """Learns p(x) = E p(x | z), z standard normal, by a lower bound on it.

        log p(x) >= E_q log p(x | z) - beta KL(q(z | x), N(0, I))                  one sample
        log p(x) >= E log 1/k sum_j p(x | z_j) p(z_j) / q(z_j | x)                 k samples

    Kingma and Welling 2014 (arXiv:1312.6114), equation 3; Burda et al. 2016 (arXiv:1509.00519), equation 8;
    Higgins et al. 2017 for beta. All in nats, summed over pixels and averaged over images, so that with
    beta = 1 and no free bits the loss is minus the bound itself.

    Given labels it learns p(x | label) (Sohn et al. 2015). Given an augmentation it learns from changed
    images; encoder and decoder are told the amounts, so that these go neither into z nor into samples, which
    are drawn with all amounts 0 (AugVAE).

    Args:
        spec: The data.
        encoder: Network from data and condition to the posterior's means and log stds.
        decoder: Network from z and condition to the parameters of the pixels' distribution.
        likelihood: The pixels' distribution.
        optimizer: Built from all parameters.
        latent_dim: Length of z.
        bound: What is trained and measured.
        augmentation: Changed training images.
        model: Arguments of every model.

    Shapes:
        z: (batch, latent_dim).
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
    """

    likelihood_kind = "<="
    latent_type = "normal prior"
    conditions = ("label",)

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        likelihood: LikelihoodFactory,
        optimizer: OptimizerCallable,
        latent_dim: int = 32,
        bound: Bound = Bound(),
        augmentation: Augmentation = Augmentation(),
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        self.bound = bound
        self.augment, self.augment_share = augmentation.network, augmentation.share
        is_told = self.augment is not None and augmentation.told
        self.num_told = 1 + int(self.augment.num_amounts) if is_told else 0  # type: ignore[arg-type, union-attr]
        condition_dim = self.seen_spec.num_classes + self.num_told
        self.likelihood = likelihood(spec)
        self.latent_dim = latent_dim
        self.encoder = encoder(spec, 2 * latent_dim, condition_dim)
        parameters = DataSpec(spec.name, self.likelihood.parameter_shape, 0, spec.levels)
        self.decoder = decoder(parameters, latent_dim, condition_dim)
        self.optimizer = optimizer

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss and its parts in nats: distortion -E log p(x | z), rate KL, and the ELBO."""
        x, amounts = self._augmented(observed(batch))
        condition = self._condition(self.given_of(batch), amounts, len(x))
        posterior = DiagonalNormal.of(self.encoder(x, condition))
        noise = self.draw_normal("posterior", len(x), (self.bound.num_train_samples, self.latent_dim))
        log_likelihood, log_ratio = self._weights(posterior, noise, x, condition)
        kl = posterior.kl()
        distortion, rate = -log_likelihood.mean(), kl.sum(dim=1).mean()
        if self.bound.num_train_samples > 1:
            loss = -importance_bound(log_likelihood + log_ratio).mean()
        else:
            loss = distortion + self._kl_weight() * free_bits(kl, self.bound.free_bits)
        return {"loss": loss, "distortion": distortion, "rate": rate, "elbo": -distortion - rate}

    def posterior(self, x: Tensor, **given: Any) -> DiagonalNormal:
        """Returns q(z | x) of images as they are."""
        return DiagonalNormal.of(self.encoder(x, self._condition(given, None, len(x))))

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the posterior's mean: the same code each time."""
        with evaluating(self):
            return self.posterior(x, **given).mean

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the expected image of each z."""
        with evaluating(self):
            return self.likelihood.mean(self.decoder(z, self._condition(given, None, len(z))))

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns latent number i of the seed for every i in index."""
        index = indices(index, self.device)
        return randomness.normal(randomness.key(seed, "latent"), index, (self.latent_dim,))

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index."""
        return self.decode(self.draw_latent(index, seed), **given)

    @property
    def likelihood_estimator(self) -> str:
        return f"importance-weighted bound, k = {self.bound.num_test_samples:,}"

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the bound on log p(x) with `bound.num_test_samples` samples, in nats, (batch,)."""
        total = self.bound.num_test_samples
        with evaluating(self):
            posterior, condition = self.posterior(x, **given), self._condition(given, None, len(x))
            log_sum = x.new_full((len(x),), -math.inf, dtype=torch.float64)
            for block, start in enumerate(range(0, total, SAMPLES_AT_A_TIME)):
                num = min(SAMPLES_AT_A_TIME, total - start)
                noise = self.draw_normal(f"importance {block}", len(x), (num, self.latent_dim))
                log_weights = sum(self._weights(posterior, noise, x, condition))
                log_sum = torch.logaddexp(log_sum, log_weights.double().logsumexp(dim=1))  # type: ignore[union-attr]
        return log_sum - math.log(total)

    def _weights(
        self, posterior: DiagonalNormal, noise: Tensor, x: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns log p(x | z) and log p(z) - log q(z | x) of each of k samples, (batch, k)."""
        batch, k = noise.shape[:2]
        each = DiagonalNormal(posterior.mean[:, None], posterior.log_std[:, None])
        z = each.at(noise)
        repeated = None if condition is None else condition.repeat_interleave(k, dim=0)
        parameters = self.decoder(z.flatten(0, 1), repeated)
        log_likelihood = self.likelihood(parameters, x.repeat_interleave(k, dim=0)).unflatten(0, (batch, k))
        return log_likelihood, standard_normal_log_prob(z) - each.log_prob(z)

    def _kl_weight(self) -> float:
        if not self.training or not self.bound.warmup:
            return self.bound.beta
        return self.bound.beta * min(1.0, self.examples_seen / self.bound.warmup)

    def _augmented(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns images changed by random amounts, back on the data's levels, and the amounts."""
        if self.augment is None or not self.training:
            return x, None
        noise = self.draw_normal("augmentation", len(x), (int(self.augment.num_amounts),))  # type: ignore[arg-type]
        changed = self.draw_uniform("augmented", len(x)) < self.augment_share
        amounts = (2.0 * torch.special.ndtr(noise) - 1.0) * changed[:, None]
        levels = self.spec.levels
        return to_float(to_levels(self.augment(x, amounts), levels), levels), amounts

    def _condition(self, given: dict[str, Any], amounts: Tensor | None, num: int) -> Tensor | None:
        """Returns what both networks are told: label as a one-hot vector, amounts, and if any is not 0."""
        parts = [one_hot(label, self.spec.num_classes).float() for label in self.told(given).values()]
        if self.num_told:
            if amounts is None:
                amounts = torch.zeros(num, self.num_told - 1, device=self.device)
            # Resampling blurs by any amount but 0: untold, the networks would take 0 for blurred too.
            parts.append(torch.cat([amounts, amounts.any(dim=1, keepdim=True)], dim=1))
        return torch.cat(parts, dim=1) if parts else None
