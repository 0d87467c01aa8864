"""`genlab --print_completion bash`: what a shell needs to complete commands, options and experiments."""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator, Mapping

from genlab.cli import arguments as read
from genlab.configuration.experiments import experiments
from genlab.extras import require

SHELLS = ("bash", "zsh", "tcsh")

FOLDERS = (read.folder, read.output_folder)
PLACES = (read.path, read.existing, read.existing_or_input, read.file, read.file_or_input)
PICTURES = (read.image, read.images)

OF_TRAINING = (
    *("experiment", "run_name", "log_to", "log_artifacts", "variants", "seed_everything", "ckpt_path"),
    "extractor",
)


def script(shell: str, training: Mapping[str, str], others: Mapping[str, str]) -> str:
    """Returns a script of a shell.

    Args:
        shell: One of `SHELLS`.
        training: The commands that train or go on from a checkpoint, by name.
        others: The file in genlab/cli of each other command.

    Raises:
        ValueError: There is none for this shell, or shtab, which makes it, is not installed.
    """
    if shell not in SHELLS:
        raise ValueError(f"--print_completion takes {', '.join(SHELLS)}, got {shell!r}.")
    require("--print_completion", "shtab", extra="completion")
    import shtab

    return shtab.complete(whole_parser(training, others), shell)


def whole_parser(training: Mapping[str, str], others: Mapping[str, str]) -> argparse.ArgumentParser:
    """Returns the options of all commands; see `script`."""
    whole = argparse.ArgumentParser(prog="genlab")
    commands = whole.add_subparsers()
    for name in training:
        _add_training(commands.add_parser(name, help=name))  # shtab leaves out what has no help
    for name, file in others.items():
        own = importlib.import_module(f"genlab.cli.{file}").parser()
        _add_completion(commands.add_parser(name, parents=[own], add_help=False, help=name))
    return whole


def _add_completion(parser: argparse.ArgumentParser) -> None:
    """Says which options take files, and which an experiment's name."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _add_completion(inner)
        elif action.dest == "copy":
            action.choices = list(experiments())
        elif action.type in FOLDERS or action.dest == "run":
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.type in (*PLACES, *PICTURES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]


def _add_training(parser: argparse.ArgumentParser) -> None:
    """Adds the options of training commands that do not depend on the classes that are chosen."""
    import shtab

    parser.add_argument("run", nargs="?").complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    parser.add_argument("--config", "-c", choices=list(experiments()))
    for name in (*OF_TRAINING, *_settings()):
        parser.add_argument(f"--{name}")


def _settings() -> Iterator[str]:
    from pytorch_lightning import Trainer

    from genlab.cli.parser import GROUPS
    from genlab.data.base import DataModule
    from genlab.families.base import Model

    yield from ("model", "data")
    for group, kind in {"trainer": Trainer, "data": DataModule, "model": Model, **GROUPS}.items():
        names = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        yield from (f"{group}.{name}" for name in names if name not in ("self", "spec", "base"))
