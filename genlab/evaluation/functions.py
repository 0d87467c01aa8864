"""A trained model as plain functions of tensors, and how near what was written of them must come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import genlab
from genlab import randomness
from genlab.errors import CheckpointError
from genlab.evaluation.tiles import translating_network
from genlab.families.base import Model
from genlab.families.capabilities import (
    Classifies,
    Denoises,
    HasFirstStage,
    HasLatent,
    Predicts,
    Reconstructs,
    Samples,
    TranslatesBack,
    can,
)
from genlab.shapes import DataSpec, to_float

NUM_COMPARED = 64
"""Inputs on which a file must give what the model gives."""

NUM_STORED = 4
"""Of these, the ones that travel with a file of weights."""

AT_A_TIME = 16

LARGEST_DIFFERENCE = 1e-4
"""Most that an output may differ, as a share of the largest number in it where that is above 1."""

HEADER = "genlab"
"""Key of what a file says of the model that it is of."""


@dataclass(frozen=True)
class Function:
    """What a model computes, from tensors to a tensor.

    Attributes:
        name: What it is, such as "decoder".
        call: Takes the inputs by name.
        inputs: `NUM_COMPARED` rows of each, the same for the same model.
        free: The names of the axes of each input, beside the first, that may have any length.
        step: What such a length must be a multiple of.
    """

    name: str
    call: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    free: dict[str, dict[int, str]] = field(default_factory=dict)
    step: int = 1

    @torch.no_grad()
    def outputs(self, inputs: Mapping[str, Tensor] | None = None) -> Tensor:
        """Returns what it makes of its own inputs, or of others."""
        rows = {name: x.split(AT_A_TIME) for name, x in (inputs or self.inputs).items()}
        return torch.cat(
            [self.call(**dict(zip(rows, part, strict=True))) for part in zip(*rows.values(), strict=True)]
        )

    def other_inputs(self) -> dict[str, Tensor] | None:
        """Returns a few inputs that are longer along their free axes, None where there are none."""
        if not self.free:
            return None
        longer = {}
        for name, x in self.inputs.items():
            for number, axis in enumerate(self.free.get(name, ()), start=1):
                length = x.shape[axis] + number * self.step
                x = torch.cat([x] * -(-length // x.shape[axis]), dim=axis).narrow(axis, 0, length)
            longer[name] = x[:NUM_STORED]
        return longer


@torch.no_grad()
def functions_of(model: Model) -> list[Function]:
    """Returns what can be exported of a model, by what it is able to do.

    `denoiser`: the network F(x_t, t) of a diffusion model. `predictor`: of tokens, pixels or codes, what is
    known of each from those before it. `translator`: from source to image, and `translator_back` where the
    model knows both ways. `decoder` and `encoder`: between codes and images, those of a flow as numbers in
    (0, 1). `classifier`: logits. Of two stages, what the prior has, and what is between its codes and images.

    Raises:
        ValueError: Nothing can.
    """
    inputs = _Inputs(model)
    found: list[Function] = []
    if isinstance(model, HasFirstStage):
        decoder = Function("decoder", model.to_images, {"z": inputs.items(model.code_spec, "z")})
        return [*functions_of(model.prior), decoder, Function("encoder", model.to_codes, {"x": inputs.x()})]
    if can(model, Denoises):
        found.append(Function("denoiser", _network(model), inputs.of("x", "t")))
    elif isinstance(model, Predicts):
        found.append(Function("predictor", model.predict, inputs.of("x")))
    elif "source" in model.given and can(model, Samples):
        found.append(_translator("translator", model))
        if can(model, TranslatesBack):
            found.append(_translator("translator_back", model.reversed()))  # type: ignore[operator]
    else:
        if can(model, HasLatent) or can(model, Reconstructs):
            decode: Any = getattr(model, "unrounded", model.decode)
            found.append(Function("decoder", decode, inputs.of("z")))
        if can(model, Reconstructs):
            found.append(Function("encoder", model.encode, inputs.of("x")))  # type: ignore[arg-type]
        if can(model, Classifies):
            found.append(Function("classifier", model.extractor_network, {"x": inputs.x()}))  # type: ignore[arg-type]
    if not found:
        raise ValueError(
            f"A {type(model).__name__} has no function to export: it neither draws, encodes nor classifies."
        )
    return found


class _Inputs:
    """Numbered inputs of a model's functions, of the kind that its data have."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.index = torch.arange(NUM_COMPARED, device=model.device)

    def of(self, *names: str) -> dict[str, Tensor]:
        """Returns the named inputs, and what the model is told."""
        spec = self.model.spec
        told = {
            "label": lambda: self.index % spec.num_classes,
            "source": lambda: self.items(spec.source, "source"),
        }
        return {name: getattr(self, name)() for name in names} | {n: told[n]() for n in self.model.given}

    def x(self) -> Tensor:
        """Returns random items: images of its levels, tokens, points."""
        return self.items(self.model.spec, "x")

    def z(self) -> Tensor:
        """Returns latents as samples come from, codes of images where the model cannot be sampled."""
        if isinstance(self.model, HasLatent):
            return self.model.draw_latent(self.index)
        return self.model.encode(**self.of("x"))

    def t(self) -> Tensor:
        """Returns times as the network of a diffusion model is told them."""
        process = self.model.process
        times = process.training_time(randomness.uniform(randomness.key("export", "t"), self.index, 1)[:, 0])
        return process.network_time(times).float()

    def items(self, spec: DataSpec, stream: str) -> Tensor:
        key, num = randomness.key("export", stream), math.prod(spec.shape)
        if spec.kind == "point":
            return randomness.normal(key, self.index, spec.shape)
        levels = (randomness.uniform(key, self.index, num) * spec.levels).long().clamp(max=spec.levels - 1)
        levels = levels.reshape(-1, *spec.shape)
        return to_float(levels, spec.levels) if spec.kind == "image" else levels


