"""Generative adversarial networks: two players, two optimisers."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from genlab import randomness
from genlab.families.base import Model, NetworkFactory, averaged_copy, evaluating, frozen, indices
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.penalties import Penalty
from genlab.shapes import Batch, DataSpec, observed


class GAN(Model):
    """A generator learns to be mistaken for the data by a discriminator that learns to tell them apart.

        min_G max_D  E_x log D(x) + E_z log(1 - D(G(z)))          (Goodfellow et al. 2014, equation 1)

    and the other games of `losses.adversarial`. One training batch is one discriminator step on fresh
    real images (Algorithm 1); every `discriminator_steps`-th batch is followed by one generator step,
    which is what Lightning's `global_step` counts.

    Args:
        generator: Network from a latent vector to an image; names its own `latent_dim`.
        discriminator: Network from an image to one logit.
        loss: The game that the two play.
        generator_optimizer, discriminator_optimizer: Optimisers without their parameters.
        discriminator_steps: Discriminator updates for each generator update, the k of Algorithm 1.
        conditional: Give both networks the labels.
        penalty: Regulariser of the discriminator, in float32 at any precision.
        augment: Differentiable transformation that both real and generated images pass on their way
            to the discriminator.
        ema_decay: Decay, per generator update, of the averaged generator that samples are drawn from;
            0 draws from the generator itself.
        clip: Largest norm of either player's gradient, applied after unscaling; None for no limit.

    Shapes:
        z: (batch, latent_dim), standard normal.
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
    """

    alternating = True
    latent_type = "normal prior"

    def __init__(
        self,
        spec: DataSpec,
        generator: NetworkFactory,
        discriminator: NetworkFactory,
        loss: AdversarialLoss,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        discriminator_steps: int = 1,
        conditional: bool = False,
        penalty: Penalty | None = None,
        augment: nn.Module | None = None,
        ema_decay: float = 0.0,
        clip: float | None = None,
    ) -> None:
        super().__init__(spec)
        if discriminator_steps < 1:
            raise ValueError(f"discriminator_steps must be at least 1, got {discriminator_steps}.")
        if conditional and not spec.num_classes:
            raise ValueError(f"conditional needs labels, and {spec.name} has none: set conditional to false.")
        self.automatic_optimization = False
        self.uses_labels = conditional
        seen_by_networks = spec if conditional else spec.unconditional()
        self.generator = generator(seen_by_networks)
        self.latent_dim = int(self.generator.latent_dim)  # type: ignore[arg-type]
        self.discriminator = discriminator(seen_by_networks)
        self.average = averaged_copy(self.generator, ema_decay) if ema_decay else None
        self.loss = loss
        self.optimizer_factories = (generator_optimizer, discriminator_optimizer)
        self.discriminator_steps = discriminator_steps
        self.discriminator_updates = 0
        self.penalty = penalty
        self.augment = augment or nn.Identity()
        self.clip = clip

    def configure_optimizers(self) -> list[Optimizer]:
        players = (self.generator, self.discriminator)
        return [
            factory(player.parameters())
            for factory, player in zip(self.optimizer_factories, players, strict=True)
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        generator_optimizer, discriminator_optimizer = self.optimizers()  # type: ignore[attr-defined]
        self._count_no_step_of(discriminator_optimizer)
        real, label = observed(batch), self._label(batch)
        generator_learns = (self.discriminator_updates + 1) % self.discriminator_steps == 0
        # One generator pass serves both players; a second one would cost a tenth of the step.
        with torch.set_grad_enabled(generator_learns):
            fake = self._fake("latent", len(real), label)
        losses = self._discriminator_step(real, fake.detach(), label, discriminator_optimizer)
        if generator_learns:
            losses |= self._generator_step(fake, label, generator_optimizer)
        self.remember({**self.latest, **losses})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns both players' losses and the discriminator's accuracy on real and on generated images."""
        real, label = observed(batch), self._label(batch)
        real_logits = self.discriminator(real, label)
        fake_logits = self.discriminator(self._fake("validation", len(real), label), label)
        generator_loss = self.loss.generator(fake_logits)
        return {
            "loss": generator_loss,
            "generator": generator_loss,
            "discriminator": self.loss.discriminator(real_logits, fake_logits),
            **self._accuracy(real_logits, fake_logits),
        }

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns latent number i of the seed for every i in index."""
        index = indices(index, self.device)
        return randomness.normal(randomness.key(seed, "latent"), index, (self.latent_dim,))

    @torch.no_grad()
    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the images of latent vectors, by the averaged generator where there is one."""
        with evaluating(self._sampler):
            return self._sampler(z, label)

    def sample(self, index: int | Tensor, seed: int = 0, label: Tensor | None = None) -> Tensor:
        """Returns sample i of the seed for every i in index; without labels, class i mod num_classes."""
        index = indices(index, self.device)
        if label is None and self.uses_labels:
            label = index % self.spec.num_classes
        return self.decode(self.draw_latent(index, seed), label if self.uses_labels else None)

    @torch.no_grad()
    def probability_real(self, x: Tensor, label: Tensor | None = None) -> Tensor | None:
        """Returns D(x), None for losses whose logits are no probabilities."""
        with evaluating(self.discriminator):
            return self.loss.probability(self.discriminator(x, label))

    @property
    def sampling_weights(self) -> str:
        return "ema" if self.average is not None else "raw"

    @property
    def _sampler(self) -> nn.Module:
        return self.generator if self.average is None else self.average

    def _discriminator_step(
        self, real: Tensor, fake: Tensor, label: Tensor | None, optimizer: Any
    ) -> dict[str, Tensor]:
        real, fake = self.augment(real), self.augment(fake)
        real_logits = self.discriminator(real, label)
        fake_logits = self.discriminator(fake, label)
        losses = {"discriminator": self.loss.discriminator(real_logits, fake_logits)}
        total = losses["discriminator"]
        if self.penalty is not None and self.discriminator_updates % self.penalty.every == 0:
            losses["penalty"] = self._penalise(real, fake, label)
            total = total + losses["penalty"]
        self._update(optimizer, total)
        self.discriminator_updates += 1
        return {**losses, **self._accuracy(real_logits.detach(), fake_logits.detach())}

    def _generator_step(self, fake: Tensor, label: Tensor | None, optimizer: Any) -> dict[str, Tensor]:
        with frozen(self.discriminator):
            loss = self.loss.generator(self.discriminator(self.augment(fake), label))
            self._update(optimizer, loss)
        if self.average is not None:
            self.average.update_parameters(self.generator)
        return {"generator": loss, "loss": loss}

    def _penalise(self, real: Tensor, fake: Tensor, label: Tensor | None) -> Tensor:
        assert self.penalty is not None
        uniform = self.draw_uniform("penalty", len(real))
        return self.penalty(lambda x: self.discriminator(x, label), real, fake, uniform)

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here, and not before `step`, gradients are already unscaled under float16.
        if self.clip is not None:
            clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.clip)

    def _fake(self, stream: str, num: int, label: Tensor | None) -> Tensor:
        return self.generator(self.draw_normal(stream, num, (self.latent_dim,)), label)

    def _label(self, batch: Batch) -> Tensor | None:
        return batch["label"] if self.uses_labels else None

    def _accuracy(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        real, fake = self.loss.is_real(real_logits), self.loss.is_real(fake_logits)
        if real is None or fake is None:
            return {}
        return {"accuracy_real": real.float().mean(), "accuracy_fake": 1.0 - fake.float().mean()}

    def _count_no_step_of(self, optimizer: Any) -> None:
        # Lightning's global_step counts every optimiser; a budget of N means N generator updates.
        profiler = self.trainer.profiler  # type: ignore[attr-defined]
        optimizer._on_before_step = lambda: profiler.start("optimizer_step")
        optimizer._on_after_step = lambda: profiler.stop("optimizer_step")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["discriminator_updates"] = self.discriminator_updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.discriminator_updates = int(checkpoint["discriminator_updates"])
