"""From a run folder to its trained model, without the data and without asking for any setting again."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type
from torch import Tensor

import genlab
from genlab.configuration.messages import readable
from genlab.configuration.trust import check_objects, lock_imports
from genlab.data.base import DataModule
from genlab.errors import CheckpointError
from genlab.evaluation.first_stage import TrainedStage
from genlab.families.base import Model
from genlab.families.codes import FirstStage
from genlab.runs.checkpoint_files import damage
from genlab.runs.folder import Run
from genlab.runs.tests import is_without_validation, model_config, read_config
from genlab.shapes import DataSpec

OLDEST = (0, 2)
"""The first version whose checkpoints are read."""

register_type(
    FirstStage,
    serializer=str,
    deserializer=TrainedStage,
    type_check=lambda value, kind: isinstance(value, kind),
)

PARTS = {"genlab": dict, "state_dict": dict, "examples_seen": int}
"""What every checkpoint holds."""


def load_run(run: Run, checkpoint: Path | None = None, device: str | torch.device = "cpu") -> Model:
    """Returns the run's model with the weights of its last checkpoint, in evaluation mode.

    Args:
        run: The run folder.
        checkpoint: Another checkpoint of the same run.
        device: Where the model is put.

    Raises:
        CheckpointError: The run has no whole checkpoint, or its weights belong to another model.
    """
    run.require_todays_model()
    checkpoint = checkpoint or run.checkpoint()
    state = read_checkpoint(checkpoint)
    model = build_model(model_config(run), spec_of(state))
    load_weights(model, state, checkpoint)
    model.setup("predict")  # as in training, where a trainer calls it
    return model.eval().to(device)


def build_model(config: dict[str, Any], spec: DataSpec) -> Model:
    """Returns the model that a configuration describes, for data of this shape."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Model, "model", skip={"spec"})
    namespace = _parsed(parser, {"model": {**config, "init_args": _without_spec(config)}})
    namespace.model.init_args.spec = spec
    return parser.instantiate_classes(namespace).model


def load_data(run: Run) -> DataModule:
    """Returns the data that a run was trained on."""
    config = read_config(run)["data"]
    if is_without_validation(run):
        config["init_args"]["val_fraction"] = 0.0
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    return parser.instantiate_classes(_parsed(parser, {"data": config})).data


def _parsed(parser: ArgumentParser, config: dict[str, Any]) -> Any:
    """Returns parsed settings, which name classes of the allowed list only."""
    lock_imports()
    try:
        namespace = parser.parse_object(config)
    except ArgumentError as error:
        raise ValueError(readable(error)) from error
    check_objects(namespace)
    return namespace


def with_settings(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a model's configuration with values put at dotted keys, such as `model.sampler: DDIM`.

    The keys leave `init_args` out. A class that is named anew starts with its own defaults, not with what its
    predecessor was given.

    Raises:
        ValueError: A key is none of the model's, or leads through a part without a class.
    """
    changed = deepcopy(config)
    for key, value in settings.items():
        first, *way, last = key.split(".") if "." in key else (key, "", key)
        if first != "model" or not last:
            raise ValueError(
                f"there is no key '{key}': a variant changes keys of the model, such as model.sampler."
            )
        arguments = changed.setdefault("init_args", {})
        for part in way:
            inner = arguments.get(part)
            if isinstance(inner, str):
                inner = {"class_path": inner}
            if not isinstance(inner, dict):
                raise ValueError(f"{key} has nothing at '{part}': name its class first.")
            arguments[part] = inner
            arguments = inner.setdefault("init_args", {}) if "class_path" in inner else inner
        arguments[last] = value
    return changed


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's contents, tensors and plain values only, all that a model needs among them.

    Raises:
        CheckpointError: It is damaged, of another version, or not of genlab's making.
    """
    reason = damage(path)
    try:
        state = None if reason else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if reason:
        raise CheckpointError(
            f"{path} is no readable checkpoint ({reason}). Choose another file of its folder."
        )
    head = state.get("genlab") if isinstance(state, dict) else None
    if not isinstance(state, dict) or head is None:
        raise CheckpointError(
            f"{path} was not written by genlab, which cannot know what model it belongs to."
        )
    require_known_version(path, head)
    broken = _broken_part(state)
    if broken:
        raise CheckpointError(
            f"{path} is no checkpoint of genlab: {broken}. Choose another file of its folder."
        )
    return state


def require_known_version(path: Path, head: Any) -> None:
    """Refuses the checkpoint of a version whose checkpoints this one does not read.

    Raises:
        CheckpointError: With both versions.
    """
    version = head.get("version") if isinstance(head, dict) else None
    numbers = _numbers(version)
    if numbers is None:
        raise CheckpointError(f"{path} does not say what version of genlab wrote it ({version!r}).")
    if numbers < OLDEST:
        raise CheckpointError(
            f"{path} was written by genlab {version}, whose checkpoints this version "
            "does not read: use that version, or train again."
        )
    if numbers > (_numbers(genlab.__version__) or numbers):
        raise CheckpointError(
            f"{path} was written by genlab {version}, and this is {genlab.__version__}: update genlab."
        )


def _numbers(version: Any) -> tuple[int, ...] | None:
    """Returns the first two numbers of a version, the ones that say what a checkpoint holds."""
    parts = version.split(".")[:2] if isinstance(version, str) else []
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdecimal() for part in parts) else None


