"""Numbers as a program takes them and a notebook shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from genlab.report.columns import Column
from genlab.report.comparison import Comparison
from genlab.report.forms import groups, records, text_table
from genlab.report.table import MetricsTable, metrics_table
from genlab.report.test_table import spreads_of, values_of
from genlab.report.verdict import remarks
from genlab.text import printable


@dataclass(frozen=True)
class Results:
    """Rows of numbers: `pandas.DataFrame(results.rows)` takes them, a notebook shows them, so does `print`.

    Attributes:
        rows: A dictionary a row, with None for what is not there.
        tables: The same for people.
        sentences: What is to be said about them.
    """

    rows: list[dict[str, Any]]
    tables: list[MetricsTable] = field(repr=False)
    sentences: list[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def to_dict(self) -> dict[str, list[Any]]:
        """Returns a list a column."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.tables), "\n".join(map(printable, self.sentences))]).strip()

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{escape(printable(sentence))}</li>" for sentence in self.sentences)
        tables = "".join(table._repr_html_() for table in self.tables)
        return f"{tables}<ul>{lines}</ul>" if lines else tables


def of_comparison(comparison: Comparison, columns: Sequence[Column] | None = None) -> Results:
    """Returns a comparison as `genlab compare` prints it."""
    tables = [text_table(group, wanted) for group, wanted in groups(comparison, columns)]
    return Results(records(comparison, columns), tables, remarks(comparison))


@dataclass(frozen=True)
class Score(Results):
    """Scores with all that they depend on.

    Attributes:
        values: Number by name; `fid@797` says that fewer than 10,000 images were used.
        protocol: What must be equal for two scores to be compared.
        copies: How near the images come to those that they were learned from, {} where these are unknown.
        seconds: What measuring took.
    """

    values: dict[str, float]
    protocol: dict[str, Any] = field(repr=False)
    copies: dict[str, Any] = field(repr=False)
    seconds: float

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Score:
        """Returns what `evaluation.image_scores` found."""
        spreads, numbers = spreads_of(entry["values"]), values_of(entry)
        rows = [{"metric": m, "value": value, "spread": spreads.get(m)} for m, value in numbers.items()]
        table = metrics_table(rows, ("metric", "value", "spread"))
        parts = entry["values"], entry["protocol"], entry.get("copies", {}), entry["seconds"]
        return cls(rows, [table], protocol_lines(entry), *parts)


def protocol_lines(entry: dict[str, Any]) -> list[str]:
    """Returns how scores of images were obtained, in a few lines."""
    told = entry["protocol"]
    drawn = f", {told['weights']} weights, seed {told['seed']}" if "weights" in told else ""
    kind = f"{told['split']} items" if "split" in told else "images"
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    lines = [
        f"Scored: {told['num_fake']:,} images of {told['images']} ({told['images_digest'][:8]}{drawn}).",
        f"Reference: {told['num_real']:,} {kind} of {told['data']} ({told['data_fingerprint'][:8]}), "
        f"{told['levels']} levels.",
        f"Extractor: {told['extractor']} {told['extractor_digest'][:8]}, resize {told['resize']}.",
        f"Versions: {versions}.",
    ]
    copies = entry.get("copies")
    if copies:
        lines.insert(
            2,
            f"Copies: {copies['share']:.1%} of {copies['num']:,} images are as near to one of "
            f"{copies['num_train']:,} training images as only 5 % of the reference's are.",
        )
    return lines
