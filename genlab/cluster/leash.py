"""`python -m genlab.cluster.leash PID COMMAND...`: a genlab command that ends with whoever started it.

A training must not go on writing when its worker is dead and another one goes on with its folder. It is asked
to end as by a person: it writes a checkpoint and gives its lock back, so that nothing is lost.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

from genlab.errors import EXIT_TERMINATED

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>; survives exec


def main() -> None:
    """Ties this process to its parent, then becomes the command."""
    parent, *arguments = sys.argv[1:]
    tie(int(parent))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # SLURM's to all of a job's processes; it is for the worker
    os.execv(sys.executable, [sys.executable, "-m", "genlab", *arguments])


def tied(arguments: Sequence[str]) -> list[str]:
    """Returns what starts a genlab command that ends with this process.

    On Windows, where no process becomes another one, it is the bare command, which ends by itself.
    """
    if os.name == "nt":
        return [sys.executable, "-m", "genlab", *arguments]
    return [sys.executable, "-m", "genlab.cluster.leash", str(os.getpid()), *arguments]


def tie(parent: int) -> None:
    """Has SIGTERM sent to this process when the parent dies; on Linux alone, elsewhere the lock must do.

    Raises:
        SystemExit: It has died already.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit(EXIT_TERMINATED)


if __name__ == "__main__":
    main()
