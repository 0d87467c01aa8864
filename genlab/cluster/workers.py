"""Tasks on workers of dask, on this machine or on several: what crosses the network is a folder's name."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from genlab.cluster.place import Place
from genlab.cluster.worker import GRACE, Worker
from genlab.extras import require
from genlab.runs.environment import cores
from genlab.runs.task import Task

LOOPBACK = "127.0.0.1"
_PATIENCE = 20  # seconds that a scheduler has for its answer
_QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}
"""For workers that share cores with their tasks: dask's watching of itself takes 6 % of one, so 0.6 %."""


class Workers(Place):
    """Workers of dask, each of which does one task at a time for each of its threads.

    A worker that dies loses its processes, too (`genlab.cluster.leash`); another one goes on with its task.

    Args:
        address: Of a running scheduler, tcp://HOST:PORT or tls://HOST:PORT; None starts one here.
        num_workers: Workers that are started here, as threads of this process.
        resources: What a task needs of its worker, as `dask worker --resources` names it.
    """

    def __init__(
        self, address: str | None = None, num_workers: int = 0, resources: Mapping[str, float] | None = None
    ) -> None:
        require("--on local:N and --on tcp://HOST:PORT", "distributed", extra="cluster")
        self.address, self.num_workers, self.resources = address, num_workers, dict(resources or {})
        self._cluster: Any = None

    def __enter__(self) -> Workers:
        """Connects, and starts what is to be started.

        Raises:
            ValueError: No scheduler answers, or none of its workers has the resources.
        """
        from distributed import Client

        if self.address is None:
            self._cluster = self._started()
        try:
            self._client = Client(self.address or self._cluster, timeout=_PATIENCE, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:  # dask has no kind of its own
            raise ValueError(f"--on {self.address}: {_refusal(self.address or '', error)}") from None
        try:
            self._require_workers()
        except ValueError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def _started(self) -> Any:
        import dask
        from distributed import LocalCluster

        # Tasks are processes of their own anyway, and those of workers would take seconds to start.
        with dask.config.set(_QUIET):
            return LocalCluster(
                n_workers=self.num_workers,
                threads_per_worker=1,
                processes=False,
                # Told no address, dask's servers of its own state listen everywhere, dashboard or not.
                scheduler_kwargs={"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"},
                worker_dashboard_address=f"{LOOPBACK}:0",
                silence_logs="ERROR",  # it warns of every task that is withdrawn
                memory_limit=None,  # a worker itself needs little, and is not to be ended for what it starts
                resources=self.resources,
            )

    def _require_workers(self) -> None:
        workers = self._known_workers()
        self.slots = sum(map(self._slots_of, workers))
        if not self.slots:
            asked = ",".join(f"{name}={amount:g}" for name, amount in self.resources.items())
            raise ValueError(
                f"--on {self.address}: none of the scheduler's {len(workers)} workers can take a task. "
                f"Start one: dask worker {self.address} --nthreads 1{asked and f' --resources {asked}'}"
            )

    def _slots_of(self, worker: dict[str, Any]) -> int:
        """Returns how many tasks a worker can do at a time, by its threads and by what it has."""
        fitting = [
            worker["resources"].get(name, 0) // amount for name, amount in self.resources.items() if amount
        ]
        return int(min([worker["nthreads"], *fitting]))

    def _known_workers(self) -> list[dict[str, Any]]:
        return list(self._client.scheduler_info(n_workers=-1)["workers"].values())

    def work_off(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        from distributed import as_completed

        slots = Counter[str]()
        for worker in self._known_workers():
            slots[worker["host"]] += worker["nthreads"]
        options = {"pure": False, "resources": self.resources or None}
        ends = {self._client.submit(work, task, dict(slots), **options): task for task in tasks}
        try:
            for end in as_completed(list(ends), loop=self._client.loop):
                yield ends[end], "" if end.status == "finished" else _problem(end)
        except BaseException:
            self._client.cancel(list(ends))  # which leaves alone what has begun
            self._client.run(stop, {task.run for task in tasks}, on_error="ignore")
            raise


def _refusal(address: str, error: BaseException) -> str:
    """Returns why there is no connection to a scheduler, and what to do, for each error that dask raises."""
    from distributed.comm.core import CommClosedError

    causes = [error]
    while following := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(following)
    told = " ".join(str(causes[-1]).split())
    hung_up = isinstance(
        error, CommClosedError
    )  # all that is heard of a scheduler that refuses a certificate
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or (hung_up and address.startswith("tls")):
        return f"the certificates here and there do not fit together ({told}). {_CERTIFICATES}"
    if isinstance(error, TypeError):  # that it has no context of TLS
        return f"no certificate and key are set here for dask. {_CERTIFICATES}"
    if isinstance(error, FileNotFoundError):
        return f"a file of the certificates that are set here for dask is not there. {_CERTIFICATES}"
    if isinstance(error, RuntimeError):
        return "dask is told here to refuse what is not encrypted. Use tls://HOST:PORT."
    if hung_up:
        return (
            f"what answers there hangs up ({told}). A scheduler that was started with TLS is tls://HOST:PORT."
        )
    return (
        f"no scheduler answers there ({told}). Start one with `dask scheduler`, and workers with "
        "`dask worker ADDRESS`; docs/cluster.md has both."
    )


_CERTIFICATES = "docs/cluster.md makes one for all machines and names the variables that say where it is."

_at_work: dict[Path, Worker] = {}
"""Who is at work in this process, by the folders of their runs."""


def work(task: Task, slots: Mapping[str, int]) -> None:
    """Does a task in a worker, by its share of the machine's cores; returns early if it is asked to stop.

    Args:
        task: What to do.
        slots: Tasks at a time on each machine, by its name.
    """
    from distributed import get_worker

    own = get_worker()
    sharing = max(own.state.nthreads, slots.get(urlsplit(own.address).hostname or "", 0))
    worker = _at_work[task.run] = Worker(max(1, cores() // sharing))
    try:
        with suppress(KeyboardInterrupt):  # it has been stopped; to dask it would be the end of its worker
            worker.work(task)
    finally:
        del _at_work[task.run]


async def stop(runs: Collection[Path]) -> None:
    """Asks the trainings of this process that are at work in some folders to write checkpoints and end.

    Returns when they have ended. Dask has it run beside the tasks, in every worker.
    """
    asked = [worker for run, worker in list(_at_work.items()) if run in runs]
    await asyncio.gather(*(asyncio.to_thread(worker.stop, GRACE) for worker in asked))


def _problem(end: Any) -> str:
    """Returns in one line why a task has no end, such as that one worker after the other died of it."""
    error = None if end.status == "cancelled" else end.exception()
    return "the scheduler is gone" if error is None else " ".join(str(error).split())[:300]
