"""`genlab sweep`: searches for the settings with which one experiment does best under a budget."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.bench import outcome, split
from genlab.cli.places import add_place, place_asked, show
from genlab.cli.study import Study, Trial
from genlab.cluster.place import Place, work_through
from genlab.configuration import experiments
from genlab.errors import Stopped
from genlab.extras import require
from genlab.report.table import MetricsTable
from genlab.runs import lock
from genlab.runs.bench import parse_budget
from genlab.runs.environment import command_line
from genlab.runs.folder import outputs_root, shown_path
from genlab.runs.headline import Headline
from genlab.runs.ranges import Range, parse_ranges
from genlab.runs.sweep import OWN_SETTINGS, Sweep
from genlab.runs.task import Task

MOST_TRIALS = 10_000
SHOWN = 10
"""Trials in the table, the best ones."""


def sweep(arguments: list[str]) -> int:
    """Tries settings, prints the best and writes them as an experiment; 1 if a trial has no result."""
    given, extra = split(arguments)
    options = parser().parse_args(given)
    ranges = allowed(parse_ranges(options.over))
    budget = parse_budget(options.budget)
    require("genlab sweep", "optuna", extra="cluster")
    folder = outputs_root() / "sweep" / (options.name or f"{options.experiment.stem}-{options.budget}")
    place = place_asked(options, folder)
    from genlab.cli.resolved import settled_elsewhere

    config, places = settled_elsewhere([f"--config={options.experiment}", *extra], ranges)
    plan = Sweep(folder, options.experiment, config, places, budget, options.seed, extra)
    if options.dry_run:
        show(place, [plan.task(0, {})])
        return 0
    plan.save()
    try:
        with lock.hold(folder / "sweep.lock"), place:
            search = Search(plan, place, Study(plan))
            failed = search.work(options.trials)
    except (KeyboardInterrupt, Stopped):
        print("The same command goes on from here.", file=sys.stderr)
        raise
    for trial in failed:
        print(f"! trial {trial.number} has no result; its output: {plan.log(trial.number)}", file=sys.stderr)
    search.conclude(command_line(["genlab", "sweep", *arguments]))
    return 1 if failed else 0


class Search:
    """Trials of a sweep, as many at a time as the place takes, each batch chosen by all that ended before.

    Whole batches, not a new trial for each that ends: what is tried depends on the seed and on the number at
    a time, and not on which of them ended first.

    Args:
        plan: What is searched.
        place: Where trials are done.
        study: What was tried.
    """

    def __init__(self, plan: Sweep, place: Place, study: Study) -> None:
        self.plan = plan
        self.place = place
        self.study = study

    def work(self, most: int) -> list[Trial]:
        """Does trials until there are so many; returns those without a result."""
        failed: list[Trial] = []
        while batch := self.study.batch(self.place.slots, most, without=failed):
            trials = {self.plan.task(trial.number, trial.values): trial for trial in batch}
            self._work_through(trials, most)
            costs = self.plan.costs([trial.number for trial in self.study.trials()])
            for trial in batch:
                if trial.number in costs:
                    self.study.tell(trial, costs[trial.number])
                else:
                    failed.append(trial)
            if not costs:
                break  # whatever is wrong with all of them is wrong with the next ones
        return failed

    def _work_through(self, trials: Mapping[Task, Trial], most: int) -> None:
        before = len(self.study.ended())
        work_through(self.place, list(trials), lambda task: self._outcome(trials[task]), before, most)

    def _outcome(self, trial: Trial) -> str:
        run = self.plan.run(trial.number)
        return "no result" if run is None else outcome(run.read())

    def conclude(self, command: Sequence[str]) -> None:
        """Prints the best trials and how much each setting matters, and writes the best experiment."""
        ended = sorted(self.study.ended(), key=lambda trial: (trial.cost, trial.number))
        if not ended or math.isinf(ended[0].cost):
            print("! No trial ended well, so there is no best one.", file=sys.stderr)
            return
        self._table(ended[:SHOWN]).show()
        shares = {self.plan.short(key): share for key, share in self.study.importances().items()}
        if shares:
            from genlab.report.importance import write_importance

            rows = [[key, f"{share:.0%}"] for key, share in shares.items()]
            MetricsTable(["setting", "share of the score's variance"], rows, [False, True]).show()
            write_importance(self.plan.folder / "importance.svg", shares)
        self.plan.write_best(ended[0].values, self._comment(ended, command))
        self.plan.write_result([self._told(trial) for trial in ended], self._score_name, shares)
        print(shown_path(self.plan.best_file))
        print(f"All trials: genlab report {shown_path(self.plan.folder)}", file=sys.stderr)

    def _told(self, trial: Trial) -> dict[str, Any]:
        """Returns a trial as the sweep's result holds it; one that diverged has no score."""
        settings = {self.plan.short(key): text for key, text in self.plan.texts(trial.values)}
        score = self._value(trial)
        return {"trial": trial.number, "score": score, "own": trial.is_own, "settings": settings}

    def _table(self, trials: Sequence[Trial]) -> MetricsTable:
        keys = [self.plan.short(key) for key, _ in self.plan.texts(trials[0].values)]
        cells = [
            [str(trial.number), self._score(trial), *(text for _, text in self.plan.texts(trial.values))]
            for trial in trials
        ]
        return MetricsTable(["trial", self._score_name, *keys], cells, [True] * (2 + len(keys)))

    def _score(self, trial: Trial) -> str:
        value = self._value(trial)
        return "diverged" if value is None else f"{value:.4g}"

    def _value(self, trial: Trial) -> float | None:
        """Returns a trial's score as it was measured, where higher may be better; None if it diverged."""
        if self._headline is None or math.isinf(trial.cost):
            return None
        return trial.cost if self._headline.lower_is_better else -trial.cost

    @property
    def _score_name(self) -> str:
        return self._headline.title if self._headline else "score"

    @cached_property
    def _headline(self) -> Headline | None:
        return self.plan.headline([trial.number for trial in self.study.ended()])

    def _comment(self, ended: Sequence[Trial], command: Sequence[str]) -> list[str]:
        best, plan = ended[0], self.plan
        own = next((trial for trial in ended if trial.is_own), None)
        diverged = sum(math.isinf(trial.cost) for trial in ended)
        return [
            f"{plan.experiment} with the best settings of {len(ended)} trials ({diverged} diverged) of "
            f"{plan.budget}, scored on training images kept from them: {self._score_name} "
            f"{self._score(best)} in trial {best.number}"
            f"{f', {self._score(own)} with its own settings' if own else ''}.",
            "The best of several scores flatters: train and test it with other seeds.",
            f"Chosen by: {shlex.join(command)}",
            f"genlab fit --config {shown_path(plan.best_file)}",
        ]


