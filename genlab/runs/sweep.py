"""A search for the settings of one experiment: what is tried, what came of each trial, and the best of them.

<root>/<name>/
    sweep.json                      what was asked for
    journal.log                     which values were tried and what they cost, by Optuna
    trials/<experiment>/trial<k>/   one run for each trial
    logs/                           what each training printed
    <experiment>_best.yaml          the experiment with the best settings
    result.json                     all trials, the best first, and how much each setting matters
    importance.svg                  the same as a picture
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from genlab import files
from genlab.configuration.keys import with_value
from genlab.configuration.plain_yaml import read_yaml
from genlab.files import digest
from genlab.runs.bench import TRIAL_SEED, Budget, kept_apart, trial_costs, trial_headline
from genlab.runs.folder import SWEEP_RESULT, Run, folder_name
from genlab.runs.headline import Headline
from genlab.runs.ranges import Range, value_of
from genlab.runs.task import UNFINISHED, Task, run_at, state_of

OWN_SETTINGS = (
    *("budget", "seed_everything", "data.fraction", "data.fresh", "evaluate.split"),
    *("experiment", "run_name"),
)
"""Keys that a sweep sets itself, the same for all trials."""


@dataclass(frozen=True)
class Sweep:
    """What is searched, and the folder that holds it.

    A trial learns a part of the training split and is scored once, at its end, against the rest; the test
    split decides nothing. All trials have one seed, far from those of the runs that are compared later.

    Args:
        folder: Where all of it lies.
        file: The experiment.
        resolved: All of its settings, defaults included.
        ranges: What each setting may be, by its place.
        budget: What every trial may use.
        seed: Of the search, and of the trials.
        options: Further options of `genlab fit` for every trial.
    """

    folder: Path
    file: Path
    resolved: Mapping[str, Any]
    ranges: Mapping[tuple[str, ...], Range]
    budget: Budget
    seed: int = 0
    options: Sequence[str] = field(default_factory=list)

    @property
    def experiment(self) -> str:
        return self.file.stem

    @property
    def best_file(self) -> Path:
        """Where the result is."""
        return self.folder / f"{self.experiment}_best.yaml"

    def run(self, trial: int) -> Run | None:
        """Returns a trial's run, None where it has left nothing."""
        return run_at(self._path(trial))

    def task(self, trial: int, values: Mapping[str, Any]) -> Task:
        """Returns what trains a trial with values by the keys of their settings."""
        name = f"trial{trial}"
        told = ", ".join(f"{self.short(key)} {text}" for key, text in self.texts(values))
        return Task(
            name=f"trial {trial} ({told})",
            run=self._path(trial).absolute(),
            fit=(
                "fit",
                f"--config={self.file}",
                f"--experiment={self.experiment}",
                f"--run_name={name}",
                f"--seed_everything={TRIAL_SEED + self.seed}",
                *self.budget.options,
                "--budget.evaluate_every=null",
                "--budget.evaluations=1",
                *kept_apart(read_yaml(self.file)),
                *self.options,
                *(f"--{key}={text}" for key, text in self.texts(values)),
            ),
            log=self.log(trial).absolute(),
            folder=Path.cwd(),
            allowed=os.environ.get("GENLAB_ALLOW", ""),
        )

    def log(self, trial: int) -> Path:
        """Returns where a trial's output goes."""
        return self.folder / "logs" / f"trial{trial}.log"

    def _path(self, trial: int) -> Path:
        return self.folder / "trials" / folder_name(self.experiment) / f"trial{trial}"

    def texts(self, values: Mapping[str, Any]) -> list[tuple[str, str]]:
        """Returns keys and values as options take them, in the order of the ranges."""
        keys = {".".join(place): found for place, found in self.ranges.items()}
        return [(key, keys[key].text(values[key])) for key in keys if key in values]

    @staticmethod
    def short(key: str) -> str:
        """Returns a key as people read it, without what all keys have."""
        return ".".join(name for name in key.removeprefix("model.").split(".") if name != "init_args")

    def costs(self, trials: Sequence[int]) -> dict[int, float]:
        """Returns how bad each of some trials ended, see `trial_costs`; without those that have no end."""
        ended = {trial: run for trial in trials if (run := self._ended(trial)) is not None}
        return dict(zip(ended, trial_costs(list(ended.values())), strict=True))

    def headline(self, trials: Sequence[int]) -> Headline | None:
        """Returns the score that the trials are told apart by."""
        return trial_headline([self._ended(trial) for trial in trials])

    def _ended(self, trial: int) -> Run | None:
        run = self.run(trial)
        return None if run is None or state_of(run) in (*UNFINISHED, "live") else run

    def best(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the experiment, as it was written, with other values in it."""
        config, keys = read_yaml(self.file), {".".join(place): place for place in self.ranges}
        for key, text in self.texts(values):
            config = with_value(config, keys[key], value_of(text), self.resolved)
        return config

    def write_best(self, values: Mapping[str, Any], comment: Sequence[str]) -> None:
        """Writes the result, headed by how it was chosen."""
        head = "".join(f"# {' '.join(line.split())}\n" for line in comment)
        text = yaml.safe_dump(self.best(values), sort_keys=False, allow_unicode=True, width=110)
        files.write_text(self.best_file, head + text)

    def write_result(
        self, trials: Sequence[Mapping[str, Any]], score: str, shares: Mapping[str, float]
    ) -> None:
        """Writes what a report shows.

        Args:
            trials: Each with its number, score, settings and whether these are the experiment's own.
            score: What the trials were told apart by.
            shares: How much each setting matters, 0 to 1.
        """
        found = {"score": score, "best": self.best_file.name, "importance": shares, "trials": trials}
        files.write_json(self.folder / SWEEP_RESULT, found)

    def save(self) -> None:
        """Writes what is asked for into sweep.json, where it agrees with what was asked for there before.

        Raises:
            ValueError: It would change.
        """
        asked = files.plain(
            {
                "experiment": digest(self.file, 16),
                "over": {".".join(place): asdict(found) for place, found in self.ranges.items()},
                "budget": asdict(self.budget),
                "seed": self.seed,
                "options": list(self.options),
            }
        )
        file = self.folder / "sweep.json"
        if file.exists():
            try:
                before = files.parse_json(file.read_bytes())
                changed = [name for name in asked if before[name] != asked[name]]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{file} is damaged ({error}): delete {self.folder} to begin anew."
                ) from error
            if changed:
                raise ValueError(
                    f"{self.folder} was begun with another {' and '.join(changed)}: give this one its own "
                    "--name, or delete the folder to begin anew."
                )
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        files.write_json(file, asked)
