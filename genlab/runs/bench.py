"""A comparison in the making: which runs it needs, which are there, and what is left to do for each.

<root>/<name>/
    bench.json                    what was asked for
    <experiment>/seed<k>/         one run for each experiment and seed
    stages/<experiment>/seed<k>/  first stages that runs stand on
    trials/<experiment>/trial<k>/ runs that only chose the experiment's learning rates
    logs/                         what each training and test printed

Everything that decides what to do next is read from these folders, so a queue that was killed goes on where
it was.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from genlab import files
from genlab.amounts import SECONDS, Examples, Seconds
from genlab.configuration import experiments
from genlab.configuration.plain_yaml import read_yaml
from genlab.files import digest
from genlab.runs.folder import Run, folder_name
from genlab.runs.headline import Headline, headline_of
from genlab.runs.settings import TRIAL_FACTORS
from genlab.runs.task import Task, run_at, state_of
from genlab.runs.tests import FIRST_STAGE
from genlab.text import shortened

TRIAL_SEED = 1_000
"""Seed of the first trial, far from those of the runs that are compared."""

_MOST = 1e15  # of seconds or examples: more is a slip of the finger

TRIAL_FRACTION = 0.8
"""Share of the training split that a trial learns; it is scored against the other images."""


DRAWN_ANEW = {
    *("Gaussian1D", "Gaussian2D", "EightGaussians", "TwoMoons", "Checkerboard", "Pinwheel"),
    "Patches",
}
"""Data with the setting `fresh`, which have no rest as long as each epoch has items of its own.