def _broken_part(state: dict[str, Any]) -> str:
    """Returns which part of a checkpoint is missing or of another kind, "" where all are right."""
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind) or isinstance(state.get(name), bool):
            return f"its {name} is {_kind(state.get(name))}"
    strange = next((n for n, v in state["state_dict"].items() if not isinstance(v, Tensor)), None)
    if strange is not None:
        return f"the weight {strange} is {_kind(state['state_dict'][strange])}"
    if not isinstance(state["genlab"].get("model"), dict):
        return f"its model is {_kind(state['genlab'].get('model'))}"
    try:
        spec_of(state)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return f"its spec cannot be used ({error})"
    return ""


def spec_of(state: dict[str, Any]) -> DataSpec:
    """Returns the shape of the data that a checkpoint's model was trained on."""
    spec = DataSpec(**state["genlab"]["spec"])
    for name, kind in (("name", str), ("num_classes", int), ("levels", int), ("vocabulary", str)):
        if not isinstance(getattr(spec, name), kind):
            raise TypeError(f"{name} is {_kind(getattr(spec, name))}")
    return spec


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def require_resumable(path: Path, state: dict[str, Any]) -> None:
    """Refuses a checkpoint that holds weights but not the state of a training.

    Raises:
        CheckpointError: With the part that is missing.
    """
    kinds = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}
    for name, kind in {**kinds, "global_step": int, "latest": dict, "averaged_at": int}.items():
        if not isinstance(state.get(name), kind):
            raise CheckpointError(
                f"{path} cannot be resumed: its {name} is {_kind(state.get(name))}. It can still be sampled."
            )


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """Says which file is at fault where its state of a training does not fit what it is restored to.

    Raises:
        CheckpointError: In place of whatever the part of the trainer raised that met it.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"{checkpoint} cannot be restored, its state is not that of such a training ({reason}). "
            f"Choose another file of its folder."
        ) from error


def load_weights(model: Model, state: dict[str, Any], source: Path) -> None:
    """Loads weights and the count of images seen."""
    check_weights(model, state, source)
    model.load_state_dict(state["state_dict"])
    model.examples_seen = int(state["examples_seen"])


def check_weights(model: Model, state: dict[str, Any], source: Path) -> None:
    """Refuses a checkpoint whose weights are not this model's, with the first differences."""
    problems = mismatches(model, state["state_dict"])
    if problems:
        raise CheckpointError(f"{source} belongs to another model: {'; '.join(problems[:3])}.")


def mismatches(model: Model, weights: dict[str, Any]) -> list[str]:
    """Returns how a checkpoint's tensors differ from the model's, in words."""
    own = model.state_dict()
    missing = [f"{name} is missing" for name in own if name not in weights]
    foreign = [f"{name} is unknown" for name in weights if name not in own]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in weights and own[name].shape != weights[name].shape
    ]
    numbers = [
        f"{name} holds {weights[name].dtype} instead of {own[name].dtype}"
        for name in own
        if name in weights and weights[name].is_complex() != own[name].is_complex()
    ]
    return shapes + numbers + missing + foreign


def _without_spec(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.get("init_args", {}).items() if name != "spec"}
