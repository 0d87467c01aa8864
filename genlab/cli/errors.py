"""Errors of the configuration parser, reduced to what a person can act on."""

from __future__ import annotations

import difflib
import re


def readable(text: str) -> str:
    """Returns the innermost cause of a parser's error, with the nearest valid name where one is misspelt.

    The parser tries every type of a union and reports all failures; the one that names an option or
    a value is the one that matters.
    """
    lines = [line.strip(" -") for line in text.splitlines() if line.strip()]
    unknown = re.search(r"[Oo]ption '([\w.+]+)' is not accepted|does not accept option '([\w.+]+)'", text)
    if unknown:
        name = next(filter(None, unknown.groups()))
        return f"{_place(text)}there is no option '{name}'.{_nearest(name, text)}"
    class_path = re.search(r"Expected a dot import path string: ([\w.]+)", text)
    if class_path:
        name = class_path.group(1)
        return f"{_place(text)}there is no class '{name}'.{_nearest_class(name)}"
    return " ".join(lines[:1] + lines[-1:]) if len(lines) > 3 else " ".join(lines)


def _place(text: str) -> str:
    found = re.findall(r"class_path '([\w.]+)'", text)
    return f"In {found[-1].rsplit('.', 1)[-1]}: " if found else ""


def _nearest(name: str, text: str) -> str:
    found = re.findall(r"class_path '([\w.]+)'", text)
    names = _parameters(found[-1]) if found else []
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], names, n=1)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" It accepts: {', '.join(names)}." if names else ""


def _parameters(class_path: str) -> list[str]:
    import importlib
    import inspect

    module, _, name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return [p for p in inspect.signature(cls).parameters if p not in ("spec", "params")]


def _nearest_class(name: str) -> str:
    from pytorch_lightning.callbacks import Callback
    from torch.nn import Module

    from genlab.data.base import DataModule

    known = {cls.__name__ for base in (Module, DataModule, Callback) for cls in _subclasses(base)}
    near = difflib.get_close_matches(name.rsplit(".", 1)[-1], known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _subclasses(base: type) -> set[type]:
    direct: set[type] = set(base.__subclasses__())
    return direct.union(*(_subclasses(cls) for cls in direct)) if direct else direct
