"""Charts as inline SVG: axes, logarithms, intervals, direct labels; colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from genlab.report.markup import Markup, tag

COLOURS = 8
"""The style has this many, .c0 to .c7; further series repeat them with another mark and dash."""

_MARKS = 5
_NARROW, _WIDE = "iljtfrI/.,:;'|()[]- ", "mwMW"
_LINE = 15.0
_numbers = count()


@dataclass(frozen=True)
class Axis:
    """One axis.

    Args:
        low: Smallest value that must be shown.
        high: Largest one.
        label: What it shows, with its unit.
        log: Whether equal factors are equally long.
    """

    low: float
    high: float
    label: str
    log: bool = False

    @classmethod
    def around(cls, values: Sequence[float], label: str, log: bool = False, zero: bool = False) -> Axis:
        """Returns an axis with room around the values; a logarithmic one leaves out what has no logarithm."""
        shown = [v for v in values if v > 0 or not log] or ([1.0] if log else [0.0])
        low, high = min(shown), max(shown)
        if log:
            room = max((high / low) ** 0.06, 1.08)
            return cls(low / room, high * room, label, True)
        low = min(low, 0.0) if zero else low
        room = 0.05 * ((high - low) or abs(high) or 1.0)
        return cls(low if zero and low == 0 else low - room, high + room, label)

    def share(self, value: float) -> float:
        """Returns where a value lies, 0 at the low end and 1 at the high one; never beyond."""
        if self.log:
            value, low, high = (math.log(max(v, 1e-300)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(max((value - low) / ((high - low) or 1.0), -0.02), 1.02)

    def ticks(self, most: int) -> list[float]:
        """Returns round values on the axis, about `most` of them."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


@dataclass(frozen=True)
class Series:
    """Points of one model.

    Attributes:
        label: Its name.
        place: Chooses colour, mark and dash.
        points: x and y of each.
        low: Lower ends of the intervals of y, None where there are none.
        high: Upper ends.
        crosses: Places of points that stand for a failure.
    """

    label: str
    place: int
    points: list[tuple[float, float]]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    crosses: frozenset[int] = frozenset()

    def intervals(self) -> list[tuple[float, float, float]]:
        """Returns x, low and high of the points that have an interval."""
        ends = zip(self.points, self.low, self.high, strict=False)
        return [(x, low, high) for (x, _), low, high in ends if low is not None and high is not None]


