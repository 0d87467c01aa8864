"""Tasks on this machine, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from genlab.cluster.place import Place
from genlab.cluster.worker import Worker
from genlab.runs.environment import cores
from genlab.runs.task import Task


class Here(Place):
    """This machine, whose cores the tasks share, so that times can be compared.

    Args:
        slots: Tasks at a time.
        worker: Who does them.
    """

    def __init__(self, slots: int, worker: Worker | None = None) -> None:
        self.slots = slots
        self.worker = worker or Worker(max(1, cores() // slots))

    def work_off(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        with ThreadPoolExecutor(self.slots) as pool:
            try:
                ends = {pool.submit(self.worker.work, task): task for task in tasks}
                for end in as_completed(ends):
                    end.result()
                    yield ends[end], ""
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.worker.stop()
                raise
