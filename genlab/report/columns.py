# ruff: noqa: E501 - COLUMNS has one row a line
"""The columns of a comparison: what each shows, what it was measured on, and which way is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from genlab.report import fairness
from genlab.report.gather import number, part
from genlab.report.intervals import Interval, t_interval
from genlab.report.rows import Row, is_logarithmic
from genlab.runs.headline import named
from genlab.text import nearest, shortened


@dataclass(frozen=True)
class Cell:
    """What a row has in a column: a text, or a number with its interval over training seeds.

    Attributes:
        text: As it is shown without its interval; "" where the model has no such thing.
        value: The number to sort and to export by, None for texts.
        low: Lower end of the interval, None where there is none.
        high: Upper end.
        sign: "≤" before an upper bound.
        num: Number of seeds.
        skewed: The interval is not symmetric around the value, as one of logarithms.
        mark: Stands behind the text and is no part of it.
    """

    text: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    sign: str = ""
    num: int = 0
    skewed: bool = False
    mark: str = ""

    @property
    def interval(self) -> str:
        """The interval as text, "" where there is none or it is narrower than the digits shown."""
        if self.low is None or self.high is None or shown(self.low) == shown(self.high):
            return ""
        if self.skewed:
            return f"[{shown(self.low)}, {shown(self.high)}]"
        half = float(f"{(self.high - self.low) / 2:.2g}")
        return f"±{f'{half:,.0f}' if half >= 100 else f'{half:g}'}"

    def __str__(self) -> str:
        return f"{self.text} {self.mark or self.interval}".strip()


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        key: Its name for `--columns`, in CSV files and in `--rank`.
        heading: What stands above it, with its unit; see also `heading`.
        cell: Takes a row to its cell.
        explanation: One sentence for who does not know it.
        better: "lower", "higher", or "" where neither is.
        scope: What it was measured on, see `genlab.report.fairness`.
        place: Where the numbers to be ranked lie in a test entry.
        importance: The smaller, the later it is dropped from a narrow terminal.
        is_numeric: Whether it holds numbers, which are aligned at the right.
        titled: Takes rows to the heading above them, where that depends on the rows.
    """

    key: str
    heading: str
    cell: Callable[[Row], Cell]
    explanation: str
    better: str = ""
    scope: str = fairness.TRAINING
    place: tuple[str, ...] = ()
    importance: int = 5
    is_numeric: bool = True
    titled: Callable[[Sequence[Row]], str] | None = None


def shown(value: float) -> str:
    """Returns a number as people read it: three significant digits, thousands separated."""
    if value == 0 or (float(value).is_integer() and abs(value) < 1e4):
        return f"{value:.0f}"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:,.3g}M"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if size >= 1e-3 else f"{value:.2g}"


def _measured(key: str, heading: str, place: str, explanation: str, **more: Any) -> Column:
    path = tuple(place.split("."))

    def cell(row: Row) -> Cell:
        return _cell(row.over_seeds(*path), skewed=is_logarithmic(path))

    return Column(key, heading, cell, explanation, place=path, **more)


def _score(key: str, heading: str, importance: int, explanation: str) -> Column:
    scope, better = fairness.scope_of(key), named(key).better
    return _measured(
        key, heading, f"values.{key}", explanation, better=better, scope=scope, importance=importance
    )


def _headline(key: str, importance: int, explanation: str) -> Column:
    return _score(key, named(key).label, importance, explanation)


def _words(key: str, heading: str, cell: Callable[[Row], Cell], importance: int, explanation: str) -> Column:
    return Column(key, heading, cell, explanation, importance=importance, is_numeric=False)


def _cell(found: Interval | None, sign: str = "", skewed: bool = False) -> Cell:
    if found is None:
        return Cell()
    text = f"{sign} {shown(found.value)}".strip()
    return Cell(text, found.value, found.low, found.high, sign, found.num, skewed)


def _recorded(key: str, heading: str, name: str, explanation: str, **more: Any) -> Column:
    return Column(key, heading, lambda row: _cell(row.of_record(name)), explanation, **more)


def _point(value: float | None) -> Cell:
    return Cell() if value is None else Cell(shown(value), value)


def _bits(row: Row) -> Cell:
    kind = part(row.protocol, "likelihood").get("kind")
    return _cell(row.over_seeds("values", "bits_per_dim"), "≤" if kind == "<=" else "")


def _latent(row: Row) -> Cell:
    latents = [part(entry, "latent") for entry in row.entries]
    first = next((latent for latent in latents if latent), {})
    dim = number(first.get("dim"))
    return Cell(" ".join(filter(None, [str(first.get("type", "")), f"{dim:.0f}" if dim is not None else ""])))


