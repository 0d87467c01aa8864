"""`genlab bench`: trains and tests experiments under one budget, several seeds each, and compares them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.places import add_place, place_asked, show
from genlab.cluster.place import Place, work_through
from genlab.configuration import experiments
from genlab.errors import Stopped
from genlab.runs import lock
from genlab.runs.bench import Bench, Job, parse_budget
from genlab.runs.folder import outputs_root
from genlab.runs.headline import headline_of
from genlab.runs.settings import TRIAL_FACTORS
from genlab.runs.task import UNFINISHED, Task
from genlab.text import nearest, shortened

MOST_SEEDS = 1_000


def bench(arguments: list[str]) -> int:
    """Works through the queue, then prints the comparison; returns 1 if a job has no result."""
    given, extra = split(arguments)
    options = parser().parse_args(given)
    plan = plan_of(options, extra)
    place = place_asked(options, plan.folder)
    if options.dry_run:
        show(place, Queue(plan, place).next_tasks())
        return 0
    for difference in plan.differences():
        print(f"! {difference}", file=sys.stderr)
    plan.save()
    try:
        with lock.hold(plan.folder / "bench.lock"), place:
            failed = Queue(plan, place).work()
    except (KeyboardInterrupt, Stopped):
        print("The same command goes on from here.", file=sys.stderr)
        raise
    for job in failed:
        print(f"! {job} has no result; {reason(plan, job)}", file=sys.stderr)
    print(f"The table: genlab compare {plan.folder}", file=sys.stderr)
    return 1 if failed else 0


class Queue:
    """Does a bench's jobs, in the order in which they stand on each other.

    Args:
        plan: What is to be done.
        place: Where it is done.
    """

    def __init__(self, plan: Bench, place: Place) -> None:
        self.plan = plan
        self.place = place
        # Settings are chosen before the runs, and what these stand on is there before both.
        self.stages = (plan.stage_jobs, plan.trial_jobs, plan.jobs)

    def work(self) -> list[Job]:
        """Does what is left to do and can be; returns the jobs without a result."""
        for stage in self.stages:
            left = [job for job in stage if not self._is_complete(job)]
            jobs = {self.plan.task(job): job for job in left if not self.plan.awaited(job)}
            self._work_through(jobs, before=len(stage) - len(left))
        return [job for stage in self.stages for job in stage if not self.plan.is_done(job)]

    def _work_through(self, jobs: dict[Task, Job], before: int) -> None:
        if before:
            print(f"{before} of {before + len(jobs)} are there already.", file=sys.stderr)
        work_through(self.place, list(jobs), lambda task: self._ended(jobs[task]), before)

    def next_tasks(self) -> list[Task]:
        """Returns what is left to do of the first stage that is not complete."""
        for stage in self.stages:
            left = [job for job in stage if not self.plan.is_done(job) and not self.plan.awaited(job)]
            if left:
                return [self.plan.task(job) for job in left]
        return []

    def _is_complete(self, job: Job) -> bool:
        if not self.plan.is_done(job):
            return False
        self._ended(job)
        return True

    def _ended(self, job: Job) -> str:
        """Marks the run of a job that has ended as one of this bench; returns what became of it in words."""
        run = self.plan.find(job)
        if run is None or self.plan.state(job) in UNFINISHED:
            return "no result"
        if job.is_compared:
            self.plan.mark(job)
        return outcome(run.read())


def reason(plan: Bench, job: Job) -> str:
    """Returns in words where to look for why a job has no result."""
    awaited = plan.awaited(job)
    if not awaited:
        return f"its output: {plan.log(job)}"
    return f"it needs {awaited[0]}, which {'diverged' if plan.is_done(awaited[0]) else 'has none'}."


def outcome(record: dict[str, Any]) -> str:
    """Returns a training's end in words: its status, its first score and its training time."""
    values = (record.get("test") or {}).get("values") or record.get("validation") or {}
    headline = headline_of(values)
    found = headline and headline.found_in(values)
    score = f"{found[0].removeprefix('val/')} {found[1]:.4g}" if found else ""
    seconds = record.get("training_seconds")
    parts = [str(record.get("status")), score, f"{seconds:.0f} s of training" if seconds else ""]
    return ", ".join(filter(None, parts))


def plan_of(options: argparse.Namespace, extra: list[str]) -> Bench:
    """Returns what the options ask for.

    Raises:
        ValueError: An experiment that is not there, or a number that makes no sense.
    """
    budget = parse_budget(options.budget)
    files = experiment_files(options.experiments or experiments.folder(), options.data, options.families)
    name = options.name or f"{options.data}-{options.budget}"
    folder = outputs_root() / "bench" / name
    return Bench(folder, files, budget, options.seeds, options.trials, options.evaluations, extra)


def experiment_files(folder: Path, data: str, families: str | None) -> dict[str, Path]:
    """Returns the file of each family's experiment on the data: <folder>/<family>_<data>.yaml."""
    there = {path.stem.removesuffix(f"_{data}"): path for path in sorted(folder.glob(f"*_{data}.yaml"))}
    if not there:
        known = sorted({path.stem.rsplit("_", 1)[-1] for path in folder.glob("*_*.yaml")})
        hint = f"there are experiments on {', '.join(known)}" if known else "say where with --experiments"
        raise ValueError(f"{folder} has no experiment on '{data}': {hint}.")
    if not families:
        raise ValueError(f"Say what to compare, such as --families {','.join(there)}")
    asked = list(filter(None, families.split(",")))
    for name in asked:
        if name not in there:
            hint = nearest(name, there) or f" There are: {', '.join(there)}."
            raise ValueError(f"There is no {folder / f'{shortened(name)}_{data}.yaml'}.{hint}")
    return {there[name].stem: there[name] for name in asked}


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab bench",
        description="Train and test experiments under one budget, several seeds each. Killed and started "
        "again, it goes on where it was. Options after -- go to every `genlab fit`.",
    )
    parser.add_argument(
        "data", type=read.name, help="the data's name, the end of the experiments' names (digits)"
    )
    parser.add_argument(
        "--families", type=read.words, help="the beginnings of the experiments' names: gan,vae,realnvp"
    )
    parser.add_argument(
        "--budget", type=read.words, default="90s", help="training alone, 90s or 5m, or examples, 300k (90s)"
    )
    parser.add_argument(
        "--seeds", type=read.count(most=MOST_SEEDS), default=5, help="runs for each experiment (5)"
    )
    parser.add_argument(
        "--trials",
        type=read.count(most=len(TRIAL_FACTORS)),
        default=1,
        help="learning rates tried for each experiment before (1: its own)",
    )
    parser.add_argument("--evaluations", type=read.count(), default=8, help="scores while a run trains (8)")
    add_place(parser)
    parser.add_argument("--name", type=read.name, help="name of the comparison (<data>-<budget>)")
    parser.add_argument(
        "--experiments",
        type=read.folder,
        help="folder of the YAML files (./experiments, or those that genlab brings where there is none)",
    )
    return parser


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Returns a command's own arguments, and those after -- for every `genlab fit`."""
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]
