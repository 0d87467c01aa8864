"""Errors of the configuration parser, reduced to what a person can act on."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence

from genlab.configuration import parts
from genlab.configuration.trust import allowed_packages, own_names, public_names, refusal
from genlab.text import nearest

_UNKNOWN = re.compile(r"[Oo]ption '([\w.+]+)' is not accepted|does not accept option '([\w.+]+)'")
_DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
_NO_CLASS = re.compile(r"Expected a dot import path string: ([\w.]+)")
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_SEVERAL = re.compile(r"Multiple subclasses with name (\w+)\..*: (.+)\.")
_KEY = re.compile(r"Parser key \"([\w.+]+)\":")
_REQUIRED = re.compile(r"^the following arguments are required: (.+)")
_TYPES = re.compile(r"Expected an? (typing\.Literal\[[^]]*\]|<(?:class|enum) '[\w.]+'>)")
_SUBTYPES = re.compile(r"Subtypes: \[(.+)\]\s")
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
    if denied := next((found.group(1) for found in map(_DENIED.search, layers) if found), None):
        return refusal(denied)
    inside = next((found[-1] for found in map(_INSIDE.findall, layers) if found), None)
    place = f"In {inside.rsplit('.', 1)[-1]}: " if inside else ""
    key = next((found.group(1) for found in map(_KEY.search, layers) if found), None)
    for text in layers:
        if found := _UNKNOWN.search(text):
            name = found.group(1) or found.group(2)
            return f"{place}there is no option '{name}'.{_nearest_parameter(name, inside)}"
        if (found := _NO_CLASS.search(text)) and found.group(1) in ("None", "none", "nil"):
            return f"{place}{key} is '{found.group(1)}': write null for none."
        if found := _NO_CLASS.search(text):
            return f"{place}there is no class '{found.group(1)}'.{_nearest_class(found.group(1))}"
        if (found := _NO_MODULE.search(text)) and _is_allowed(found.group(1)):
            return (
                f"There is no module {found.group(1)} here, although it is allowed: type the command in the "
                "folder that holds it, or install it."
            )
        if found := _SEVERAL.search(text):
            return f"{place}there are several classes '{found.group(1)}': write out which, {found.group(2)}."
        if found := _REQUIRED.search(text):
            return _missing(found.group(1), place)
        if text.startswith("unrecognized arguments:"):
            name = text.split(":", 1)[1].split()[0].split("=")[0]
            return f"There is no option {name}.{nearest(name, options)}"
        if (found := _KEY.search(text)) and (allowed := _allowed(text)):
            value = _VALUE.search(text)
            got = f", got {_short(value.group(1))}" if value else ""
            return f"{place}{found.group(1)} must be {allowed}{got}."
    if len(layers) > 1 and "\n" not in layers[0]:
        return layers[0]  # what a class said of its values
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:1] + lines[-1:]) if len(lines) > 3 else " ".join(lines)


def _is_allowed(module: str) -> bool:
    top = module.partition(".")[0]
    return top in {name.partition(".")[0] for name in allowed_packages()}


def _missing(names: str, place: str) -> str:
    asked = [name.split(".")[-1] for name in names.split(", ")]
    if {"model", "data"} & set(asked) and not place:
        missing = " and ".join(f"--{name}" for name in sorted(asked, reverse=True))
        return f"{missing} missing: give --config FILE, such as --config experiments/dcgan_digits.yaml."
    return f"{place}{', '.join(asked)} must be given."


def _allowed(text: str) -> str:
    """Returns every type that a value may have, in words."""
    union = _SUBTYPES.search(text)
    kinds = _KINDS.findall(union.group(1)) if union else _TYPES.findall(text)
    words = dict.fromkeys(word for kind in kinds for word in _in_words(kind))
    *others, last = words or {"": None}
    return f"{', '.join(others)} or {last}" if others else last


_LIST = re.compile(r"(?:list|typing\.List)\[(typing\.Literal\[[^]]*\])\]")
_KINDS = re.compile(r"typing\.Literal\[[^]]*\]|<(?:class|enum) '[\w.]+'>|[\w.]+(?:\[[^]]*\]+)?")


def _in_words(kind: str) -> list[str]:
    if several := _LIST.fullmatch(kind):
        return [f"a list of {' or '.join(_in_words(several.group(1)))}"]
    if kind.startswith("typing.Literal["):
        return [value.strip("' ") for value in kind[len("typing.Literal[") : -1].split(",")]
    name = re.sub(r"<\w+ '([\w.]+)'>", r"\1", kind)
    short = re.sub(r"[\w.]*\.(\w+)", r"\1", name)
    return [_WORDS.get(short, short)]


_WORDS = {
    "NoneType": "null",
    "Examples": "a number such as 300000, 300k or 1e6",
    "Seconds": "a time such as 90, 90s or 5m",
}


def _short(value: str) -> str:
    return value if len(value) <= 80 else value[:77] + "..."


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
    # Never imported for the message's sake: the name may be the very one that is refused.
    cls = getattr(sys.modules.get(module), class_name, None)
    if not inspect.isclass(cls):
        return ""
    names = [name for name in _parameters(cls) if name not in ("spec", "params", "base")]
    return nearest(name.rsplit(".", 1)[-1], names) or f" It accepts: {', '.join(names)}."


def _parameters(cls: type) -> list[str]:
    """Returns the settings of a class, with those that it passes on to the classes that it is made of."""
    names: dict[str, None] = {}
    for part in cls.__mro__:
        if "__init__" not in vars(part):
            continue
        parameters = inspect.signature(part.__init__).parameters.values()  # type: ignore[misc]
        names |= {p.name: None for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return [name for name in names if name != "self"]


def _nearest_class(name: str) -> str:
    short = name.rsplit(".", 1)[-1]
    return nearest(short, own_names() | parts.declared().keys() | public_names())
