"""Errors of the configuration parser, reduced to what a person can act on."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Sequence

_UNKNOWN = re.compile(r"[Oo]ption '([\w.+]+)' is not accepted|does not accept option '([\w.+]+)'")
_NO_CLASS = re.compile(r"Expected a dot import path string: ([\w.]+)")
_WRONG_TYPE = re.compile(r"Parser key \"([\w.]+)\":")
_TYPES = re.compile(r"Expected a <class '([\w.]+)'>")
_VALUE = re.compile(r"(?:Got|Given) value: (.+)")
_INSIDE = re.compile(r"class_path[ =]'([\w.]+)'")


def readable(error: BaseException, options: Sequence[str] = ()) -> str:
    """Returns the cause of a parser's error, with the nearest valid name where one is misspelt.

    The parser tries every type of a union and reports all failures, one inside the other; the innermost
    one names what was mistyped, and the next ones around it say in which class.

    Args:
        error: What the parser raised.
        options: The names of the command's options, with their dashes.
    """
    layers = _messages(error)
    inside = next((found[-1] for found in map(_INSIDE.findall, layers) if found), None)
    place = f"In {inside.rsplit('.', 1)[-1]}: " if inside else ""
    for text in layers:
        if found := _UNKNOWN.search(text):
            name = found.group(1) or found.group(2)
            return f"{place}there is no option '{name}'.{_nearest_parameter(name, inside)}"
        if found := _NO_CLASS.search(text):
            return f"{place}there is no class '{found.group(1)}'.{_nearest_class(found.group(1))}"
        if text.startswith("unrecognized arguments:"):
            name = text.split(":", 1)[1].split()[0].split("=")[0]
            return f"There is no option {name}.{_nearest(name, options)}"
        if (found := _WRONG_TYPE.search(text)) and (types := _TYPES.findall(text)):
            value = _VALUE.search(text)
            kinds = " or ".join("null" if kind == "NoneType" else kind for kind in dict.fromkeys(types))
            got = f", got {value.group(1)}" if value else ""
            return f"{place}{found.group(1)} must be {kinds}{got}."
    if len(layers) > 1 and "\n" not in layers[0]:
        return layers[0]  # what a class said of its values
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:1] + lines[-1:]) if len(lines) > 3 else " ".join(lines)


def _messages(error: BaseException) -> list[str]:
    """Returns the texts of an error and its causes, the innermost first."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.insert(0, str(cause))
        cause = cause.__cause__ or cause.__context__
    return texts


def _nearest_parameter(name: str, class_path: str | None) -> str:
    if class_path is None:
        return ""
    module, _, class_name = class_path.rpartition(".")
    cls = getattr(importlib.import_module(module), class_name)
    names = [p for p in inspect.signature(cls).parameters if p not in ("spec", "params", "base")]
    return _nearest(name.rsplit(".", 1)[-1], names) or f" It accepts: {', '.join(names)}."


def _nearest_class(name: str) -> str:
    from torch.nn import Module

    ours = [cls.__name__ for cls in _subclasses(object) if str(cls.__module__).startswith("genlab.")]
    short = name.rsplit(".", 1)[-1]
    return _nearest(short, ours) or _nearest(short, [cls.__name__ for cls in _subclasses(Module)])


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def _subclasses(base: type) -> set[type]:
    found: set[type] = set()
    waiting = [base]
    while waiting:
        # type.__subclasses__, since `type` itself is among the subclasses of object.
        new: set[type] = set(type.__subclasses__(waiting.pop())) - found
        found |= new
        waiting += new
    return found
