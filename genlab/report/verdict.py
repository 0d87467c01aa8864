"""What a comparison says, in sentences."""

from __future__ import annotations

from genlab.report import fairness
from genlab.report.columns import chosen
from genlab.report.comparison import Comparison, Pair, in_order
from genlab.report.gather import number, part
from genlab.report.intervals import Difference
from genlab.report.rows import Row
from genlab.runs.settings import TRIAL_FACTORS

_MOST_LINES = 15  # of a verdict: what follows is in the table
LABELLED = "† was trained with labels, which the others did not see."
TESTED = (
    "Rows are told apart by Welch's test at 5 %, with Holm's correction for the number of all pairs; an "
    "interval is of its row or pair alone."
)
BOUND = "≤ is an upper bound."
DEQUANTISED = "the density is exact, and its bits of levels are a bound by dequantisation"

_Compared = list[tuple[Row, Difference | None]]


def verdict(comparison: Comparison) -> list[str]:
    """Returns what the headlines of the comparable rows say, in sentences: of each group what is its own."""
    return [line for group in comparison.groups for line in of_group(group)]


def short_verdict(comparison: Comparison, most: int) -> list[str]:
    """Returns the few sentences that say most: who leads, by how much, without labels, how fast.

    Args:
        comparison: What to say it of.
        most: Number of sentences; of several groups every first one comes before any second one.
    """
    told = [_short(group) for group in comparison.groups]
    order = sorted((place, number) for number, lines in enumerate(told) for place in range(len(lines)))
    kept = sorted(order[:most], key=lambda at: (at[1], at[0]))
    return [told[number][place] for place, number in kept]


def remarks(comparison: Comparison) -> list[str]:
    """Returns what stands below a table: verdict, what is set apart and why, what is unequal, notes."""
    lines = verdict(comparison)
    lines += [
        f"Not comparable: {row.name} has {', '.join(map(str, fields))}."
        for row, fields in comparison.uncompared
    ]
    for group in comparison.groups:
        lines += [
            f"Not held equal: {name} ({values})." for name, values in fairness.not_held_equal(group.rows)
        ]
    return lines + legend(comparison) + comparison.notes


def legend(comparison: Comparison) -> list[str]:
    """Returns what the marks of a table mean and what its rows have to be weighed by."""
    lines = [LABELLED] if any(row.uses_labels for row in comparison.all_rows) else []
    lines += [TESTED] if any(len(group.rows) > 2 for group in comparison.groups) else []
    return lines + _bounds(comparison) + _edges(comparison)


def _bounds(comparison: Comparison) -> list[str]:
    bits = chosen(["bits_per_dim"])[1]
    bounded = [row for row in comparison.all_rows if bits.cell(row).sign]
    exact = [row.name for row in bounded if "dequantisation" in _estimator(row)]
    if not bounded:
        return []
    return [f"{BOUND} Of {', '.join(exact)} {DEQUANTISED}." if exact else BOUND]


def _edges(comparison: Comparison) -> list[str]:
    """Returns the rows whose best learning rate was the smallest or largest that was tried."""
    names = [row.name for row in comparison.all_rows if not row.variant and _is_at_the_edge(row)]
    if not names:
        return []
    told = "have the smallest or largest of the learning rates tried: a better one may lie beyond"
    return [f"{', '.join(names)} {told}."]


def _is_at_the_edge(row: Row) -> bool:
    benches = [part(trained.record, "bench") for trained in row.runs]
    for bench in benches:
        tried = TRIAL_FACTORS[: int(number(bench.get("tuning_trials")) or 1)]
        factor = number(bench.get("learning_rate_factor"))
        if len(tried) > 1 and factor is not None and not min(tried) < factor < max(tried):
            return True
    return False


def _estimator(row: Row) -> str:
    return str(part(row.protocol, "likelihood").get("estimator") or "")