Named here, since the classes themselves import torch, which whoever only hands out work does not need.
"""


@dataclass(frozen=True)
class Budget:
    """What every run may use: examples seen, or seconds of training alone."""

    examples: int | None = None
    seconds: float | None = None

    @property
    def options(self) -> list[str]:
        """The budget as options of `genlab fit`; the experiment's own is replaced."""
        return [f"--budget.examples={_yaml(self.examples)}", f"--budget.seconds={_yaml(self.seconds)}"]

    def __str__(self) -> str:
        return f"{self.seconds:g}s" if self.seconds else f"{self.examples}"

    def half(self) -> Budget:
        """Returns what each of two stages may use, which together are one run."""
        return Budget(self.examples and self.examples // 2, self.seconds and self.seconds / 2)


def parse_budget(text: str) -> Budget:
    """Returns the budget that a text such as 90s, 2m, 1h (seconds) or 300000, 300k, 1M (examples) stands for.

    Raises:
        ValueError: Another text, or a number that is not positive.
    """
    is_time = text[-1:] in SECONDS
    try:
        amount = Seconds(text) if is_time else Examples(text)
    except ValueError as error:
        raise ValueError(f"--budget {error}, or a time such as 90s or 5m.") from None
    if not 0 < amount < _MOST:
        raise ValueError(
            f"--budget must be above 0: a time such as 90s or 5m, or examples such as 300k; it is "
            f"{shortened(text)!r}."
        )
    return Budget(seconds=float(amount)) if is_time else Budget(int(amount))


@dataclass(frozen=True)
class Job:
    """One training of a bench.

    Args:
        experiment: The experiment's name.
        seed: Seed of everything in the run.
        trial: Number of the trial; None for a run that is compared.
        is_stage: Whether it is the first stage that another one stands on, and not compared itself.
    """

    experiment: str
    seed: int
    trial: int | None = None
    is_stage: bool = False

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"seed{self.seed}" if self.trial is None else f"trial{self.trial}"

    def __str__(self) -> str:
        what = f"seed {self.seed}" if self.trial is None else f"trial {self.trial}"
        return f"{self.experiment} {what}{' (first stage)' if self.is_stage else ''}"

    @property
    def is_compared(self) -> bool:
        return self.trial is None and not self.is_stage


@dataclass(frozen=True)
class Bench:
    """What is compared, and the folder that holds it.

    Args:
        folder: Where all of it lies.
        files: The configuration file of each experiment.
        budget: What every run may use; one of two stages halves it between them.
        num_seeds: Runs for each experiment, with the seeds 0 ... num_seeds - 1.
        num_trials: Settings that are tried for each experiment before, the same number for all.
        evaluations: How often each run is scored while it trains; a trial is scored at its end.
        options: Further options of `genlab fit` for every run.
    """

    folder: Path
    files: dict[str, Path]
    budget: Budget
    num_seeds: int
    num_trials: int = 1
    evaluations: int = 8
    options: list[str] = field(default_factory=list)

    @property
    def stage_jobs(self) -> list[Job]:
        """The trainings of first stages that other experiments stand on, of each seed one."""
        names = dict.fromkeys(filter(None, map(self.needs, self.files)))
        return [Job(name, seed, is_stage=True) for seed in range(self.num_seeds) for name in names]

    def needs(self, experiment: str) -> str | None:
        """Returns the experiment whose run an experiment stands on, None where it stands on none.

        Raises:
            ValueError: There is no such experiment.
        """
        model = read_yaml(self.files[experiment]).get("model") or {}
        name = (model.get("init_args") or {}).get(FIRST_STAGE)
        if name is not None and not self._file_of(experiment, name).is_file():
            raise ValueError(
                f"{self.files[experiment]} stands on the first stage {name}, and there is no "
                f"{self._file_of(experiment, name)}."
            )
        return name

    def _file_of(self, experiment: str, stage: str) -> Path:
        beside = self.files[experiment].with_name(f"{stage}.yaml")
        return beside if beside.is_file() else experiments.find(str(stage)) or beside

    @property
    def trial_jobs(self) -> list[Job]:
        """The trainings that choose settings; one setting needs no choice."""
        if self.num_trials == 1:
            return []
        return [Job(name, TRIAL_SEED + k, k) for k in range(self.num_trials) for name in self.files]

    @property
    def jobs(self) -> list[Job]:
        """The trainings that are compared, all experiments' first seeds first."""
        return [Job(name, seed) for seed in range(self.num_seeds) for name in self.files]

    def root(self, job: Job) -> Path:
        """Returns the folder of runs that a job's run lies in."""
        if job.is_stage:
            return self.folder / "stages"
        return self.folder if job.trial is None else self.folder / "trials"

    def log(self, job: Job) -> Path:
        """Returns where a job's output goes."""
        return self.folder / "logs" / f"{'stage-' if job.is_stage else ''}{job.experiment}-{job.name}.log"

    def path(self, job: Job) -> Path:
        """Returns the folder of a job's run."""
        return self.root(job) / folder_name(job.experiment) / job.name

    def find(self, job: Job) -> Run | None:
        """Returns a job's run, None where it has left nothing to go on with."""
        return run_at(self.path(job))

    def state(self, job: Job) -> str:
        """Returns how far a job is, see `genlab.runs.task.state_of`."""
        return state_of(self.find(job))

    def is_done(self, job: Job) -> bool:
        """Returns whether a job has a result; only what is compared is tested, and a divergence is one."""
        return self.state(job) in (
            ("diverged", "tested") if job.is_compared else ("diverged", "trained", "tested")
        )

    def awaited(self, job: Job) -> list[Job]:
        """Returns which others a job cannot begin without and that have not come to what it needs.

        These are its first stage, which must be finished, and the trials that choose its learning rates, of
        which each must have a result: a choice among those that happen to be there changes with the rest.
        """
        stage = self._stage_of(job)
        missing = [] if stage is None or self.state(stage) in ("trained", "tested") else [stage]
        if job.is_compared:
            missing += [trial for trial in self._trials_of(job.experiment) if not self.is_done(trial)]
        return missing

    def task(self, job: Job) -> Task:
        """Returns what brings a job to its end, once what it stands on has come to its own."""
        return Task(
            name=str(job),
            run=self.path(job).absolute(),
            fit=tuple(self.fit(job)),
            log=self.log(job).absolute(),
            folder=Path.cwd(),
            is_tested=job.is_compared,
            allowed=os.environ.get("GENLAB_ALLOW", ""),
        )

    def fit(self, job: Job) -> list[str]:
        """Returns the arguments that train a job."""
        return [
            "fit",
            f"--config={self._config(job)}",
            f"--experiment={job.experiment}",
            f"--run_name={job.name}",
            f"--seed_everything={job.seed}",
            *self._budget(job).options,
            "--budget.evaluate_every=null",
            f"--budget.evaluations={self.evaluations if job.trial is None else 1}",  # a trial's end decides
            *self._stage(job),
            *self.settings(job),
            *self.options,
        ]

    def _config(self, job: Job) -> Path:
        if not job.is_stage:
            return self.files[job.experiment]
        return next(
            self._file_of(name, job.experiment) for name in self.files if self.needs(name) == job.experiment
        )

    def _budget(self, job: Job) -> Budget:
        return self.budget.half() if job.is_stage or self.needs(job.experiment) else self.budget

    def _stage_of(self, job: Job) -> Job | None:
        """Returns what trains the first stage that a job stands on, for trials that of the first seed."""
        name = None if job.is_stage else self.needs(job.experiment)
        return None if name is None else Job(name, 0 if job.trial is not None else job.seed, is_stage=True)

    def _stage(self, job: Job) -> list[str]:
        """Returns which run a job stands on, as an option."""
        stage = self._stage_of(job)
        return [] if stage is None else [f"--model.{FIRST_STAGE}={self.path(stage).absolute()}"]

    def _trials_of(self, experiment: str) -> list[Job]:
        return [job for job in self.trial_jobs if job.experiment == experiment]

    def settings(self, job: Job) -> list[str]:
        """Returns a job's learning rates as options: those of its trial, or of the best one.

        A trial learns a part of the training split and is scored against the rest: the test split decides
        nothing, and neither can a model win that learns its images by heart.
        """
        if self.num_trials == 1 or job.is_stage:
            return []
        factor = TRIAL_FACTORS[self.best_trial(job.experiment) if job.trial is None else job.trial]
        config = read_yaml(self.files[job.experiment])
        rates = {f"model.{key}": rate * factor for key, rate in learning_rates(config.get("model", {}))}
        options = [f"--{key}={rate:.6g}" for key, rate in rates.items()]
        if job.trial is None:
            return options
        return [*options, *kept_apart(config)]

    def best_trial(self, experiment: str) -> int:
        """Returns the number of the trial that ended best by the headline that all of them have.

        A diverged one is last; the first of equal ones wins, which is the experiment's own setting.
        """
        costs = trial_costs([self.find(job) for job in self._trials_of(experiment)])
        return costs.index(min(costs))

    def mark(self, job: Job) -> None:
        """Writes into a run's record that it belongs to this bench.

        What it was made with stays as it was written first, whatever became of the trials later.
        """
        run = self.find(job)
        if run is None:
            return
        factor = 1.0 if self.num_trials == 1 else TRIAL_FACTORS[self.best_trial(job.experiment)]
        made_with = {"tuning_trials": self.num_trials, "learning_rate_factor": factor}
        known = run.read().get("bench") or {}
        run.update(
            bench={
                "name": self.folder.name,
                "experiment": job.experiment,
                "budget": asdict(self.budget),
                "seed": job.seed,
                **{name: known.get(name, value) for name, value in made_with.items()},
            }
        )

    def differences(self) -> list[str]:
        """Returns, a sentence each, what parts the experiments' scores: such are not ranked together."""
        found = []
        for key in ("evaluate.extractor", "evaluate.num_test_samples"):
            if any(option.partition("=")[0] == f"--{key}" for option in self.options):
                continue
            names: dict[str, list[str]] = {}
            for name, file in self.files.items():
                value = (read_yaml(file).get("evaluate") or {}).get(key.removeprefix("evaluate."))
                names.setdefault("its default" if value is None else str(value), []).append(name)
            if len(names) > 1:
                told = "; ".join(f"{value} in {', '.join(those)}" for value, those in names.items())
                found.append(f"{key} is {told}: such scores are not compared. One for all: -- --{key} VALUE")
        return found

    def save(self) -> None:
        """Writes what is asked for into bench.json, where it agrees with what was asked for there before.

        Seeds and experiments may be added later; what a finished run was made with may not change.

        Raises:
            ValueError: It would change.
        """
        old = self._saved()
        new = {
            "budget": asdict(self.budget),
            "num_trials": self.num_trials,
            "evaluations": self.evaluations,
            "options": self.options,
        }
        changed = [name for name in new if name in old and old[name] != new[name]]
        paths = {job.experiment: self._config(job) for job in self.stage_jobs} | self.files
        digests = {name: digest(path, 16) for name, path in paths.items()}
        known = old.get("experiments", {})
        changed += [str(paths[name]) for name, now in digests.items() if known.get(name, now) != now]
        if changed:
            raise ValueError(
                f"{self.folder} was begun with another {' and '.join(changed)}: give this one its own "
                f"--name, or delete the folder to begin anew."
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        new |= {"experiments": {**known, **digests}, "num_seeds": self.num_seeds}
        files.write_json(self._file, new)

    @property
    def _file(self) -> Path:
        return self.folder / "bench.json"

    def _saved(self) -> dict[str, Any]:
        if not self._file.exists():
            return {}
        try:
            return _settings(files.parse_json(self._file.read_bytes()))
        except ValueError as error:
            raise ValueError(f"{self._file} is damaged ({error}): delete it, the runs stay.") from error


def _settings(saved: Any) -> dict[str, Any]:
    """Returns the content of a bench.json, refusing what no bench can have written."""
    known = saved.get("experiments", {}) if isinstance(saved, dict) else None
    if not isinstance(known, dict):
        raise ValueError("it holds other things than a bench writes")
    return saved


def trial_costs(runs: Sequence[Run | None]) -> list[float]:
    """Returns how bad each trial ended, by the one headline that all which ended well have.

    Infinity for one that diverged or whose score is not finite.
    """
    headline = trial_headline(runs)
    found = [headline.found_in(_validation(run)) if headline else None for run in runs]
    return [headline.cost(score[1]) if headline and score else math.inf for score in found]


def trial_headline(runs: Sequence[Run | None]) -> Headline | None:
    """Returns the score that trials are told apart by: the first that all have which ended well."""
    return headline_of(*filter(None, map(_validation, runs)))


def _validation(run: Run | None) -> dict[str, Any]:
    if run is None or run.status != "finished":
        return {}
    return run.read().get("validation") or {}


def kept_apart(config: dict[str, Any]) -> list[str]:
    """Returns the options by which a trial learns a part of the training split and is scored by the rest."""
    data = config.get("data") or {}
    fraction = TRIAL_FRACTION * (data.get("init_args") or {}).get("fraction", 1.0)
    is_drawn_anew = str(data.get("class_path")).rpartition(".")[2] in DRAWN_ANEW
    fixed = ["--data.fresh=false"] * is_drawn_anew
    return [f"--data.fraction={fraction:g}", *fixed, "--evaluate.split=rest"]


def learning_rates(config: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields the place and value of every learning rate in a part of a configuration."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if key == "lr":
            yield prefix + key, float(value)
        else:
            yield from learning_rates(value, f"{prefix}{key}.")


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value)
