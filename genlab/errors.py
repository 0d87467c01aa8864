"""What can go wrong for reasons that a user can act on, and the exit code that says so to a script.

Every message says in one to three lines what is wrong, where, and what to do next; whatever else is raised
is a defect of genlab and keeps its traceback.
"""

from __future__ import annotations

import errno

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
    143: "stopped by SIGTERM or SIGHUP",
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


_CODES = {
    "DataError": EXIT_DATA,
    "CheckpointError": 4,
    "MetricError": 5,
    "Diverged": 6,
    "StorageError": 7,
    "LostPeer": 9,
}
_USER = {"ValueError", "FileNotFoundError", "MisconfigurationException"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def exit_code(error: BaseException) -> int | None:
    """Returns the exit code of an error that speaks to the user, None for a defect.

    By name and not by class, since a class of torch or Lightning is known only where these were imported.
    """
    names = [kind.__name__ for kind in type(error).__mro__]
    for name in names:
        if name in _CODES:
            return _CODES[name]
    if isinstance(error, OSError) and error.errno in _FULL:
        return 7
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return 8
    return EXIT_USAGE if _USER & set(names) else None
