"""What the report draws: each figure wide for a desk and narrow for a phone, with its numbers as a table."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from genlab.report import fairness
from genlab.report.chart import Axis, Chart, Series, room_for, steps
from genlab.report.columns import shown
from genlab.report.comparison import Comparison
from genlab.report.gather import Evaluation, number, part, score
from genlab.report.intervals import log_interval
from genlab.report.markup import Markup, breakable, tag
from genlab.report.rows import Row, how_it_ended

WIDE, NARROW = 760, 370

Numbers = list[list[str]]
_Point = tuple[float, float, float | None, float | None]


def figure(draw: Callable[[int], Chart], told: str, heads: Sequence[str], numbers: Numbers) -> Markup:
    """Returns a chart at both widths, what it shows, and its numbers.

    Args:
        draw: Takes a width to a chart.
        told: The caption.
        heads: Headings of the numbers.
        numbers: Their lines, the model's name first.
    """
    charts = [draw(WIDE).svg("wide"), draw(NARROW).svg("narrow")]
    head = tag("tr", [tag("th", text, scope="col") for text in heads])
    lines = [
        tag(
            "tr",
            tag("th", breakable(line[0]), scope="row"),
            [tag("td", text, class_="number") for text in line[1:]],
        )
        for line in numbers
    ]
    table = tag("table", tag("caption", told, class_="unseen"), tag("thead", head), tag("tbody", lines))
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=f"Numbers: {told}")
    return tag("figure", charts, tag("figcaption", told), tag("details", tag("summary", "Numbers"), scroll))


def forest(comparison: Comparison) -> Markup | None:
    """Draws every comparable row's FID with its interval, and the floor."""
    rows = [(row, found) for row in comparison.rows if (found := row.over_seeds("values", "fid"))]
    rows = [(row, found) for row, found in rows if found.value > 0]
    if not rows:
        return None
    floor = comparison.floor.get("fid")
    ends = [end for _, f in rows for end in (f.value, f.low, f.high) if end is not None]
    axis = Axis.around([*ends, *([floor.value] if floor and floor.value else [])], "FID", log=True)
    names, places = _short_names([row for row, _ in rows]), _places(comparison.all_rows)

    def draw(width: int) -> Chart:
        title = "FID of every comparable model with its 95 % interval over training seeds"
        y = Axis(0, len(rows), "", False)
        chart = Chart(axis, y, title, width, 66 + 30 * len(rows), rows=_fitting(names, width))
        if floor and floor.value:
            chart.upright(floor.value, "floor")
        for place, (row, found) in enumerate(rows):
            height = len(rows) - place - 0.5
            colour = places[row.first.run.path]
            one = Series(row.name, colour, [(found.value, height)], [found.low], [found.high])
            chart.bars(one, sideways=True)
            chart.marks(one)
        return chart

    numbers = [[row.name, shown(f.value), _end(f.low), _end(f.high), str(f.num)] for row, f in rows]
    told = "FID with its 95 % interval over training seeds, on a logarithmic axis; farther left is better."
    return figure(draw, told, ("model", "FID", "low", "high", "seeds"), numbers)


def against_time(rows: Sequence[Row]) -> Markup | None:
    """Draws FID against seconds of training."""
    return _through_training(rows, lambda evaluation: evaluation.seconds, "seconds of training")


def against_images(rows: Sequence[Row]) -> Markup | None:
    """Draws FID against images seen."""
    return _through_training(rows, lambda evaluation: float(evaluation.examples_seen), "images seen")