def _disentanglement(row: Row) -> Cell:
    found: dict[str, list[float]] = {}
    for entry in row.entries:
        for name, value in part(entry, "latent", "disentanglement").items():
            if (plain := number(value)) is not None:
                found.setdefault(str(name), []).append(plain)
    return Cell(", ".join(f"{name} {shown(fmean(values))}" for name, values in found.items()))


def _examples_per_second(row: Row) -> Cell:
    rates = []
    for trained in row.runs:
        seen, seconds = (number(trained.record.get(name)) for name in ("examples_seen", "training_seconds"))
        if seen and seconds:
            rates.append(seen / seconds)
    return _point(fmean(rates) if rates else None)


def _training_seconds(row: Row) -> Cell:
    stages = [(run.record, run.first_stage) for run in row.runs]
    seconds = [[number(stage.get("training_seconds")) for stage in both] for both in stages]
    found = [own + (first or 0.0) for own, first in seconds if own is not None]
    return _point(fmean(found) if found else None)


def _copies(row: Row) -> Cell:
    percents = [100 * share for share in row.numbers("copies", "share")]
    return _cell(t_interval(percents) if percents else None)


def _name(row: Row) -> Cell:
    return Cell(row.name, mark="†" if row.uses_labels else "")


def _own_evaluations(which: str, row: Row) -> Cell:
    found, headline = getattr(row.stability, which), row.stability.headline
    return _cell(found, skewed=headline is not None and headline.is_logarithmic)


def _wobble(row: Row) -> Cell:
    value, headline = row.stability.wobble, row.stability.headline
    if value is None or headline is None:
        return Cell()
    return Cell(f"±{100 * value:.0f} %" if headline.is_logarithmic else f"±{shown(value)}", value)


def _units(rows: Sequence[Row], place: int) -> str:
    found = {row.first.unit for row in rows}
    return found.pop()[place] if len(found) == 1 else ("ex", "examples")[place]


def _title_of_rate(rows: Sequence[Row]) -> str:
    batches = {int(batch) for row in rows for batch in row.numbers("speed", "batch")} or {64}
    return f"samples/s @{', '.join(map(str, sorted(batches)))}"


def _title_of_evaluations(which: str, rows: Sequence[Row]) -> str:
    titles = {row.stability.headline.title for row in rows if row.stability.headline is not None}
    return f"{titles.pop()} {which}" if len(titles) == 1 else which


SAMPLES, LIKELIHOOD = fairness.SAMPLES, fairness.LIKELIHOOD
SPEED, BATCHED = fairness.SPEED, fairness.BATCHED
LOWER, HIGHER = "lower", "higher"

