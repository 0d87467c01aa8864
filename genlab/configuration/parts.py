"""Parts of installed packages, which these declare as entry points: found without importing any of them.

    [project.entry-points."genlab.parts"]
    Mine = "my_package.mine:Mine"

Whoever installs such a package trusts it, as --allow does, and its classes have short names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUP = "genlab.parts"


def declared() -> dict[str, EntryPoint]:
    """Returns the declared classes by their short names.

    Raises:
        ValueError: Two packages declare one name.
    """
    return _declared(tuple(sys.path))


def packages() -> tuple[str, ...]:
    """Returns the packages that declare parts; the standard library is never one of them."""
    return tuple(dict.fromkeys(package(part) for part in declared().values()))


def package(part: EntryPoint) -> str:
    """Returns the name of the package whose code a part runs."""
    return part.module.partition(".")[0]


@cache
def _declared(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for part in entry_points(group=GROUP):
        if not part.attr or package(part) in {*sys.stdlib_module_names, "genlab", "torch"}:
            continue
        other = found.setdefault(part.attr, part)
        if other.value != part.value:
            raise ValueError(
                f"Two installed packages declare a part {part.attr}, {other.value} and {part.value}: "
                "uninstall one of them."
            )
    return found


def named_in(config: Any) -> set[str]:
    """Returns the short names of parts among a configuration's values, at any depth."""
    known = declared()
    return set(_texts(config)) & known.keys() if known else set()


def load(name: str) -> None:
    """Imports a part.

    Raises:
        ValueError: It cannot be, or is no longer there.
    """
    part, problem = declared()[name], ""
    try:
        part.load()
    except (ImportError, AttributeError) as error:
        problem = str(error)
    if problem:  # outside of the block, since the parser's errors are read for their first cause
        raise ValueError(
            f"The installed package {package(part)} declares the part {part.value}, which cannot be imported "
            f"({problem}): install it anew."
        )


def _texts(config: Any) -> Iterator[str]:
    if isinstance(config, str):
        yield config
    elif isinstance(config, Mapping):
        yield from _texts(list(config.values()))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _texts(value)
