"""A run as a model card, the page of a model hub, made from the run alone. Imports no torch.

All that it says was written down by a training or a test, and what nobody wrote down is named as missing. A
run may be anybody's: each of its texts is shown as a text.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from genlab.report.columns import shown
from genlab.report.comparison import compare
from genlab.report.forms import as_markdown, markdown_table, markdown_text
from genlab.report.galleries import stored_samples
from genlab.report.gather import Trained, gather, number, part
from genlab.report.pictures import Album, Shown
from genlab.report.provenance import facts_of
from genlab.report.rows import collapse, rows_of
from genlab.report.test_table import table_of
from genlab.runs.environment import without_private
from genlab.text import printable, shortened

NOT_STATED = "not stated"
"""Stands for what nobody has said."""

LONGEST = 300  # characters of a text of the run

Facts = dict[str, Any]


@dataclass(frozen=True)
class Card:
    """A run as others are told of it.

    Args:
        trained: The run.
        weights: Name of the file of the weights beside the card.
        is_tested: Whether the test in the record is of these weights.
        paper: Of the model, "" where none is known.
        task: What the hub calls what the model does, "" where it has no word for that.
        licence: Of the weights, as a hub's identifier such as apache-2.0; "" where none was chosen.
        data_licence: What the data may be used for, "" for what the run has recorded.
    """

    trained: Trained
    weights: str
    is_tested: bool
    paper: str = ""
    task: str = ""
    licence: str = ""
    data_licence: str = ""

    @property
    def markdown(self) -> str:
        """The card, with its head for machines.

        Raises:
            ValueError: The record's test is not whole.
        """
        sections = {
            "Model": _listed(self._model()),
            "Training": _listed(self._training()),
            "Scores": self._scores(),
            "Limits": "\n".join(f"- {line}" for line in self._limits()),
            "Use": self._use(),
            "How it was made": self._making(),
        }
        parts = [self._introduction(), *(f"## {name}\n\n{text}" for name, text in sections.items())]
        return "\n\n".join([f"---\n{self._head()}---", *parts]) + "\n"

    @cached_property
    def picture(self) -> tuple[str, bytes] | None:
        """The name and the content of the picture of samples beside the card, None where there is none."""
        if self._shown is None or not self._shown.source:
            return None
        kind, _, content = self._shown.source.partition(";base64,")
        return f"samples.{kind.rsplit('/', 1)[-1]}", base64.b64decode(content)

    @cached_property
    def problems(self) -> list[str]:
        """A sentence for each picture that could not be shown."""
        self._shown  # noqa: B018 - looking for it finds them
        return self._album.problems

    @cached_property
    def _album(self) -> Album:
        return Album()

    @cached_property
    def _shown(self) -> Shown | None:
        drawn = part(self._test, "pictures").get("samples")
        stored = stored_samples(self.trained)
        path = drawn or (stored[-1][1] if stored else None)
        return self._album.shown(self.trained.run, path, "Samples") if path else None

    @property
    def _record(self) -> Facts:
        return self.trained.record

    @property
    def _test(self) -> Facts:
        return self.trained.entry() if self.is_tested else {}

    @property
    def _data(self) -> Facts:
        return part(self._record, "data")

    @property
    def licence_of_data(self) -> str:
        """What the data may be used for, "" where nobody has said it."""
        return self.data_licence or str(self._data.get("licence") or "")

    @property
    def _data_name(self) -> str:
        return str(self._data.get("name") or "data")

    def _head(self) -> str:
        """Returns what the hub reads: tags, the kind of task, and the scores as they were recorded."""
        tags = ["genlab", *filter(None, (self.trained.family, self._data_name))]
        head: Facts = {"library_name": "genlab", "tags": list(map(_plain, tags))}
        if self.licence:
            head["license"] = self.licence
        if self.task:
            head["pipeline_tag"] = self.task
        if metrics := [
            {"type": _plain(name).split("@")[0], "name": _plain(name), "value": value}
            for name, value in self._values()
        ]:
            data = {"type": _plain(self._data_name), "name": _plain(self._data_name)}
            results = {"task": {"type": self.task or "other"}, "dataset": data, "metrics": metrics}
            head["model-index"] = [{"name": _plain(self.trained.experiment), "results": [results]}]
        return yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=math.inf)

    def _values(self) -> Iterator[tuple[str, float]]:
        means = self._test.get("split_means") or ()
        for name, value in part(self._test, "values").items():
            if value is not None and "_std" not in name and name not in means:
                yield name, value

    def _introduction(self) -> str:
        family, version = self.trained.family or "model", self._record.get("genlab")
        told = f"A {_text(family)} of {_text(self._data_name)}, trained with genlab {_text(version)}."
        samples = ""
        if self.picture:
            samples = f"![Samples]({self.picture[0]})"
        elif self._shown and self._shown.text:
            samples = _block(self._shown.text)
        return "\n\n".join(filter(None, [f"# {_text(self.trained.experiment)}", told, samples]))

    def _model(self) -> Facts:
        counts, prints = (part(self._data, name) for name in ("counts", "fingerprints"))
        shape = "x".join(map(str, part(self._record, "spec").get("shape") or []))
        sizes = [f"{_count(size)} {split}" for split, size in counts.items() if size]
        return {
            "Family": self.trained.family,
            "Paper": self.paper or NOT_STATED,
            "Parameters": _count(self._record.get("parameters")),
            "Data": ", ".join(filter(None, [self._data_name, shape, *sizes])),
            "Fingerprints": ", ".join(f"{split} {str(mark)[:8]}" for split, mark in prints.items() if mark),
            "Trained with labels": "yes" if self._record.get("uses_labels") else "no",
            "Licence of the data": self.licence_of_data or NOT_STATED,
            "Licence of the weights": self.licence or NOT_STATED,
        }

    def _training(self) -> Facts:
        record, first = self._record, self.trained.first_stage
        return {
            "Budget": self.trained.budget,
            "Seen": f"{_count(record.get('examples_seen')) or 'unknown'} {self.trained.unit[1]}",
            "Time": _time(record.get("training_seconds")),
            "Time of its first stage": _time(first.get("training_seconds")),
            "Device": self.trained.hardware,
            "Training seed": record.get("seed"),
            "Learning rates tried": part(record, "bench").get("tuning_trials"),
        }

    def _scores(self) -> str:
        if not self._test:
            return "These weights were not tested: `genlab test RUN` does so, and another export tells."
        try:
            own = as_markdown(table_of(self._test, {}))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{self.trained.run.record}: its test is not whole ({error}): genlab test RUN --again."
            ) from None
        seeds = self._seeds
        if len(seeds) < 2:
            told = "Of a single training: another seed may score otherwise, by more than the spread below."
            return f"{told}\n\n{own}"
        over = markdown_table(compare([trained.run.path for trained in seeds]), told=[])
        return (
            f"Over {len(seeds)} training seeds, with 95 % intervals of the mean:\n\n{over}\n"
            f"Of the weights here, seed {_text(self.trained.seed)}, alone:\n\n{own}"
        )

    @cached_property
    def _seeds(self) -> list[Trained]:
        """The tested trainings that differ from this one in the seed alone, this one among them."""
        run = self.trained.run
        beside = [place for place in sorted(run.path.parent.iterdir()) if (place / "run.json").is_file()]
        rows, _ = rows_of(gather(beside).runs)
        found = next((row.runs for row in rows if run.path in [one.run.path for one in row.runs]), [])
        return [trained for trained in found if trained.entry()]

    def _limits(self) -> Iterator[str]:
        health, protocol = part(self._record, "health"), part(self._test, "protocol")
        unit = self.trained.unit[1]
        if self.trained.status != "finished":
            yield f"The training did not finish: {_text(self.trained.status)}."
        for flag in health.get("flags") or []:
            yield f"After {_count(flag.get('examples_seen'))} {unit}: {_text(flag.get('problem'))}."
        if fallen := collapse(self.trained):
            yield f"The training collapsed: {_text(fallen)}."
        if health.get("ok"):
            yield "The checks during training found nothing wrong with it."
        if "num_fake" in protocol:
            fake, real = (_count(protocol.get(name)) for name in ("num_fake", "num_real"))
            yield f"Scored by {fake} samples against {real} items; other numbers make other scores."
        yield self._copied()

    def _copied(self) -> str:
        share = number(part(self._test, "copies").get("share"))
        if share is None:
            return "Whether it copies what it learned from was not measured."
        return f"{100 * share:.3g} % of its samples count as copies of what it learned from: see the table."

    def _use(self) -> str:
        lines = ["import genlab", "", f'model = genlab.load("{self.weights}")']
        if self.task:
            lines.append("samples = genlab.sample(model, 16, seed=0)")
        return (
            f"{_block(chr(10).join(lines), 'python')}\n\n`{self.weights}` holds the weights, the model's "
            "configuration and a test of both, which loading repeats; `config.yaml` is that of the training."
        )

    def _making(self) -> str:
        facts = {name: without_private(fact) for name, fact in facts_of(self.trained).items()}
        commands = [facts.pop(name, "") for name in ("command", "test")]
        done = [command for command, is_told in zip(commands, (True, self._test), strict=True) if is_told]
        return f"{_block(chr(10).join(map(printable, filter(None, done))))}\n\n{_listed(facts)}"


def _plain(text: Any) -> str:
    return shortened(str(text), LONGEST)


def _text(text: Any) -> str:
    return markdown_text(_plain(text))


def _count(value: Any) -> str:
    found = number(value)
    return "" if found is None else f"{found:,.0f}"


def _time(value: Any) -> str:
    found = number(value)
    return "" if found is None else f"{shown(found)} s"


def _listed(facts: Facts) -> str:
    """Returns the facts that there are, one a line."""
    told = {name: _text(fact) for name, fact in facts.items() if fact not in (None, "")}
    return "\n".join(f"- {name[:1].upper()}{name[1:]}: {text}" for name, text in told.items())


def _block(text: str, language: str = "text") -> str:
    """Returns a block that its text cannot end."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text, keep=chr(10))}\n{fence}"