def of_group(group: Comparison) -> list[str]:
    """Returns what the headline of one group's rows says, in sentences."""
    scored = _scored(group)
    if not scored:
        return ["No comparable row has a score yet."]
    first, pairs = scored[0], group.pairs(scored, group.column)
    compared = _against(first, pairs)
    lines = [_lead(group, scored), *_ties(group, compared, pairs), *_undecided(compared)]
    lines += _worse(group, compared)
    return (
        lines
        + _without_labels(group, scored, pairs)
        + _likelihoods(group)
        + _fastest(group, first)
        + _troubles(group)
    )


def _short(group: Comparison) -> list[str]:
    scored = _scored(group)
    if not scored:
        return ["No comparable row has a score yet."]
    pairs = group.pairs(scored, group.column)
    compared = _against(scored[0], pairs)
    lines = [_lead(group, scored), *_ties(group, compared, pairs), *_undecided(compared)]
    lines += _range(group, compared) + _without_labels(group, scored, pairs)
    return lines + _fastest(group, scored[0]) + _troubles(group)


def _scored(group: Comparison) -> list[Row]:
    rows = [row for row in group.rows if row.numbers(*group.column.place)]
    return in_order(rows, group.column)


def _against(first: Row, pairs: list[Pair]) -> _Compared:
    """Returns how each row behind a row differs from it, of pairs that were tested together."""
    return [(later, found) for earlier, later, found in pairs if earlier is first]


def _lead(group: Comparison, scored: list[Row]) -> str:
    first, headline = scored[0], group.headline
    seeds = len(first.numbers(*group.column.place))
    found = f"{group.column.cell(first)}{_of_seeds(seeds)}"
    if len(scored) == 1:
        return f"{first.name} has {headline.title} {found}; no row can be compared with it."
    line = f"{first.name} has the {headline.best_is} {headline.title}, {found}."
    return line if seeds > 1 else f"{line} One training seed has no interval: nothing is decided about it."


def _worse(group: Comparison, compared: _Compared) -> list[str]:
    worse = [
        f"{row.name} {_distance(group, found, [found.value])} {_ends(found)}."
        for row, found in _decided(group, compared)
    ]
    further = len(worse) - _MOST_LINES
    told = f"{further} further models have a {group.headline.worse} {group.headline.title}, too."
    return worse if further <= 0 else [*worse[:_MOST_LINES], told]


def _range(group: Comparison, compared: _Compared) -> list[str]:
    found = [difference for _, difference in _decided(group, compared)]
    if not found:
        return []
    who = (
        "The others"
        if len(found) == len(compared) > 1
        else _named([row for row, _ in _decided(group, compared)])
    )
    values = sorted((difference.value for difference in found), key=abs)
    verb = _distance(group, found[0], [values[0], values[-1]] if len(values) > 1 else values, len(found) > 1)
    return [f"{who} {verb}."]


def _named(rows: list[Row]) -> str:
    return rows[0].name if len(rows) == 1 else f"{len(rows)} others"


def _decided(group: Comparison, compared: _Compared) -> list[tuple[Row, Difference]]:
    """Returns the rows that are worse by an interval."""
    return [(row, found) for row, found in compared if found and found.outcome == group.headline.worse]


def _distance(group: Comparison, found: Difference, values: list[float], several: bool = False) -> str:
    """Returns how far from the first row: by a factor of a logarithmic score, by a difference of another."""
    headline = group.headline
    if found.is_ratio:
        times = " to ".join(f"{value:.2f}" for value in values)
        return f"{'have' if several else 'has'} {times} times its {headline.title}"
    far = " to ".join(f"{abs(value):.3g}" for value in values)
    side = "above" if found.value > 0 else "below"
    return f"{'are' if several else 'is'} {far} {headline.unit or headline.title} {side} it"


def _ends(found: Difference) -> str:
    low, high = found.low or 0.0, found.high or 0.0
    if found.is_ratio:
        return f"[{low:.2f}, {high:.2f}]"
    near, far = sorted((abs(low), abs(high)))
    return f"[{near:.3g}, {far:.3g}]"


