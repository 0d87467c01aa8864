"""Packages that only some commands need."""

from __future__ import annotations

import importlib.util


def require(package: str, what: str) -> None:
    """Refuses what needs a package that is not installed.

    Raises:
        ValueError: With the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{what} needs {package}: pip install 'genlab[cluster]'")
