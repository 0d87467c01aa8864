"""What several training seeds say about a model: intervals for a mean, and for the difference of two means.

The spread over training seeds is the only one used here. The sampling noise of one model's score is another
quantity, smaller by far, and is never mixed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        p: Of Welch's two-sided test that the means are equal, None where there is no interval.
    """

    value: float
    low: float | None
    high: float | None
    outcome: str
    is_ratio: bool = False
    p: float | None = None


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
    value, welch = _mean(a) - _mean(b), _welch(a, b)
    if welch is None:
        outcome = "tie" if sorted(a) == sorted(b) else "undecided"
        return Difference(math.exp(value) if logs else value, None, None, outcome, logs)
    error, freedom = welch
    half = error and _quantile(freedom, confidence) * error
    low, high = value - half, value + half
    outcome = "tie" if low <= 0.0 <= high else ("lower" if high < 0.0 else "higher")
    p = _two_sided(value / error, freedom) if error else float(value == 0.0)
    if logs:
        value, low, high = math.exp(value), math.exp(low), math.exp(high)
    return Difference(value, low, high, outcome, logs, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values that may each be held against one level, however many are tested at once.

        p'_(k) = max over j <= k of min(1, (m - j + 1) p_(j)),    p_(1) <= ... <= p_(m)

    Holm's step-down (Holm 1979): the chance of a single false difference among all pairs stays below the
    level, whatever the pairs have in common.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for step, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - step) * p_values[place]))
        corrected[place] = highest
    return corrected


def told_apart(differences: Sequence[Difference | None]) -> list[Difference | None]:
    """Returns differences that are looked at together: a tie where Holm's correction leaves no difference.

    Their intervals stay those of one pair.
    """
    p_values = [found.p for found in differences if found is not None and found.p is not None]
    corrected = iter(holm(p_values))
    return [
        replace(found, outcome="tie")
        if found is not None and found.p is not None and next(corrected) > 1.0 - CONFIDENCE
        else found
        for found in differences
    ]


def spread(values: Sequence[float], logs: bool = False) -> float | None:
    """Returns the standard deviation, None for under two values; of logarithms, about the relative one."""
    if len(values) < 2 or (logs and min(values) <= 0):
        return None
    return math.sqrt(_variance([math.log(value) for value in values] if logs else values))


def root_mean_square(values: Sequence[float]) -> float:
    """Returns sqrt(mean of squares), the way standard deviations of independent seeds are averaged."""
    return math.sqrt(_mean([value * value for value in values]))


def _welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """Returns the standard error of the difference of two means and its degrees of freedom."""
    if min(len(a), len(b)) < 2:
        return None
    shares = [_variance(values) / len(values) for values in (a, b)]
    parts = sum(share**2 / (len(values) - 1) for share, values in zip(shares, (a, b), strict=True))
    if parts == 0:
        return 0.0, math.inf
    return math.sqrt(sum(shares)), sum(shares) ** 2 / parts


def _quantile(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit  # of all of scipy only this, which imports in a blink

    return float(stdtrit(freedom, 0.5 + confidence / 2))


def _two_sided(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return 2.0 * float(stdtr(freedom, -abs(t)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[Any]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
