"""A trained model's weights with its configuration in one file, which proves itself wherever it is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genlab.errors import CheckpointError
from genlab.evaluation.checkpoint import require_known_version
from genlab.evaluation.functions import HEADER, NUM_STORED, functions_of, header, require_equal
from genlab.evaluation.load import build_model
from genlab.families.base import Model
from genlab.families.capabilities import HasFirstStage, can
from genlab.files import parse_json, replacing
from genlab.shapes import DataSpec

_TEST = "test/"


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
    if can(model, HasFirstStage):
        raise ValueError(
            f"A {type(model).__name__} is two models: its run's folder holds both, and all that is needed; "
            "--to onnx writes what each of them computes."
        )
    functions = functions_of(model)
    expected = {function.name: function.outputs() for function in functions}
    config = _without_average(config)
    weights = _used(_plain(model, config))
    tests = {}
    for function in functions:
        for name, x in function.inputs.items():
            tests[f"{_TEST}{function.name}/{name}"] = x[:NUM_STORED]
        tests[f"{_TEST}{function.name}"] = expected[function.name][:NUM_STORED]
    tensors = {
        name: value.detach().cpu().contiguous().clone() for name, value in {**weights, **tests}.items()
    }
    with replacing(target) as file:
        save_file(tensors, file, metadata=header(model.spec, model=config))
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
            said = parse_json((file.metadata() or {}).get(HEADER, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): export it again.") from None
    if not isinstance(said, dict) or not isinstance(said.get("model"), dict):
        raise CheckpointError(
            f"{path} was not written by `genlab export`, and does not say what model it is of."
        )
    require_known_version(path, said)
    weights = {name: value for name, value in tensors.items() if not name.startswith(_TEST)}
    tests = {name: value for name, value in tensors.items() if name.startswith(_TEST)}
    try:
        model = build_model(said["model"], DataSpec(**said["spec"]))
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
