"""Configurations are data: which packages a class path may name, checked before anything is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

TRUSTED_PACKAGES = ("genlab", "torch", "torchvision", "torchmetrics", "pytorch_lightning")


def check_class_paths(config: Any) -> None:
    """Refuses class paths outside the trusted packages, at any depth of a configuration.

    Raises:
        ValueError: With the class path and how to trust its package.
    """
    trusted = trusted_packages()
    for path in class_paths(config):
        package = path.split(".", 1)[0]
        if "." in path and package not in trusted:
            raise ValueError(
                f"The configuration names {path}, and importing it would run the code of '{package}'. "
                f"If you trust that package, add --allow {package}."
            )


def trusted_packages() -> tuple[str, ...]:
    """Returns the packages whose classes a configuration may name; GENLAB_ALLOW and --allow add to them."""
    return TRUSTED_PACKAGES + tuple(filter(None, os.environ.get("GENLAB_ALLOW", "").split(",")))


def class_paths(config: Any) -> Iterator[str]:
    """Yields every value that jsonargparse would import: of `class_path`, and bare dotted names."""
    if isinstance(config, dict):
        for name, value in config.items():
            if name == "class_path" and isinstance(value, str):
                yield value
            else:
                yield from class_paths(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from class_paths(value)
    elif isinstance(config, str) and _looks_like_import(config):
        yield config


def _looks_like_import(text: str) -> bool:
    # A file name such as model.ckpt has the form of an import path too; none ends in a class name.
    parts = text.split(".")
    return len(parts) > 1 and all(part.isidentifier() for part in parts) and parts[-1][0].isupper()
