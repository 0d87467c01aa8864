"""A trained model as plain functions of tensors, in files that other programs read; each file is proven."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import genlab
from genlab import randomness
from genlab.errors import CheckpointError
from genlab.evaluation.load import build_model, require_known_version
from genlab.evaluation.tiles import translating_network
from genlab.families.base import Model
from genlab.families.capabilities import (
    Classifies,
    Completes,
    CompletesImages,
    Denoises,
    HasLatent,
    Reconstructs,
    Samples,
    TranslatesBack,
    can,
)
from genlab.files import parse_json, replacing
from genlab.shapes import DataSpec, to_float
from genlab.text import shortened

NUM_COMPARED = 64
"""Inputs on which a file must give what the model gives."""

NUM_STORED = 4
"""Of these, the ones that travel with a file of weights."""

AT_A_TIME = 16

LARGEST_DIFFERENCE = 1e-4
"""Most that an output may differ, as a share of the largest number in it where that is above 1."""

_HEADER = "genlab"
_TEST = "test/"
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


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

    `denoiser`: the network F(x_t, t) of a diffusion model. `predictor`: of tokens or pixels, what is known of
    each from those before it. `translator`: from source to image, and `translator_back` where the model knows
    both ways. `decoder` and `encoder`: between codes and images, those of a flow as numbers in (0, 1).
    `classifier`: logits.

    Raises:
        ValueError: Nothing can.
    """
    inputs = _Inputs(model)
    found: list[Function] = []
    if can(model, Denoises):
        found.append(Function("denoiser", _network(model), inputs.of("x", "t")))
    elif can(model, Completes) or can(model, CompletesImages):
        found.append(Function("predictor", _network(model), inputs.of("x")))
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
            "source": lambda: self._items(spec.source, "source"),
        }
        return {name: getattr(self, name)() for name in names} | {n: told[n]() for n in self.model.given}

    def x(self) -> Tensor:
        """Returns random items: images of its levels, tokens, points."""
        return self._items(self.model.spec, "x")

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

    def _items(self, spec: DataSpec, stream: str) -> Tensor:
        key, num = randomness.key("export", stream), math.prod(spec.shape)
        if spec.kind == "point":
            return randomness.normal(key, self.index, spec.shape)
        levels = (randomness.uniform(key, self.index, num) * spec.levels).long().clamp(max=spec.levels - 1)
        levels = levels.reshape(-1, *spec.shape)
        return to_float(levels, spec.levels) if spec.kind == "image" else levels


def _network(model: Any) -> Callable[..., Tensor]:
    def call(x: Tensor, **told: Tensor) -> Tensor:
        return model.sampling_network(x, **({"t": told.pop("t")} if "t" in told else {}), **told)

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


# Weights with their configuration


def export_weights(model: Model, config: dict[str, Any], target: Path) -> dict[str, float]:
    """Writes the weights that a model's functions use, averaged where there is an average.

    The file's header holds the version, the data's spec and the model's configuration; beside the weights lie
    the first inputs of each function and its outputs, which `load_exported` must find again.

    Args:
        model: The trained model.
        config: The model's part of its configuration.
        target: A .safetensors file; replaced in one step, once it has been loaded and compared.

    Returns:
        The largest difference of each function over `NUM_COMPARED` inputs.
    """
    functions = functions_of(model)
    expected = {function.name: function.outputs() for function in functions}
    config = _without_average(config)
    weights = _used(_plain(model, config))
    tests = {}
    for function in functions:
        for name, x in function.inputs.items():
            tests[f"{_TEST}{function.name}/{name}"] = x[:NUM_STORED]
        tests[f"{_TEST}{function.name}"] = expected[function.name][:NUM_STORED]
    header = {"version": genlab.__version__, "spec": model.spec.to_dict(), "model": config}
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in {**weights, **tests}.items()
    }
    with replacing(target) as file:
        save_file(tensors, file, metadata={_HEADER: json.dumps(header, sort_keys=True)})
        again = {function.name: function for function in functions_of(load_exported(file))}
        return {
            name: require_equal(again[name].outputs(), found, f"The {name} that was written")
            for name, found in expected.items()
        }