def against_steps(comparison: Comparison) -> Markup | None:
    """Draws FID against network evaluations of one sample, from variants and from speed.json."""
    found: dict[str, dict[float, _Point]] = {}
    for row, name in zip(comparison.rows, _short_names(comparison.rows), strict=True):
        fid, nfe = row.over_seeds("values", "fid"), row.over_seeds("speed", "nfe")
        if fid and nfe and fid.value > 0 and nfe.value > 0:
            points = found.setdefault(_sampler(name), {})
            points[nfe.value] = (nfe.value, fid.value, fid.low, fid.high)
    for row, name in zip(comparison.rows, _short_names(comparison.rows), strict=True):
        for sampler, point in _speed_file(row):
            found.setdefault(f"{name}/{sampler}", {}).setdefault(point[0], point)  # a variant's has intervals
    ways = Counter(name.partition("/")[0] for name, points in found.items() for _ in points)
    found = {name: points for name, points in found.items() if ways[name.partition("/")[0]] > 1}
    if not found:  # no weights were sampled in several numbers of steps
        return None
    series = [
        Series(name, place, [(p[0], p[1]) for p in points], [p[2] for p in points], [p[3] for p in points])
        for place, (name, points) in enumerate((n, sorted(p.values())) for n, p in found.items())
    ]
    told = (
        "FID against network evaluations a sample; a line joins one sampler with different numbers of steps."
    )
    return _lines(series, "network evaluations a sample", told, log_x=True, bars=True)


def pareto(comparison: Comparison) -> Markup | None:
    """Draws FID against the milliseconds of one sample, with the models that no other one beats in both."""
    found = []
    for row in comparison.rows:
        fid, ms = row.over_seeds("values", "fid"), row.over_seeds("speed", "ms_per_sample")
        if fid and ms and fid.value > 0 and ms.value > 0:
            found.append((row, ms.value, fid))
    if not found:
        return None
    best = frontier([(ms, fid.value) for _, ms, fid in found])
    names, places = _short_names([row for row, _, _ in found]), _places(comparison.all_rows)
    series = [
        Series(name, places[row.first.run.path], [(ms, f.value)], [f.low], [f.high])
        for name, (row, ms, f) in zip(names, found, strict=True)
    ]
    y = Axis.around(
        [e for _, _, f in found for e in (f.value, f.low, f.high) if e is not None], "FID", log=True
    )
    x = Axis.around([ms for _, ms, _ in found], "milliseconds a sample", log=True)

    def draw(width: int) -> Chart:
        chart = Chart(
            x,
            y,
            "FID against milliseconds a sample, with the frontier of models that no other beats",
            width,
            420 if width == WIDE else 360,
        )
        chart.stairs([(found[n][1], found[n][2].value) for n in best])
        for one in series:
            chart.bars(one)
            chart.marks(one)
        chart.point_labels(series, [[one.label] for one in series])
        return chart

    numbers = [
        [row.name, shown(ms), shown(f.value), "yes" if n in best else ""]
        for n, (row, ms, f) in enumerate(found)
    ]
    told = (
        "Down and to the left is better. The dotted line joins the models that no other beats in both "
        "quality and speed."
    )
    return figure(draw, told, ("model", "ms/sample", "FID", "on the frontier"), numbers)


def seeds(rows: Sequence[Row]) -> Markup | None:
    """Draws the last and the best evaluation of every training, a cross where it did not end well."""
    shown_rows = [row for row in rows if any(t.evaluations for t in row.runs)]
    if not shown_rows:
        return None
    names, places = _short_names(shown_rows), _places(rows)
    values = [
        f
        for row in shown_rows
        for t in row.runs
        if (fids := [e.fid for e in t.evaluations])
        for f in (fids[-1], min(fids))
    ]
    axis = Axis.around(values, "FID", log=True)

    def draw(width: int) -> Chart:
        title = (
            "Last and best FID of every training; crosses are trainings that collapsed, diverged or failed"
        )
        chart = Chart(
            axis,
            Axis(0, len(shown_rows), ""),
            title,
            width,
            66 + 30 * len(shown_rows),
            rows=_fitting(names, width),
        )
        for place, row in enumerate(shown_rows):
            height, colour = len(shown_rows) - place - 0.5, places[row.first.run.path]
            runs = [t for t in row.runs if t.evaluations]
            bad = frozenset(n for n, t in enumerate(runs) if how_it_ended(t) != "sound")
            last = [(t.evaluations[-1].fid, height) for t in runs]
            best = [(min(e.fid for e in t.evaluations), height) for t in runs]
            for (a, _), (b, _) in zip(best, last, strict=True):
                chart.bars(Series("", colour, [(a, height)], [a], [b]), sideways=True)
            chart.marks(Series(f"{row.name}, best", colour, best), hollow=True)
            chart.marks(Series(f"{row.name}, last", colour, last, crosses=bad))
        return chart

    numbers = [
        [
            row.name,
            str(t.seed),
            how_it_ended(t),
            shown(t.evaluations[-1].fid),
            shown(min(e.fid for e in t.evaluations)),
        ]
        for row in shown_rows
        for t in row.runs
        if t.evaluations
    ]
    told = (
        "For each training, filled: its last evaluation; hollow: its best; a cross: it collapsed, diverged "
        "or failed."
    )
    return figure(draw, told, ("model", "seed", "ended", "FID last", "FID best"), numbers)


