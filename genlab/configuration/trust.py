"""Configurations are data: which classes they may name, checked where a name becomes an object.

jsonargparse asks its import policy for every name that a value gives, whatever way the value came (a file, a
file named in a file, an option, JSON), and again for the place where the object is defined, so that an alias
such as `torch.nn.functional.torch.os.system` is what it is. All is denied but the classes below. Functions
are never needed and stay refused, even of a class: `LightningModule.load_from_checkpoint` reads pickles.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genlab.configuration import parts
from genlab.text import nearest

MODEL_ROOMS = ("families", "networks", "bijections", "processes", "samplers", "losses")
"""The rooms of genlab where the classes of a model's configuration lie."""

ROOMS = (*MODEL_ROOMS, "data", "metrics", "callbacks")
"""All rooms whose classes a configuration may name."""

PUBLIC = (
    "torch.nn",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "pytorch_lightning.accelerators",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.plugins",
    "pytorch_lightning.plugins.environments",
    "pytorch_lightning.plugins.io",
    "pytorch_lightning.plugins.precision",
    "pytorch_lightning.profilers",
    "pytorch_lightning.strategies",
)
"""Modules of other packages whose public classes it may name: what networks, optimisers and trainers take."""

SINCE = {"torch.optim.Muon": "2.9"}
"""Classes that experiments name and that the oldest torch that genlab runs with does not have."""

WRITES = {"dirpath", "dir", "path", "folder", "file", "filename", "root", "uri"}
"""The last words of settings that say where a callback or a logger writes."""


def lock_imports() -> None:
    """Lets jsonargparse import the named classes alone, and read configurations from this machine alone."""
    import jsonargparse

    os.environ.pop("JSONARGPARSE_DEFAULT_ENV", None)  # settings would come from variables, unseen
    _lock_once()
    _find_allowed()
    allowed = set(allowed_packages())
    jsonargparse.set_parsing_settings(
        import_path_denylist=sorted(_allowed_before - allowed), import_path_allowlist=sorted(allowed)
    )
    _allowed_before.update(allowed)


_allowed_before: set[str] = set()


@cache
def _lock_once() -> None:
    import jsonargparse
    import yaml
    from jsonargparse import get_loader

    from genlab.configuration.plain_yaml import check_yaml

    jsonargparse.set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*"],
        import_path_allowlist=[*(f"genlab.{room}" for room in ROOMS), *public_classes()],
    )
    load = get_loader("yaml")

    def strict(text: str, **given: Any) -> Any:
        check_yaml(text)
        value = load(text, **given)
        import_parts(value)
        return value

    jsonargparse.set_loader("yaml", strict, exceptions=(yaml.YAMLError,))


def import_parts(config: Any) -> None:
    """Imports what a configuration names of the parts that installed packages declare.

    A name of genlab's own or of `PUBLIC` goes on meaning that.

    Raises:
        ValueError: One cannot be imported.
    """
    if named := parts.named_in(config):
        for name in sorted(named - own_names() - public_names()):
            parts.load(name)


def own_names() -> set[str]:
    """Returns the bare names of those classes of genlab that a configuration may name and that are loaded."""
    rooms = tuple(f"genlab.{room}." for room in ROOMS)
    return {cls.__name__ for cls in _subclasses(object) if str(cls.__module__).startswith(rooms)}


def _subclasses(base: type) -> set[type]:
    found: set[type] = set()
    waiting = [base]
    while waiting:
        # type.__subclasses__, since `type` itself is among the subclasses of object.
        new: set[type] = set(type.__subclasses__(waiting.pop())) - found
        found |= new
        waiting += new
    return found


@cache
def public_classes() -> dict[str, type]:
    """Returns the classes of `PUBLIC` by the name that is documented and by the one of their definition."""
    found: dict[str, type] = {}
    for name in PUBLIC:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", None) or dir(module):
            value = getattr(module, public, None)
            if inspect.isclass(value) and value.__module__.split(".")[0] in _HOMES and public[0] != "_":
                found[f"{name}.{public}"] = value
                found[f"{value.__module__}.{value.__qualname__}"] = value
    return found


def public_names() -> set[str]:
    """Returns the bare names of the classes of `PUBLIC`."""
    return {path.rpartition(".")[2] for path in public_classes()}


_HOMES = ("torch", "pytorch_lightning", "lightning_fabric")


