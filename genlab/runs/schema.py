"""What the fields of a run's record may hold. run.json can be anybody's: who reads it relies on these types.

A field that is not named here is nobody's to read; every named one may be missing or null.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_NESTED = 30


class Kind(NamedTuple):
    """A plain value: what it must be, in words and as types."""

    words: str
    types: tuple[type, ...]

    def fits(self, value: Any) -> bool:
        """Returns whether a value is of this kind; True and False are no numbers."""
        return isinstance(value, self.types) and isinstance(value, bool) <= (bool in self.types)


TEXT = Kind("a text", (str,))
NUMBER = Kind("a number", (int, float))
WHOLE = Kind("a whole number", (int,))
FLAG = Kind("true or false", (bool,))

ANY = "*"
"""Stands for all names that are not listed beside it."""

_SHAPE = {
    "name": TEXT,
    "shape": [WHOLE],
    "levels": WHOLE,
    "num_classes": WHOLE,
}
_SPEC = {**_SHAPE, "source": _SHAPE}
_DATA = {
    **_SHAPE,
    "source": TEXT,
    "licence": TEXT,
    "splits": {ANY: TEXT},
    "counts": {ANY: WHOLE},
    "fingerprints": {ANY: TEXT},
}
_PROTOCOL = {
    **dict.fromkeys(("extractor", "extractor_digest", "resize", "split", "weights", "data"), TEXT),
    **dict.fromkeys(("num_real", "num_fake", "seed", "levels"), WHOLE),
    "data_fingerprint": TEXT,
    "metrics": {ANY: {}},
    "likelihood": {
        **dict.fromkeys(("kind", "split", "data", "data_fingerprint", "estimator"), TEXT),
        **dict.fromkeys(("levels", "num_real"), WHOLE),
        "shape": [WHOLE],
    },
    "reconstruction": {"num": WHOLE, "split": TEXT},
}
_TEST = {
    "values": {ANY: NUMBER},
    "floor": {ANY: NUMBER},
    "split_means": [TEXT],
    "protocol": _PROTOCOL,
    "pictures": {ANY: TEXT},
    "arguments": [TEXT],
    "checkpoint": TEXT,
    "checkpoint_digest": TEXT,
    "speed": {"device": TEXT, ANY: NUMBER},
    "copies": {
        "threshold": TEXT,
        "space": TEXT,
        "histogram": {ANY: [NUMBER]},
        ANY: NUMBER,
    },
    "latent": {
        "type": TEXT,
        "num_codes": [WHOLE],
        "disentanglement": {ANY: NUMBER},
        ANY: NUMBER,
    },
}
RECORD = {
    **dict.fromkeys(("status", "experiment", "run", "created", "genlab", "family", "error"), TEXT),
    **dict.fromkeys(("device", "precision", "settings_digest"), TEXT),
    **dict.fromkeys(("seed", "num_devices", "threads", "parameters", "examples_seen"), WHOLE),
    "training_seconds": NUMBER,
    "uses_labels": FLAG,
    "compiled": FLAG,
    "tags": [TEXT],
    "loggers": {ANY: {ANY: TEXT}},
    "log_artifacts": [TEXT],
    "spec": _SPEC,
    "data": _DATA,
    "validation": {ANY: NUMBER},
    "budget": {},
    "bench": {
        "name": TEXT,
        "experiment": TEXT,
        "budget": {},
        "seed": WHOLE,
        "tuning_trials": WHOLE,
        "learning_rate_factor": NUMBER,
    },
    "first_stage": {
        **dict.fromkeys(("experiment", "family", "settings_digest", "digest"), TEXT),
        "examples_seen": WHOLE,
        "training_seconds": NUMBER,
    },
    "health": {
        "ok": FLAG,
        "flags": [{"examples_seen": WHOLE, "problem": TEXT}],
        "trend": [{ANY: NUMBER}],
    },
    "test": _TEST,
    "variants": {ANY: _TEST},
}


def problem_of(record: Any) -> str:
    """Returns the first field of a record that is not what it must be, in words; "" where all are."""
    return _problem(record, RECORD, "", MOST_NESTED)


def _problem(value: Any, wanted: Any, place: str, depth: int) -> str:
    if not depth:
        return f"{place} is nested too deeply"
    if value is None and place:
        return ""
    if isinstance(wanted, Kind):
        return "" if wanted.fits(value) else f"{place} must be {wanted.words}, not {_is(value)}"
    if isinstance(wanted, dict) and not isinstance(value, dict):
        return f"{place or 'it'} must be a JSON object, not {_is(value)}"
    if isinstance(wanted, list) and not isinstance(value, list):
        return f"{place} must be a list, not {_is(value)}"
    return next(filter(None, (_problem(*inner, depth - 1) for inner in _inside(value, wanted, place))), "")


def _inside(value: Any, wanted: Any, place: str) -> list[tuple[Any, Any, str]]:
    """Returns the parts of a value, each with what it must be; nothing is known (None) of most."""
    if isinstance(value, dict):
        known: Mapping[str, Any] = wanted if isinstance(wanted, dict) else {}
        return [
            (inner, known.get(name, known.get(ANY)), f"{place}.{name}".lstrip("."))
            for name, inner in value.items()
        ]
    if isinstance(value, list):
        return [(inner, wanted[0] if isinstance(wanted, list) else None, f"{place}[]") for inner in value]
    return []


def _is(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")
