"""What the report draws: each chart wide for a desk and narrow for a phone, with its numbers as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from genlab.report import chart, fairness, points
from genlab.report.chart import colour, colour_of, line_of, points_of
from genlab.report.columns import chosen, heading, shown
from genlab.report.comparison import Comparison
from genlab.report.gather import Evaluation, number, part
from genlab.report.points import End, Places, Point, Series, short_names
from genlab.report.rows import Row
from genlab.runs.headline import Headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 760, 370


class Entry(NamedTuple):
    """A line of a legend: the colour is 0 to 7 for c0 to c7, the mark a letter that looks like it."""

    name: str
    colour: int
    mark: str


@dataclass(frozen=True)
class Exhibit:
    """A chart, what it shows, and its numbers.

    Attributes:
        charts: The drawing for each width.
        told: The caption.
        heads: Headings of the numbers.
        numbers: Their lines, the model's name first.
        legend: Whose each line is, in the order in which they end; empty where names stand in the chart.
    """

    charts: list[Markup]
    told: str
    heads: Sequence[str]
    numbers: list[list[str]]
    legend: Sequence[Entry] = ()


def forest(group: Comparison, places: Places) -> Exhibit | None:
    """Draws every comparable row's score with its interval, and the floor."""
    headline, rows = group.headline, points.scored(group)
    if not rows:
        return None
    names, floor = short_names([row for row, _ in rows]), group.floor.get(headline.key)

    def draw(axes: Axes) -> None:
        _rows_of_scores(axes, headline, names)
        if floor and floor.value and points.can_be_drawn(floor.value, headline):
            _upright(axes, floor.value, "floor")
        for n, (row, found) in enumerate(rows):
            place = places[row.first.run.path]
            if found.low is not None and found.high is not None:
                axes.hlines(-n, found.low, found.high, color=colour_of(place), **_BAR)
            axes.plot([found.value], [-n], **points_of(place))

    title = f"{headline.title} of every comparable model with its 95 % interval over training seeds"
    numbers = [[row.name, shown(f.value), _end(f.low), _end(f.high), str(f.num)] for row, f in rows]
    scale = "on a logarithmic axis; " if headline.is_logarithmic else ""
    better = "left" if headline.lower_is_better else "right"
    told = f"{headline.title} with its 95 % interval over training seeds, {scale}farther {better} is better."
    heads = ("model", headline.title, "low", "high", "seeds")
    return Exhibit(_both(f"verdict-{headline.key}", title, 66 + 30 * len(rows), draw), told, heads, numbers)


def against_time(headline: Headline, rows: Sequence[Row], places: Places) -> Exhibit | None:
    """Draws the score against seconds of training."""
    label = "seconds of training"
    return _through_training(headline, rows, places, "time", lambda found: found.seconds, label)


def against_examples(headline: Headline, rows: Sequence[Row], places: Places) -> Exhibit | None:
    """Draws the score against examples seen."""
    label = heading(chosen(["examples"])[-1], rows)
    return _through_training(headline, rows, places, "examples", lambda found: found.examples_seen, label)


def against_steps(group: Comparison, places: Places) -> Exhibit | None:
    """Draws the score against network evaluations of one sample, from variants and from speed.json."""
    headline, series = group.headline, points.by_sampler(group)
    told = (
        f"{headline.title} against network evaluations a sample; a line joins one sampler with different "
        "numbers of steps."
    )
    label = "network evaluations a sample"
    return _lines("steps", headline, series, label, told, steps=True) if series else None


def pareto(group: Comparison, places: Places) -> Exhibit | None:
    """Draws the score against the milliseconds of one sample, and the models that no other beats in both."""
    headline, found = group.headline, points.with_speed(group)
    if len(found) < 2:
        return None  # one model is beaten by none
    best = points.frontier([(ms, f.value) for _, ms, f in found], headline)
    names, lines = short_names([row for row, _, _ in found]), []
    for name, (row, ms, f) in zip(names, found, strict=True):
        lines.append(Series(name, places[row.first.run.path], [Point(ms, f.value, f.low, f.high)]))

    def draw(axes: Axes) -> None:
        _scales(axes, headline, "milliseconds a sample", log_x=True)
        for one in lines:
            _bars(axes, one)
            axes.plot(*_xy(one), **points_of(one.place))
        _stairs(axes, [lines[n].points[0][:2] for n in best], headline)
        ends = [(x, end) for one in lines for x, *both in one.bounded for end in both]
        chart.label_points(axes, [one.points[0][:2] for one in lines], names, ends)

    title = f"{headline.title} against milliseconds a sample, with the frontier of models that none beats"
    down = "down" if headline.lower_is_better else "up"
    told = (
        f"{headline.title} against milliseconds a sample: {down} and to the left is better. The dotted line "
        "joins the models that no other beats in both quality and speed. All were timed "
        f"{fairness.speed_place(found[0][0])}; those timed otherwise are left out."
    )
    marks = ["yes" if n in best else "" for n in range(len(found))]
    numbers = [[r.name, shown(ms), shown(f.value), m] for (r, ms, f), m in zip(found, marks, strict=True)]
    heads = ("model", "ms/sample", headline.title, "on the frontier")
    return Exhibit(_both(f"speed-{headline.key}", title, 400, draw), told, heads, numbers)


