"""The report: one HTML file that needs nothing else, no network and no other file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Sequence
from importlib import resources

import genlab
from genlab.report import curves, fairness
from genlab.report.adjectives import QUALITIES, beside_measurements
from genlab.report.columns import COLUMNS, Cell, Column, filled, heading
from genlab.report.comparison import FLOOR, Comparison
from genlab.report.gather import Trained, part
from genlab.report.markup import Markup, breakable, joined, tag
from genlab.report.pictures import Album
from genlab.report.rows import (
    COLLAPSE_DUPLICATES,
    COLLAPSE_FACTOR,
    COLLAPSE_RECALL,
    Row,
    collapse,
    how_it_ended,
)
from genlab.report.verdict import verdict
from genlab.runs.environment import without_private

FRAMES = 12
"""Pictures of one run through its training."""


def page(comparison: Comparison) -> str:
    """Returns the report as the text of an HTML file."""
    album = Album()
    sections = [(name, title, body) for name, title, make in _SECTIONS if (body := make(comparison, album))]
    if album.problems:
        sections.append(("missing", "Pictures left out", tag("ul", [tag("li", p) for p in album.problems])))
    style, script = (_file(name) for name in ("page.css", "page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=f"genlab {genlab.__version__}"),
        tag("title", _title(comparison)),
        tag("style", Markup(style)),
    )
    contents = tag(
        "nav",
        tag("ul", [tag("li", tag("a", t, href=f"#{n}")) for n, t, _ in sections]),
        aria_label="Contents",
    )
    main = tag("main", [_section(*section) for section in sections], id="content", tabindex="-1")
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#content", class_="skip"),
        _header(comparison),
        tag("div", contents, main, class_="columns"),
        tag("footer", tag("p", f"Made by genlab {genlab.__version__} from the run folders alone.")),
        tag("script", Markup(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _policy(script: str) -> str:
    # Even if a text of a run became markup, no other script could run and nothing could be fetched.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _file(name: str) -> str:
    return resources.files("genlab.report").joinpath(name).read_text(encoding="utf-8")


def _section(name: str, title: str, body: Markup) -> Markup:
    return tag(
        "section", tag("h2", title, id=f"{name}-title"), body, id=name, aria_labelledby=f"{name}-title"
    )


def _title(comparison: Comparison) -> str:
    models, data = len(comparison.all_rows), _data_names(comparison)
    return f"{models} model{'s' if models != 1 else ''} on {data}"


def _data_names(comparison: Comparison) -> str:
    names = [part(row.first.record, "data").get("name") for row in comparison.all_rows]
    return ", ".join(dict.fromkeys(str(name) for name in names if name)) or "unknown data"


def _header(comparison: Comparison) -> Markup:
    trained = {str(t.run.path) for row in comparison.all_rows for t in row.runs}
    equal = dict(fairness.held_equal(comparison.rows))
    facts = [
        f"{len(trained)} trainings",
        equal.get("budget") and f"{equal['budget']} each",
        equal.get("hardware"),
    ]
    line = " · ".join(filter(None, facts))
    return tag(
        "header",
        tag("p", "genlab report", class_="kicker"),
        tag("h1", _title(comparison)),
        tag("p", line, class_="facts"),
    )


# Verdict and fairness


def _verdict(comparison: Comparison, album: Album) -> Markup:
    first, *others = verdict(comparison)
    others = [tag("li", line) for line in others]
    return joined(
        [
            tag("p", first, class_="lead"),
            tag("ul", others, class_="plain") if others else None,
            curves.forest(comparison),
        ]
    )


def _fairness(comparison: Comparison, album: Album) -> Markup:
    equal = fairness.held_equal(comparison.rows)
    unequal = fairness.not_held_equal(comparison.rows)
    apart = [(row.name, "; ".join(map(str, fields))) for row, fields in comparison.apart]
    boxes = [
        _box("Held equal", equal, "sound") if equal else None,
        _box("Not held equal", unequal, "unequal") if unequal else None,
        _box("Set apart, not comparable", apart, "apart") if apart else None,
    ]
    notes = (
        [tag("h3", "Left out"), tag("ul", [tag("li", without_private(note)) for note in comparison.notes])]
        if comparison.notes
        else None
    )
    meaning = tag(
        "p",
        "Intervals are 95 % t-intervals over training seeds, of the logarithm for FID. Two rows tie when "
        "Welch's interval of the difference of their log FIDs contains 0; the intervals are of one pair each "
        "and are not corrected for the number of pairs. The sampling noise of a single score is a column of "
        "its own.",
    )
    return joined([tag("div", boxes, class_="boxes"), notes, meaning])


def _box(title: str, pairs: Sequence[tuple[str, str]], class_: str) -> Markup:
    inner = [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs]
    return tag("div", tag("h3", title), tag("dl", inner), class_=f"box {class_}")


# The table


def _table(comparison: Comparison, album: Album) -> Markup | None:
    if not comparison.all_rows:
        return None
    columns = filled(comparison.all_rows)
    head = [_head_cell(column, comparison) for column in columns]
    lines = [_line(row, columns) for row in comparison.rows]
    lines += [_line(row, columns, apart=True) for row, _ in comparison.apart]
    foot = None
    if comparison.floor:
        cells = [_cell(comparison.floor.get(column.key, Cell()), column) for column in columns[1:]]
        foot = tag("tfoot", tag("tr", tag("th", FLOOR, scope="row"), cells))
    table = tag(
        "table",
        _caption(
            "A button in the head sorts by its column. An empty cell: the model does not have this.",
        ),
        tag("thead", tag("tr", head)),
        tag("tbody", lines),
        foot,
        class_="sortable",
    )
    legend = [tag("div", tag("dt", c.heading), tag("dd", c.explanation)) for c in columns]
    return joined(
        [
            tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Table of all models"),
            tag("p", "", class_="unseen", role="status", id="sorted"),
            tag("details", tag("summary", "What the columns mean"), tag("dl", legend, class_="legend")),
        ]
    )


def _head_cell(column: Column, comparison: Comparison) -> Markup:
    arrow = tag(
        "span", {"lower": "↓", "higher": "↑"}.get(column.better, ""), class_="better", aria_hidden="true"
    )
    better = {"lower": ", lower is better", "higher": ", higher is better"}.get(column.better)
    words = tag("span", better, class_="unseen") if better else None
    button = tag("button", heading(column, comparison.rows), arrow, words, type="button")
    numeric = "number" if column.is_numeric else "text"
    return tag(
        "th",
        button,
        scope="col",
        class_=numeric,
        data_kind=numeric,
        aria_sort="none",
        title=column.explanation,
    )


def _line(row: Row, columns: Sequence[Column], apart: bool = False) -> Markup:
    name = columns[0].cell(row)
    mark = tag("abbr", name.mark, title="trained with labels") if name.mark else None
    note = tag("span", "not comparable", class_="tagged") if apart else None
    first = tag(
        "th", breakable(name.text), " " if mark else None, mark, note, scope="row", data_value=name.text
    )
    return tag(
        "tr",
        first,
        [_cell(column.cell(row), column) for column in columns[1:]],
        class_="apart" if apart else None,
    )


def _cell(cell: Cell, column: Column) -> Markup:
    interval = tag("span", cell.interval, class_="interval") if cell.interval else None
    value = repr(cell.value) if cell.value is not None else cell.text
    return tag(
        "td",
        cell.text,
        " " if interval else None,
        interval,
        class_="number" if column.is_numeric else None,
        data_value=value,
    )


def _caption(text: str) -> Markup:
    return tag("caption", tag("span", text))  # the span stays in view where the table is wider


def _adjectives(comparison: Comparison, album: Album) -> Markup | None:
    lines = []
    for row, pairs in beside_measurements(comparison):
        cells = [
            tag("td", tag("strong", adjective), tag("span", measured, class_="interval"))
            for adjective, measured in pairs
        ]
        lines.append(tag("tr", tag("th", breakable(row.name), scope="row"), tag("td", row.family), cells))
    if not lines:
        return None
    head = tag("tr", [tag("th", name, scope="col") for name in ("model", "family", *QUALITIES)])
    caption = _caption("What textbooks say of a family, and below it what was measured here.")
    table = tag("table", caption, tag("thead", head), tag("tbody", lines))
    return tag(
        "div", table, class_="scroll words", tabindex="0", role="region", aria_label="Table of adjectives"
    )


# Stability


def _stability(comparison: Comparison, album: Album) -> Markup | None:
    rows = _trainings(comparison)
    if not rows:
        return None
    heads = ("model", "trainings", "FID best", "FID last", "spread, last 5")
    by_key = {column.key: column for column in COLUMNS}
    lines = []
    for row in rows:
        cells = [by_key[key].cell(row) for key in ("stability", "best", "last", "wobble")]
        lines.append(
            tag(
                "tr",
                tag("th", breakable(row.name), scope="row"),
                [_cell(cell, by_key["fid"]) for cell in cells],
            )
        )
    head = tag(
        "tr", [tag("th", text, scope="col", class_="number" if n else None) for n, text in enumerate(heads)]
    )
    caption = _caption(
        "Best and last of each run's own evaluations, over seeds; the best one is not the result."
    )
    table = tag("table", caption, tag("thead", head), tag("tbody", lines))
    troubles = [tag("li", f"{t.name}: {text}") for row in rows for t in row.runs if (text := _trouble(t))]
    rule = tag(
        "p",
        f"A run counts as collapsed when its last FID is more than {COLLAPSE_FACTOR:g} times the best of its "
        f"own evaluations, its last recall is below {COLLAPSE_RECALL:g} of its best one, or more than "
        f"{COLLAPSE_DUPLICATES:.0%} of its last samples are near-duplicates.",
        class_="note",
    )
    scroll = tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Table of stability")
    return joined([curves.seeds(rows), scroll, tag("ul", troubles) if troubles else None, rule])


def _trouble(trained: Trained) -> str:
    if how_it_ended(trained) in ("diverged", "failed"):
        return f"{trained.status}. {trained.record.get('error') or ''}".strip()
    flags = part(trained.record, "health").get("flags")
    told = [
        f"after {f.get('examples_seen')} images: {f.get('problem')}"
        for f in flags or []
        if isinstance(f, dict)
    ]
    reason = collapse(trained)
    return "; ".join(([f"collapsed, {reason}"] if reason else []) + told[-1:])


def _trainings(comparison: Comparison) -> list[Row]:
    """Returns one row for each training: variants share it."""
    kept: dict[str, Row] = {}
    for row in comparison.all_rows:
        known = kept.get(str(row.first.run.path))
        if known is None or known.variant:
            kept[str(row.first.run.path)] = row
    return list(kept.values())


# Pictures


def _films(comparison: Comparison, album: Album) -> Markup | None:
    figures = [figure for row in _trainings(comparison) if (figure := _film(row, album))]
    if not figures:
        return None
    slider = tag(
        "div",
        tag("label", "Share of the training", for_="share"),
        tag(
            "input",
            type="range",
            id="share",
            min="0",
            max="100",
            step="1",
            value="100",
        ),
        tag("output", "100 %", id="share-told", for_="share"),
        class_="slider",
    )
    told = tag(
        "p",
        "The same seeds in every picture of a model. Drag, or use the arrow keys, to see them learned.",
    )
    return joined([told, slider, tag("div", figures, class_="grid films")])


def _film(row: Row, album: Album) -> Markup | None:
    for trained in row.runs:
        frames = list(_frames(trained))
        if not frames:
            continue
        last = frames[-1][0] or 1
        images = []
        for examples_seen, file in frames:
            alt = f"Samples of {row.name} after {examples_seen:,} images"
            share = round(examples_seen / last, 4)
            shown = examples_seen == last
            image = album.image(
                trained.run, file, alt, data_share=share, data_images=f"{examples_seen:,}", hidden=not shown
            )
            images.append(image)
        caption = tag(
            "figcaption",
            tag("strong", breakable(row.name)),
            " ",
            tag("span", f"{last:,} images", class_="when"),
        )
        return tag("figure", images, caption)
    return None


def _frames(trained: Trained) -> Iterator[tuple[int, str]]:
    files = {}
    for file in sorted(trained.run.samples.glob("samples_*.png")):
        digits = file.stem.removeprefix("samples_")
        if digits.isdecimal():
            files[int(digits)] = f"samples/{file.name}"
    places = sorted(files)
    if len(places) > FRAMES:
        places = [places[round(n * (len(places) - 1) / (FRAMES - 1))] for n in range(FRAMES)]
    yield from ((examples_seen, files[examples_seen]) for examples_seen in places)


def _gallery(kind: str, told: str, alt: str) -> Callable[[Comparison, Album], Markup | None]:
    def make(comparison: Comparison, album: Album) -> Markup | None:
        figures = [figure for row in comparison.all_rows if (figure := _picture(row, kind, alt, album))]
        return joined([tag("p", told), tag("div", figures, class_="grid wide")]) if figures else None

    return make


def _picture(row: Row, kind: str, alt: str, album: Album) -> Markup | None:
    for trained in row.runs:
        path = part(trained.entry(row.variant), "pictures").get(kind)
        image = album.image(trained.run, path, f"{alt} {row.name}") if path else None
        if image:
            return tag(
                "figure",
                image,
                tag("figcaption", tag("strong", breakable(row.name)), f" seed {trained.seed}"),
            )
    return None


def _copies(comparison: Comparison, album: Album) -> Markup | None:
    make = _gallery(
        "neighbours",
        "Samples beside their nearest images of the training split.",
        "Samples and nearest training images of",
    )
    charts = [chart for row in comparison.all_rows if (chart := curves.copies(row))]
    parts = [make(comparison, album), tag("div", charts, class_="grid wide") if charts else None]
    return joined(parts) if any(parts) else None


# Data and provenance


def _data(comparison: Comparison, album: Album) -> Markup | None:
    found: dict[str, tuple[dict, list[str]]] = {}
    for row in _trainings(comparison):
        data = part(row.first.record, "data")
        if data:
            found.setdefault(str(data), (data, []))[1].append(row.name)
    blocks = []
    for data, names in found.values():
        pairs = [
            (name.replace("_", " "), fairness.text_of(v))
            for name, v in data.items()
            if v not in (None, {}, "")
        ]
        title = f"{data.get('name', 'data')} ({'all models' if len(found) == 1 else ', '.join(names)})"
        blocks.append(_box(title, pairs, "data"))
    return tag("div", blocks, class_="boxes") if blocks else None


def _provenance(comparison: Comparison, album: Album) -> Markup | None:
    blocks = []
    for row in _trainings(comparison):
        pairs = [pair for trained in row.runs for pair in _facts_of(trained)]
        config = (
            tag("details", tag("summary", "Configuration"), tag("pre", row.first.settings, tabindex="0"))
            if row.first.settings
            else None
        )
        blocks.append(
            tag(
                "details",
                tag("summary", row.name),
                tag("dl", [tag("div", tag("dt", n), tag("dd", tag("code", v))) for n, v in pairs]),
                config,
            )
        )
    return joined(blocks) if blocks else None


def _facts_of(trained: Trained) -> Iterator[tuple[str, str]]:
    environment = trained.environment
    label = f"seed {trained.seed}"
    yield f"{label}, run", f"{trained.name}, {trained.status}"
    command = environment.get("command")
    if isinstance(command, list):
        yield f"{label}, command", " ".join(map(str, command)).replace("__main__.py", "genlab", 1)
    yield (
        f"{label}, test",
        " ".join(["genlab test", trained.name, *map(str, trained.entry().get("arguments") or [])]),
    )
    versions = {"python": environment.get("python"), **part(environment, "packages")}
    yield (
        f"{label}, versions",
        ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    )
    machine = [environment.get("cpu"), environment.get("device"), environment.get("platform")]
    yield f"{label}, machine", ", ".join(str(word) for word in machine if word)
    git = part(environment, "git")
    marks = {"commit": git.get("commit"), "checkpoint": trained.entry().get("checkpoint_digest")}
    changed = " with uncommitted changes" if git.get("dirty") else ""
    yield f"{label}, hashes", ", ".join(f"{name} {value}" for name, value in marks.items() if value) + changed


_interpolations = _gallery(
    "interpolation", "From one sample to another through latent space.", "Interpolations of"
)
_reconstructions = _gallery(
    "reconstruction",
    "Images of the test split, what comes back of them, and the difference.",
    "Images, their reconstructions and the difference, of",
)
_failures = _gallery(
    "failures", "The samples that are farthest from all real images.", "The worst samples of"
)

_SECTIONS: tuple[tuple[str, str, Callable[[Comparison, Album], Markup | None]], ...] = (
    ("verdict", "Verdict", _verdict),
    ("fairness", "Fairness", _fairness),
    ("table", "Table", _table),
    ("adjectives", "Textbook and measurement", _adjectives),
    ("time", "Quality against time", lambda found, _: curves.against_time(_trainings(found))),
    ("images", "Quality against images seen", lambda found, _: curves.against_images(_trainings(found))),
    ("steps", "Quality against sampling steps", lambda found, _: curves.against_steps(found)),
    ("speed", "Quality against sampling speed", lambda found, _: curves.pareto(found)),
    ("stability", "Stability", _stability),
    ("samples", "Samples through training", _films),
    ("interpolations", "Interpolations", _interpolations),
    ("reconstructions", "Reconstructions", _reconstructions),
    ("copies", "Nearest training images", _copies),
    ("failures", "Failures", _failures),
    ("data", "Data", _data),
    ("provenance", "Commands, versions, hashes", _provenance),
)
