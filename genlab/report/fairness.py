"""Which rows may be compared: the fields that must be equal, by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.report.gather import part
from genlab.report.rows import Row
from genlab.runs.headline import SCORES, Headline, headline_of

SAMPLES, LIKELIHOOD, RECONSTRUCTION = "samples", "likelihood", "reconstruction"
SPLIT, SPEED, BATCHED, TRAINING = "split", "speed", "speed in batches", "training"
"""What a number was measured on: decides what must be equal beside it. A protocol's sections are so named."""

_ALL = "over the whole split"
"""The data's order in training where the record names no other one."""

_NOT_OF_THE_SAMPLES = ("weights", "extractor_digest")
_OF_THE_SPLIT = ("accuracy", "code_perplexity")
_OF_A_LIKELIHOOD = ("bits_per_byte", "bits_per_dim", "perplexity", "nll")


def scope_of(score: str) -> str:
    """Returns what a score was measured on, by its short name."""
    if score in _OF_A_LIKELIHOOD:
        return LIKELIHOOD
    return SPLIT if score in _OF_THE_SPLIT else SAMPLES


class Incomparable(ValueError):  # noqa: N818 - reads as the sentence it is
    """Rows that were asked to be ranked and may not be."""


@dataclass(frozen=True)
class Fact:
    """What a row holds in a field that must be equal.

    Attributes:
        text: The value in words.
        everywhere: Whether a row without the field differs, too; a metric that one lacks is an empty cell.
    """

    text: str
    everywhere: bool = True


@dataclass(frozen=True)
class Unequal:
    """A field in which a row differs from most others.

    Attributes:
        field: Its name.
        value: The row's.
        usual: That of the others.
    """

    field: str
    value: str
    usual: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value or 'not recorded'} instead of {self.usual or 'not recorded'}"


def facts(row: Row, scope: str = SAMPLES) -> dict[str, Fact]:
    """Returns what must be equal for two rows to be compared, by field.

    A protocol's `weights` (averaged or raw) is not among them: an average is a part of the method that keeps
    one. Within one experiment it is a choice of the measurement, see `set_apart`.

    Args:
        row: A row.
        scope: What the numbers in question were measured on; one of the constants of this file.
    """
    if scope in (SPEED, BATCHED):
        return _speed_facts(row, in_batches=scope == BATCHED)
    found = {
        "budget": Fact(row.budget),
        "training data": Fact(training_data(row)),
        "data order": Fact(str(part(row.first.record, "data").get("order", _ALL))),
    }
    if row.first.is_timed or scope == TRAINING:
        found["hardware"] = Fact(
            row.first.hardware, everywhere=False
        )  # another machine's second is another budget
    # A share of the split that samples get right is of so many samples; a classifier's is of the whole split.
    if scope == SAMPLES or (scope == SPLIT and "num_fake" in row.protocol):
        found |= _sample_protocol(row.protocol)
    if scope in (LIKELIHOOD, RECONSTRUCTION):
        section = part(row.protocol, scope)
        found |= {f"{scope} {name}": Fact(text_of(value)) for name, value in section.items()}
    if scope == SPLIT:
        found["test data"] = Fact(_data(row, "test"))
    return found


def usual_facts(rows: Sequence[Row], scope: str = SAMPLES) -> dict[str, Fact]:
    """Returns for every field the value that most rows have, the first of equally frequent ones.

    The rows that agree in all fields with most others decide together, so that no mixture arises.
    """
    of_rows = [facts(row, scope) for row in rows]
    tested = [found for row, found in zip(rows, of_rows, strict=True) if row.entries] or of_rows
    if not tested:
        return {}
    whole = Counter(tuple(sorted(found.items(), key=lambda field: field[0])) for found in tested)
    return dict(whole.most_common(1)[0][0])


def set_apart(rows: Sequence[Row], scope: str = SAMPLES) -> dict[int, list[Unequal]]:
    """Returns, for each row that may not be compared with the others, the fields in which it differs.

    Args:
        rows: All rows.
        scope: See `facts`.

    Returns:
        By the row's place.
    """
    usual, apart = usual_facts(rows, scope), {}
    for place, row in enumerate(rows):
        found = facts(row, scope)
        # Of one that was never tested, its training alone can be compared.
        unequal = _unequal(
            found, usual if row.entries else {name: usual[name] for name in found if name in usual}
        )
        if scope == SAMPLES:
            unequal += _other_weights(row, rows)
        if unequal:
            apart[place] = unequal
    return apart