class Chart:
    """A drawing area with two axes, onto which parts are put one after the other.

    Args:
        x: The horizontal axis.
        y: The vertical axis.
        title: What the chart shows, for who cannot see it.
        width: Units of the drawing, pixels at its full size.
        height: The same.
        right: Room for labels at the right.
        rows: Names at the left in place of ticks; then y counts them from the top.
    """

    def __init__(
        self,
        x: Axis,
        y: Axis,
        title: str,
        width: int = 760,
        height: int = 400,
        right: float = 16.0,
        rows: Sequence[str] = (),
    ) -> None:
        self.x, self.y, self.title, self.width, self.height = x, y, title, width, height
        self.rows = list(rows)
        self.left = 16.0 + (max(map(text_width, self.rows)) if self.rows else 42.0)
        self.right, self.top, self.bottom = right, 26.0 if not self.rows else 10.0, 46.0
        self.parts: list[Markup] = []
        self._boxes: list[tuple[float, float, float, float]] = []
        self._clip = f"clip{next(_numbers)}"
        self._frame()

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns the place of a point in the drawing."""
        inner = self.width - self.left - self.right
        tall = self.height - self.top - self.bottom
        return self.left + inner * self.x.share(x), self.top + tall * (1 - self.y.share(y))

    def line(self, series: Series) -> None:
        """Draws a line through the points."""
        if len(series.points) > 1:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (self.at(*point) for point in series.points))
            self._add("path", d=path, class_=f"line {_style(series.place)}")

    def band(self, series: Series) -> None:
        """Draws the intervals as an area."""
        ends = series.intervals()
        if len(ends) > 1:
            upper = [self.at(x, high) for x, _, high in ends]
            lower = [self.at(x, low) for x, low, _ in reversed(ends)]
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in upper + lower) + "Z"
            self._add("path", d=path, class_=f"band {_style(series.place)}")

    def bars(self, series: Series, sideways: bool = False) -> None:
        """Draws the intervals as bars, of x where they are sideways."""
        for (_, y), low, high in zip(series.points, series.low, series.high, strict=False):
            if low is not None and high is not None and sideways:
                self._segment(self.at(low, y), self.at(high, y), f"bar {_style(series.place)}")
        if not sideways:
            for x, low, high in series.intervals():
                self._segment(self.at(x, low), self.at(x, high), f"bar {_style(series.place)}")

    def marks(self, series: Series, hollow: bool = False, small: bool = False) -> None:
        """Draws a mark at each point, with its numbers as a tooltip."""
        for place, (x, y) in enumerate(series.points):
            kind = "hollow" if hollow else "mark"
            path = _cross if place in series.crosses else _mark_path(series.place)
            told = f"{series.label}: {self.x.label} {x:.4g}" + (
                "" if self.rows else f", {self.y.label} {y:.4g}"
            )
            px, py = self.at(x, y)
            move = f"translate({px:.1f} {py:.1f}) scale({0.7 if small else 1})"
            style = "cross" if place in series.crosses else kind
            self._add(
                "path", tag("title", told), d=path, transform=move, class_=f"{style} {_style(series.place)}"
            )

    def stairs(self, points: Sequence[tuple[float, float]]) -> None:
        """Draws the frontier of the points, given from left to right and falling: nothing lies below it."""
        corners = [(points[0][0], self.y.high), points[0]]
        for (_, before), (x, after) in pairwise(points):
            corners += [(x, before), (x, after)]
        corners.append((self.x.high, points[-1][1]))
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (self.at(*corner) for corner in corners))
        self._add("path", d=path, class_="frontier")

    def level(self, value: float, label: str) -> None:
        """Draws a horizontal line, such as a floor."""
        left, y = self.at(self.x.low, value)
        self._segment((self.left, y), (self.width - self.right, y), "level")
        self._text(self.left + 6, y - 5, label, "note")
        self._boxes.append((left, y - 16, left + text_width(label) + 6, y))

    def upright(self, value: float, label: str) -> None:
        """Draws a vertical line with its name at the foot."""
        x, _ = self.at(value, self.y.low)
        self._segment((x, self.top), (x, self.height - self.bottom), "level")
        late = self.x.share(value) > 0.7
        self._text(x + (-5 if late else 5), self.top + 9, label, "note", anchor="end" if late else "start")

    def end_labels(self, series: Sequence[Series]) -> None:
        """Writes each line's name at its right end, apart from each other."""
        ends = sorted((self.at(*s.points[-1])[1], n) for n, s in enumerate(series) if s.points)
        places = _spread([y for y, _ in ends], self.top + 4, self.height - self.bottom, _LINE)
        edge = self.width - self.right
        for (_, number), y in zip(ends, places, strict=True):
            one = series[number]
            end_x, end_y = self.at(*one.points[-1])
            style = _style(one.place)
            self._add(
                "path", d=f"M{end_x + 5:.1f} {end_y:.1f}L{edge + 8:.1f} {y:.1f}", class_=f"leader {style}"
            )
            self._add(
                "path",
                d=_mark_path(one.place),
                transform=f"translate({edge + 15:.1f} {y:.1f})",
                class_=f"mark {style}",
            )
            self._boxes.append((end_x, min(end_y, y) - 8, float(self.width), max(end_y, y) + 8))
            self._text(edge + 24, y + 4, _cut(one.label, self.right - 26))

    def point_labels(self, series: Sequence[Series], texts: Sequence[Sequence[str]]) -> None:
        """Writes a text beside each point where there is room."""
        for one in series:
            self._boxes += [_box(*self.at(*point), 8) for point in one.points]
            for x, low, high in one.intervals():
                (left, foot), (_, top) = self.at(x, low), self.at(x, high)
                self._boxes.append((left - 3, top, left + 3, foot))
        for one, names in zip(series, texts, strict=True):
            for point, text in zip(one.points, names, strict=True):
                if text:
                    self._place_label(*self.at(*point), text)

    def svg(self, class_: str = "") -> Markup:
        """Returns the drawing."""
        view = f"0 0 {self.width} {self.height}"
        inner = (
            self.left - 8,
            self.top - 8,
            self.width - self.left - self.right + 16,
            self.height - self.top - self.bottom + 16,
        )
        x, y, width, height = inner
        clip = tag("clipPath", tag("rect", x=x, y=y, width=width, height=height), id=self._clip)
        return tag(
            "svg",
            clip,
            self.parts,
            viewBox=view,
            role="img",
            aria_label=self.title,
            class_=f"chart {class_}".strip(),
        )

    def _frame(self) -> None:
        foot = self.height - self.bottom
        for value in self.x.ticks(max(3, int((self.width - self.left - self.right) / 58))):
            x, _ = self.at(value, self.y.low)
            self._segment((x, self.top), (x, foot), "grid")
            self._text(x, foot + 18, short(value), "tick", anchor="middle")
        self._text(
            (self.left + self.width - self.right) / 2, self.height - 8, self.x.label, "label", anchor="middle"
        )
        if self.rows:
            for number, name in enumerate(self.rows):
                _, y = self.at(self.x.low, self.y.high - 0.5 - number)
                self._text(self.left - 12, y + 4, name, "row", anchor="end")
                self._segment((self.left, y), (self.width - self.right, y), "grid")
            return
        for value in self.y.ticks(6):
            _, y = self.at(self.x.low, value)
            self._segment((self.left, y), (self.width - self.right, y), "grid")
            self._text(self.left - 8, y + 4, short(value), "tick", anchor="end")
        self._text(2, 14, self.y.label, "label")

    def _place_label(self, x: float, y: float, text: str) -> None:
        length = text_width(text)
        for dx, dy in _AROUND:
            left = x + dx if dx > 0 else x + dx - length
            left = x - length / 2 if dx == 0 else left
            box = (left, y + dy - 9, left + length, y + dy + 5)
            fits = (
                box[0] > self.left
                and box[2] < self.width
                and box[1] > 0
                and box[3] < self.height - self.bottom
            )
            if fits and not any(_overlap(box, other) for other in self._boxes):
                self._boxes.append(box)
                if abs(dx) > _NEAR:
                    self._segment((x, y), (box[0] if dx > 0 else box[2], y + dy), "lead")
                # Letters are not all as wide as expected: the end beside the point is the one that is held.
                at, anchor = (x + dx, "end") if dx < 0 else (left, "start")
                self._text(at, y + dy + 3, text, anchor=anchor)
                return

    def _segment(self, start: tuple[float, float], end: tuple[float, float], class_: str) -> None:
        (x1, y1), (x2, y2) = start, end
        self._add("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=class_)

    def _text(self, x: float, y: float, text: str, class_: str = "name", anchor: str = "start") -> None:
        self._add("text", text, x=round(x, 1), y=round(y, 1), class_=class_, text_anchor=anchor)

    def _add(self, name: str, *children: Markup | str, **attributes: str | float) -> None:
        self.parts.append(tag(name, *children, **attributes))


def text_width(text: str) -> float:
    """Returns about how wide a text is at the charts' size, rather too wide than too narrow."""
    return sum(5.2 if letter in _NARROW else 12.8 if letter in _WIDE else 8.3 for letter in text)


def room_for(labels: Sequence[str], most: float) -> float:
    """Returns how wide the longest label is with its mark, at most so many units."""
    return min(max((30 + text_width(label) for label in labels), default=16.0), most)


def short(value: float) -> str:
    """Returns a tick's number: 20k, 1.5M, 0.05."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):g}{unit}"
    return f"{value:g}"


_AROUND = (
    *((11, 1), (-11, 1), (0, -14), (0, 17), (11, -12), (11, 14), (-11, -12), (-11, 14)),
    *(
        (s * dx, dy)
        for dx, dy in ((22, -26), (22, 28), (30, -42), (30, 44), (60, -20), (60, 22))
        for s in (1, -1)
    ),
)
_NEAR = 15
"""A label farther away than this is joined to its point by a line."""
_cross = "M-5 -5L5 5M-5 5L5 -5"


def _mark_path(place: int) -> str:
    circle = "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0"
    return (circle, "M-4 -4H4V4H-4Z", "M0 -5.5L5 4H-5Z", "M0 -5.5L5.5 0L0 5.5L-5.5 0Z", "M0 5.5L5 -4H-5Z")[
        (place + place // COLOURS) % _MARKS
    ]


def _style(place: int) -> str:
    return f"c{place % COLOURS} d{place // COLOURS % 3}"


def _spread(wanted: Sequence[float], low: float, high: float, gap: float) -> list[float]:
    """Returns places as near to the wanted ones as a gap between neighbours allows; both in rising order."""
    places = list(wanted)
    for number in range(1, len(places)):
        places[number] = max(places[number], places[number - 1] + gap)
    over = max(0.0, places[-1] - high) if places else 0.0
    for number in range(len(places) - 1, -1, -1):
        limit = high if number == len(places) - 1 else places[number + 1] - gap
        places[number] = min(places[number], limit) if over else places[number]
    return [max(place, low) for place in places]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 5), (1, 3), (1,)):
        found = [
            step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high
        ]
        if len(found) <= most:
            return found if len(found) > 1 else _linear_ticks(low, high, 4)
    return found[:: math.ceil(len(found) / most)]


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / max(most, 1) or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _box(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _cut(text: str, width: float) -> str:
    if text_width(text) > width:
        text = text.rpartition("/")[2]  # what tells a model's samplers apart
    if text_width(text) <= width:
        return text
    while len(text) > 1 and text_width(text + "…") > width:
        text = text[:-1]
    return text + "…"


def steps(edges: Sequence[float], heights: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Yields the outline of a histogram."""
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        yield left, height
        yield right, height
