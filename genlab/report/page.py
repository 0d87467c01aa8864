"""The report: one HTML file that needs nothing else; gathered here what page.html shows."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import genlab
from genlab.report import curves, fairness
from genlab.report.adjectives import QUALITIES, beside_measurements
from genlab.report.columns import COLUMNS, Cell, filled, heading
from genlab.report.comparison import FLOOR, Comparison
from genlab.report.galleries import films, gallery, others
from genlab.report.gather import Trained, part
from genlab.report.pictures import Album
from genlab.report.points import headline_of, trainings
from genlab.report.provenance import data_of, provenance
from genlab.report.rows import (
    COLLAPSE_DUPLICATES,
    COLLAPSE_FACTOR,
    COLLAPSE_RECALL,
    collapse,
    how_it_ended,
)
from genlab.report.units import unit
from genlab.report.verdict import verdict
from genlab.runs.environment import without_private


def page(comparison: Comparison) -> str:
    """Returns the report as the text of an HTML file."""
    album = Album()
    parts = {name: value for name, gathered in _PARTS.items() if (value := gathered(comparison, album))}
    if album.problems:
        parts["missing"] = album.problems
    style, script = (resources.files("genlab.report").joinpath(n).read_text("utf-8") for n in _FILES)
    text = (
        _environment()
        .get_template("page.html")
        .render(
            parts=parts,
            title=_title(comparison),
            facts=_facts(comparison),
            headline=headline_of(comparison),
            version=genlab.__version__,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(script),
        )
    )
    return printable(text).lstrip()


def printable(text: str) -> str:
    """Returns a text whose control characters, which are no HTML, are replaced; line breaks and tabs stay."""
    return re.sub(r"[^\n\t -~]", lambda m: m[0] if m[0].isprintable() else "\N{REPLACEMENT CHARACTER}", text)


_FILES = ("page.css", "page.js")


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("genlab", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["breakable"] = breakable
    return made


def breakable(name: str) -> Markup:
    """Returns a name that may be broken between its words and nowhere else, where that is enough."""
    return Markup("<wbr>").join(word for word in re.split(r"(?<=[_/])", name) if word)


def _policy(script: str) -> str:
    # Even if a text of a run became markup, no other script could run and nothing could be fetched.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _title(comparison: Comparison) -> str:
    models = len(comparison.all_rows)
    names = [part(row.first.record, "data").get("name") for row in comparison.all_rows]
    data = ", ".join(dict.fromkeys(str(name) for name in names if name)) or "unknown data"
    return f"{models} model{'s' if models != 1 else ''} on {data}"


def _facts(comparison: Comparison) -> str:
    trained = {trained.run.path for row in comparison.all_rows for trained in row.runs}
    equal = dict(fairness.held_equal(comparison.rows))
    budget = equal.get("budget") and f"{equal['budget']} each"
    return " · ".join(filter(None, [f"{len(trained)} trainings", budget, equal.get("hardware")]))


# The sections, each as the values that page.html shows; one without values is left out


def _verdict(comparison: Comparison, album: Album) -> dict[str, Any]:
    return {"lines": verdict(comparison), "chart": curves.forest(comparison)}


def _fairness(comparison: Comparison, album: Album) -> dict[str, Any]:
    apart = [(row.name, "; ".join(map(str, fields))) for row, fields in comparison.apart]
    boxes = [
        ("Held equal", fairness.held_equal(comparison.rows), "sound"),
        ("Not held equal", fairness.not_held_equal(comparison.rows), "unequal"),
        ("Set apart, not comparable", apart, "apart"),
    ]
    return {"boxes": [box for box in boxes if box[1]], "notes": list(map(without_private, comparison.notes))}


def _table(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    if not comparison.all_rows:
        return None
    columns = filled(comparison.all_rows)
    rows = [(row, False) for row in comparison.rows] + [(row, True) for row, _ in comparison.apart]
    floor = [comparison.floor.get(column.key, Cell()) for column in columns[1:]]
    return {
        "columns": [(column, heading(column, comparison.rows)) for column in columns],
        "rows": rows,
        "floor": (FLOOR, floor) if comparison.floor else None,
    }


def _adjectives(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    lines = beside_measurements(comparison)
    return {"lines": lines, "heads": ("model", "family", *QUALITIES)} if lines else None


def _stability(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    rows = trainings(comparison)
    columns = [column for column in COLUMNS if column.key in ("stability", "best", "last", "wobble")]
    troubles = [f"{t.name}: {text}" for row in rows for t in row.runs if (text := _trouble(t))]
    limits = {"factor": COLLAPSE_FACTOR, "recall": COLLAPSE_RECALL, "duplicates": COLLAPSE_DUPLICATES}
    told = {
        "rows": rows,
        "columns": columns,
        "troubles": troubles,
        "chart": curves.seeds(comparison),
        **limits,
    }
    return told if rows else None


def _trouble(trained: Trained) -> str:
    if how_it_ended(trained) in ("diverged", "failed"):
        return f"{trained.status}. {trained.record.get('error') or ''}".strip()
    flags = [f for f in part(trained.record, "health").get("flags") or [] if isinstance(f, dict)]
    words = unit(trained.record)
    told = [f"after {f.get('examples_seen')} {words}: {f.get('problem')}" for f in flags]
    reason = collapse(trained)
    return "; ".join([*([f"collapsed, {reason}"] if reason else []), *told[-1:]])


def _copies(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    pictures = gallery("neighbours", "Samples and nearest training images of")(comparison, album)
    charts = [curves.copies(row, f"copies-{n}") for n, row in enumerate(comparison.all_rows)]
    charts = [chart for chart in charts if chart]
    return {"pictures": pictures, "charts": charts} if pictures or charts else None


_PARTS: dict[str, Callable[[Comparison, Album], Any]] = {
    "verdict": _verdict,
    "fairness": _fairness,
    "table": _table,
    "adjectives": _adjectives,
    "time": lambda comparison, _: curves.against_time(comparison),
    "examples": lambda comparison, _: curves.against_examples(comparison),
    "steps": lambda comparison, _: curves.against_steps(comparison),
    "speed": lambda comparison, _: curves.pareto(comparison),
    "stability": _stability,
    "samples": films,
    "interpolations": gallery("interpolation", "Interpolations of"),
    "reconstructions": gallery("reconstruction", "Images, their reconstructions and the difference, of"),
    "copies": _copies,
    "failures": gallery("failures", "The worst samples of"),
    "others": others,
    "data": lambda comparison, _: data_of(comparison),
    "provenance": lambda comparison, _: provenance(comparison),
}
