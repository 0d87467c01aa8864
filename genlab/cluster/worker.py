"""Who does a task, wherever that is: by genlab commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from genlab.cluster.leash import tied
from genlab.errors import StorageError
from genlab.runs import lock
from genlab.runs.task import UNFINISHED, Task

ATTEMPTS = 2  # trainings of one task in one call: a second one in case something outside ended the first
GRACE = 60.0  # seconds that a training has to write its checkpoint
_GLANCE = 0.5  # seconds between two looks at what somebody else works on


class Worker:
    """Brings run folders to their end, each by processes that end with this one.

    Args:
        threads: Cores that each process computes on.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._lock = threading.Lock()

    def work(self, task: Task) -> None:
        """Does what is left of a task; returns at its end or after ATTEMPTS trainings.

        Raises:
            StorageError: Its folders cannot be seen from here.
        """
        for folder in (task.folder, task.log.parent):
            if not folder.is_dir():
                raise StorageError(
                    f"{folder} is not there: the folders of command and runs must lie on storage that "
                    "every worker sees under the same path."
                )
        with self._alone(task):
            for _ in range(ATTEMPTS):
                self._wait(task, lambda: _training_of(task))
                if task.state() in UNFINISHED:
                    self._next(task)
            if task.state() == "trained":
                self._next(task)

    def stop(self, patience: float | None = None) -> None:
        """Asks every training to write a checkpoint and end.

        Args:
            patience: Seconds to wait for their ends, if any.
        """
        with self._lock:
            self._stopping.set()
            processes = list(self._processes)
            for process in processes:
                process.terminate()
        for process in processes if patience else ():
            with suppress(subprocess.TimeoutExpired):
                process.wait(patience)

    def run(self, task: Task, arguments: Sequence[str]) -> None:
        """Runs one genlab command to its end; whether it did what it should is read from the folder."""
        with task.log.open("ab") as log:
            with self._lock:
                if self._stopping.is_set():
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    tied(arguments),
                    cwd=task.folder,
                    env=self._environment(task),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
                self._processes.add(process)
            process.wait()
            self._processes.discard(process)

    def _environment(self, task: Task) -> dict[str, str]:
        # Without it, Lightning takes a task of SLURM for one process of a training; here it is all of one.
        inherited = {name: value for name, value in os.environ.items() if name != "SLURM_NTASKS"}
        return {
            **inherited,
            "GENLAB_OUTPUTS": str(task.run.parents[1]),
            "GENLAB_ALLOW": task.allowed,
            "OMP_NUM_THREADS": str(self.threads),
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def _next(self, task: Task) -> None:
        command = task.command()
        if command is None:
            return
        if command[0] == "fit":
            task.clear()
        self.run(task, command)

    @contextmanager
    def _alone(self, task: Task) -> Iterator[None]:
        """Waits until nobody else works on a task, and keeps others from it."""
        with ExitStack() as held:
            self._wait(task, lambda: _refusal(held, task))
            yield

    def _wait(self, task: Task, reason: Callable[[], str]) -> None:
        """Waits as long as there is a reason to; the first one goes into the task's log."""
        is_told = False
        while why := reason():
            if not is_told:
                with task.log.open("a", encoding="utf-8") as log:
                    log.write(f"Waiting: {why}\n")
                is_told = True
            if self._stopping.wait(_GLANCE):
                raise KeyboardInterrupt


def _refusal(held: ExitStack, task: Task) -> str:
    """Takes a task's lock; returns why it cannot be had, "" if it is ours."""
    try:
        held.enter_context(lock.hold(task.lock))
    except lock.RunIsLive as error:
        return str(error)
    return ""


def _training_of(task: Task) -> str:
    """Returns which training is at work in a folder, one that outlived its worker; "" for none."""
    if task.state() != "live":
        return ""
    return (
        f"a process trains in {task.run}. If its machine is dead, this goes on after no sign of life "
        f"for {lock.SILENCE * lock.BEAT:.0f} s, or lock.json there is deleted."
    )
