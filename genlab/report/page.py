"""The report: one HTML file that needs nothing else; gathered here what page.html shows."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

import genlab
from genlab.report import curves, fairness
from genlab.report.adjectives import QUALITIES, beside_measurements
from genlab.report.columns import Cell, chosen, filled, heading, shown
from genlab.report.comparison import Comparison
from genlab.report.galleries import films, gallery, others
from genlab.report.gather import Trained, part
from genlab.report.pictures import Album
from genlab.report.points import Places, by_evaluations, place_of
from genlab.report.provenance import data_of, provenance
from genlab.report.rows import (
    COLLAPSE_DUPLICATES,
    COLLAPSE_FACTOR,
    COLLAPSE_RECALL,
    Row,
    collapse,
    how_it_ended,
)
from genlab.report.search import Search, searches
from genlab.report.verdict import legend, of_group
from genlab.runs.environment import without_private
from genlab.runs.headline import Headline
from genlab.text import printable


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
            version=genlab.__version__,
            style=Markup(style),
            script=Markup(script),
            policy=_policy(script),
        )
    )
    return printable(text, keep="\n\t").lstrip()


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
    if comparison.is_of_sweeps_alone:
        return f"Search for settings: {', '.join(folder.name for folder in comparison.sweeps)}"
    models = len(comparison.all_rows)
    return f"{models} model{'s' if models != 1 else ''} on {_data(comparison.all_rows)}"


def _data(rows: Iterable[Row]) -> str:
    names = [part(row.first.record, "data").get("name") for row in rows]
    return ", ".join(dict.fromkeys(str(name) for name in names if name)) or "unknown data"


def _facts(comparison: Comparison) -> str:
    trained = {trained.run.path for row in comparison.all_rows for trained in row.runs}
    equal = dict(fairness.held_equal([row for group in comparison.groups for row in group.rows]))
    budget = equal.get("budget") and f"{equal['budget']} each"
    return " · ".join(filter(None, [f"{len(trained)} trainings", budget, equal.get("hardware")]))


# The sections, each as the values that page.html shows; one without values is left out. What depends on the
# score comes as a list, one of each score with its title.

Titled = list[tuple[str, Any]]


def _of_groups(comparison: Comparison, of: Callable[[Comparison, Places], Any]) -> Titled:
    """Returns what can be had of each group."""
    places = place_of(comparison)
    made = [(_about(group.headline, group.rows), of(group, places)) for group in comparison.groups]
    return [(title, found) for title, found in made if found]


def _of_trainings(comparison: Comparison, of: Callable[[Headline, list[Row], Places], Any]) -> Titled:
    """Returns what can be had of the trainings that were evaluated by each score."""
    places = place_of(comparison)
    made = [(_about(led, rows), of(led, rows, places)) for led, rows in by_evaluations(comparison).items()]
    return [(title, found) for title, found in made if found]


def _about(headline: Headline, rows: Iterable[Row]) -> str:
    return f"{headline.title} on {_data(rows)}"


def _verdict(comparison: Comparison, album: Album) -> Titled:
    if comparison.is_of_sweeps_alone:
        return []
    return _of_groups(
        comparison,
        lambda group, places: {"lines": of_group(group), "chart": curves.forest(group, places)},
    )


def _searches(comparison: Comparison, album: Album) -> list[tuple[Search, Any]]:
    found = enumerate(searches(comparison.sweeps))
    return [(one, curves.shares(f"importance-{n}", one.importance)) for n, one in found]


def _fairness(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    if comparison.is_of_sweeps_alone and not comparison.notes:
        return None
    apart = [(row.name, "; ".join(map(str, fields))) for row, fields in comparison.uncompared]
    headlines = [group.headline for group in comparison.groups]
    return {
        "boxes": [
            *_boxes(comparison, "Held equal", fairness.held_equal, "sound"),
            *_boxes(comparison, "Not held equal", fairness.not_held_equal, "unequal"),
            *([("Set apart, not comparable", apart, "apart")] if apart else []),
        ],
        "notes": [*legend(comparison), *map(without_private, comparison.notes)],
        "by_logarithms": _listed((h.title for h in headlines if h.is_logarithmic), "and"),
        "compared": _listed((f"log {h.title}" if h.is_logarithmic else h.title for h in headlines), "or"),
    }


def _boxes(
    comparison: Comparison, title: str, of: Callable[[list[Row]], Any], kind: str
) -> list[tuple[str, Any, str]]:
    found = _of_groups(comparison, lambda group, _: of(group.rows))
    several = len(comparison.groups) > 1
    return [(f"{title}: {about}" if several else title, lines, kind) for about, lines in found]


def _listed(words: Iterable[str], last: str) -> str:
    *first, end = [*words] or [""]
    return f"{', '.join(first)} {last} {end}" if first else end


def _table(comparison: Comparison, album: Album) -> Titled:
    return _of_groups(comparison, lambda group, _: _table_of(group))


def _table_of(group: Comparison) -> dict[str, Any] | None:
    rows = [*((row, False) for row in group.rows), *((row, True) for row in group.own_apart)]
    columns = filled([row for row, _ in rows])
    floor = [group.floor.get(column.key, Cell()) for column in columns[1:]]
    told = {
        "columns": [(column, heading(column, group.rows)) for column in columns],
        "rows": rows,
        "floor": (group.floor_name, floor) if group.floor else None,
    }
    return told if rows else None


def _adjectives(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    lines = beside_measurements(comparison)
    return {"lines": lines, "heads": ("model", "family", *QUALITIES)} if lines else None


def _stability(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    by_score = by_evaluations(comparison)
    rows = [row for of_score in by_score.values() for row in of_score]
    told = {
        "groups": _of_trainings(comparison, _stability_of),
        "troubles": [f"{t.name}: {text}" for row in rows for t in row.runs if (text := _trouble(t))],
        "scores": _listed((headline.title for headline in by_score), "or"),
        "factor": COLLAPSE_FACTOR,
        "recall": COLLAPSE_RECALL,
        "duplicates": COLLAPSE_DUPLICATES,
    }
    return told if rows else None


def _stability_of(headline: Headline, rows: list[Row], places: Places) -> dict[str, Any]:
    columns = chosen(["stability", "best", "last", "wobble"])[1:]
    kept = [column for column in columns if any(column.cell(row).text for row in rows)]
    return {
        "columns": [(column, heading(column, rows)) for column in kept],
        "rows": rows,
        "chart": curves.seeds(headline, rows, places),
    }


def _trouble(trained: Trained) -> str:
    if how_it_ended(trained) in ("diverged", "failed"):
        return f"{trained.status}. {trained.record.get('error') or ''}".strip()
    flags = [f for f in part(trained.record, "health").get("flags") or [] if isinstance(f, dict)]
    told = [f"after {f.get('examples_seen')} {trained.unit[0]}: {f.get('problem')}" for f in flags]
    reason = collapse(trained)
    return "; ".join([*([f"collapsed, {reason}"] if reason else []), *told[-1:]])


def _copies(comparison: Comparison, album: Album) -> dict[str, Any] | None:
    pictures = gallery("neighbours", "Samples and nearest training images of")(comparison, album)
    charts = [curves.copies(row, f"copies-{n}") for n, row in enumerate(comparison.all_rows)]
    charts = [chart for chart in charts if chart]
    passages = gallery("passages", "Passages of the training text in samples of")(comparison, album)
    found = {
        "pictures": pictures,
        "charts": charts,
        "passages": passages,
        "told": [told for row in comparison.all_rows if (told := copied_text(row))],
    }
    return found if any(found.values()) else None


def copied_text(row: Row) -> str:
    """Returns how much of a row's samples stands in the training text; "" where these are no texts."""
    share, floor = (row.over_seeds("copies", name) for name in ("share", "test_share"))
    if share is None or floor is None:
        return ""
    return (
        f"{row.name}: {shown(100 * share.value)} % of the pieces of its samples stand in the training text, "
        f"and {shown(100 * floor.value)} % of those of the unseen text."
    )


_PARTS: dict[str, Callable[[Comparison, Album], Any]] = {
    "search": _searches,
    "verdict": _verdict,
    "fairness": _fairness,
    "table": _table,
    "adjectives": _adjectives,
    "time": lambda comparison, _: _of_trainings(comparison, curves.against_time),
    "examples": lambda comparison, _: _of_trainings(comparison, curves.against_examples),
    "steps": lambda comparison, _: _of_groups(comparison, curves.against_steps),
    "speed": lambda comparison, _: _of_groups(comparison, curves.pareto),
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
