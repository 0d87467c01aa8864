"""Amounts as people write them: 10k or 1e6 examples, 90s or 5m of time."""

from __future__ import annotations

import math

COUNTS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Examples(int):
    """A number of examples, also as a text: 300000, 300k, 1M, 1e6."""

    def __new__(cls, amount: str | float) -> Examples:
        return super().__new__(cls, round(_number(amount, COUNTS, "examples such as 300000, 300k or 1e6")))


class Seconds(float):
    """A time in seconds, also as a text: 90, 90s, 5m, 1h."""

    def __new__(cls, amount: str | float) -> Seconds:
        return super().__new__(cls, _number(amount, {"": 1.0, **SECONDS}, "a time such as 90, 90s or 5m"))


def _number(amount: str | float, units: dict[str, float], what: str) -> float:
    text = str(amount).strip()
    unit = text[-1:] if text[-1:].isalpha() else ""
    try:
        number = float(text.removesuffix(unit)) * units[unit]
    except (ValueError, KeyError):
        number = math.nan
    if isinstance(amount, bool) or not math.isfinite(number):
        raise ValueError(f"must be {what}, got {amount!r}")
    return number
