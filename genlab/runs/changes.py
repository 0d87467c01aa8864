"""What a run that goes on would do otherwise than before: settings and data that shape its curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ACCEPT = "--accept-change"

FIXED = ("seed_everything", "model", "data", "trainer")
"""Parts of a configuration that shape a curve; budget, evaluation, pictures and logs are free."""

STEP = (
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision"),
    *("limit_train_batches", "overfit_batches"),
)
"""What of the trainer shapes a step; where it runs is free."""

PLACE = ("path", "source_path", "num_workers", "eval_batch_size", "stream_cache_gib", "licence")
"""What of the data is free: how they are read, where they lie, as a fingerprint tells them, and words."""


BATCH = "data.batch_size"

LIMITS = (
    *("budget.examples", "budget.seconds"),
    *("trainer.max_epochs", "trainer.max_steps", "trainer.max_time"),
)
"""What ends a training."""


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
        """Whether another class of optimiser is asked for, to which the old one's state says nothing."""
        return self.key.rpartition(".")[2].endswith("optimizer")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def fixed_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a configuration shapes the curve, by its keys as they are typed."""
    found = _flat({name: config.get(name) for name in FIXED})
    return {key: value for key, value in found.items() if _is_fixed(key)}


@dataclass(frozen=True)
class TrainedWith:
    """What a checkpoint was trained with, as it keeps it.

    Attributes:
        settings: What shapes the curve, by key.
        data: Fingerprints of the data's splits.
        limits: What ends the training, by key.
        devices: How many share a step; None where that is not known.
    """

    settings: dict[str, Any]
    data: dict[str, str]
    limits: dict[str, Any]
    devices: int | None = None

    @classmethod
    def of(
        cls, config: Mapping[str, Any], data: Mapping[str, str], devices: int | None = None
    ) -> TrainedWith:
        """Returns what a configuration, the fingerprints of its data and its trainer say."""
        found = _flat({"budget": config.get("budget"), "trainer": config.get("trainer")})
        limits = {key: found.get(key) for key in LIMITS}
        return cls(fixed_settings(config), dict(data), limits, devices)

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> TrainedWith:
        """Returns what a checkpoint says; of one that says little, what it does."""
        kept = state.get("trained_with")
        if isinstance(kept, Mapping):
            settings, data, limits = (dict(kept.get(name) or {}) for name in ("settings", "data", "limits"))
            return cls(settings, data, limits, kept.get("devices"))
        return cls(fixed_settings({"model": state["genlab"]["model"]}), {}, {})

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def setting_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], same_version: bool = True
) -> list[Change]:
    """Returns the differences of two flat settings.

    Args:
        before: The ones by key.
        after: The others.
        same_version: Whether both are of one version of genlab; another one may have other keys.
    """
    keys = dict.fromkeys([*before, *after]) if same_version else [key for key in before if key in after]
    found = [Change(key, before.get(key), after.get(key)) for key in keys]
    return [change for change in found if change.before != change.after]


def step_changes(before: TrainedWith, after: TrainedWith, same_version: bool = True) -> list[Change]:
    """Returns the differences of two trainings' settings; a batch is what all devices read together.

    So a run goes on on another number of devices where a step sees as many items as before.
    """
    found = setting_changes(before.settings, after.settings, same_version)
    if not before.devices or not after.devices or before.devices == after.devices:
        return found
    sizes = [each.settings.get(BATCH, 0) * each.devices for each in (before, after) if each.devices]
    joined = [Change(f"{BATCH} of all devices", *sizes)] if sizes[0] != sizes[1] else []
    return [change for change in found if change.key != BATCH] + joined


def data_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[Change]:
    """Returns the splits whose fingerprints differ."""
    splits = [split for split in before if split in after and before[split] != after[split]]
    return [Change(f"data ({split} split)", before[split][:12], after[split][:12]) for split in splits]


def _is_fixed(key: str) -> bool:
    part, _, name = key.partition(".")
    if part == "trainer":
        return name in STEP
    if key == "model.first_stage":  # its weights tell it, wherever it lies
        return False
    return not (part == "data" and name in PLACE)


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        is_class = name in ("class_path", "init_args")
        found |= _flat(inner, key if is_class else f"{key}.{name}".lstrip("."))
    return found


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def refusal(found: Sequence[Change], of: str) -> str:
    """Returns why a command does not go on after changes that nobody accepted."""
    listed = "; ".join(map(str, found[:5])) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
    return f"{of} was trained otherwise: {listed}. Undo that, or accept and record it with {ACCEPT}."