def seeds(headline: Headline, rows: Sequence[Row], places: Places) -> Exhibit | None:
    """Draws the last and the best evaluation of every training, a cross where it did not end well."""
    of_rows = [(row, found) for row in rows if (found := points.ends(row, headline))]
    if not of_rows:
        return None
    names = short_names([row for row, _ in of_rows])

    def draw(axes: Axes) -> None:
        _rows_of_scores(axes, headline, names)
        for n, (row, found) in enumerate(of_rows):
            _draw_ends(axes, places[row.first.run.path], found, -n)

    numbers = [[r.name, e.seed, e.ended, shown(e.last), shown(e.best)] for r, found in of_rows for e in found]
    heads = ("model", "seed", "ended", f"{headline.title} last", f"{headline.title} best")
    title = f"Last and best {headline.title} of every training; crosses collapsed, diverged or failed"
    told = (
        f"For each training, filled: its last {headline.title}; hollow: its best; a cross: it collapsed, "
        "diverged or failed."
    )
    charts = _both(f"stability-{headline.key}", title, 66 + 30 * len(of_rows), draw)
    return Exhibit(charts, told, heads, numbers)


def copies(row: Row, name: str) -> Exhibit | None:
    """Draws how far samples and test images lie from the training split; `name` begins the drawing's ids."""
    for entry in row.entries:
        histogram = part(entry, "copies", "histogram")
        edges, samples, test = (_numbers_of(histogram.get(key)) for key in ("edges", "samples", "test"))
        if len(edges) > 1 and len(edges) == len(samples) + 1 == len(test) + 1:
            told = _copies_told(row, part(entry, "copies"))
            return _histogram(row, name, told, edges, _shares(samples), _shares(test))
    return None


def shares(name: str, found: Mapping[str, float]) -> Exhibit | None:
    """Draws how much of a score's variance each setting of a sweep explains; `name` begins the drawing's ids.

    Args:
        name: Of the drawing.
        found: The shares, 0 to 1, by the settings' names.
    """
    if not found:
        return None

    def draw(axes: Axes) -> None:
        axes.barh([-n for n in range(len(found))], [100 * s for s in found.values()], 0.6, color=colour("c0"))
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the score's variance, %")
        chart.named_rows(axes, list(found))

    told = "How much of the score's variance over the trials each setting explains (fANOVA)."
    numbers = [[setting, f"{share:.0%}"] for setting, share in found.items()]
    return Exhibit(_both(name, told, 66 + 30 * len(found), draw), told, ("setting", "share"), numbers)


def _through_training(
    headline: Headline,
    rows: Sequence[Row],
    places: Places,
    name: str,
    where: Callable[[Evaluation], float],
    label: str,
) -> Exhibit | None:
    found = [(row, curve) for row in rows if (curve := points.over_seeds(row, headline, where))]
    names = short_names([row for row, _ in found])
    series = [
        Series(label, places[row.first.run.path], curve)
        for label, (row, curve) in zip(names, found, strict=True)
    ]
    mean = "geometric mean" if headline.is_logarithmic else "mean"
    told = (
        f"{headline.title} of each evaluation against {label}: the line is the {mean} over seeds, the band "
        "reaches from the best seed to the worst."
    )
    return _lines(name, headline, series, label, told) if series else None


def _lines(
    name: str, headline: Headline, series: list[Series], label: str, told: str, steps: bool = False
) -> Exhibit:
    def draw(axes: Axes) -> None:
        _scales(axes, headline, label, log_x=steps)
        for one in series:
            _bars(axes, one) if steps else _band(axes, one)
        for one in series:
            look = {**points_of(one.place, size=9 if steps else 6.5), **line_of(one.place)}
            axes.plot(*_xy(one), **look)
        if not steps:
            axes.set_xlim(left=0)

    by_end = sorted(series, key=lambda one: -one.points[-1].y)
    legend = [Entry(s.label, s.place % chart.COLOURS, chart.MARKS[chart.mark_of(s.place)]) for s in by_end]
    numbers = [[one.label, shown(p.x), shown(p.y)] for one in series for p in one.points]
    heads = ("model", label, headline.title)
    return Exhibit(_both(f"{name}-{headline.key}", told, 400, draw), told, heads, numbers, legend)


