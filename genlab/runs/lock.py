"""One training process per run folder, proven by the kernel and explained by a file.

The kernel's lock (flock) ends with its process, however that dies, so a stale lock needs no guessing. The
file's text says who holds it; it decides only where the kernel cannot, between machines.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_PATIENCE = 1.0  # seconds: somebody who lists runs may hold the lock for an instant


class RunIsLive(ValueError):  # noqa: N818 - reads as the sentence it is
    """Another process trains in this folder."""


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Holds the lock file for the length of the block.

    Raises:
        RunIsLive: Another living process holds it, or one on another machine that cannot be asked.
    """
    if sys.platform == "win32":  # no flock there
        yield
        return
    file = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def is_held(path: Path) -> bool:
    """Returns whether a process that may be alive holds the lock file."""
    try:
        with path.open("rb") as file:
            return not _flock(file, shared=True) or _is_foreign(_holder(file))
    except FileNotFoundError:
        return False


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Lets one process at a time through the block, as far as the file system can lock a folder."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do not lock folders
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path) -> IO[bytes]:
    give_up = time.monotonic() + _PATIENCE
    while True:
        file = path.open("a+b")
        if _flock(file) and _is_current(file, path) and not _is_foreign(_holder(file)):
            _sign(file)
            return file
        holder = _holder(file)
        file.close()
        if _is_foreign(holder) or time.monotonic() > give_up:
            raise RunIsLive(_explain(path, holder))
        time.sleep(0.02)


def _flock(file: IO[bytes], shared: bool = False) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: training there unprotected is better than not at all
        return True
    return True


def _is_current(file: IO[bytes], path: Path) -> bool:
    # The last holder may have removed the file between our opening and our locking it.
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: IO[bytes]) -> None:
    file.truncate(0)
    file.write(json.dumps({"host": platform.node(), "pid": os.getpid(), "boot": _boot()}).encode() + b"\n")
    file.flush()


def _holder(file: IO[bytes]) -> dict[str, Any]:
    file.seek(0)
    try:
        holder = json.loads(file.read())
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_foreign(holder: dict[str, Any]) -> bool:
    # Same boot: same kernel, whatever name a container gives the host. Same host: any boot but ours is over.
    return bool(holder) and holder.get("boot") != _boot() and holder.get("host") != platform.node()


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"no boot number on {platform.node()}"


def _explain(path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    return (
        f"{path.parent} is in use: {who} trains in it. Wait for it or stop it; "
        f"if it is known to be dead, delete {path}."
    )
