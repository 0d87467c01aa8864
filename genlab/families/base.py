"""What every family stands on: losses to minimise, what a model is told, counts, averages, schedules."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision, Precision
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import genlab
from genlab import randomness
from genlab.distributed import joined_mean, joined_sum
from genlab.families.capabilities import Samples
from genlab.families.compiling import compile_learning
from genlab.families.sharding import shard, spread_as, whole
from genlab.families.steps import gradient_norm, learning_rates, logs_within, unscaled
from genlab.families.weights import Average, Snapshot
from genlab.shapes import Batch, DataSpec

NetworkFactory = Callable[[DataSpec], nn.Module]
"""What a YAML file gives for a network: its class and sizes; the data's shape is filled in by the family."""

CodingFactory = Callable[[DataSpec, int, int], nn.Module]
"""The same for an encoder or decoder: the data, the length of the code, and of the condition beside it."""

Condition = Literal["label", "source"]
"""What a model may be told of an item: its class, or what it comes with (an image, a sentence)."""


@dataclass(frozen=True)
class Schedule:
    """How a learning rate follows the examples seen.

    It grows evenly over the first `warmup`, is constant up to `hold` and falls to `floor` at `decay`: along a
    cosine (Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts) or evenly, as adversarial networks
    are usually brought to rest.

    Attributes:
        warmup: Examples over which it grows from 0; 0 for none.
        decay: Examples at which it has fallen to `floor`, usually the budget's; 0 for no fall.
        hold: Examples at which the fall begins.
        fall: Its form, "cosine" or "linear".
        floor: Share of it that is left in the end. Short trainings gain by one: the tenth that nanoGPT keeps
            is worth 0.02 nats a character in 2,000 steps (`experiments/gpt_shakespeare.yaml`).
    """

    warmup: int = 0
    decay: int = 0
    hold: int = 0
    fall: Literal["cosine", "linear"] = "cosine"
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= 1.0:
            raise ValueError(f"schedule.floor must be in [0, 1], got {self.floor}.")
        if self.hold and not 0 < self.hold < self.decay:
            raise ValueError(
                f"schedule.hold must lie between 0 and schedule.decay, got {self.hold} and {self.decay}."
            )
        for name in ("warmup", "decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"schedule.{name} must not be negative, got {getattr(self, name)}.")

    def factor(self, examples: int) -> float:
        """Returns what share of its learning rate an optimiser has after so many examples."""
        rise = min(1.0, (examples + 1) / self.warmup) if self.warmup else 1.0
        fallen = max(0, examples - self.hold) / (self.decay - self.hold) if self.decay else 0.0
        done = min(1.0, fallen)
        left = 1.0 - done if self.fall == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return rise * (self.floor + (1.0 - self.floor) * left)


class Model(pl.LightningModule):
    """A LightningModule with named losses and a count of the examples it has seen.

    A family with one loss implements `losses` and `configure_optimizers`; one with alternating optimisers is
    a `players.Adversarial`. Networks are called with what the model is told, by name: `network(x,
    label=...)`.

    Args:
        spec: The data, linked from the data module.
        given: What the model is told of each item: [label], [source], or nothing.
        schedule: Of the learning rate.
        half_life: Examples after which an averaged weight counts for half; samples and scores then come from
            the average. 0 keeps none.
        compile: Compile the networks that learn: up to a minute at the start, for steps that are up to twice
            as fast. What evaluates calls them as they are, since its shapes differ.

    Attributes:
        examples_seen: What was drawn from the data so far, over all devices, in the data's unit: the unit of
            every budget, schedule and axis. Optimiser steps differ between families, examples do not.
        seed: Of everything random in training.
        latest: The last training losses, detached and still on the device; read them only when needed,
            since reading waits for the device.
        gradient_norms: Of the last optimiser steps before a line of the log, by name: before clipping, and
            still on the device.
        learning_rates: Of the same steps.
        config: The model's part of the configuration file, kept in its checkpoints.
        average: Of the network given to `keep_average`.
        sharded: The networks whose weights are spread over devices.
        step_noise: The random numbers of the step; a model inside of this one may borrow it.
        renews_optimizers: Whether a restored optimiser takes this model's settings, such as its learning
            rate, in place of those it was saved with.
    """

    alternating: bool = False
    """Whether several optimisers take turns; several devices then need a strategy for unused parameters."""

    conditions: tuple[Condition, ...] = ("label", "source")
    """What the family can be told; its networks may know less."""

    batches_per_step: int = 1
    """Batches for each step that the trainer counts."""

    optimizer_names: tuple[str, ...] = ()
    """What each of several optimisers moves; by its number where that has no name."""

    shown_losses: tuple[str, ...] = ("loss",)
    """The losses worth a place on the progress line."""

    signs: tuple[str, ...] = ()
    """The validation losses by which a collapse is recognised."""

    latent_type: str = "codes"
    """What the latent space is, in two or three words for a table."""

    passes: int = 1
    """How often networks are evaluated for a sample; a flow's layers together count once, guidance twice."""

    encoding_passes: int = 1
    """How often they are to find the code of an item, where there are codes."""

    decoding_passes: int = 1
    """How often they are to make an item of a code."""

    has_targets: bool = True
    """Whether what the data put beside a source is what the model is to make of it."""

    memory_format: torch.memory_format = torch.channels_last
    """Layout of the weights of convolutions, which all that they compute then has."""

    can_shard: bool = False
    """Whether its network's weights may be spread over devices: it learns alone, and is called as a whole."""

    cannot_sample: str = ""
    """Why a model without the capability `Samples` has none."""

    def __init__(
        self,
        spec: DataSpec,
        given: Sequence[Condition] = (),
        schedule: Schedule = Schedule(),
        half_life: int = 0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.given = _checked(given, spec, self.conditions)
        self.schedule = schedule
        self.half_life = half_life
        self.is_compiled = compile
        self.average: Average | None = None
        self.sharded: list[nn.Module] = []
        self.examples_seen = 0
        self.seed = 0
        self.latest: dict[str, Tensor] = {}
        self.gradient_norms: dict[str, Tensor] = {}
        self.learning_rates: dict[str, float] = {}
        self.config: dict[str, Any] = {}
        self.step_noise = randomness.StepNoise()
        self.renews_optimizers = False
        self._averaged_at = 0
        self._restored_gradients: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns named scalars, means over the batch's units; the one called "loss" is minimised."""

    def units(self, batch: Batch) -> int | Tensor:
        """Returns how many units of the losses' means a batch holds: its items, or its tokens."""
        return batch_length(batch)

    # What the model is told

    @property
    def seen_spec(self) -> DataSpec:
        """The data as this model's networks see them: with what they are told, and nothing else."""
        return self.spec.told(self.given)

    @property
    def uses_labels(self) -> bool:
        """Whether the model is given class labels; such rows are marked in comparisons."""
        return "label" in self.given

    def given_of(self, batch: Batch) -> dict[str, Any]:
        """Returns what the model is told of a batch's items."""
        return {name: batch[name] for name in self.given}  # type: ignore[literal-required]

    def coded(self, batch: Batch) -> Batch:
        """Returns a batch of the data as what learns from it sees it: a prior sees codes, others the data."""
        return batch

    def told(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a caller tells, if it is what the model was trained to be told.

        Raises:
            ValueError: Something is missing, or is told to a model that was trained without it.
        """
        if given.keys() != set(self.given):
            raise ValueError(
                f"This {type(self).__name__} is told {', '.join(self.given) or 'nothing'}, "
                f"but got {', '.join(given) or 'nothing'}."
            )
        return dict(given)

    # Averages and schedules

    def keep_average(self, network: nn.Module) -> None:
        """Keeps an average of a network where there is a half-life; `update_average` moves it."""
        self.average = Average(network, self.half_life) if self.half_life else None
        self._averages = (network,)  # a tuple, since the network is registered under its own name

    def update_average(self) -> None:
        """Moves the average towards its network, once for each optimiser step."""
        if self.average is not None:
            self.average.update(self._averages[0], self.examples_seen - self._averaged_at)
            self._averaged_at = self.examples_seen

    @property
    def sampling_weights(self) -> str:
        """Which weights samples and scores come from: "ema" or "raw"."""
        return "raw" if self.average is None else "ema"

    def scheduled(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns what `configure_optimizers` gives for a learning rate that follows the schedule."""
        rate = LambdaLR(optimizer, lambda _: self.schedule.factor(self.examples_seen))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not after each batch: with accumulation a step has several batches.
        self.update_average()

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.note_step(optimizer)  # gradients are whole, and what they are clipped to says nothing
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def note_step(self, optimizer: Optimizer) -> None:
        """Keeps the norm of an optimiser's gradient and its learning rate if the next line is to have them.

        To be called before a step and before clipping, which whoever takes the steps itself has to.
        """
        if not logs_within(self.trainer, max(self.trainer.accumulate_grad_batches, self.batches_per_step)):
            return
        optimizers = self.trainer.optimizers
        number = next(number for number, one in enumerate(optimizers) if one is optimizer)
        name = dict(enumerate(self.optimizer_names)).get(number, str(number))
        place = f"/{name}" if len(optimizers) > 1 else ""
        norm = gradient_norm(optimizer)
        if norm is not None:
            norm = unscaled(norm, optimizer, self.trainer.precision_plugin)
            self.gradient_norms[f"gradient_norm{place}"] = norm
        rates = learning_rates(optimizer)
        self.learning_rates |= {f"learning_rate{place}{group}": rate for group, rate in rates.items()}

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        precision = self.trainer.precision_plugin
        if isinstance(precision, MixedPrecision) and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Lightning refuses to clip for fused optimisers, which undo the scale of 16 bits in their step.
            if precision.scaler is not None:
                precision.scaler.unscale_(optimizer)  # the step then leaves it out
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(precision, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            super().clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # Steps

    def setup(self, stage: str) -> None:
        if self.half_life and self.average is None:
            raise ValueError(f"A {type(self).__name__} keeps no average: leave half_life out.")
        if self.spec.is_grid:
            # Convolutions run a tenth faster on a CPU and more on a GPU with channels innermost.
            self.to(memory_format=self.memory_format)
        if stage == "fit" and self.is_compiled:
            compile_learning(self)

    def configure_model(self) -> None:
        """Spreads the weights of the network and of its averages where the strategy is a model-parallel one.

        Raises:
            ValueError: The family cannot, or a setting does not go with it.
        """
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or self.sharded:
            return
        self._require_shardable(self.trainer.strategy)
        copies = [part.module for part in self.modules() if isinstance(part, Average | Snapshot)]
        self.sharded = [self._averages[0], *copies]
        for network in self.sharded:
            shard(network, self.device_mesh["data_parallel"])  # type: ignore[index]

    def _require_shardable(self, strategy: ModelParallelStrategy) -> None:
        name = type(self).__name__
        if not self.can_shard:
            raise ValueError(
                f"The weights of a {name} cannot be spread over devices yet: use the strategy ddp."
            )
        if self.is_compiled:
            raise ValueError("Networks that are spread over devices are not compiled yet: leave compile out.")
        if getattr(self, "matrix_optimizer_factory", None) is not None:
            raise ValueError(
                "A matrix_optimizer needs whole matrices, which fsdp2 spreads: leave one of them out."
            )
        if self.renews_optimizers:
            raise ValueError(
                "With the strategy fsdp2 a run goes on with its optimiser as it was: change nothing of it."
            )
        if strategy.device_mesh["tensor_parallel"].size() > 1 or strategy._save_distributed_checkpoint:
            raise ValueError(
                "trainer.strategy must have tensor_parallel_size 1 and save_distributed_checkpoint false, "
                "since a run's checkpoints are single files: use fsdp2."
            )

    def on_train_start(self) -> None:
        restored, self._restored_gradients = self._restored_gradients, {}
        for name, gradient in restored.items():
            parameter = self.get_parameter(name)
            parameter.grad = spread_as(parameter, gradient)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Everything random in this step follows from (seed, examples seen, rank): a resumed run repeats it.
        address = randomness.key(self.seed, "training", self.examples_seen)
        self.step_noise.begin(address, self.global_rank, self.trainer.world_size)
        torch.manual_seed(randomness.key(address, self.global_rank))
        self.examples_seen += batch_length(batch) * self.spec.units * self.trainer.world_size

    def forward(self, **batch: Any) -> dict[str, Tensor]:
        """Returns the losses of a batch of an evaluation, whose noise follows from the items' numbers."""
        with self.numbered(batch["index"]):
            return self.losses(batch)  # type: ignore[arg-type]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        losses = self.losses(batch)
        self.remember(losses)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._add_losses(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._add_losses(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_mean_losses("val")

    def on_test_epoch_end(self) -> None:
        self._log_mean_losses("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns a sample for each item of the batch: of its number, told what the item is told."""
        if not isinstance(self, Samples):
            raise ValueError(f"{type(self).__name__} cannot be sampled, so predict has nothing to write.")
        return self.sample(batch["index"], **self.given_of(batch))

    def remember(self, losses: dict[str, Tensor]) -> None:
        """Keeps the step's losses for the progress line and the log, without waiting for the device."""
        self.latest = {name: value.detach() for name, value in losses.items()}

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        """Returns what follows from a whole split's mean losses, of which it holds so many units."""
        return {}

    def explain(self, batch: Batch) -> str:
        """Returns in words where a loss that is not finite comes from, "" where the family cannot tell."""
        return ""

    # Random numbers

    def draw_normal(self, stream: str, num: int, shape: tuple[int, ...]) -> Tensor:
        """Returns this step's normal noise, one row for each item of the batch; see `StepNoise`."""
        return self.step_noise.normal(stream, num, shape, self.device)

    def draw_uniform(self, stream: str, num: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Returns this step's uniform numbers in (0, 1), (num, *shape), numbered as in `draw_normal`."""
        return self.step_noise.uniform(stream, num, shape, self.device)

    def numbered(self, index: Tensor) -> AbstractContextManager[None]:
        """Makes noise a function of the items' numbers, so that an evaluation can be repeated anywhere."""
        return self.step_noise.numbered(index.to(self.device))

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["examples_seen"] = self.examples_seen
        checkpoint["averaged_at"] = self._averaged_at
        checkpoint["gradients"] = self._gradients_in_hand()
        checkpoint["latest"] = {name: value.cpu() for name, value in self.latest.items()}
        checkpoint["gradient_norms"] = {name: value.cpu() for name, value in self.gradient_norms.items()}
        checkpoint["learning_rates"] = dict(self.learning_rates)
        checkpoint["genlab"] = {
            "version": genlab.__version__,
            "spec": self.spec.to_dict(),
            "model": self.config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.examples_seen = int(checkpoint["examples_seen"])
        self._averaged_at = int(checkpoint["averaged_at"])
        # On the device, where a step of only one player will join its losses to the other's last ones.
        self.latest = {name: value.to(self.device) for name, value in checkpoint["latest"].items()}
        norms = checkpoint.get("gradient_norms", {})
        self.gradient_norms = {name: value.to(self.device) for name, value in norms.items()}
        self.learning_rates = dict(checkpoint.get("learning_rates", {}))
        self._restored_gradients = checkpoint.get("gradients", {})
        if self.renews_optimizers:
            self._renew_optimizers(checkpoint)

    def _renew_optimizers(self, checkpoint: dict[str, Any]) -> None:
        """Gives a checkpoint's optimisers the settings of this model; what they have learned stays."""
        configured: Any = self.configure_optimizers()
        optimizers = configured if isinstance(configured, list) else [configured]
        optimizers = [each["optimizer"] if isinstance(each, dict) else each for each in optimizers]
        groups = [optimizer.param_groups for optimizer in optimizers]
        for own, state in zip(groups, checkpoint["optimizer_states"], strict=True):
            for group, kept in zip(own, state["param_groups"], strict=True):
                kept |= {name: value for name, value in group.items() if name != "params"}
                kept["initial_lr"] = group.get("initial_lr", group["lr"])
        for own, state in zip(groups, checkpoint["lr_schedulers"], strict=False):
            state["base_lrs"] = [group["initial_lr"] for group in own]

    def _gradients_in_hand(self) -> dict[str, Tensor]:
        """Returns the gradients of an accumulation whose step is to come, the mean of all processes."""
        if self._trainer is None or not self.trainer.fit_loop.epoch_loop._should_accumulate():
            return {}
        # Each process has its own until the step, which takes their mean.
        found = {n: p.grad for n, p in self.named_parameters() if p.grad is not None}
        if self.sharded:
            return {name: whole(gradient).clone() for name, gradient in found.items()}  # the mean already
        return {name: joined_mean(gradient).clone() for name, gradient in found.items()}

    def _add_losses(self, batch: Batch) -> None:
        with self.numbered(batch["index"]):  # the units too may be drawn, such as masked tokens
            units, losses = self.units(batch), self(**batch)
        for name, value in {**losses, "units": torch.ones((), device=self.device)}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * units

    def _log_mean_losses(self, stage: str) -> None:
        sums, self._sums = self._sums, {}
        if not sums or self.trainer.sanity_checking:
            return
        totals = joined_sum(torch.stack(list(sums.values())))
        means = dict(zip(sums, (totals / totals[-1]).tolist(), strict=True))
        del means["units"]
        means |= self.derived(means, float(totals[-1]), stage)
        # The run's recorder passes them on to every logger, with examples seen as their axis.
        self.log_dict({f"{stage}/{name}": value for name, value in means.items()}, logger=False)


def hidden(given: Mapping[str, Any], rows: Tensor, nothing: Mapping[str, int]) -> dict[str, Any]:
    """Returns what is told, with nothing said of some items: neither label nor source, for guidance.

    Args:
        given: By name, a row for each item.
        rows: Of which items nothing is said, (batch,), bool.
        nothing: What stands for it, by name.
    """
    return {
        name: value.masked_fill(rows.reshape(-1, *(1 for _ in value.shape[1:])), nothing[name])
        for name, value in given.items()
    }


def batch_length(batch: Batch) -> int:
    """Returns the number of items in a batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def indices(num_or_index: int | Tensor, device: torch.device) -> Tensor:
    """Returns sample numbers on the device; an integer n stands for 0 ... n - 1."""
    if isinstance(num_or_index, int):
        return torch.arange(num_or_index, device=device)
    return num_or_index.to(device)


def _checked(given: Sequence[str], spec: DataSpec, conditions: Sequence[str]) -> tuple[Any, ...]:
    if "label" in given and not spec.num_classes:
        raise ValueError(f"given [label] needs labels, and {spec.name} has none: leave it out.")
    if "source" in given and spec.source is None:
        raise ValueError(f"given [source] needs pairs, and {spec.name} has none: leave it out.")
    unknown = sorted(set(given) - set(conditions))
    if unknown:
        raise ValueError(
            f"given may hold {' and '.join(conditions) or 'nothing'} here, got {', '.join(unknown)}."
        )
    return tuple(dict.fromkeys(given))