@dataclass(frozen=True)
class Group:
    """Rows that are led by one score.

    Attributes:
        headline: The first score that all of them have which have any; None where none has any.
        rows: In their order.
    """

    headline: Headline | None
    rows: list[Row]


def by_headline(rows: Sequence[Row]) -> list[Group]:
    """Returns rows by the score that they can be compared by, the largest group first.

    One group where all share a score, else a group for each row's own. A row without a score (it diverged) is
    in the group of rows that learned the same data, else in the first.
    """
    shared = headline_of(*(row.scores for row in rows if row.headline), among=SCORES)
    leads = {id(row): shared or row.headline for row in rows if row.headline}
    of_data = {training_data(row): leads[id(row)] for row in rows if row.headline}
    sizes = Counter(leads.values())
    order = sorted(sizes, key=lambda headline: (-sizes[headline], SCORES.index(headline)))
    groups: dict[Headline | None, list[Row]] = {headline: [] for headline in order} or {None: []}
    for row in rows:
        headline = leads.get(id(row)) or of_data.get(training_data(row)) or next(iter(groups))
        groups[headline].append(row)
    return [Group(headline, of) for headline, of in groups.items()]


def require_comparable(rows: Sequence[Row], scope: str, what: str) -> None:
    """Refuses to rank rows of different protocols.

    Raises:
        Incomparable: Names the row, the field and both values.
    """
    apart = set_apart(rows, scope)
    if apart:
        reasons = "; ".join(
            f"{rows[n].name} has {', '.join(map(str, fields))}" for n, fields in apart.items()
        )
        raise Incomparable(
            f"{what} cannot be ranked: {reasons}. Leave these out, measure all alike (genlab test), "
            f"or compare without --rank, which sets them apart."
        )


