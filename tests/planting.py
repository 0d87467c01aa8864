"""Planted faults: kills and signals at a place, processes that are forked to be killed, small disks."""

import errno
import multiprocessing.util
import os
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager

import pytest

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def in_a_fork(function):
    """Calls a function in a process of its own; returns its exit code, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if not child:
        code = 1
        try:
            multiprocessing.util._run_after_forkers()  # as in its own: the parent's threads are not here
            code = function() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def send(*numbers):
    """Returns what sends signals to its own process, whatever it is called with."""
    return lambda *args, **kwargs: [os.kill(os.getpid(), number) for number in numbers]


@contextmanager
def planted(owner, name, fault, when=lambda *args: True, before=True):
    """Lets a method meet a fault at its calls for which `when` holds, before or after its work."""
    method = getattr(owner, name)

    def meet(*args, **kwargs):
        meets = when(*args)
        if before and meets:
            fault()
        done = method(*args, **kwargs)
        if not before and meets:
            fault()
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, meet)
        yield


@contextmanager
def small_disk(folder, size):
    """A file system of its own of so many bytes, where this user may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, leave):
    """Writes a file that leaves so many bytes of a file system free; returns it."""
    free = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - leave)))
    return filler


KILL = send(signal.SIGKILL)