def _histogram(
    row: Row, name: str, told: str, edges: list[float], samples: list[float], test: list[float]
) -> Exhibit:
    def draw(axes: Axes) -> None:
        axes.stairs(test, edges, baseline=None, color=colour("c1"), linestyle="--", linewidth=2)
        axes.stairs(samples, edges, baseline=None, color=colour("c0"), linewidth=2)
        axes.set_xlabel("distance to the nearest training image")
        axes.set_title("share")
        axes.set_ylim(bottom=0)

    bins = zip(pairwise(edges), samples, test, strict=True)
    lines = [[f"{low:g} to {high:g}", shown(s), shown(t)] for (low, high), s, t in bins]
    title = f"Distances of samples and of test images of {row.name} to the nearest training image"
    drawing = chart.drawn(name, title, (NARROW, 240), draw)
    return Exhibit([drawing], told, ("distance", "samples", "test images"), lines)


def _copies_told(row: Row, found: dict[str, Any]) -> str:
    share, median = number(found.get("share")), number(found.get("median_ratio"))
    told = [f"{row.name}: samples (solid) and test images (dashed)."]
    if share is not None:
        threshold = found.get("threshold") or "threshold"
        told.append(f"{100 * share:.1f} % of the samples are nearer than the {threshold}.")
    if median is not None:
        told.append(f"Median distance {median:.2f} times that of test images.")
    return " ".join(told)


# Parts of drawings


def _both(name: str, title: str, height: int, draw: Callable[[Axes], None]) -> list[Markup]:
    return [
        chart.drawn(f"{name}-{kind}", title, (width, height), draw, kind)
        for kind, width in (("wide", WIDE), ("narrow", NARROW))
    ]


def _scales(axes: Axes, headline: Headline, label: str, log_x: bool) -> None:
    chart.logarithmic(axes, x=log_x, y=headline.is_logarithmic)
    axes.set_xlabel(label)
    axes.set_title(headline.label)


def _rows_of_scores(axes: Axes, headline: Headline, names: list[str]) -> None:
    chart.logarithmic(axes, x=headline.is_logarithmic)
    axes.set_xlabel(headline.label)
    chart.named_rows(axes, names)


def _xy(one: Series) -> tuple[list[float], list[float]]:
    return [point.x for point in one.points], [point.y for point in one.points]


_BAR: dict[str, Any] = {"alpha": 0.55, "linewidth": 2.4, "capstyle": "round"}


def _bars(axes: Axes, one: Series) -> None:
    if one.bounded:
        axes.vlines(*zip(*one.bounded, strict=True), color=colour_of(one.place), **_BAR)


def _band(axes: Axes, one: Series) -> None:
    if len(one.bounded) > 1:
        x, low, high = zip(*one.bounded, strict=True)
        axes.fill_between(x, low, high, color=colour_of(one.place), alpha=0.11, linewidth=0)


def _upright(axes: Axes, value: float, name: str) -> None:
    soft = colour("soft")
    axes.axvline(value, color=soft, linewidth=1.2, linestyle=(0, (4, 3)))
    place = axes.get_xaxis_transform()
    axes.annotate(name, (value, 1), (5, -2), place, textcoords="offset points", va="top", color=soft)


def _stairs(axes: Axes, corners: list[tuple[float, float]], headline: Headline) -> None:
    """Draws the frontier of points from left to right: nothing lies beyond it."""
    end, worst = axes.get_xlim()[1], axes.get_ylim()[headline.lower_is_better]
    axes.autoscale(False)
    x = [corners[0][0], *(x for x, _ in corners), end]
    y = [worst, *(y for _, y in corners), corners[-1][1]]
    axes.step(x, y, where="post", color=colour("soft"), linewidth=1.4, linestyle=":", zorder=1)


def _draw_ends(axes: Axes, place: int, ends: list[End], y: float) -> None:
    best, crosses = [end.best for end in ends], points_of(place)
    crosses |= {"marker": "x", "markeredgecolor": colour_of(place), "markeredgewidth": 2.4}
    axes.hlines([y] * len(ends), best, [end.last for end in ends], color=colour_of(place), **_BAR)
    axes.plot(best, [y] * len(best), **points_of(place, hollow=True))
    for look, is_sound in ((points_of(place), True), (crosses, False)):
        last = [end.last for end in ends if (end.ended == "sound") is is_sound]
        axes.plot(last, [y] * len(last), **look)


def _numbers_of(values: Any) -> list[float]:
    plain = [number(value) for value in values] if isinstance(values, list) else []
    return [] if None in plain else [value for value in plain if value is not None]


def _shares(counts: list[float]) -> list[float]:
    total = sum(counts) or 1.0
    return [value / total for value in counts]


def _end(value: float | None) -> str:
    return "" if value is None else shown(value)
