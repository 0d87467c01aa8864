"""One training process per run folder, proven by the kernel and explained by a file.

The kernel's lock ends with its process, however that dies, so a stale one needs no guessing. It is taken on a
hidden file that stays; a text file beside it says who holds it, and decides only where the kernel cannot,
between machines.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genlab.files import write_json

_PATIENCE = 1.0  # seconds: somebody who lists runs may hold the lock for an instant
_GLANCE = 0.2  # seconds: so may somebody else who lists them, and who lists waits so long for each live run


class RunIsLive(ValueError):  # noqa: N818 - reads as the sentence it is
    """Another process trains in this folder."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Holds the lock for the length of the block; the file says so.

    Raises:
        RunIsLive: Another living process holds it, or one on another machine that cannot be asked.
    """
    with _kernel_lock(path, _PATIENCE) as is_ours:
        if not is_ours or _is_foreign(_holder(path)):
            raise RunIsLive(_explain(path, _holder(path)))
        write_json(path, _here())
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Returns whether a process that may be alive holds the lock of this file."""
    if not path.exists():
        return False
    with _kernel_lock(path, _GLANCE) as is_free:
        return not is_free or _is_foreign(_holder(path))


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lets one process at a time through the block, as far as the file system can lock."""
    with _kernel_lock(folder / "record", -1.0):
        yield


@contextmanager
def _kernel_lock(path: Path, patience: float) -> Iterator[bool]:
    """Yields whether the lock beside a file could be taken; without patience waits for ever."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=patience, poll_interval=0.02)
        is_ours = True
    except Timeout:
        is_ours = False
    except OSError:  # a file system without locks: training there unprotected is better than not at all
        is_ours = True
    try:
        yield is_ours
    finally:
        lock.release()


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _here() -> dict[str, Any]:
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    begun = {"job": job, "restarts": restarts} if job else {}
    return {"host": platform.node(), "pid": os.getpid(), "boot": _boot(), **begun}


def _is_foreign(holder: dict[str, Any]) -> bool:
    # Same boot: same kernel, whatever name a container gives the host. Same host: any boot but ours is over.
    ours = _here()
    is_known = holder.get("boot") == ours["boot"] or holder.get("host") == ours["host"]
    return bool(holder) and not is_known and not _was_begun_again(holder, ours)


def _was_begun_again(holder: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Returns whether we are the holder's job again, which SLURM restarts only when all of it has ended."""
    is_same = "job" in ours and holder.get("job") == ours["job"]
    return is_same and holder.get("restarts", 0) < ours["restarts"]


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"no boot number on {platform.node()}"


def _explain(path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    return (
        f"{path.parent} is in use: {who} trains in it. Wait for it or stop it; "
        f"if it is known to be dead, delete {path}."
    )
