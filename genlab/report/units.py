"""The unit of a record's examples, as `genlab.shapes.DataSpec`, which needs torch, would say it."""

from __future__ import annotations

from typing import Any

from genlab.report.gather import part


def unit(record: dict[str, Any]) -> str:
    """Returns the unit of a run's examples, img, pt, tok or pairs; "examples" where none is recorded."""
    spec = part(record, "spec")
    shape = spec.get("shape")
    if not isinstance(shape, list):
        return "examples"
    if spec.get("source"):
        return "pairs"
    return "pt" if not spec.get("levels") else "img" if len(shape) == 3 else "tok"
