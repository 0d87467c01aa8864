"""Charts drawn by matplotlib as inline SVG; every colour is a variable of the page's style, light or dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

COLOURS = 8
"""The style has this many, c0 to c7; further places repeat them with another mark and dash."""

MARKS = "●■▲◆▼"
_MARKERS = (("o", 1.0), ("s", 0.95), ("^", 1.15), ("D", 0.9), ("v", 1.15))  # with sizes that look equal
_DASHES = ("-", "--", ":")
_NAMES = (*(f"c{n}" for n in range(COLOURS)), "ink", "soft", "faint", "paper")
_STAND_INS = {name: f"#00fe{n:02x}" for n, name in enumerate(_NAMES)}
_VARIABLES = {stand_in: f"var(--{name})" for name, stand_in in _STAND_INS.items()}


def colour(name: str) -> str:
    """Returns what stands in a drawing for a variable of the page's style, such as `soft`."""
    return _STAND_INS[name]


def colour_of(place: int) -> str:
    """Returns the colour of the model at a place."""
    return colour(f"c{place % COLOURS}")


def mark_of(place: int) -> int:
    """Returns which of the marks the model at a place has: neighbours of one colour differ in it."""
    return (place + place // COLOURS) % len(MARKS)


def line_of(place: int) -> dict[str, Any]:
    """Returns the look of a model's line."""
    return {"color": colour_of(place), "linestyle": _DASHES[place // COLOURS % len(_DASHES)]}


def points_of(place: int, size: float = 9.0, hollow: bool = False) -> dict[str, Any]:
    """Returns the look of a model's points."""
    inside, edge = (colour("paper"), colour_of(place)) if hollow else (colour_of(place), colour("paper"))
    marker, factor = _MARKERS[mark_of(place)]
    look = {"marker": marker, "markersize": factor * size, "linestyle": "none", "zorder": 3}
    return {**look, "markerfacecolor": inside, "markeredgecolor": edge, "clip_on": False}


def drawn(
    name: str, title: str, size: tuple[int, int], draw: Callable[[Axes], None], kind: str = ""
) -> Markup:
    """Returns a chart as an element of a page.

    Args:
        name: Begins the ids inside, so that those of two charts differ.
        title: What the chart shows, for who cannot see it.
        size: Width and height, pixels at full size; it shrinks with the screen.
        draw: Draws onto the axes that it is given.
        kind: Further class of the element.
    """
    import matplotlib
    from matplotlib.figure import Figure

    out = io.StringIO()
    with matplotlib.rc_context(_style()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's font draws it, not this one
        figure = Figure((size[0] / 72, size[1] / 72), dpi=72, frameon=False)
        axes = figure.add_axes((0, 0, 1, 1))
        _margins(axes)
        draw(axes)
        _few_ticks(axes.xaxis)
        _few_ticks(axes.yaxis)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    opening = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(title)}"'
    return Markup(f'{opening} class="{f"chart {kind}".strip()}">{_inside(out.getvalue(), name)}</svg>')


def logarithmic(axes: Axes, x: bool = False, y: bool = False) -> None:
    """Makes equal factors equally long on one axis or both."""
    if x:
        axes.set_xscale("log")
    if y:
        axes.set_yscale("log")


def named_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names rows at the left in place of numbers; row n lies at the height -n. Long names are cut."""
    most = int(_size(axes)[0] / 25)  # letters: at most a third of the width
    short = [name if len(name) <= most else name[: most - 1] + "…" for name in names]
    axes.set_yticks([-n for n in range(len(names))], short, color=colour("ink"))
    axes.set_ylim(-len(names) + 0.5, 0.5)
    _margins(axes, 16 + max(label.get_window_extent().width for label in axes.get_yticklabels()), top=16)


def label_points(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    avoid: Sequence[tuple[float, float]] = (),
) -> None:
    """Writes names beside points where there is room: not on a name, a point or a place to be avoided."""
    from matplotlib.transforms import Bbox

    axes.autoscale_view()  # from here on, places in the drawing are final
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform([*points, *avoid])]
    for point, name in zip(points, names, strict=True):
        for place in _BESIDE:
            text = _beside(axes, point, name, *place)
            box = text.get_window_extent()
            if not box.count_overlaps(taken) and _is_within(box, axes):
                taken.append(box)
                break
            text.remove()


_BESIDE = ((10, 0), (-10, 0), (0, 15), (0, -15), (9, 13), (9, -13), (-9, 13), (-9, -13))


def _beside(axes: Axes, point: tuple[float, float], name: str, dx: int, dy: int) -> Annotation:
    align = {-1: "right", 0: "center", 1: "left"}[(dx > 0) - (dx < 0)]
    return axes.annotate(name, point, (dx, dy), textcoords="offset points", ha=align, va="center")


def _is_within(box: Bbox, axes: Axes) -> bool:
    inner = axes.bbox
    return box.x0 > 0 and box.x1 < _size(axes)[0] and inner.y0 < box.y0 and box.y1 < inner.y1


def _size(axes: Axes) -> tuple[float, float]:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure.bbox.width, figure.bbox.height


def _margins(axes: Axes, left: float = 48, right: float = 14, top: float = 28, bottom: float = 46) -> None:
    width, height = _size(axes)
    axes.set_position(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    )


def _few_ticks(axis: Axis) -> None:
    """Puts round numbers on an axis: few everywhere, 1, 3, 10, 30 on a logarithmic one."""
    from matplotlib import ticker

    if isinstance(axis.get_major_locator(), ticker.FixedLocator):
        return
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_locator(ticker.NullLocator())
    low, high = axis.get_view_interval()
    if axis.get_scale() != "log" or high < 4 * low:
        axis.set_major_locator(ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    else:
        steps = (1, 2, 5) if high < 30 * low else (1, 3) if high < 3000 * low else (1,)
        axis.set_major_locator(ticker.LogLocator(subs=steps, numticks=8))


def short(value: float) -> str:
    """Returns a tick's number: 20k, 1.5M, 0.05."""
    for limit, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _style() -> dict[Any, Any]:
    """Returns matplotlib's settings; its widest common font measures, the page's own one is shown."""
    soft, faint = colour("soft"), colour("faint")
    quiet: dict[str, Any] = {f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}
    quiet |= {"xtick.bottom": False, "ytick.left": False, "xtick.color": soft, "ytick.color": soft}
    words = {"font.family": "DejaVu Sans", "font.size": 12, "text.color": colour("ink"), "axes.titlesize": 12}
    words |= {"axes.labelcolor": soft, "axes.titlecolor": soft, "axes.titlelocation": "left"}
    paper = {"axes.facecolor": "none", "axes.grid": True, "grid.color": faint, "axes.axisbelow": True}
    svg = {"svg.fonttype": "none", "svg.hashsalt": "genlab", "text.parse_math": False}
    return {**quiet, **words, **paper, **svg, "lines.linewidth": 2, "axes.titley": 1.0, "axes.titlepad": 8}


def _inside(svg: str, name: str) -> str:
    """Returns the content of a drawing: ids of this chart alone, the page's colours, the page's font."""
    svg = svg.partition("</defs>")[2].rpartition("</svg>")[0]  # the first definitions style the whole page
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    svg = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda m: f"{m[1]}: {_VARIABLES.get(m[2], m[2])}", svg)
    svg = re.sub(r"(?<=\d\.\d\d)\d+(?=[^<>]*>)", "", svg)  # hundredths of a pixel are enough
    return re.sub(r"\s*\n\s*", " ", _own_ids(svg, name))


def _own_ids(svg: str, name: str) -> str:
    numbers, used = count(), set(re.findall(r'(?:href="|url\()#([\w.]+)', svg))
    own = {old: f"{name}-{next(numbers)}" for old in re.findall(r' id="([\w.]+)"', svg) if old in used}
    svg = re.sub(r' id="([\w.]+)"', lambda m: f' id="{own[m[1]]}"' if m[1] in own else "", svg)
    return re.sub(r'((?:href="|url\()#)([\w.]+)', lambda m: m[1] + own.get(m[2], m[2]), svg)
