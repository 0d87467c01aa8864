"""What every command shares that works on the model of a run: its options, its loading, its conditions."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli import arguments as read
from genlab.runs.folder import Run, open_run

if TYPE_CHECKING:
    from genlab.families.base import Model


def load(options: argparse.Namespace, path: Path | None = None) -> tuple[Model, Run]:
    """Returns the model of a run, and the run: the one that the options name if no path is given."""
    return loaded(path or options.run, options.checkpoint, options.device)


def loaded(path: Path, checkpoint: Any = None, device: str | None = None) -> tuple[Model, Run]:
    """Returns the model of a run, and the run.

    A file that `genlab export --to safetensors` has written stands for a run, too: for one in a folder of the
    same name.

    Args:
        path: The run's folder.
        checkpoint: Another checkpoint than the last one; see `resolve_checkpoint`.
        device: Where the model is put; CUDA where none is named and there is one.
    """
    from genlab.configuration.trust import MODEL_ROOMS
    from genlab.evaluation.load import load_run

    for room in MODEL_ROOMS:
        import_room(room)
    if path.suffix == ".safetensors" and os.path.isfile(path):
        from genlab.evaluation.export import load_exported

        return load_exported(path, chosen_device(device)), Run(path.absolute().with_suffix(""))
    run = open_run(path)
    device = chosen_device(device)
    return load_run(run, resolve_checkpoint(checkpoint, run), device), run


def import_room(name: str) -> None:
    """Imports every file of a room, so that its classes are known by their bare names."""
    room = importlib.import_module(f"genlab.{name}")
    for module in pkgutil.iter_modules(room.__path__, f"genlab.{name}."):
        importlib.import_module(module.name)


def resolve_checkpoint(given: Any, run: Run | None = None) -> Path | None:
    """Returns the checkpoint's file.

    Args:
        given: A file; a run folder, whose last one it is; or "best" or "last" of the run; None for none.
        run: The run that the command is about, where it is about one.

    Raises:
        CheckpointError: A run has none, or all are damaged.
        ValueError: There is no such file.
    """
    if not given:
        return None
    path = Path(given)
    if str(given) in ("best", "last") and not path.exists():
        if run is None:
            raise ValueError(f"--ckpt_path {given} is one of a run: name the run first, or the file.")
        return run.checkpoint(str(given))
    if path.is_dir():
        return open_run(path).checkpoint()
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}; a run keeps its own in <run>/checkpoints/.")
    return path


def chosen_device(named: str | None) -> str:
    """Returns the device that was named, CUDA where none was and there is one.

    Raises:
        ValueError: This machine has no such device.
    """
    import torch

    if named is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = named.partition(":")
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if int(number or 0) >= there[kind]:
        raise ValueError(f"--device {named}: this machine has {there[kind]} devices of the kind {kind}.")
    return named


def load_walking(options: argparse.Namespace) -> tuple[Any, Run]:
    """Returns the model and the run that the options name, where it walks from noise to images."""
    model, run = load(options)
    require_walk(model, run)
    return model, run


def require_walk(model: Any, run: Run) -> None:
    """Refuses a model that does not walk from noise to images."""
    from genlab.families.capabilities import Denoises

    if not isinstance(model, Denoises) or model.spec.kind != "image":  # type: ignore[attr-defined]
        raise ValueError(
            f"{run.path} is a {type(model).__name__} of {model.spec.name}: this needs a diffusion model of "
            "images, such as experiments/ddpm_mnist.yaml trains."
        )


def require_samples(model: Any, run: Run | None = None) -> None:
    """Refuses a model that cannot be sampled, with its reason."""
    from genlab.families.capabilities import can_be_sampled

    if not can_be_sampled(model):
        because = f": {model.cannot_sample}" if model.cannot_sample else ""
        what = "This" if run is None else str(run.path)
        raise ValueError(f"{what} is a {type(model).__name__}, which cannot be sampled{because}.")


def data_of(model: Any, run: Run) -> Any:
    """Returns the run's data where the model is told something of them, None where it needs none."""
    if "source" not in model.given:
        return None
    from genlab.evaluation.load import load_data

    import_room("data")
    return load_data(run)


def given_on_the_command_line(
    model: Any,
    index: Any,
    label: int | None,
    required: bool = False,
    data: Any = None,
    prompts: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns what each item is told: label and prompts of a command line, or what `given_for` invents.

    Prompts follow each other, each for as many items.

    Raises:
        ValueError: For a label that the model does not have, or a missing one that it requires; for prompts
            of a model that reads none.
    """
    from genlab.evaluation.given import given_for

    chosen: dict[str, Any] = {}
    if prompts:
        chosen["source"] = _prompted(model, len(index), prompts)
    if label is not None or (required and model.uses_labels):
        chosen["label"] = _labelled(model, len(index), label)
    missing = set(model.given) - chosen.keys()
    if missing == {"label"}:
        return {**chosen, "label": index.to(model.device) % model.spec.num_classes}
    return {**(given_for(model, index, data) if missing else {}), **chosen}


def given_with_pictures(model: Any, index: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Returns what each item is told where a person brings the pictures, whose captions no data know.

    Raises:
        ValueError: The model is told something of them that the options do not say.
    """
    from genlab.evaluation.prompts import reads_prompts

    prompts = [options.prompt] if options.prompt else []
    if "source" in model.given and not prompts:
        name, data = type(model).__name__, model.spec.name
        if not reads_prompts(model):
            raise ValueError(f"This {name} of {data} is told an image for each, which cannot be given here.")
        raise ValueError(f"--prompt is missing: this {name} of {data} is told in words what a picture shows.")
    return given_on_the_command_line(model, index, options.label, prompts=prompts)


def rows_of(given: dict[str, Any], rows: Any) -> dict[str, Any]:
    """Returns some rows of what a model is told."""
    return {name: value[rows.to(value.device)] for name, value in given.items()}


def _labelled(model: Model, num: int, label: int | None) -> Any:
    import torch

    if label is None or not model.uses_labels or not 0 <= label < model.spec.num_classes:
        last = model.spec.num_classes - 1
        classes = f"0 to {last}" if model.uses_labels else "none: it was trained without labels"
        asked = "--label is missing" if label is None else f"--label {label}"
        raise ValueError(f"{asked}: this run has labels {classes}.")
    return torch.full((num,), label, device=model.device)


def _prompted(model: Model, num: int, prompts: Sequence[str]) -> Any:
    from genlab.evaluation.prompts import prompt_sources, reads_prompts

    if not reads_prompts(model):
        raise ValueError(f"--prompt: this {type(model).__name__} of {model.spec.name} reads no texts.")
    return prompt_sources(model, prompts).repeat_interleave(num // len(prompts), dim=0)


def add_run_options(parser: argparse.ArgumentParser, device: bool = True) -> None:
    """Adds what every command needs that works on a trained model."""
    parser.add_argument("run", type=read.path, help="the run's folder")
    add_device_options(parser, device)


def add_device_options(parser: argparse.ArgumentParser, device: bool = True) -> None:
    """Adds which weights of a run are loaded, and where to unless there is no choice."""
    parser.add_argument("--checkpoint", type=read.existing, help="another checkpoint than the last one")
    if device:
        parser.add_argument("--device", type=read.device, help="cpu or cuda (cuda where there is one)")
