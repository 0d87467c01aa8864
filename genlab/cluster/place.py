"""Where tasks are done: what every place can do, and how a queue of tasks is worked off in any of them."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from genlab.runs.task import Task


class Place(ABC):
    """Processes, here or elsewhere, that tasks can be given to; open as long as the `with` block lasts.

    Nothing comes back from a place but that a task has ended: what became of it is read from its folder. So a
    place may do a task twice, or lose it with a machine.
    """

    slots: int
    """Tasks at a time."""

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *error: object) -> None:  # noqa: B027 - most places leave nothing open
        pass

    @abstractmethod
    def work_off(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, str]]:
        """Yields each task as it ends, and what the place has to say of it, "" if nothing was wrong there.

        Whoever closes the iterator before its end withdraws the tasks that have not begun, and asks those
        that have to write a checkpoint and stop.
        """

    def script(self, num_tasks: int) -> str:
        """Returns the job that the place would be given for so many tasks, "" where it takes none."""
        return ""


def work_through(
    place: Place, tasks: Sequence[Task], tell: Callable[[Task], str], before: int = 0, total: int = 0
) -> None:
    """Has tasks done and prints a line at the end of each.

    Args:
        place: Where.
        tasks: Those that are left to do.
        tell: Returns what became of a task, once it has ended.
        before: How many others were done before.
        total: How many there are altogether, where more are to come.
    """
    total, start = total or before + len(tasks), time.monotonic()
    with closing(place.work_off(tasks)) as ends:  # type: ignore[type-var]
        for number, (task, problem) in enumerate(ends, 1):
            words = f"{tell(task)}{f' ({problem})' if problem else ''}"
            left = _left((time.monotonic() - start) / number * (total - before - number))
            place_of = f"[{before + number:>{len(str(total))}}/{total}]"
            print(f"{place_of} {task.name}: {words}{left}", file=sys.stderr, flush=True)


def _left(seconds: float) -> str:
    return f" | about {seconds / 60:.0f} min left" if seconds >= 30 else ""