# fmt: off
COLUMNS = (
    _words("name", "model", _name, 0, "Experiment, and way to sample after a slash; † was trained with labels."),
    _words("family", "family", lambda row: Cell(row.family), 1, "What is learned."),
    Column("seeds", "seeds", lambda row: _point(float(len(row.entries))), "Training seeds that were tested.", importance=4),
    _headline("fid", 1, "Fréchet distance; 95 % t-interval of log FID over training seeds."),
    Column("noise", "noise", lambda row: _point(row.sampling_noise), "Standard error of one model's FID for its finite number of samples; not the spread over seeds.", scope=SAMPLES, importance=6),
    _score("kid", "KID", 5, "Kernel distance."),
    _score("is", "IS", 9, "Inception score."),
    _score("precision", "precision", 3, "Share of samples that lie among real images."),
    _score("recall", "recall", 3, "Share of real images that lie among samples."),
    _headline("wasserstein", 1, "How far samples must be moved to become real points, in one dimension at a time."),
    _headline("bits_per_byte", 1, "Negative log-likelihood of the test split in bits per byte of text, whatever the vocabulary."),
    _headline("perplexity", 2, "Exponential of the negative log-likelihood of a token; depends on the vocabulary."),
    _score("code_perplexity", "code perplexity", 4, "Exponential of the entropy of a first stage's codes over the test split: how many are in use, were they used alike."),
    _headline("bleu", 1, "Agreement of n-grams with the reference translation, 0 to 100."),
    _headline("psnr_y", 1, "PSNR of the luma without a border, as papers on super-resolution give it."),
    _headline("psnr_rgb", 2, "PSNR of all channels without a border, about 2 dB less than of the luma."),
    _headline("psnr", 1, "Peak signal-to-noise ratio: squared error against the right image, in decibels."),
    _score("ssim_y", "SSIM on Y", 2, "Structural similarity of the luma without a border."),
    _score("ssim_rgb", "SSIM on RGB", 3, "Structural similarity of all channels without a border."),
    _score("ssim", "SSIM", 2, "Structural similarity to the right image, 1 for the same."),
    _headline("accuracy", 1, "Share of the test split that gets its own label."),
    Column("bits_per_dim", "bits/dim", _bits, "Negative log-likelihood of the test split; ≤ is an upper bound.", LOWER, LIKELIHOOD, ("values", "bits_per_dim"), importance=3),
    _score("nll", "nll", 9, "Negative log-likelihood in nats per item."),
    _measured("reconstruction", "recon. mse", "values.reconstruction_mse", "Mean squared error of what an image is decoded to after encoding.", better=LOWER, scope=fairness.RECONSTRUCTION),
    _words("stability", "stability", lambda row: Cell(str(row.stability)), 2, "Sound trainings of all; what became of others."),
    Column("training", "training s", _training_seconds, "Seconds of training alone, with those of a first stage.", LOWER, importance=4),
    _recorded("examples", "examples seen", "examples_seen", "Training examples seen.", importance=6, titled=lambda rows: f"{_units(rows, 1)} seen"),
    Column("examples_per_second", "train ex/s", _examples_per_second, "Training examples per second.", HIGHER, importance=6, titled=lambda rows: f"train {_units(rows, 0)}/s"),
    _measured("ms", "ms/sample", "speed.ms_per_sample", "Milliseconds for one sample.", better=LOWER, scope=SPEED, importance=2),
    _measured("rate", "samples/s @64", "speed.samples_per_second_64", "Samples per second in batches of 64, or of 8 or 1 where 64 take too long.", better=HIGHER, scope=BATCHED, importance=6, titled=_title_of_rate),
    _measured("nfe", "NFE", "speed.nfe", "Network evaluations for one sample.", better=LOWER, importance=4),
    _measured("memory", "memory MiB", "speed.peak_memory_mib", "Peak memory.", better=LOWER, scope=BATCHED, importance=7),
    Column("copies", "copies %", _copies, "Share of samples nearer to a training image than 95 % of the test split is; of texts, of their pieces of 40 characters that stand in the training text.", LOWER, importance=4),
    _recorded("parameters", "parameters", "parameters", "Trainable numbers.", better=LOWER, importance=4),
    _words("latent", "latent", _latent, 6, "Type and dimension of the latent space."),
    _measured("probe", "probe", "latent.linear_probe", "Accuracy of a linear probe of the codes.", better=HIGHER, importance=7),
    _measured("path", "path", "latent.path_length", "Length of interpolations in extractor features.", better=LOWER, importance=7),
    _measured("active", "active", "latent.active_units", "Dimensions of the latent that are in use.", importance=8),
    _words("disentanglement", "disentanglement", _disentanglement, 9, "Against known factors."),
    _words("labels", "labels", lambda row: Cell("yes" if row.uses_labels else "no"), 8, "Whether labels were used."),
    Column("trials", "trials", lambda row: Cell(fairness.trials(row)), "Tuning trials behind the settings.", importance=8),
    Column("best", "best", partial(_own_evaluations, "best"), "Best of each run's own evaluations; not the result.", importance=6, titled=partial(_title_of_evaluations, "best")),
    Column("last", "last", partial(_own_evaluations, "last"), "Last of each run's own evaluations.", importance=6, titled=partial(_title_of_evaluations, "last")),
    Column("wobble", "spread, last 5", _wobble, "Spread of a run's last evaluations, relative for FID and its like; what it still gains is in it.", LOWER, importance=7),
)
# fmt: on


def chosen(keys: Sequence[str]) -> list[Column]:
    """Returns columns by their keys, the name always first.

    Raises:
        ValueError: There is no such column; the message names the nearest one and all others.
    """
    by_key = {column.key: column for column in COLUMNS}
    for key in keys:
        if key not in by_key:
            hint = nearest(key, by_key)
            raise ValueError(f"There is no column '{shortened(key)}'.{hint} There are: {', '.join(by_key)}.")
    return [by_key[key] for key in dict.fromkeys(["name", *keys])]


def filled(rows: Sequence[Row]) -> list[Column]:
    """Returns the columns in which any row has something to show."""
    return [column for column in COLUMNS if any(column.cell(row).text for row in rows)]


def heading(column: Column, rows: Sequence[Row]) -> str:
    """Returns a column's heading above some rows; the number of samples is part of a score's name."""
    if column.titled is not None:
        return column.titled(rows)
    if column.scope not in (fairness.SAMPLES, fairness.SPLIT) or not column.place:
        return column.heading
    for row in rows:
        for entry in row.entries:
            for name in entry["values"]:
                if name.split("@")[0] == column.place[-1] and "@" in name:
                    return f"{column.heading}@{name.split('@', 1)[1]}"
    return column.heading
