"""From a run folder to its trained model, without the data and without asking for any setting again."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser

from genlab.data.base import DataModule
from genlab.families.base import Model
from genlab.runs.folder import Run
from genlab.runs.tests import is_without_validation, read_config
from genlab.runs.trust import check_class_paths
from genlab.shapes import DataSpec


def load_run(run: Run, checkpoint: Path | None = None, device: str | torch.device = "cpu") -> Model:
    """Returns the run's model with the weights of its last checkpoint, in evaluation mode.

    Args:
        run: The run folder.
        checkpoint: Another checkpoint of the same run.
        device: Where the model is put.

    Raises:
        ValueError: The run has no checkpoint yet, or the weights belong to another model.
    """
    run.require_todays_model()
    checkpoint = checkpoint or run.last_checkpoint
    if checkpoint is None:
        raise ValueError(f"{run.path} has no checkpoint: the run stopped before its first one was written.")
    state = read_checkpoint(checkpoint)
    config = read_config(run)
    model = build_model(config["model"], DataSpec(**state["genlab"]["spec"]))
    load_weights(model, state, checkpoint)
    model.setup("predict")  # as in training, where a trainer calls it
    return model.eval().to(device)


def build_model(config: dict[str, Any], spec: DataSpec) -> Model:
    """Returns the model that a configuration describes, for data of this shape."""
    check_class_paths(config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Model, "model", skip={"spec"})
    namespace = parser.parse_object({"model": {**config, "init_args": _without_spec(config)}})
    namespace.model.init_args.spec = spec
    return parser.instantiate_classes(namespace).model


def load_data(run: Run) -> DataModule:
    """Returns the data that a run was trained on."""
    config = read_config(run)["data"]
    if is_without_validation(run):
        config["init_args"]["val_fraction"] = 0.0
    check_class_paths(config)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    return parser.instantiate_classes(parser.parse_object({"data": config})).data


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
    """Returns a checkpoint's contents, tensors and plain values only."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is no readable checkpoint ({reason}). Choose another file of its folder."
        ) from error
    if "genlab" not in state:
        raise ValueError(f"{path} was not written by genlab, which cannot know what model it belongs to.")
    if "examples_seen" not in state:
        raise ValueError(
            f"{path} was written by genlab {state['genlab'].get('version')}, whose checkpoints this version "
            "does not read: use that version, or train again."
        )
    return state


def load_weights(model: Model, state: dict[str, Any], source: Path) -> None:
    """Loads weights and the count of images seen."""
    check_weights(model, state, source)
    model.load_state_dict(state["state_dict"])
    model.examples_seen = int(state["examples_seen"])


def check_weights(model: Model, state: dict[str, Any], source: Path) -> None:
    """Refuses a checkpoint whose weights are not this model's, with the first differences."""
    problems = mismatches(model, state["state_dict"])
    if problems:
        raise ValueError(f"{source} belongs to another model: {'; '.join(problems[:3])}.")


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
    return shapes + missing + foreign


def _without_spec(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.get("init_args", {}).items() if name != "spec"}