def allowed_packages() -> tuple[str, ...]:
    """Returns the packages whose classes and functions may be named.

    Those that --allow and GENLAB_ALLOW trust, and those that were installed with parts of genlab.
    """
    return tuple(dict.fromkeys([*_given_packages(), *parts.packages()]))


def _given_packages() -> list[str]:
    given = os.environ.get("GENLAB_ALLOW", "").split(",")
    return [name for name in given if name and all(part.isidentifier() for part in name.split("."))]


def _find_allowed() -> None:
    """Lets an allowed package be found in the folder where the command is typed, if it is nowhere else.

    Last of all places, so that nothing there comes before what is installed.
    """
    for name in _given_packages():
        top = name.partition(".")[0]
        is_here = os.path.isdir(top) or os.path.isfile(f"{top}.py")
        if is_here and top not in sys.modules and find_spec(top) is None:
            sys.path.append(os.getcwd())


def refusal(path: str) -> str:
    """Returns why a configuration may not name something, and what to do."""
    if path in SINCE:
        return f"{path} came with torch {SINCE[path]}, and this is torch {version('torch')}: update it."
    package = path.split(".")[0]
    if package in ("genlab", *_HOMES):
        hint = nearest(path.rsplit(".", 1)[-1], public_names())
        return (
            f"'{path}' is none of the classes that a configuration may name.{hint} If you trust it, add "
            f"--allow {path}."
        )
    return (
        f"The configuration names {path}, and importing it would run the code of '{package}'. "
        f"If you trust that package, add --allow {package}."
    )


def check_objects(config: Any) -> None:
    """Refuses whatever of a parsed configuration is no class, before anything of it is built.

    Args:
        config: Parsed values, at any depth: a `class_path` that leads to a function would be called.

    Raises:
        ValueError: With its name.
    """
    for path in _functions(config):
        if not path.startswith(tuple(f"{package}." for package in allowed_packages())):
            raise ValueError(
                f"The configuration names the function {path}, and genlab builds classes only. "
                f"If you trust it, add --allow {path.rsplit('.', 1)[0]}."
            )


def _functions(config: Any) -> Iterator[str]:
    for name, value in _items(config):
        if name == "class_path" and isinstance(value, str):
            if "." in value and not inspect.isclass(_resolved(value)):
                yield value
        elif inspect.isroutine(value):
            yield f"{value.__module__}.{value.__qualname__}"
        else:
            yield from _functions(value)


def _items(config: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(config, dict):
        yield from config.items()
    elif hasattr(config, "as_dict"):
        yield from vars(config).items()
    elif isinstance(config, list | tuple | set):
        yield from enumerate(config)


def _resolved(path: str) -> Any:
    """Returns the object of a path that the import policy has let pass."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:  # an attribute of a class
        return None


def check_places(trainer: Any, run: Path | None) -> None:
    """Refuses a trainer whose callbacks, loggers or profiler write outside of their run's folder.

    A configuration may come from elsewhere, and the run keeps what they write anyway.

    Args:
        trainer: The trainer's parsed settings.
        run: The run's folder, None for a new run.

    Raises:
        ValueError: With the setting.
    """
    for name, value in _places(trainer, "trainer"):
        homes = [*([run] if run is not None else []), *map(Path, _allowed_folders())]
        place = Path(os.path.abspath(Path(value).expanduser()))
        is_inside = any(place.is_relative_to(os.path.abspath(home)) for home in homes)
        if not is_inside and not (name.endswith("filename") and _is_plain_name(value)):
            raise ValueError(
                f"{name} would write to {value}, outside of the run's folder: leave it out, and the run "
                f"keeps it; or add --allow {place}."
            )


def _is_plain_name(value: str) -> bool:
    """Returns whether a file's name has no folders in it; `{val/fid:.2f}` stands for a number."""
    name = re.sub(r"\{[^{}]*\}", "0", value)
    return name not in ("", ".", "..") and Path(name).name == name


def _places(config: Any, name: str) -> Iterator[tuple[str, str]]:
    for key, value in _items(config):
        inner = f"{name}.{key}"
        if (
            isinstance(value, str | Path)
            and str(key).split("_")[-1].lower() in WRITES
            and key != "class_path"
        ):
            if str(value):
                yield inner.replace(".init_args", ""), str(value)
        else:
            yield from _places(value, inner)


def _allowed_folders() -> list[str]:
    return [name for name in os.environ.get("GENLAB_ALLOW", "").split(",") if os.sep in name]