def copies(row: Row) -> Markup | None:
    """Draws how far samples and test images lie from the training split."""
    for entry in row.entries:
        found = part(entry, "copies")
        histogram = part(found, "histogram")
        edges, samples, test = (_numbers_of(histogram.get(name)) for name in ("edges", "samples", "test"))
        if len(edges) > 1 and len(edges) == len(samples) + 1 == len(test) + 1:
            return _histogram(row, found, edges, _shares(samples), _shares(test))
    return None


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the places of the points that no other one beats in both numbers, from left to right."""
    order = sorted(range(len(points)), key=lambda n: points[n])
    kept: list[int] = []
    for place in order:
        if not kept or points[place][1] < points[kept[-1]][1]:
            kept.append(place)
    return kept


def _through_training(rows: Sequence[Row], where: Callable[[Evaluation], float], label: str) -> Markup | None:
    found = [(row, curve) for row in rows if (curve := _over_seeds(row, where))]
    if not found:
        return None
    names, places = _short_names([row for row, _ in found]), _places(rows)
    series = [
        Series(
            name,
            places[row.first.run.path],
            [(x, y) for x, y, _, _ in curve],
            [low for _, _, low, _ in curve],
            [high for *_, high in curve],
        )
        for name, (row, curve) in zip(names, found, strict=True)
    ]
    told = (
        f"FID of each evaluation against {label}: the line is the geometric mean over seeds, the band "
        "reaches from the best seed to the worst."
    )
    return _lines(series, label, told)


def _over_seeds(row: Row, where: Callable[[Evaluation], float]) -> list[tuple[float, float, float, float]]:
    """Returns x, mean, lowest and highest FID of the n-th evaluation of all seeds that reached it."""
    curves = [[e for e in t.evaluations if e.fid > 0] for t in row.runs]
    points = []
    for place in range(max(map(len, curves), default=0)):
        reached = [curve[place] for curve in curves if len(curve) > place]
        fids = [e.fid for e in reached]
        x = sum(map(where, reached)) / len(reached)
        points.append((x, log_interval(fids).value, min(fids), max(fids)))
    return points


def _lines(series: list[Series], label: str, told: str, log_x: bool = False, bars: bool = False) -> Markup:
    x = Axis.around([x for one in series for x, _ in one.points], label, log=log_x, zero=not log_x)
    y = Axis.around([y for one in series for y in _heights(one)], "FID", log=True)

    def draw(width: int) -> Chart:
        right = room_for([one.label for one in series], 220 if width == WIDE else 112)
        height = max(400 if width == WIDE else 340, 90 + 15 * len(series))
        chart = Chart(x, y, told, width, height, right)
        for one in series:
            chart.bars(one) if bars else chart.band(one)
        for one in series:
            chart.line(one)
            chart.marks(one, small=not bars)
        late = [one for one in series if x.share(one.points[-1][0]) > 0.8]
        early = [one for one in series if one not in late]
        chart.end_labels(late)
        chart.point_labels(early, [[""] * (len(one.points) - 1) + [one.label] for one in early])
        return chart

    numbers = [[one.label, shown(px), shown(py)] for one in series for px, py in one.points]
    return figure(draw, told, ("model", label, "FID"), numbers)


def _heights(one: Series) -> list[float]:
    return [y for _, y in one.points] + [end for end in (*one.low, *one.high) if end is not None]


def _histogram(
    row: Row, found: dict[str, Any], edges: list[float], samples: list[float], test: list[float]
) -> Markup:
    x = Axis(edges[0], edges[-1], "distance to the nearest training image")
    y = Axis(0.0, 1.08 * max(*samples, *test, 1e-9), "share")
    title = f"Distances of samples and of test images of {row.name} to the nearest training image"

    def draw(width: int) -> Chart:
        chart = Chart(x, y, title, width // 2 if width == WIDE else width, 240)
        for place, heights in ((9, test), (0, samples)):
            chart.line(Series("", place, list(steps(edges, heights))))
        return chart

    share, median = number(found.get("share")), number(found.get("median_ratio"))
    told = f"{row.name}: samples (solid) and test images (dashed)."
    if share is not None:
        threshold = found.get("threshold") or "threshold"
        told += f" {100 * share:.1f} % of the samples are nearer than the {threshold}."
    if median is not None:
        told += f" Median distance {median:.2f} times that of test images."
    lines = [
        [f"{a:g} to {b:g}", shown(s), shown(t)]
        for a, b, s, t in zip(edges[:-1], edges[1:], samples, test, strict=True)
    ]
    return figure(draw, told, ("distance", "samples", "test images"), lines)


def _sampler(name: str) -> str:
    """Returns a row's name without the number at its end: ddpm/ddim-10 and ddpm/ddim-50 are one sampler."""
    return re.sub(r"(?<=/)(.*?)[-_ ]?\d+$", r"\1", name).rstrip("/") or name


