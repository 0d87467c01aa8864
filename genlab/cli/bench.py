"""`genlab bench`: trains and tests experiments under one budget, several seeds each, and compares them."""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.configuration import experiments
from genlab.errors import Stopped
from genlab.runs import lock
from genlab.runs.bench import Bench, Job, parse_budget
from genlab.runs.environment import cores
from genlab.runs.folder import outputs_root
from genlab.runs.headline import headline_of
from genlab.runs.settings import TRIAL_FACTORS
from genlab.text import shortened

MOST_SEEDS, MOST_JOBS = 1_000, 256
ATTEMPTS = 2  # trainings of one job in one call: a second one in case something outside ended the first


def bench(arguments: list[str]) -> int:
    """Works through the queue, then prints the comparison; returns 1 if a job has no result."""
    given, extra = _split(arguments)
    options = parser().parse_args(given)
    plan = plan_of(options, extra)
    plan.save()
    try:
        with lock.hold(plan.folder / "bench.lock"):
            failed = Queue(plan, options.jobs).work()
    except (KeyboardInterrupt, Stopped):
        print("The same command goes on from here.", file=sys.stderr)
        raise
    for job in failed:
        print(f"! {job} has no result; its output: {plan.log(job)}", file=sys.stderr)
    print(f"The table: genlab compare {plan.folder}", file=sys.stderr)
    return 1 if failed else 0


class Queue:
    """Does a bench's jobs, some at a time, each in processes of its own.

    Args:
        plan: What is to be done.
        num_workers: Jobs at a time. Each gets its share of the cores, so that times can be compared.
    """

    def __init__(self, plan: Bench, num_workers: int) -> None:
        self.plan = plan
        self.num_workers = num_workers
        self.failed: list[Job] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def work(self) -> list[Job]:
        """Does what is left to do; returns the jobs without a result."""
        try:
            # Settings are chosen before the runs, and what these stand on is there before both.
            for stage in (self.plan.stage_jobs, self.plan.trial_jobs, self.plan.jobs):
                self._work_through([job for job in stage if not self._is_complete(job)], len(stage))
        except BaseException:
            self._stop()
            raise
        return self.failed

    def _is_complete(self, job: Job) -> bool:
        if not self.plan.is_done(job):
            return False
        if job.is_compared:
            self.plan.mark(job)
        return True

    def _work_through(self, jobs: list[Job], total: int) -> None:
        if not total:
            return
        before, start = total - len(jobs), time.monotonic()
        if before:
            print(f"{before} of {total} are there already.", file=sys.stderr)
        with ThreadPoolExecutor(self.num_workers) as pool:
            waiting = {pool.submit(self._do, job): job for job in jobs}
            done = 0
            try:
                while waiting:
                    for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                        job, text = waiting.pop(future), future.result()
                        done += 1
                        left = (time.monotonic() - start) / done * len(waiting)
                        place = f"[{before + done:>{len(str(total))}}/{total}]"
                        print(f"{place} {job}: {text}{_left(left)}", file=sys.stderr, flush=True)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise

    def _do(self, job: Job) -> str:
        """Trains and tests one job; returns what became of it in words."""
        for _ in range(ATTEMPTS):
            while self.plan.state(job) == "live" and not self._stopping.wait(0.5):
                pass  # a training that outlived the queue that had started it
            if self.plan.state(job) in ("new", "started"):
                self._genlab(job, self.plan.fit(job))
        run = self.plan.find(job)
        if run is None or self.plan.state(job) in ("new", "started"):
            self.failed.append(job)
            return "no result"
        if job.is_compared:
            self.plan.mark(job)
        if job.is_compared and self.plan.state(job) == "trained":
            self._genlab(job, ["test", str(run.path)])
        if not self.plan.is_done(job):
            self.failed.append(job)
        return outcome(run.read(), job)

    def _genlab(self, job: Job, arguments: Sequence[str]) -> None:
        with self._lock:
            if self._stopping.is_set():
                raise KeyboardInterrupt
            threads = max(1, cores() // self.num_workers)
            environment = {
                **os.environ,
                "GENLAB_OUTPUTS": str(self.plan.root(job).absolute()),
                "OMP_NUM_THREADS": str(threads),
                "OMP_WAIT_POLICY": "PASSIVE",
            }
            log = self.plan.log(job).open("ab")
            process = subprocess.Popen(
                [sys.executable, "-m", "genlab", *arguments], env=environment, stdout=log, stderr=log
            )
            self._processes.add(process)
        process.wait()
        log.close()
        self._processes.discard(process)

    def _stop(self) -> None:
        """Asks every training to write a checkpoint and end."""
        with self._lock:
            self._stopping.set()
            for process in list(self._processes):
                process.terminate()


def outcome(record: dict[str, Any], job: Job) -> str:
    """Returns a job's end in words: its status, its first score and its training time."""
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
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}."
            raise ValueError(f"There is no {folder / f'{shortened(name)}_{data}.yaml'}: {hint}")
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
    parser.add_argument(
        "--jobs",
        type=read.count(most=MOST_JOBS),
        default=1,
        help="runs at a time, each its share of cores (1)",
    )
    parser.add_argument("--name", type=read.name, help="name of the comparison (<data>-<budget>)")
    parser.add_argument(
        "--experiments",
        type=read.folder,
        help="folder of the YAML files (./experiments, or those that genlab brings where there is none)",
    )
    return parser


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in arguments:
        return arguments, []
    place = arguments.index("--")
    return arguments[:place], arguments[place + 1 :]


def _left(seconds: float) -> str:
    return f" | about {seconds / 60:.0f} min left" if seconds >= 30 else ""