def _without_labels(group: Comparison, scored: list[Row], pairs: list[Pair]) -> list[str]:
    # Labels tell a model what to draw: its first place says little of the others.
    unlabelled = [row for row in scored if not row.uses_labels]
    if not scored[0].uses_labels or not unlabelled:
        return []
    first = unlabelled[0]
    compared = [(row, found) for row, found in _against(first, pairs) if not row.uses_labels]
    best = f"{group.headline.best_is} {group.headline.title}"
    return [
        f"Of the {len(unlabelled)} without labels, {first.name} has the {best}, "
        f"{group.column.cell(first)}{_tied(compared)}."
    ]


def _likelihoods(group: Comparison) -> list[str]:
    bits = chosen(["bits_per_dim"])[1]
    if group.column is bits:
        return []
    alike: dict[str, list[Row]] = {}  # exact ones and bounds, of the same images
    for row in in_order([row for row in group.rows if row.numbers(*bits.place)], bits):
        alike.setdefault(str(fairness.facts(row, fairness.LIKELIHOOD)), []).append(row)
    lines = []
    for rows in alike.values():
        first, *others = rows
        kind = "an upper bound" if bits.cell(first).sign else "an exact likelihood"
        how = _estimator(first)
        kind += f" ({how})" if how else ""
        compared = _against(first, group.pairs(rows, bits))
        lowest = f"{first.name} has the lowest bits/dim, {bits.cell(first)}{_tied(compared)}"
        lines += [f"Of the {1 + len(others)} models with {kind}, {lowest}."] if others else []
    return lines


def _fastest(group: Comparison, best: Row) -> list[str]:
    ms = chosen(["ms"])[1]
    everywhere = [row for row in in_order(group.rows, ms) if row.numbers(*ms.place)]
    timed = fairness.same_speed_place(everywhere)
    if len(timed) < 2:
        return []
    which = f"Of those timed {fairness.speed_place(timed[0])}, " if len(timed) < len(everywhere) else ""
    line = f"{which}{timed[0].name} draws a sample fastest, in {ms.cell(timed[0]).text} ms"
    slower = f"; {best.name} takes {ms.cell(best).text} ms" if best in timed[1:] else ""
    return [f"{line}{slower}."]


def _troubles(group: Comparison) -> list[str]:
    troubled = [row for row in group.rows if row.stability.problems and not row.variant]
    lines = []
    for row in troubled:
        num = len(row.numbers(*group.column.place))
        told = (
            f"its {group.headline.title} is of the {num} that have one" if num else "none of them has a score"
        )
        lines.append(f"{row.name}: {row.stability} of its trainings; {told}.")
    return lines


def _ties(group: Comparison, compared: _Compared, pairs: list[Pair]) -> list[str]:
    tied, headline = _names(compared, "tie"), group.headline
    what = f"log {headline.title}" if headline.is_logarithmic else headline.title
    return [f"Tied with it (no difference of {what} that {_test(pairs)} finds): {tied}."] if tied else []


def _test(pairs: list[Pair]) -> str:
    num = sum(found is not None and found.p is not None for _, _, found in pairs)
    corrected = f", corrected for {num} pairs," if num > 1 else ""
    return f"a test at 5 %{corrected}"


def _tied(compared: _Compared) -> str:
    tied = _names(compared, "tie")
    return f"; tied with it: {tied}" if tied else ""


def _names(compared: _Compared, outcome: str) -> str:
    return ", ".join(row.name for row, found in compared if found is not None and found.outcome == outcome)


def _undecided(compared: _Compared) -> list[str]:
    undecided = _names(compared, "undecided")
    return [f"Undecided, since one training seed has no interval: {undecided}."] if undecided else []


def _of_seeds(num: int) -> str:
    return f" over {num} training seeds" if num > 1 else " of one training seed"