def _speed_file(row: Row) -> list[tuple[str, _Point]]:
    """Returns sampler and point of each line that `genlab speed` wrote and whose protocol is the row's."""
    if row.variant:
        return []
    held: Any = {}
    for file in (row.first.run.path / "speed" / "speed.json", row.first.run.path / "speed.json"):
        with suppress(OSError, ValueError):
            held = json.loads(file.read_text(encoding="utf-8"))
            break
    if not isinstance(held, dict) or not fairness.is_scored_alike(row, part(held, "protocol")):
        return []
    lines = held.get("points") or held.get("rows")
    points: list[tuple[str, _Point]] = []
    for line in lines if isinstance(lines, list) else []:
        found = (
            score({str(line.get("metric")): line.get("value"), **line}, "fid")
            if isinstance(line, dict)
            else None
        )
        passes = number(line.get("passes", line.get("nfe"))) if found else None
        if found and passes and found[1] > 0 < passes:
            points.append((str(line.get("sampler", "")).lower(), (passes, found[1], None, None)))
    return points


def _places(rows: Sequence[Row]) -> dict[Path, int]:
    """Returns a number for each training: it has the same colour in every figure."""
    return {path: number for number, path in enumerate(dict.fromkeys(row.first.run.path for row in rows))}


def _short_names(rows: Sequence[Row]) -> list[str]:
    """Returns the names without the ending that all experiments share, such as `_digits`."""
    short = dict(
        zip(experiments := [row.first.experiment for row in rows], _without_ending(experiments), strict=True)
    )
    return [row.name.replace(row.first.experiment, short[row.first.experiment], 1) for row in rows]


def _without_ending(experiments: list[str]) -> list[str]:
    endings = {name.rpartition("_")[2] for name in experiments}
    ending = f"_{endings.pop()}" if len(endings) == 1 and len(set(experiments)) > 1 else ""
    return [name.removesuffix(ending) or name for name in experiments]


def _fitting(names: Sequence[str], width: int) -> list[str]:
    most = 30 if width == WIDE else 15
    return [name if len(name) <= most else name[: most - 1] + "…" for name in names]


def _numbers_of(values: Any) -> list[float]:
    plain = [number(value) for value in values] if isinstance(values, list) else []
    return [] if None in plain else [value for value in plain if value is not None]


def _shares(counts: list[float]) -> list[float]:
    total = sum(counts) or 1.0
    return [value / total for value in counts]


def _end(value: float | None) -> str:
    return "" if value is None else shown(value)