def allowed(ranges: Mapping[str, Range]) -> Mapping[str, Range]:
    """Returns the ranges, refusing those of settings that are the same for all trials.

    Raises:
        ValueError: With the setting and what sets it.
    """
    for key in ranges:
        plain = key.replace("init_args.", "")
        if any(plain == own or plain.startswith(f"{own}.") for own in OWN_SETTINGS):
            raise ValueError(f"--over {key}: a sweep sets {plain} itself, the same for all of its trials.")
    return ranges


def _experiment(text: str) -> Path:
    found = experiments.find(text)
    if found is not None:
        return found
    try:
        return read.file(text)
    except read.Wrong as error:
        raise read.Wrong(f"{error} {experiments.nearest_names(text)}") from None


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab sweep",
        description="Search for the settings with which an experiment scores best on training images kept "
        "from it, and write them as an experiment. Killed and started again, it goes on where it was. Options"
        " after -- go to every `genlab fit`.",
    )
    parser.add_argument("experiment", type=_experiment, help="a name, such as gan_digits, or a YAML file")
    parser.add_argument(
        "--over",
        type=read.words,
        action="append",
        required=True,
        metavar="KEY=RANGE",
        help="a setting and its range: log:1e-4:1e-2, lin:0:1, int:1:8, choice:a,b,c; can be given again",
    )
    parser.add_argument("--trials", type=read.count(most=MOST_TRIALS), default=20, help="how many (20)")
    parser.add_argument(
        "--budget",
        type=read.words,
        default="90s",
        help="of each trial: training alone, 90s or 5m, or examples, 300k (90s)",
    )
    parser.add_argument("--seed", type=read.count(0), default=0, help="of the search and its trials (0)")
    parser.add_argument("--name", type=read.name, help="name of the sweep (<experiment>-<budget>)")
    add_place(parser)
    return parser
