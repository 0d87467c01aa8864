"""What an evaluation measured, by two names: with its protocol's counts for records, without for monitors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def stable_names(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns scores by their names without counts, `val/fid` for `val/fid@797`.

    A monitor can then name a score without knowing how many images it is of. A name that several scores
    would share, as `error` for `error@0.1` and `error@2`, is none of theirs.
    """
    short = [name.split("@", 1)[0] for name in scores]
    pairs = zip(short, scores.items(), strict=True)
    return {name: value for name, (full, value) in pairs if name != full and short.count(name) == 1}


def measured(trainer: Any) -> dict[str, float]:
    """Returns what the last validation measured, without the stable names beside the full ones."""
    values = {n: float(v) for n, v in trainer.callback_metrics.items() if n.startswith("val/")}
    with_counts = {name.split("@", 1)[0] for name in values if "@" in name}
    return {name: value for name, value in values.items() if name not in with_counts}
