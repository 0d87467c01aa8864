"""Packages that only some commands need. Imports none of them."""

from __future__ import annotations

import importlib.util


def require(what: str, *packages: str, extra: str, otherwise: str = "") -> None:
    """Refuses what needs packages that are not installed.

    Args:
        what: Needs them, such as an option.
        packages: The names that they are imported by.
        extra: Of pyproject.toml, which brings them.
        otherwise: What can be done without them, such as "use --to safetensors".

    Raises:
        ValueError: With the packages that are missing and the command that installs them.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        remedy = ", or ".join(filter(None, [f"pip install 'genlab[{extra}]'", otherwise]))
        raise ValueError(f"{what} needs {' and '.join(missing)}: {remedy}.")
