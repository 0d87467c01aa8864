"""What a comparison says, in sentences."""

from __future__ import annotations

from genlab.report import fairness
from genlab.report.columns import chosen
from genlab.report.comparison import Comparison, in_order
from genlab.report.gather import part
from genlab.report.intervals import Difference
from genlab.report.rows import Row

_MOST_LINES = 15  # of a verdict: what follows is in the table


def verdict(comparison: Comparison) -> list[str]:
    """Returns what the FIDs of the comparable rows say, in sentences."""
    fid = chosen(["fid"])[1]
    scored = [row for row in comparison.rows if row.numbers(*fid.place)]
    if not scored:
        return ["No comparable row has an FID yet."]
    first, *others = scored
    seeds = len(first.numbers(*fid.place))
    lines = [f"{first.name} has the lowest FID, {fid.cell(first)}{_of_seeds(seeds)}."]
    if seeds == 1:
        lines[0] += " One training seed has no interval: nothing is decided about it."
    compared = [(row, comparison.against(row, first, fid)) for row in others]
    lines += _ties(first, compared) + _undecided(compared)
    higher = [
        f"{row.name} has {found.value:.2f} times its FID [{found.low:.2f}, {found.high:.2f}]."
        for row, found in compared
        if found is not None
        and found.outcome == "higher"
        and found.low is not None
        and found.high is not None
    ]
    lines += higher[:_MOST_LINES]
    if len(higher) > _MOST_LINES:
        lines.append(f"{len(higher) - _MOST_LINES} further models have a higher FID, too.")
    lines += _without_labels(comparison, scored)
    return lines + _likelihoods(comparison) + _fastest(comparison, first) + _troubles(comparison)


def _without_labels(comparison: Comparison, scored: list[Row]) -> list[str]:
    # Labels tell a model what to draw: its first place says little of the others.
    unlabelled = [row for row in scored if not row.uses_labels]
    if not scored[0].uses_labels or not unlabelled:
        return []
    fid = chosen(["fid"])[1]
    first, *others = unlabelled
    compared = [(row, comparison.against(row, first, fid)) for row in others]
    lowest = f"{first.name} has the lowest FID, {fid.cell(first)}{_tied(compared)}"
    return [f"Of the {len(unlabelled)} without labels, {lowest}."]


def _likelihoods(comparison: Comparison) -> list[str]:
    bits = chosen(["bits_per_dim"])[1]
    alike: dict[str, list[Row]] = {}  # exact ones and bounds, of the same images
    for row in in_order([row for row in comparison.rows if row.numbers(*bits.place)], bits):
        alike.setdefault(str(fairness.facts(row, fairness.LIKELIHOOD)), []).append(row)
    lines = []
    for first, *others in alike.values():
        kind = "an upper bound" if bits.cell(first).sign else "an exact likelihood"
        how = part(first.protocol, "likelihood").get("estimator")
        kind += f" ({how})" if how else ""
        compared = [(row, comparison.against(row, first, bits)) for row in others]
        lowest = f"{first.name} has the lowest bits/dim, {bits.cell(first)}{_tied(compared)}"
        lines += [f"Of the {1 + len(others)} models with {kind}, {lowest}."] if others else []
    return lines


def _fastest(comparison: Comparison, best: Row) -> list[str]:
    ms = chosen(["ms"])[1]
    timed = [row for row in in_order(comparison.rows, ms) if row.numbers(*ms.place)]
    if len(timed) < 2 or len({row.first.hardware for row in timed}) > 1:
        return []
    line = f"{timed[0].name} draws a sample fastest, in {ms.cell(timed[0]).text} ms"
    slower = f"; {best.name} takes {ms.cell(best).text} ms" if best in timed[1:] else ""
    return [f"{line}{slower}."]


def _troubles(comparison: Comparison) -> list[str]:
    troubled = [row for row in comparison.rows if row.stability.problems and not row.variant]
    lines = []
    for row in troubled:
        num = len(row.numbers("values", "fid"))
        shown_fid = f"its FID is of the {num} that have one" if num else "none of them has an FID"
        lines.append(f"{row.name}: {row.stability} of its trainings; {shown_fid}.")
    return lines


def remarks(comparison: Comparison) -> list[str]:
    """Returns what stands below a table: verdict, what is set apart and why, what is unequal, notes."""
    lines = verdict(comparison)
    lines += [
        f"Not comparable: {row.name} has {', '.join(map(str, fields))}." for row, fields in comparison.apart
    ]
    lines += [
        f"Not held equal: {name} ({values})." for name, values in fairness.not_held_equal(comparison.rows)
    ]
    if any(row.uses_labels for row in comparison.all_rows):
        lines.append("† was trained with labels, which the others did not see.")
    return lines + comparison.notes


def _ties(first: Row, compared: list[tuple[Row, Difference | None]]) -> list[str]:
    tied = _names(compared, "tie")
    return (
        [f"Tied with it (the 95 % interval of the difference of log FID contains 0): {tied}."] if tied else []
    )


def _tied(compared: list[tuple[Row, Difference | None]]) -> str:
    tied = _names(compared, "tie")
    return f"; tied with it: {tied}" if tied else ""


def _names(compared: list[tuple[Row, Difference | None]], outcome: str) -> str:
    return ", ".join(row.name for row, found in compared if found is not None and found.outcome == outcome)


def _undecided(compared: list[tuple[Row, Difference | None]]) -> list[str]:
    undecided = _names(compared, "undecided")
    return [f"Undecided, since one training seed has no interval: {undecided}."] if undecided else []


def _of_seeds(num: int) -> str:
    return f" over {num} training seeds" if num > 1 else " of one training seed"