def held_equal(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Returns the fields that all these rows share, with their value."""
    of_rows = [_held(row) for row in rows if row.entries]
    if not of_rows:
        return []
    first, *others = of_rows
    return [(name, v) for name, v in first.items() if v and all(found.get(name) == v for found in others)]


def _held(row: Row) -> dict[str, str]:
    scope = scope_of(row.headline.key) if row.headline else SAMPLES
    of_protocol = {name: fact.text for name, fact in facts(row, scope).items()}
    return of_protocol | {name: of(row) or "" for name, of in _TO_WEIGH.items()}


def not_held_equal(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Returns what differs among comparable rows, or within one, and should be weighed, such as labels."""
    found = []
    for name, of in _TO_WEIGH.items():
        names: dict[str, list[str]] = {}
        for row in rows:
            if row.entries and (value := of(row)) is not None:
                names.setdefault(value or "not recorded", []).append(row.name)
        if len(names) > 1 or any(_AND in value for value in names):
            found.append((name, "; ".join(f"{value}: {who}" for value, who in _most_are_others(names))))
    return found


def _most_are_others(names: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    most = max(names, key=lambda value: len(names[value]))
    rest = [(value, ", ".join(of)) for value, of in names.items() if value != most]
    return [*rest, (most, "all others" if len(names[most]) > 2 else ", ".join(names[most]))]


def is_scored_alike(row: Row, protocol: Mapping[str, Any]) -> bool:
    """Returns whether scores of another file belong beside a row's: no field that both name differs."""
    first, second = _sample_protocol(protocol), _sample_protocol(row.protocol)
    return all(first[name] == second[name] for name in first.keys() & second.keys())


def trials(row: Row) -> str:
    """Returns the number of tuning trials behind a row's settings, "" where it is not recorded."""
    counts = {str(part(t.record, "bench").get("tuning_trials", "")) for t in row.runs}
    return ", ".join(sorted(counts - {"", "None"}))


def training_data(row: Row) -> str:
    """Returns the name, number and fingerprint of what a row was trained on."""
    return _data(row, "train")


def _data(row: Row, split: str) -> str:
    data = part(row.first.record, "data")
    count, mark = part(data, "counts").get(split), part(data, "fingerprints").get(split)
    return " ".join(str(word) for word in (data.get("name"), count, str(mark)[:8] if mark else None) if word)


def same_speed_place(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows whose speeds may be ranked: those timed where most are, of items of one shape."""
    apart = set_apart(rows, SPEED)
    return [row for place, row in enumerate(rows) if place not in apart]


def speed_place(row: Row) -> str | None:
    """Returns the device and threads that a row's samples were timed with, None where none were."""
    return _mixed([timed_on(speed) for speed in _speeds(row)])


def timed_on(speed: Mapping[str, Any]) -> str:
    """Returns where a speed was measured."""
    threads = speed.get("threads", 0)
    return f"on {speed.get('device')}, {threads} thread{'' if threads == 1 else 's'}"


def _speed_facts(row: Row, in_batches: bool) -> dict[str, Fact]:
    # How fast a model is does not depend on how long it was trained.
    shape = part(row.first.record, "spec").get("shape", "")
    names = ("device", "threads", *(("batch",) if in_batches else ()))
    of_speeds = {name: [text_of(speed.get(name, "")) for speed in _speeds(row)] for name in names}
    return {
        "shape": Fact(text_of(shape)),
        **{f"speed {name}": Fact(_mixed(texts) or "") for name, texts in of_speeds.items()},
    }


def _speed_batch(row: Row) -> str | None:
    return _mixed([text_of(speed["batch"]) for speed in _speeds(row) if "batch" in speed])


def _speeds(row: Row) -> list[dict[str, Any]]:
    return [speed for entry in row.entries if (speed := part(entry, "speed"))]


def _mixed(texts: Sequence[str]) -> str | None:
    """Returns what all seeds have, or how many have what: means over equal mixtures are alike."""
    counts = Counter(texts)
    if len(counts) < 2:
        return next(iter(counts), None)
    return _AND.join(f"{text} ({num} of {len(texts)} seeds)" for text, num in sorted(counts.items()))


def _sample_protocol(protocol: Mapping[str, Any]) -> dict[str, Fact]:
    # A dictionary in a protocol is a section of its own: the metrics', the likelihood's, ...
    plain = {name: value for name, value in protocol.items() if not isinstance(value, dict)}
    found = {name: Fact(text_of(value)) for name, value in plain.items() if name not in _NOT_OF_THE_SAMPLES}
    if "extractor_digest" in protocol:
        found["extractor"] = Fact(f"{protocol.get('extractor', '')} {protocol['extractor_digest']}".strip())
    metrics = {f"metric {name}": held for name, held in part(protocol, "metrics").items()}
    return found | {name: Fact(text_of(held), everywhere=False) for name, held in metrics.items()}


def _unequal(found: Mapping[str, Fact], usual: Mapping[str, Fact]) -> list[Unequal]:
    unequal = []
    for name in dict.fromkeys([*usual, *found]):
        one, other = found.get(name), usual.get(name)
        if one is None or other is None:
            present = one or other
            differs = present is not None and present.everywhere and bool(present.text)
        else:
            differs = one.text != other.text
        if differs:
            unequal.append(Unequal(name, one.text if one else "", other.text if other else ""))
    return unequal


def _other_weights(row: Row, rows: Sequence[Row]) -> list[Unequal]:
    # The same experiment scored with averaged and with raw weights: one of the two was a choice.
    same = [other for other in rows if other.first.experiment == row.first.experiment and other.entries]
    usual = Counter(_weights(other) for other in same).most_common(1)
    if not row.entries or not usual or usual[0][0] == _weights(row):
        return []
    return [Unequal("weights", _weights(row), usual[0][0])]


def _weights(row: Row) -> str:
    return text_of(row.protocol.get("weights", ""))


def _labels(row: Row) -> str:
    return "uses labels" if row.uses_labels else "without labels"


def _seeds(row: Row) -> str:
    return str(len(row.entries))


_AND = " and "  # between the parts of a mixture

_TO_WEIGH: dict[str, Callable[[Row], str | None]] = {
    "tuning trials": trials,
    "labels": _labels,
    "weights": _weights,
    "seeds": _seeds,
    "speed measured": speed_place,
    "samples/s measured in batches of": _speed_batch,
}
"""What makes rows of one protocol less alike; None where a row has no such thing."""


def text_of(value: Any) -> str:
    """Returns a value of a record in words."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {text_of(inner)}" for name, inner in sorted(value.items(), key=str))
    if isinstance(value, list):
        return "x".join(map(text_of, value))
    return str(value)
