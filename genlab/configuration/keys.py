"""Keys of a configuration as people type them: `init_args` may be left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from genlab.text import nearest

_ARGUMENTS = "init_args"


def place_of(key: str, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the full place of a key in a resolved configuration.

    Args:
        key: Such as model.optimizer.lr for model.init_args.optimizer.init_args.lr.
        config: All settings there are, defaults included.

    Raises:
        ValueError: There is none; with the nearest one.
    """
    known = {_short(place): place for place in reversed(list(_places(config)))}
    asked = _short(tuple(key.split(".")))
    if asked in known:
        return known[asked]
    raise ValueError(f"there is no such key.{nearest(asked, known)}")


def value_at(place: tuple[str, ...], config: Any) -> Any:
    """Returns what a configuration holds at a place, None where it holds nothing."""
    for name in place:
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def with_value(config: Any, place: tuple[str, ...], value: Any, resolved: Any) -> Any:
    """Returns a configuration with another value at a place.

    Args:
        config: As a person has written it, with defaults left out.
        place: The value's.
        value: The new one.
        resolved: The same configuration with all that was left out; names the classes of missing parts.
    """
    if not place:
        return value
    name, *rest = place
    if isinstance(config, str) and name == _ARGUMENTS:  # a class without settings of its own
        config = {"class_path": config}
    if config is None and isinstance(resolved, Mapping) and "class_path" in resolved:
        config = {"class_path": resolved["class_path"]}
    config = dict(config or {})
    inner = resolved.get(name) if isinstance(resolved, Mapping) else None
    return {**config, name: with_value(config.get(name), tuple(rest), value, inner)}


def _places(config: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if place:
        yield place
    for name, value in config.items() if isinstance(config, Mapping) else ():
        yield from _places(value, (*place, str(name)))


def _short(place: tuple[str, ...]) -> str:
    return ".".join(name for name in place if name != _ARGUMENTS)
