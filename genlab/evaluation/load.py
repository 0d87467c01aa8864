"""From a run folder to its trained model, without the data and without asking for any setting again."""

from __future__ import annotations

from argparse import ArgumentError
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import register_type

from genlab.configuration.messages import readable
from genlab.configuration.trust import check_objects, import_parts, lock_imports
from genlab.data.base import DataModule
from genlab.errors import CheckpointError
from genlab.evaluation.checkpoint import read_checkpoint, spec_of
from genlab.evaluation.first_stage import TrainedStage
from genlab.families.base import Model
from genlab.families.codes import FirstStage
from genlab.files import digest
from genlab.runs.folder import Run
from genlab.runs.tests import is_without_validation, model_config, read_config
from genlab.shapes import DataSpec


def trained_stage(name: str) -> TrainedStage:
    """Returns the first stage of a run or an experiment; see `TrainedStage`."""
    return TrainedStage(name, load_run)


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
    return build_data(config)


def build_data(config: dict[str, Any] | str) -> DataModule:
    """Returns the data that a configuration describes."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    return parser.instantiate_classes(_parsed(parser, {"data": config})).data


def _parsed(parser: ArgumentParser, config: dict[str, Any]) -> Any:
    """Returns parsed settings, which name classes of the allowed list only."""
    lock_imports()
    import_parts(config)
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


def check_vocabulary(model: Model, state: dict[str, Any], source: Path) -> None:
    """Refuses data whose tokens stand for other texts than those that a checkpoint was trained on.

    Weights tell their number and not their meaning.
    """
    trained, now = spec_of(state).told(model.given), model.seen_spec
    for of, before, after in (("", trained, now), (" of the sources", trained.source, now.source)):
        if before is not None and after is not None and before.vocabulary != after.vocabulary:
            raise CheckpointError(
                f"{source} was trained on another vocabulary{of}: {digest(before.vocabulary, 12)} -> "
                f"{digest(after.vocabulary, 12)}. Give the text that it was trained on."
            )


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


register_type(
    FirstStage,
    serializer=str,
    deserializer=trained_stage,
    type_check=lambda value, kind: isinstance(value, kind),
)
