"""Two players with an optimiser each: the alternating step that every adversarial family shares."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer

from genlab.families.base import Model, NetworkFactory
from genlab.families.weights import evaluating, frozen
from genlab.losses.adversarial import AdversarialLoss
from genlab.losses.penalties import Penalty
from genlab.shapes import Batch, DataSpec, observed


@dataclass(frozen=True)
class Balance:
    """What keeps the two players level.

    Attributes:
        discriminator_steps: Discriminator updates for each generator update, the k of Goodfellow et al. 2014,
            Algorithm 1.
        penalty: Regulariser of the discriminator, in float32 at any precision.
        augment: Differentiable transformation that both real and generated images pass on their way to the
            discriminator.
        clip: Largest norm of either player's gradient, applied after unscaling; None for no limit.
    """

    discriminator_steps: int = 1
    penalty: Penalty | None = None
    augment: nn.Module | None = None
    clip: float | None = None


class Adversarial(Model):
    """A generator and a discriminator that take turns.

    One training batch is one discriminator step on fresh data; every `discriminator_steps`-th batch is
    followed by one generator step, which is what Lightning's `global_step` counts. One pass of the generator
    serves both.

    A family says what the generator makes of a batch (`generate`) and what it minimises (`generator_losses`).
    A player may be several networks in one module, which learn together.

    Args:
        spec: The data.
        generator: Network that makes images.
        discriminator: Network from an image, and from what the model is told, to logits: one, or one a patch.
        loss: The game that the two play.
        generator_optimizer, discriminator_optimizer: Optimisers without their parameters.
        balance: What keeps the two level.
        model: Arguments of every model; the average is the generator's.
    """

    alternating = True
    optimizer_names: tuple[str, ...] = ("generator", "discriminator")
    shown_losses: tuple[str, ...] = ("generator", "discriminator")
    signs: tuple[str, ...] = ("accuracy_real", "accuracy_fake")

    def __init__(
        self,
        spec: DataSpec,
        generator: NetworkFactory,
        discriminator: NetworkFactory,
        loss: AdversarialLoss,
        generator_optimizer: OptimizerCallable,
        discriminator_optimizer: OptimizerCallable,
        balance: Balance = Balance(),
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if balance.discriminator_steps < 1:
            raise ValueError(f"discriminator_steps must be at least 1, got {balance.discriminator_steps}.")
        self.automatic_optimization = False
        self.generator = generator(self.seen_spec)
        self.discriminator = discriminator(self.seen_spec)
        self.keep_average(self.generator)
        self.loss = loss
        self.optimizer_factories = (generator_optimizer, discriminator_optimizer)
        self.penalty, self.clip = balance.penalty, balance.clip
        self.augment = balance.augment or nn.Identity()
        self.batches_per_step = balance.discriminator_steps
        self.discriminator_updates = 0

    @abstractmethod
    def generate(self, batch: Batch, stream: str) -> Tensor:
        """Returns what the generator makes for a batch, with noise of the named stream."""

    def generator_losses(self, fake: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns what the generator learns from, its images' logits known; "generator" is minimised."""
        return {"generator": self.loss.generator(logits)}

    def real(self, batch: Batch) -> Tensor:
        """Returns what the discriminator compares the generator's images with."""
        return observed(batch)

    def shown(self, fake: Tensor) -> Tensor:
        """Returns the generated images that the discriminator learns from: the newest ones, or older ones."""
        return fake

    def noted(self, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Returns what an evaluation notes of generated images beside the losses, as means over a batch."""
        return {}

    def judge(self, x: Tensor, batch: Batch) -> Tensor:
        """Returns the discriminator's logits of images, told what the batch's items are told."""
        return self.discriminator(x, **self.given_of(batch))

    def judge_both(self, real: Tensor, fake: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the discriminator's logits of real and of generated images."""
        return self.judge(real, batch), self.judge(fake, batch)

    @property
    def sampling_network(self) -> nn.Module:
        """The generator that samples come from: the average where there is one."""
        return self.generator if self.average is None else self.average

    def configure_optimizers(self) -> list[Optimizer]:
        players = (self.generator, self.discriminator)
        return [
            factory(player.parameters())
            for factory, player in zip(self.optimizer_factories, players, strict=True)
        ]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._follow_schedule()
        generator_learns = (self.discriminator_updates + 1) % self.batches_per_step == 0
        with torch.set_grad_enabled(generator_learns):
            fake = self.generate(batch, "latent")
        losses = self._discriminator_step(batch, self.shown(fake.detach()))
        if generator_learns:
            losses |= self._generator_step(batch, fake)
        self.remember({**self.latest, **losses})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns both players' losses and the discriminator's accuracy on real and on generated images."""
        fake = self.generate(batch, "validation")
        real_logits, fake_logits = self.judge_both(self.real(batch), fake, batch)
        losses = self.generator_losses(fake, fake_logits, batch)
        return {
            "loss": losses["generator"],
            **losses,
            "discriminator": self.loss.discriminator(real_logits, fake_logits),
            **self._accuracy(real_logits, fake_logits),
            **self.noted(fake, batch),
        }

    @torch.no_grad()
    def probability_real(self, x: Tensor, **given: Any) -> Tensor | None:
        """Returns D(x), None for losses whose logits are no probabilities."""
        with evaluating(self.discriminator):
            return self.loss.probability(self.judge(x, self.told(given)))  # type: ignore[arg-type]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Here, and not before `step`, gradients are already unscaled under float16 (but those of fused
        # optimisers, which `clip_gradients` knows).
        self.note_step(optimizer)
        if self.clip is not None:
            self.clip_gradients(optimizer, self.clip, "norm")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["discriminator_updates"] = self.discriminator_updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.discriminator_updates = int(checkpoint["discriminator_updates"])

    def _discriminator_step(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        real, fake = self.augment(self.real(batch)), self.augment(fake)
        real_logits, fake_logits = self.judge_both(real, fake, batch)
        losses = {"discriminator": self.loss.discriminator(real_logits, fake_logits)}
        total = losses["discriminator"]
        if self.penalty is not None and self.discriminator_updates % self.penalty.every == 0:
            uniform = self.draw_uniform("penalty", len(real))
            with torch.compiler.set_stance("force_eager"):  # compiled networks have no second derivative
                losses["penalty"] = self.penalty(lambda x: self.judge(x, batch), real, fake, uniform)
            total = total + losses["penalty"]
        self._learn(total, 1)
        self.discriminator_updates += 1
        return {**losses, **self._accuracy(real_logits.detach(), fake_logits.detach())}

    def _generator_step(self, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
        with frozen(self.discriminator):
            losses = self.generator_losses(fake, self.judge(self.augment(fake), batch), batch)
            self._learn(losses["generator"], 0)
        self.update_average()
        return {**losses, "loss": losses["generator"]}

    def _learn(self, loss: Tensor, player: int) -> None:
        optimizer = self.optimizers()[player]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        if player == 0:
            optimizer.step()
        else:
            # Not by Lightning's wrapper, whose steps are counted: a budget of N steps means N generator
            # updates.
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)

    def _follow_schedule(self) -> None:
        factor = self.schedule.factor(self.examples_seen)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def _accuracy(self, real_logits: Tensor, fake_logits: Tensor) -> dict[str, Tensor]:
        real, fake = self.loss.is_real(real_logits), self.loss.is_real(fake_logits)
        if real is None or fake is None:
            return {}
        return {"accuracy_real": real.float().mean(), "accuracy_fake": 1.0 - fake.float().mean()}