def _network(model: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, t: Tensor, **told: Tensor) -> Tensor:
        return model.sampling_network(x, t, **told)

    return call


def _translator(name: str, model: Any) -> Function:
    number = torch.zeros(1, dtype=torch.int64, device=model.device)

    def call(**told: Tensor) -> Tensor:
        return model.sample(number.expand(len(told["source"])), seed=0, **told)

    inputs = _Inputs(model).of()
    try:
        network = translating_network(model)
    except ValueError:  # of one size
        return Function(name, call, inputs)
    return Function(name, call, inputs, {"source": {2: "height", 3: "width"}}, int(network.multiple))


def difference(found: Tensor, expected: Tensor) -> float:
    """Returns the largest difference, as a share of the largest expected number where that is above 1.

    Of whole numbers, such as those of codes, it is 0 or 1.
    """
    if found.shape != expected.shape:
        return math.inf
    if not expected.is_floating_point():
        return float((found != expected).any())
    worst = (found.double() - expected.double()).abs().max() / expected.abs().max().clamp_min(1.0)
    return math.inf if worst.isnan() else float(worst)


def require_equal(found: Tensor, expected: Tensor, what: str) -> float:
    """Returns the difference of outputs that are the same.

    Raises:
        CheckpointError: They are not.
    """
    worst = difference(found, expected)
    if worst > LARGEST_DIFFERENCE:
        raise CheckpointError(
            f"{what} differs from the model by {worst:.2g}, more than {LARGEST_DIFFERENCE:g}."
        )
    return worst


def header(spec: DataSpec, **more: Any) -> dict[str, str]:
    """Returns what a file of a model says of it: genlab's version, the data's spec and what else is given."""
    said = {"version": genlab.__version__, "spec": spec.to_dict(), **more}
    return {HEADER: json.dumps(said, sort_keys=True)}
