"""What textbooks say of a family in adjectives, beside what was measured.

The only place that knows families by their names: of an unknown one nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable

from genlab.report import fairness
from genlab.report.columns import chosen, shown
from genlab.report.comparison import Comparison
from genlab.report.rows import Row
from genlab.report.table import MetricsTable
from genlab.text import printable

QUALITIES = ("sample quality", "training", "sampling", "likelihood", "latent space")

TEXTBOOK = {
    "GAN": ("sharp, high", "unstable", "fast", "none", "yes, no encoder"),
    "Autoencoder": ("poor without a fitted sampler", "stable", "fast", "none", "yes"),
    "VAE": ("medium, blurry", "stable", "fast", "lower bound", "yes, smooth"),
    "VQVAE": ("good with a learned prior", "stable", "depends on the prior", "none", "discrete"),
    "Latent": ("good with a learned prior", "stable", "depends on the prior", "none", "discrete"),
    "Flow": ("medium", "stable", "fast", "exact", "yes, as large as the data"),
    "Diffusion": ("best", "stable", "slow", "lower bound", "as large as the data"),
    "Score": ("best", "stable", "slow", "exact by its ODE", "as large as the data"),
    "Autoregressive": ("good", "stable", "slow", "exact", "none"),
}
"""Adjectives by the name of a family's class, in the order of QUALITIES."""


def beside_measurements(comparison: Comparison) -> list[tuple[Row, list[tuple[str, str]]]]:
    """Returns every comparable row of a known family with (adjective, measured) for each of QUALITIES.

    Both are "" in what a way to sample has in common with the other rows of its weights, and measured is ""
    where the textbook says that there is nothing to measure.
    """
    rows = [row for group in comparison.groups for row in group.rows]
    return [(row, _pairs(row)) for row in rows if row.family in TEXTBOOK]


def _pairs(row: Row) -> list[tuple[str, str]]:
    pairs = []
    for quality, adjective in zip(QUALITIES, TEXTBOOK[row.family], strict=True):
        if row.variant and quality not in _OF_THE_SAMPLER:
            pairs.append(("", ""))
            continue
        otherwise = "" if adjective == "none" else "not measured"
        pairs.append((adjective, _MEASURED[quality](row) or otherwise))
    return pairs


def as_table(comparison: Comparison) -> MetricsTable | None:
    """Returns the same as a table of "adjective: measured"; None if no family is known."""
    lines = [
        [
            row.name,
            row.family,
            *(": ".join(filter(None, pair)) for pair in pairs),
        ]
        for row, pairs in beside_measurements(comparison)
    ]
    heads = ["model", "family", *QUALITIES]
    return (
        MetricsTable(heads, [list(map(printable, line)) for line in lines], [False] * len(heads))
        if lines
        else None
    )


def _keyed(row: Row, key: str, before: str = "", after: str = "") -> str:
    cell = str(chosen([key])[-1].cell(row))
    return f"{before}{cell}{after}" if cell else ""


def _quality(row: Row) -> str:
    headline = row.headline
    led = headline is not None and fairness.scope_of(headline.key) == fairness.SAMPLES
    parts = [_keyed(row, headline.key, f"{headline.title} ")] if headline is not None and led else []
    parts += [_keyed(row, key, f"{key} ") for key in ("precision", "recall")]
    return ", ".join(filter(None, parts))


def _training(row: Row) -> str:
    return ", ".join(filter(None, [str(row.stability), _keyed(row, "wobble", "last evaluations ")]))


def _sampling(row: Row) -> str:
    nfe = row.over_seeds("speed", "nfe")
    passes = (
        "" if nfe is None else "1 network pass" if nfe.value == 1 else f"{shown(nfe.value)} network passes"
    )
    parts = [_keyed(row, "ms", after=" ms"), passes]
    return ", ".join(filter(None, parts))


def _likelihood(row: Row) -> str:
    return _keyed(row, "bits_per_dim", after=" bits/dim") or _keyed(row, "bits_per_byte", after=" bits/byte")


def _latent(row: Row) -> str:
    return ", ".join(filter(None, [_keyed(row, "latent"), _keyed(row, "probe", "probe ")]))


_MEASURED: dict[str, Callable[[Row], str]] = dict(
    zip(QUALITIES, (_quality, _training, _sampling, _likelihood, _latent), strict=True)
)
_OF_THE_SAMPLER = ("sample quality", "sampling")
