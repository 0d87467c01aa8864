"""Tasks as one array job of SLURM, each begun again where it was when it was preempted or out of time."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from genlab.cluster.place import Place
from genlab.cluster.worker import GRACE, Worker
from genlab.errors import StorageError
from genlab.extras import require
from genlab.runs.environment import cores
from genlab.runs.task import Task
from genlab.text import nearest

AT_A_TIME = 16
"""Tasks of an array that run at once, unless told otherwise."""

_DEFAULTS = {"job_name": "genlab", "wckey": None, "time": 60, "cpus_per_task": 1}
_OURS = {"array_parallelism": "--jobs", "ntasks_per_node": "trainer.devices", "nodes": "trainer.num_nodes"}
_REQUEUES = 10_000  # a training of many short slots of time ends by its budget, not by a count
_LOOK = 1.0  # seconds between two looks for ended tasks; SLURM itself is asked more seldom


class Slurm(Place):
    """A cluster that is run by SLURM.

    Args:
        folder: Where submitit keeps its files: on storage that the nodes see.
        options: Of sbatch, by submitit's names, such as partition, time (minutes), gpus_per_node, mem.
        slots: Tasks at a time.

    Raises:
        ValueError: There is no such option, or it is another setting's.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any], slots: int = AT_A_TIME) -> None:
        require("--on slurm", "submitit", extra="cluster")
        self.folder, self.slots = folder.absolute(), slots
        self.options = {**_DEFAULTS, **options, "array_parallelism": slots}
        _require_known(options)

    def script(self, num_tasks: int) -> str:
        from submitit.slurm import slurm  # has no public way to show a job without giving it to SLURM

        command = shlex.join([sys.executable, "-u", "-m", "submitit.core._submit", str(self.folder)])
        several: dict[str, Any] = {"map_count": num_tasks} if num_tasks > 1 else {}
        return slurm._make_sbatch_string(command, self.folder, **self.options, **several)

    def work_off(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        if not tasks:
            return
        waiting = dict(zip(self._submit(tasks), tasks, strict=True))
        try:
            while waiting:
                for job in [job for job in waiting if job.done()]:
                    yield waiting.pop(job), _problem(job)
                time.sleep(_LOOK if waiting else 0)
        except BaseException:
            for job in waiting:
                job.cancel(check=False)
            raise

    def _submit(self, tasks: Sequence[Task]) -> list[Any]:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            executor = SlurmExecutor(self.folder, max_num_timeout=_REQUEUES)
        except RuntimeError:
            raise ValueError(
                "--on slurm: there is no srun here; start the command on a machine of the cluster, "
                "or add --dry_run to see the job."
            ) from None
        executor.update_parameters(**self.options)
        try:
            return executor.submit_array([Requeued(task) for task in tasks])
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise StorageError(f"sbatch took no job: {' '.join(str(error).split())[:300]}") from None


class Requeued:
    """A task as submitit keeps it in a file: called when its job begins, asked for a checkpoint at its end.

    Args:
        task: What to do.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self) -> None:
        self._worker = Worker(int(os.environ.get("SLURM_CPUS_PER_TASK") or cores()))
        with ThreadPoolExecutor(1) as pool:  # the main thread is left to signals
            pool.submit(self._worker.work, self.task).result()

    def checkpoint(self) -> Any:
        """Ends the training with a checkpoint; returns what goes on once SLURM has begun the job again."""
        from submitit.helpers import DelayedSubmission

        self._worker.stop(GRACE)
        return DelayedSubmission(Requeued(self.task))


def options_of(text: str) -> dict[str, Any]:
    """Returns the options that a text such as "partition=gpu,time=120" or the name of a YAML file stands for.

    Raises:
        ValueError: It is neither.
    """
    from genlab.configuration.plain_yaml import parse_yaml, read_yaml

    if text.endswith((".yaml", ".yml")):
        options = read_yaml(Path(text), "file of SLURM's options")
    else:
        pairs = [pair.partition("=") for pair in filter(None, text.split(","))]
        if bad := next((name for name, sign, value in pairs if not (name and sign and value)), None):
            raise ValueError(f"--on slurm: '{bad}' is no name=value, such as slurm:partition=gpu,time=120.")
        # A time such as 8:00:00 is a number to YAML, of seconds.
        options = {n: v if ":" in v else parse_yaml(v, f"--on slurm: {n}") for n, _, v in pairs}
    if not isinstance(options, dict):
        raise ValueError(f"{text} holds no names and values, such as `partition: gpu`.")
    return options


def _require_known(options: Mapping[str, Any]) -> None:
    from submitit.slurm.slurm import _make_sbatch_string

    known = set(inspect.signature(_make_sbatch_string).parameters) - {"command", "folder", "map_count"}
    for name in options:
        if name in _OURS:
            raise ValueError(f"--on slurm: {name} is set by {_OURS[name]}.")
        if name not in known:
            hint = nearest(name, known) or f" There are: {', '.join(sorted(known))}."
            raise ValueError(f"--on slurm: there is no option '{name}'.{hint}")
    if not isinstance(options.get("time", 1), int) or options.get("time", 1) < 1:
        raise ValueError(f"--on slurm: time is a whole number of minutes, got {options['time']!r}.")


def _problem(job: Any) -> str:
    """Returns in one line why a job has failed, "" where it has not."""
    error = job.exception()
    if error is None:
        return ""
    parts = re.split(r"^-{10,}$", str(error), flags=re.MULTILINE)
    if type(error).__name__ == "FailedJobError" and len(parts) > 1:
        return parts[1].strip().splitlines()[-1][:300]  # of the traceback
    return " ".join(parts[0].split())[:300]
