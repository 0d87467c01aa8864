"""The parser of the training commands: what it says before Lightning and jsonargparse would guess."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse.typing import register_type
from pytorch_lightning.cli import LightningArgumentParser

from genlab.amounts import Examples, Seconds
from genlab.callbacks.budget import Budget
from genlab.callbacks.checkpoints import RunCheckpoints
from genlab.callbacks.evaluate import Evaluate
from genlab.callbacks.health import Health
from genlab.callbacks.samples import SampleGrid
from genlab.configuration import experiments
from genlab.configuration.plain_yaml import parse_yaml, read_yaml
from genlab.text import nearest, shortened, similar

CONFIG = ("--config", "-c")

GROUPS = {
    "budget": Budget,
    "evaluate": Evaluate,
    "samples": SampleGrid,
    "health": Health,
    "checkpoints": RunCheckpoints,
}
"""Callbacks that every run has, each with a key of its own in the YAML file."""

register_type(Examples, serializer=int)
register_type(Seconds, serializer=float)


class Parser(LightningArgumentParser):
    """Lightning's parser without its 50 lines of usage before an error, and strict about its files."""

    def print_usage(self, file: Any = None) -> None:
        if file is not sys.stderr:
            super().print_usage(file)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        read_yaml(Path(path))  # encoding and syntax, in words of the file
        return super().parse_path(path, *args, **kwargs)

    def parse_string(self, content: str, path: str | os.PathLike = "", *args: Any, **kwargs: Any) -> Any:
        self._require_known_sections(parse_yaml(content, str(path) or "--config"), str(path) or "--config")
        return super().parse_string(content, path, *args, **kwargs)

    def _require_known_sections(self, config: Any, name: str) -> None:
        # The parser flattens a configuration, and a section without a value is gone before it is looked at.
        if not isinstance(config, dict):
            raise ValueError(f"{name} holds {_kind(config)} in place of keys, such as `model: ...`.")
        dests = [action.dest for action in self._actions if action.dest not in ("help", "print_config")]
        self._require_known(config, dests, name)
        for section in ("trainer", *GROUPS):
            inner = [dest.removeprefix(f"{section}.") for dest in dests if dest.startswith(f"{section}.")]
            if isinstance(config.get(section), list):
                raise ValueError(f"{name}: {section} holds a list in place of keys.")
            if isinstance(config.get(section), dict):
                self._require_known(config[section], inner, f"{name}: {section}")

    @staticmethod
    def _require_known(section: dict[Any, Any], dests: list[str], name: str) -> None:
        known = sorted({dest.split(".")[0] for dest in dests})
        for key in section:
            if str(key).removesuffix("+") not in known:
                hint = nearest(str(key), known) or f" There are: {', '.join(known)}."
                raise ValueError(f"{name}: there is no key '{key}'.{hint}")


def _kind(config: Any) -> str:
    return "nothing" if config is None else "a list" if isinstance(config, list) else "a single value"


def in_order(arguments: Sequence[str]) -> list[str]:
    """Returns a command's arguments with its configuration files first: what is typed wins over any file.

    An option that is given twice is said: the last one holds, as everywhere.

    Raises:
        ValueError: A file cannot be read.
    """
    files: list[str] = []
    options: list[str] = []
    given: dict[str, str] = {}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            options.append(argument)
            continue
        if argument[:2] == "-c" and len(argument) > 2:  # -cFILE
            name, equals, value = "-c", "=", argument[2:].removeprefix("=")
        if not equals and waiting and not _is_option(waiting[0]):
            value = waiting.pop(0)
        if name in CONFIG:
            files += ["--config", _existing(value)]
            continue
        if name in given and given[name] != value and not name.endswith("+"):
            warnings.warn(f"{name} is given twice, as {given[name]} and as {value}; the last one holds.")
        given[name] = value
        options += [argument] if equals or not value else [name, value]
    return files + options


def _is_option(text: str) -> bool:
    return text.startswith("-") and not text[1:2].isdigit() and text[1:2] != "."


def _existing(config: str) -> str:
    """Returns the path of a configuration's file, or of the experiment of this name.

    A text of YAML in place of a file stays as it is.
    """
    if not config:
        raise ValueError("--config needs a file or an experiment's name, such as --config dcgan_digits.")
    if "\n" in config or ": " in config:
        return config
    path = Path(config).expanduser()
    found = path if path.is_file() else experiments.find(config)
    if found is None:
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"The configuration {shortened(config)} {what}.{_nearby(path)}")
    return str(found)


def _nearby(path: Path) -> str:
    folder = path if path.is_dir() else path.parent
    if folder == Path() and path != folder:
        return f" {experiments.nearest_names(str(path))}"
    names = sorted(found.name for found in folder.glob("*.yaml"))
    near = similar(path.name, names, least=0.4) if path != folder else names[:3]
    if near:
        return f" Near it: {', '.join(str(folder / name) for name in near)}."
    return f" {experiments.nearest_names(str(path))}"
