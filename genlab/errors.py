"""What can go wrong for reasons that a user can act on, and the exit code that says so to a script.

Every message says in one to three lines what is wrong, where, and what to do next; whatever else is raised
is a defect of genlab and keeps its traceback.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator

EXIT_USAGE = 2
EXIT_DATA = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

EXIT_CODES = {
    0: "done",
    1: "a defect of genlab: please report the traceback",
    2: "a setting, an option or a path is wrong",
    3: "the data cannot be used",
    4: "a checkpoint is damaged or belongs to something else",
    5: "a metric or its extractor cannot be used",
    6: "the training diverged",
    7: "the storage is full or cannot be written",
    8: "out of memory",
    9: "another process of the same training was lost",
    130: "stopped by Ctrl-C",
    143: "stopped by SIGTERM or SIGHUP; a training also by SIGUSR1",
}
"""The exit codes of every command, as `genlab --help` and SECURITY.md name them."""


class DataError(ValueError):
    """The data cannot be used: missing, damaged, too few, or not what the setting says."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another version or of another model."""


class MetricError(ValueError):
    """A metric cannot be computed, or its extractor cannot be loaded."""


class Diverged(RuntimeError):  # noqa: N818 - the word of the run's status
    """A loss or a weight is no longer finite."""


class StorageError(OSError):
    """A file system is full, read-only, or forbids what must be written."""


class LostPeer(RuntimeError):  # noqa: N818 - says what happened
    """Another process of the same training has died or no longer answers."""


class Stopped(SystemExit):
    """A signal asked the command to stop.

    No Exception, since nothing is wrong, and no KeyboardInterrupt, which Lightning turns into exit code 1.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED)
        self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


_CODES = {
    "DataError": EXIT_DATA,
    "CheckpointError": 4,
    "MetricError": 5,
    "Diverged": 6,
    "StorageError": 7,
    "LostPeer": 9,
}
_USER = {"ValueError", "FileNotFoundError", "MisconfigurationException"}
_STORAGE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NO_MEMORY = ("can't allocate memory", "out of memory", "CUDNN_STATUS_ALLOC_FAILED")
_READER_LOST, _READER_SILENT = "DataLoader worker (pid", "DataLoader timed out"


def exit_code(error: BaseException) -> int | None:
    """Returns the exit code of an error that speaks to the user, None for a defect.

    By name and not by class, since a class of torch or Lightning is known only where these were imported.
    """
    names = [kind.__name__ for kind in type(error).__mro__]
    for name in names:
        if name in _CODES:
            return _CODES[name]
    if is_of_memory(error) or is_of_readers(error, _READER_LOST):
        return 8
    if is_of_readers(error):
        return 9
    if _USER & set(names):
        return EXIT_USAGE
    return 7 if is_of_storage(error) else None


def is_of_storage(error: BaseException) -> bool:
    """Returns whether an error says that a file system is full, read-only, or forbids what was asked.

    Also one raised on the way out of such an error: torch's writer then only says that a count is off.
    """
    return any(isinstance(e, OSError) and e.errno in _STORAGE for e in _chain(error))


def is_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory, of the machine or of a device, ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def is_of_readers(error: BaseException, *words: str) -> bool:
    """Returns whether an error of torch says that a process that reads data has died or does not answer.

    Args:
        error: Any.
        words: Which of both; nothing for either.
    """
    said = any(word in str(error) for word in words or (_READER_LOST, _READER_SILENT))
    return isinstance(error, RuntimeError) and said


def explain(error: BaseException) -> str:
    """Returns what to tell the user of an error that has an exit code, with its notes."""
    text = str(error)
    if is_of_readers(error):
        text = (
            f"A process that reads data is lost ({text.splitlines()[0].strip().rstrip('.')}): where memory "
            "or /dev/shm is full, lower --data.num_workers (0 takes no such processes) or --data.batch_size."
        )
    elif is_of_memory(error):
        first = (text.splitlines() or [""])[0].strip()
        text = (
            f"Out of memory ({first or type(error).__name__}): lower the batch size (--data.batch_size, "
            "--evaluate.drawing.batch_size, or --batch_size of other commands) or take a smaller network."
        )
    elif isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        text = f"{where}{error.strerror}."
    return "\n".join([text, *getattr(error, "__notes__", ())])


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