def load_exported(path: str | Path, device: str | torch.device = "cpu") -> Model:
    """Returns the model of a file that `export_weights` has written, in evaluation mode.

    It does what the functions of the file need; a weight that is not in the file, such as a discriminator's,
    is not a number.

    Raises:
        CheckpointError: The file is no such one, is damaged, or does not give the outputs that it was written
            with.
    """
    path = Path(path)
    try:
        with safe_open(path, "pt") as file:
            header = parse_json((file.metadata() or {}).get(_HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): export it again.") from None
    if not isinstance(header, dict) or not isinstance(header.get("model"), dict):
        raise CheckpointError(
            f"{path} was not written by `genlab export`, and does not say what model it is of."
        )
    require_known_version(path, header)
    weights = {name: value for name, value in tensors.items() if not name.startswith(_TEST)}
    tests = {name: value for name, value in tensors.items() if name.startswith(_TEST)}
    try:
        model = build_model(header["model"], DataSpec(**header["spec"]))
        _load_into(model, weights)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its weights are not those of its model ({error}).") from error
    model.setup("predict")  # as in training, where a trainer calls it
    model.eval()
    _require_tests(model, tests, path)
    return model.to(device)


def _plain(model: Model, config: dict[str, Any]) -> Model:
    """Returns the same model without an average: its averaged weights are its only ones."""
    weights = {name: x for name, x in model.state_dict().items() if not name.startswith("average.")}
    if model.average is not None:
        (network,) = model._averages
        place = next(name for name, module in model.named_modules() if module is network)
        weights |= {f"{place}.{name}": x for name, x in model.average.module.state_dict().items()}
    plain = build_model(config, model.spec)
    plain.load_state_dict(weights)
    return plain.eval()


def _without_average(config: dict[str, Any]) -> dict[str, Any]:
    arguments = {
        name: x for name, x in config.get("init_args", {}).items() if name not in ("half_life", "spec")
    }
    return {**config, "init_args": arguments}


class _Watch(TorchDispatchMode):
    """Notes where in memory the numbers lie that are computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor):
                self.places.add(value.untyped_storage().data_ptr())
        return function(*args, **(kwargs or {}))


def _used(model: Model) -> dict[str, Tensor]:
    """Returns the weights that a model's functions compute with."""
    with _Watch() as watch:
        for function in functions_of(model):
            function.call(**{name: x[:2] for name, x in function.inputs.items()})
    state = model.state_dict()
    return {
        name: x
        for name, x in state.items()
        if x.untyped_storage().data_ptr() in watch.places or name.endswith("_extra_state")
    }


def _load_into(model: Model, weights: dict[str, Tensor]) -> None:
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown:
        raise KeyError(f"{unknown[0]} is unknown")
    state = model.state_dict()
    for name in missing:
        if name in state and state[name].is_floating_point():
            state[name].fill_(math.nan)


def _require_tests(model: Model, tests: dict[str, Tensor], path: Path) -> None:
    functions = {function.name: function for function in functions_of(model)}
    names = {name.removeprefix(_TEST).split("/")[0] for name in tests}
    if not names or names != functions.keys():
        raise CheckpointError(f"{path} holds no outputs to compare with: export it again.")
    for name, function in functions.items():
        inputs = {each: tests.get(f"{_TEST}{name}/{each}") for each in function.inputs}
        expected = tests.get(f"{_TEST}{name}")
        if expected is None or any(x is None for x in inputs.values()):
            raise CheckpointError(f"{path} holds no outputs to compare with: export it again.")
        try:
            found = function.outputs(inputs)  # type: ignore[arg-type]
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(f"{path}: its {name} does not take its own inputs ({error}).") from error
        require_equal(found, expected, f"{path}: its {name}")


# ONNX


def require_onnx() -> None:
    """Refuses where the packages are missing that write and read ONNX files."""
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--to onnx needs {' and '.join(missing)}: pip install 'genlab[onnx]', or use --to safetensors."
        )


def export_onnx(function: Function, model: Model, target: Path) -> float:
    """Writes one function as an ONNX graph; returns the largest difference over `NUM_COMPARED` inputs.

    The first axis of each input and output is free, and so are those that the function names.

    Args:
        function: Of the model.
        model: Holds its weights.
        target: An .onnx file; replaced in one step, once onnxruntime has given the model's outputs.

    Raises:
        ValueError: The network does something that ONNX has no word for.
        CheckpointError: The file gives other outputs than the model.
    """
    axes = [{0: "batch", **function.free.get(name, {})} for name in function.inputs]
    example = function.other_inputs() or function.inputs
    graph = _Graph(model, function)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                tuple(x[:2] for x in example.values()),
                input_names=list(function.inputs),
                output_names=["output"],
                dynamic_shapes={"inputs": tuple(axes)},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's own, torch's tracer's and whatever a layer raises on the way
        reason = shortened(" ".join(str(_root(error)).split()))
        raise ValueError(
            f"The {function.name} of this {type(model).__name__} has no ONNX form ({reason}): use --to "
            "safetensors."
        ) from error
    assert program is not None
    program.model.metadata_props[_HEADER] = json.dumps(
        {"version": genlab.__version__, "spec": model.spec.to_dict()}, sort_keys=True
    )
    with replacing(target) as file:
        program.save(file)
        what = f"The {function.name} that was written"
        worst = require_equal(_run_onnx(file, function.inputs), function.outputs(), what)
        if function.free:
            longer = function.other_inputs()
            assert longer is not None
            found = _run_onnx(file, longer)
            worst = max(worst, require_equal(found, function.outputs(longer), f"{what}, of another size,"))
    return worst


def _root(error: BaseException) -> BaseException:
    """Returns what an error goes back to: exporters wrap the layer's own in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Graph(nn.Module):
    """A function with its inputs by place, as exporters want it."""

    def __init__(self, model: Model, function: Function) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function.call(**dict(zip(self.function.inputs, inputs, strict=True)))


def _run_onnx(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}
    parts: Sequence[dict[str, Any]] = [
        dict(zip(inputs, rows, strict=True))
        for rows in zip(*(x.split(AT_A_TIME) for x in inputs.values()), strict=True)
    ]
    return torch.cat(
        [
            torch.from_numpy(session.run(None, {n: x.numpy() for n, x in part.items() if n in known})[0])
            for part in parts
        ]
    )
