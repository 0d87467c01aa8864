"""The unit of a record's examples, as `genlab.shapes.DataSpec`, which needs torch, would say it."""

from __future__ import annotations

from typing import Any


def unit_of(spec: dict[str, Any]) -> tuple[str, str]:
    """Returns what examples of a record's `spec` are counted in, short and in words, as `DataSpec.unit` does.

    A word for all where there is no spec.
    """
    shape = spec.get("shape")
    if not isinstance(shape, list):
        return "ex", "examples"
    if spec.get("source") is not None:
        return "pairs", "pairs"
    if not spec.get("levels", 256):
        return "pt", "points"
    return ("img", "images") if len(shape) == 3 else ("tok", "tokens")
