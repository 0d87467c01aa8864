"""Two stages: a frozen one that encodes, and a prior that learns how its codes are distributed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.distributed import joined_sum, place
from genlab.errors import CheckpointError
from genlab.families.base import Model
from genlab.families.capabilities import Denoises, HasCode, HasVectors, Samples, can
from genlab.families.codes import FirstStage
from genlab.samplers.base import Sampler
from genlab.samplers.conditioning import Codes
from genlab.shapes import Batch, DataSpec

PriorFactory = Callable[[DataSpec], Model]
"""What a YAML file gives for a prior: a model of any family; the codes' shape is filled in."""

NUM_MEASURED = 10_000
"""Training items, evenly spaced, that the scale of codes is measured on."""


class Latent(Model):
    """A prior of the codes of a first stage, which is frozen: what it draws is decoded to images.

        loss = the prior's, of z = scale encode(x),        sample = decode(z / scale),  z drawn by the prior

    Van den Oord et al. 2017 (arXiv:1711.00937), section 3.3, for code numbers, which have no scale; Rombach
    et al. 2022 (arXiv:2112.10752) for maps of numbers, each channel of which is divided by its standard
    deviation over training items, so that a process sees codes of one size whatever the first stage.

    The prior is a model of any family that is built for the codes and has one loss; it is told what this
    model is told. Its likelihoods are those of codes, not of images, and so this model has none.

    Args:
        spec: The images.
        first_stage: The run, or the experiment, that trained it on images of this form.
        prior: The model of its codes.
        compile: As in every model: the prior's networks are compiled.

    Attributes:
        scale: Of each channel, (channels, 1, 1); 1 for code numbers.

    Shapes:
        z: (batch, *code_spec.shape), codes as the prior sees them.

    Raises:
        ValueError: The first stage is none, or is one of other images; the prior cannot learn or be drawn.
    """

    latent_type = "first stage's codes"
    scale: Tensor
    num_measured: Tensor

    def __init__(
        self, spec: DataSpec, first_stage: FirstStage, prior: PriorFactory, compile: bool = False
    ) -> None:
        _require_first_stage(first_stage.model, spec)
        codes = self._seen_codes(first_stage.model)
        code_spec = spec.coded(codes.shape, codes.levels)
        made = prior(code_spec)
        _require_prior(made)
        super().__init__(spec, made.given, compile=compile)
        made.is_compiled |= compile
        self.first_stage, self.code_spec = first_stage, code_spec
        # Not registered: a checkpoint would hold the frozen weights again.
        first_stage.model.requires_grad_(False).eval()
        self.prior = made
        self.prior.step_noise = self.step_noise
        self.shown_losses, self.has_targets = made.shown_losses, False
        self.register_buffer("scale", torch.ones(code_spec.shape[0] if self._is_scaled else 1, 1, 1))
        self.register_buffer("num_measured", torch.zeros((), dtype=torch.int64))

    # Codes

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the codes of images as the prior sees them."""
        self.told(given)
        return self.to_codes(x)

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the images of codes."""
        self.told(given)
        return self.to_images(z)

    @torch.no_grad()
    def to_codes(self, x: Tensor) -> Tensor:
        """Returns codes of images, whatever is told of them."""
        return self._scaled(self.first_stage.model.encode(x))

    @torch.no_grad()
    def to_images(self, z: Tensor) -> Tensor:
        """Returns images of codes, whatever is told of them."""
        return self.first_stage.model.decode(self._unscaled(z))

    def coded(self, batch: Batch) -> Batch:
        """Returns a batch of codes in place of images; of codes that it brings along, or encodes here.

        Always in 32 bits: what a prior learns from does not depend on the precision that it learns in.
        """
        if "image" not in batch:
            return batch
        if "code" in batch:
            z = self._scaled(batch["code"])
        else:
            with torch.autocast(self.device.type, enabled=False):
                z = self.to_codes(batch["image"])
        kept: Any = {name: value for name, value in batch.items() if name not in ("image", "code")}
        kept[self.code_spec.kind] = z
        return kept

    def on_fit_start(self) -> None:
        self.prior.on_fit_start()
        if self._is_scaled and not int(self.num_measured):
            device = self.trainer.strategy.root_device
            self.to(device)
            self.measure_scale(self.trainer.datamodule, device)  # type: ignore[attr-defined]

    @torch.no_grad()
    def measure_scale(self, data: Any, device: torch.device) -> None:
        """Measures the standard deviation of each channel over training items, on all devices together.

        Raises:
            ValueError: A channel is constant.
        """
        sums = torch.zeros(3, len(self.scale), dtype=torch.float64, device=device)
        self.scale.fill_(1.0)
        for batch in data.loader("train", *place(), at_most=NUM_MEASURED):
            z = self.coded(data.to_device_batch(batch, device))["point"].double().transpose(0, 1).flatten(1)
            sums += torch.stack([z.sum(dim=1), z.square().sum(dim=1), torch.full_like(z[:, 0], z.shape[1])])
        total, squares, count = joined_sum(sums)
        std = (squares / count - (total / count).square()).clamp_min(0.0).sqrt()
        if not bool((std > 0).all()):
            raise ValueError(
                f"Channel {int(std.argmin())} of the first stage's codes is the same everywhere: train it "
                "longer, or with fewer channels of codes."
            )
        self.scale.copy_(1.0 / std[:, None, None])
        self.num_measured.copy_(count[0] / self.code_spec.shape[1] / self.code_spec.shape[2])

    @property
    def _is_scaled(self) -> bool:
        return self.code_spec.kind == "point"

    def _seen_codes(self, stage: Any) -> DataSpec:
        """Returns the form of the codes that the prior sees."""
        return stage.code_spec

    def _scaled(self, code: Tensor) -> Tensor:
        """Returns a first stage's codes as the prior sees them."""
        return code * self.scale if self._is_scaled else code

    def _unscaled(self, z: Tensor) -> Tensor:
        """Returns codes as the first stage decodes them."""
        return z / self.scale if self._is_scaled else z

    # The prior

    @property
    def examples_seen(self) -> int:
        """What was drawn from the data so far, which is the prior's count, too."""
        return self.prior.examples_seen

    @examples_seen.setter
    def examples_seen(self, count: int) -> None:
        if "prior" in self._modules:  # a model counts from 0 before it has its parts
            self.prior.examples_seen = count

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the prior's losses of the images' codes."""
        return self.prior.losses(self.coded(batch))

    def units(self, batch: Batch) -> int | Tensor:
        return self.prior.units(batch)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index: what the prior draws, decoded."""
        return self.to_images(self.prior.sample(index, seed, **given))  # type: ignore[operator]

    @property
    def passes(self) -> int:  # type: ignore[override]
        return self.prior.passes

    @property
    def sampling_weights(self) -> str:
        return self.prior.sampling_weights

    def configure_optimizers(self) -> Any:
        return self.prior.configure_optimizers()

    def update_average(self) -> None:
        self.prior.update_average()

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        return self.prior.derived(means, units, stage)

    def explain(self, batch: Batch) -> str:
        return self.prior.explain(self.coded(batch))

    # Steps: encoded once, then the prior's

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = self.prior.training_step(self.coded(batch), batch_idx)
        self.latest = self.prior.latest
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        super().validation_step(self.coded(batch), batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        super().test_step(self.coded(batch), batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.prior.on_before_optimizer_step(optimizer)

    def on_validation_start(self) -> None:
        self.prior.on_validation_start()

    def on_train_end(self) -> None:
        self.prior.on_train_end()

    # Weights

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.first_stage.model.setup(stage)
        self.prior.setup(stage)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        self.first_stage.model._apply(fn, *args, **kwargs)
        return super()._apply(fn, *args, **kwargs)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(bytes.fromhex(self.first_stage.digest)), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise CheckpointError(
                "The first stage is another one than the prior was trained on: give the one of then, or "
                "train the prior again."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["prior"] = {}
        self.prior.on_save_checkpoint(checkpoint["prior"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.prior.on_load_checkpoint(checkpoint["prior"])


class LatentDiffusion(Latent):
    """A `Latent` whose prior removes noise step by step, so that any sampler can be put in.

    Rombach et al. 2022 (arXiv:2112.10752). Samplers walk in the space of codes; what they are to agree with,
    a part of an image or a start, is encoded first.

    Of a first stage of code numbers, noise is put on the numbers' vectors, and what is drawn is decoded by
    the codes next to it (section 3.1's "VQ-reg.": quantisation is the decoder's first layer), which forgives
    whatever error is smaller than half of the way to another code.

    Raises:
        ValueError: The prior does not walk from noise, or the first stage's numbers have no vectors.
    """

    prior: Any

    def __init__(
        self, spec: DataSpec, first_stage: FirstStage, prior: PriorFactory, compile: bool = False
    ) -> None:
        super().__init__(spec, first_stage, prior, compile)
        if not can(self.prior, Denoises):
            raise ValueError(
                f"LatentDiffusion takes a prior that removes noise, such as Diffusion, and "
                f"{type(self.prior).__name__} does not: use Latent."
            )

    def _seen_codes(self, stage: Any) -> DataSpec:
        if not stage.code_spec.levels:
            return super()._seen_codes(stage)
        if not can(stage, HasVectors):
            raise ValueError(
                f"LatentDiffusion puts noise on codes that are vectors or stand for vectors, and those of a "
                f"{type(stage).__name__} do not: take a first stage such as KLAutoencoder or VQVAE, or "
                "Latent with a prior of code numbers."
            )
        return stage.vector_spec

    @property
    def _has_vectors(self) -> bool:
        return bool(self.first_stage.model.code_spec.levels)

    def _scaled(self, code: Tensor) -> Tensor:
        return super()._scaled(self.first_stage.model.vectors(code) if self._has_vectors else code)

    def _unscaled(self, z: Tensor) -> Tensor:
        z = super()._unscaled(z)
        return self.first_stage.model.nearest(z) if self._has_vectors else z

    @property
    def space(self) -> Codes:
        """Where samplers walk: in the codes."""
        return Codes(self.code_spec, self.to_codes, self._passing)

    def _passing(self, z: Tensor) -> Tensor:
        return self.first_stage.model.decoded(super()._unscaled(z))

    @property
    def process(self) -> Any:
        return self.prior.process

    @property
    def sampler(self) -> Sampler:
        return self.prior.sampler

    @property
    def sampling_network(self) -> Any:
        return self.prior.sampling_network

    def sample_with(
        self, sampler: Sampler, index: int | Tensor, seed: int = 0, clip: bool | None = None, **given: Any
    ) -> Tensor:
        """Returns samples by another sampler than the model's own; codes are never clipped."""
        return self.to_images(self.prior.sample_with(sampler, index, seed, **given))

    def passes_with(self, sampler: Sampler) -> int:
        """Returns how often the prior's network is evaluated for a sample by a sampler."""
        return self.prior.passes_with(sampler)


def _require_first_stage(stage: Model, spec: DataSpec) -> None:
    if not can(stage, HasCode):
        raise ValueError(
            f"A {type(stage).__name__} is no first stage, which has codes: train one such as "
            "experiments/vqvae_digits.yaml or experiments/kl_autoencoder_shapes.yaml."
        )
    for name in ("shape", "levels"):
        if getattr(stage.spec, name) != getattr(spec, name):
            raise ValueError(
                f"The first stage knows images of {name} {getattr(stage.spec, name)}, and {spec.name} has "
                f"{getattr(spec, name)}: train it on images of this form."
            )


def _require_prior(prior: Model) -> None:
    name = type(prior).__name__
    if prior.alternating:
        raise ValueError(f"prior: a {name} has several optimisers that take turns: take a model of one loss.")
    if not can(prior, Samples):
        because = f": {prior.cannot_sample}" if prior.cannot_sample else ""
        raise ValueError(f"prior: a {name} cannot be drawn from{because}.")
