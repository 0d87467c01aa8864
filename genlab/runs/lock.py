"""One training process per run folder, proven by the kernel and explained by a file.

The kernel's lock ends with its process, however that dies, so a stale one needs no guessing. It is taken on a
hidden file that stays; a text file beside it says who holds it, and decides only where the kernel cannot,
between machines. There its holder touches it again and again, so that one whose machine died is known by its
silence.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from genlab.errors import EXIT_TERMINATED
from genlab.files import write_json

BEAT = 30.0
"""Seconds between two touches of the file by who holds the lock."""

SILENCE = 10
"""Beats that must be missing before another machine takes who holds the lock for dead."""

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
        if not is_ours or _may_live(path):
            raise RunIsLive(_explain(path, _holder(path)))
        write_json(path, ours := _here())
        try:
            with _beating(path, ours):
                yield
        finally:
            if _holder(path) in ({}, ours):
                path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Returns whether a process that may be alive holds the lock of this file."""
    if not path.exists():
        return False
    with _kernel_lock(path, _GLANCE) as is_free:
        return not is_free or _may_live(path)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lets one process at a time through the block, as far as the file system can lock."""
    with _kernel_lock(folder / "record", -1.0):
        yield


@contextmanager
def _kernel_lock(path: Path, patience: float) -> Iterator[bool]:
    """Yields whether the lock beside a file could be taken; without patience waits for ever."""
    lock = FileLock(_hidden(path))
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


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


@contextmanager
def _beating(path: Path, ours: dict[str, Any]) -> Iterator[None]:
    """Touches the file for the length of the block, from a thread of its own."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            if _holder(path) not in ({}, ours):
                _give_way(path)
            with suppress(OSError):  # somebody has removed it, or the storage is away for a while
                os.utime(path)

    thread = threading.Thread(target=beat, name=f"heartbeat of {path}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _give_way(path: Path) -> None:
    """Ends a process that was asleep for so long that another machine goes on with its work."""
    who = _holder(path)
    print(f"! {path.parent}: taken over by process {who.get('pid')} on {who.get('host')}.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_TERMINATED)  # without a checkpoint: the folder is another's


def _holder(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _here() -> dict[str, Any]:
    job, restarts = os.environ.get("SLURM_JOB_ID"), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    begun = {"job": job, "restarts": restarts} if job else {}
    return {"host": platform.node(), "pid": os.getpid(), "boot": _boot(), "beat": BEAT, **begun}


def _may_live(path: Path) -> bool:
    """Returns whether the file names a process that the kernel here knows nothing of and that is not dead."""
    holder = _holder(path)
    return _is_foreign(holder) and not _is_silent(path, holder)


def _is_silent(path: Path, holder: dict[str, Any]) -> bool:
    """Returns whether the holder has missed its beats, by the storage's clock: machines' own ones differ."""
    beat = holder.get("beat")
    if not isinstance(beat, float) or beat <= 0:  # of a version that did not touch it
        return False
    with suppress(OSError):
        os.utime(_hidden(path))
        return _hidden(path).stat().st_mtime - path.stat().st_mtime > SILENCE * beat
    return False


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
