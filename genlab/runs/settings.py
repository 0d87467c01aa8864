"""What a run's record says of its configuration, so that nobody need read the configuration for it."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from genlab.files import digest

DIGEST_LENGTH = 16
_PLACES = {"data": ("path", "licence"), "model": ("first_stage",)}
BUDGET = ("examples", "seconds", "evaluations")

TRIAL_FACTORS = (1.0, 1 / 3, 3.0, 0.1, 10.0)
"""What the trials of an experiment multiply its learning rates by, in this order."""


def settings_of(config: str) -> dict[str, Any]:
    """Returns what all seeds of a model have in common: a configuration without seed and places.

    The data are told by their fingerprint, wherever they lie and whatever they may be used for; a first
    stage by what the record says of it, since each seed may stand on one of its own.

    Args:
        config: As YAML, such as a run's config.yaml.

    Raises:
        yaml.YAMLError: It is none.
    """
    import yaml  # takes long to import, and a comparison of today's records needs it only for a difference

    read = yaml.load(config, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    settings = {name: value for name, value in _dict(read).items() if name != "seed_everything"}
    return {name: _without(value, _PLACES.get(name, ())) for name, value in settings.items()}


def _without(part: Any, names: Collection[str]) -> Any:
    """Returns a section without some of its arguments."""
    if not names or "init_args" not in _dict(part):
        return part
    arguments = {name: value for name, value in _dict(part["init_args"]).items() if name not in names}
    return {**part, "init_args": arguments}


def facts_of(config: str) -> dict[str, Any]:
    """Returns a record's `budget`, what the training may use, and `settings_digest`, equal for all its seeds.

    Raises:
        yaml.YAMLError: The text is no YAML.
    """
    settings = settings_of(config)
    budget = _dict(settings.get("budget"))
    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        "budget": {name: budget.get(name) for name in BUDGET},
        "settings_digest": digest(text, DIGEST_LENGTH),
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
