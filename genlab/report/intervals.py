"""What several training seeds say about a model: intervals for a mean, and for the difference of two means.

The spread over training seeds is the only one used here. The sampling noise of one model's score is another
quantity, smaller by far, and is never mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over training seeds with its confidence interval.

    Attributes:
        value: The mean; of logarithms, their exponential (the geometric mean).
        low: Lower end; None where there is no interval, as for one seed.
        high: Upper end.
        num: Number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    num: int


@dataclass(frozen=True)
class Difference:
    """How two models differ, as a confidence interval of the difference of their means.

    Attributes:
        value: Mean of the first less mean of the second; of logarithms, the ratio first / second.
        low: Lower end, None where no interval can be had.
        high: Upper end.
        outcome: "tie" where the interval holds no difference (0, or the ratio 1), "lower" or "higher" for
            the first, "undecided" where there is no interval.
        is_ratio: Whether the three numbers are ratios.
    """

    value: float
    low: float | None
    high: float | None
    outcome: str
    is_ratio: bool = False


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Returns mean +- t(n - 1) s / sqrt(n), with s of n - 1; of one value, no interval.

    Args:
        values: One number a training seed.
        confidence: Share of such intervals that hold the true mean, if the values are normal.
    """
    num, mean = len(values), _mean(values)
    if num < 2:
        return Interval(mean, None, None, num)
    half = _quantile(num - 1, confidence) * math.sqrt(_variance(values) / num)
    return Interval(mean, mean - half, mean + half, num)


def log_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Returns the t-interval of the logarithms, mapped back: a geometric mean between two positive ends.

    Scores such as FID are positive and spread by factors: their logarithms are nearer to normal.
    A value that is not positive has no logarithm; then the plain interval is returned.
    """
    if min(values) <= 0:
        return t_interval(values, confidence)
    logs = t_interval([math.log(value) for value in values], confidence)
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Interval(math.exp(logs.value), low, high, logs.num)


def interval(values: Sequence[float], logs: bool = False) -> Interval:
    """Returns the t-interval of some values, or of their logarithms."""
    return log_interval(values) if logs else t_interval(values)


def difference(
    first: Sequence[float], second: Sequence[float], logs: bool = False, confidence: float = CONFIDENCE
) -> Difference:
    """Returns Welch's interval of the difference of two means, whose variances may differ.

        d = mean(a) - mean(b),   se^2 = s_a^2 / n_a + s_b^2 / n_b
        d +- t(nu) se,           nu = se^4 / (s_a^4 / (n_a^2 (n_a - 1)) + s_b^4 / (n_b^2 (n_b - 1)))

    (Welch 1947.) Equal sets of values are a tie, also those of one seed each.

    Args:
        first: One number a training seed.
        second: The other model's.
        logs: Compare logarithms; all three numbers are then the ratio first / second and its ends.
        confidence: Of the interval.
    """
    logs = logs and min(*first, *second) > 0
    a, b = ([math.log(v) for v in values] if logs else list(values) for values in (first, second))
    value, half = _mean(a) - _mean(b), _welch_half(a, b, confidence)
    if half is None:
        outcome = "tie" if sorted(a) == sorted(b) else "undecided"
        return Difference(math.exp(value) if logs else value, None, None, outcome, logs)
    low, high = value - half, value + half
    outcome = "tie" if low <= 0.0 <= high else ("lower" if high < 0.0 else "higher")
    if logs:
        value, low, high = math.exp(value), math.exp(low), math.exp(high)
    return Difference(value, low, high, outcome, logs)


def spread(values: Sequence[float], logs: bool = False) -> float | None:
    """Returns the standard deviation, None for under two values; of logarithms, about the relative one."""
    if len(values) < 2 or (logs and min(values) <= 0):
        return None
    return math.sqrt(_variance([math.log(value) for value in values] if logs else values))


def root_mean_square(values: Sequence[float]) -> float:
    """Returns sqrt(mean of squares), the way standard deviations of independent seeds are averaged."""
    return math.sqrt(_mean([value * value for value in values]))


def _welch_half(a: Sequence[float], b: Sequence[float], confidence: float) -> float | None:
    if min(len(a), len(b)) < 2:
        return None
    shares = [_variance(values) / len(values) for values in (a, b)]
    parts = sum(share**2 / (len(values) - 1) for share, values in zip(shares, (a, b), strict=True))
    if parts == 0:
        return 0.0
    return _quantile(sum(shares) ** 2 / parts, confidence) * math.sqrt(sum(shares))


def _quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit  # of all of scipy only this, which imports in a blink

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[Any]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
