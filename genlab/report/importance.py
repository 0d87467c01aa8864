"""How much of a score's variance each setting of a sweep explains, as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from genlab import files


def write_importance(target: Path, shares: Mapping[str, float]) -> None:
    """Writes a bar for each setting, the largest above, as an SVG.

    Args:
        target: The file.
        shares: Of the variance, 0 to 1, by the settings' names.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure((6.4, 0.9 + 0.4 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names = list(shares)[::-1]
    bars = axes.barh(names, [100 * shares[name] for name in names])
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlim(0, 110)
    axes.set_xlabel("share of the score's variance, %")
    out = io.StringIO()
    FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None})
    files.write_text(target, out.getvalue())
