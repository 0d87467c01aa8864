"""What a run that goes on would do otherwise than before: settings and data that shape its curve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FIXED = ("seed_everything", "model", "data", "trainer")
"""Parts of a configuration that shape a curve; budget, evaluation, pictures, checkpoints and logs are free."""

STEP = (
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision"),
    *("limit_train_batches", "overfit_batches"),
)
"""What of the trainer shapes a step; where it runs is free."""

PLACE = ("path", "source_path", "num_workers", "eval_batch_size")
"""What of the data is free: where they lie (their fingerprint tells whether they are the same), how they are read."""


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
        key: As it is typed, such as `model.optimizer.lr`.
        before, after: Its values.
    """

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key} {_shown(self.before)} -> {_shown(self.after)}"

    @property
    def is_of_optimizer_class(self) -> bool:
        """Whether an optimiser of another class is asked for, to which the state of the old one says nothing."""
        return self.key.rpartition(".")[2].endswith("optimizer")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fixed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a configuration shapes the curve, by its keys as they are typed."""
    found = _flat({name: config.get(name) for name in FIXED})
    return {key: value for key, value in found.items() if _is_fixed(key)}


def changes(before: Mapping[str, Any], after: Mapping[str, Any], same_version: bool = True) -> list[Change]:
    """Returns the differences of two flat settings.

    Args:
        before, after: By key.
        same_version: Whether both are of one version of genlab; another one may have other keys.
    """
    keys = dict.fromkeys([*before, *after]) if same_version else [key for key in before if key in after]
    found = [Change(key, before.get(key), after.get(key)) for key in keys]
    return [change for change in found if change.before != change.after]


def data_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """Returns the splits whose fingerprints differ."""
    splits = [split for split in before if split in after and before[split] != after[split]]
    return [Change(f"data ({split} split)", before[split][:12], after[split][:12]) for split in splits]


def _is_fixed(key: str) -> bool:
    part, _, name = key.partition(".")
    if part == "trainer":
        return name in STEP
    return not (part == "data" and name in PLACE)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        if name in ("class_path", "init_args"):
            place = key
        else:
            place = f"{key}.{name}" if key else str(name)
        found |= _flat(inner, place)
    return found


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
