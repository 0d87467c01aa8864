"""Several processes of one training: the loss of one ends all of them, and one of them says which and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.collectives.torch_collective import default_pg_timeout
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from genlab.distributed import TIMEOUT_VARIABLE, timeout
from genlab.errors import EXIT_CODES, EXIT_INTERRUPTED, EXIT_TERMINATED, LostPeer
from genlab.runs.folder import Run, folder_name, open_run, outputs_root

GRACE = 10.0  # seconds in which a process notices by itself that another one has gone
ON_REQUEST = (0, EXIT_INTERRUPTED, EXIT_TERMINATED)
_KINDS = {"DistError", "DistBackendError", "DistNetworkError", "DistStoreError"}
_WORDS = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine and watches over them.

    Lightning's own watch kills this process as soon as another one has ended badly: before the run's record
    says so.

    Args:
        inner: Lightning's launcher, whose place this one takes.
        when_lost: Told in words who was lost, where this process did not notice by itself.
    """

    def __init__(self, inner: _SubprocessScriptLauncher, when_lost: Callable[[str], None]) -> None:
        super().__init__(inner.cluster_environment, inner.num_processes, inner.num_nodes)
        self.when_lost = when_lost

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._watch, name="peers", daemon=True).start()
        return function(*args, **kwargs)

    def lost(self, patience: float = 0.0) -> str:
        """Returns in words which process ended badly within some seconds, "" if none did."""
        end = time.monotonic() + patience
        while True:
            for rank, process in enumerate(self.procs, start=1):
                if process.poll() not in (None, *ON_REQUEST):
                    return _fate(rank, process)
            if time.monotonic() >= end:
                return ""
            time.sleep(0.1)

    def end(self) -> None:
        """Ends the other processes, also those that are stopped."""
        self.kill(getattr(signal, "SIGKILL", signal.SIGTERM))  # which on Windows kills

    def _watch(self) -> None:
        while not (text := self.lost()):
            time.sleep(1.0)
        time.sleep(GRACE)
        self.when_lost(text)
        self.end()
        os._exit(9)  # this process hangs in a collective, out of reach of exceptions


def prepare(trainer: Any, run: Run | None) -> None:
    """Gives a trainer of several processes a limit to their waiting, and a launcher that watches them.

    Raises:
        ValueError: $GENLAB_TIMEOUT is no number of seconds.
    """
    strategy = trainer.strategy
    if getattr(strategy, "_timeout", None) == default_pg_timeout:
        strategy._timeout = timedelta(seconds=timeout())
    if type(strategy.launcher) is _SubprocessScriptLauncher:
        strategy._launcher = Launcher(strategy.launcher, lambda text: _tell(text, run))


def awaited_run(experiment: str, name: str | None) -> Run:
    """Returns the run that the first process makes, to one that torchrun has started beside it.

    Raises:
        ValueError: The run has no name by which it could be found.
        LostPeer: It is not made in time.
    """
    if not name:
        raise ValueError(
            "Processes that genlab has not started itself find their run by --run_name: give one."
        )
    folder = outputs_root().absolute() / folder_name(experiment) / folder_name(name)
    end = time.monotonic() + timeout()
    while not (folder / "run.json").exists():
        if time.monotonic() > end:
            raise LostPeer(f"The first process has made no run {folder} in {timeout():g} s.")
        time.sleep(0.2)
    return open_run(folder)


@contextmanager
def together(trainer: Any, run: Run | None) -> Iterator[None]:
    """Ends all processes of a training with one of them, with one cause.

    Raises:
        LostPeer: Another process has died or no longer answers.
    """
    parent = os.getppid()
    try:
        yield
    except Exception as error:
        if trainer.world_size == 1 or not is_of_peers(error):
            raise
        launcher = trainer.strategy.launcher
        if isinstance(launcher, Launcher) and launcher.procs:
            text = launcher.lost(patience=GRACE) or _silent(launcher.procs)
            launcher.end()
        elif trainer.global_rank and run is not None and not _first_was_killed(parent, run):
            raise SystemExit(9) from error  # the first process says why
        else:
            text = "Rank 0 was killed." if trainer.global_rank else "Another process was lost."
        _record(text, run)
        raise LostPeer(text) from error


def is_of_peers(error: BaseException) -> bool:
    """Returns whether an error says that another process did not answer."""
    if type(error).__name__ in _KINDS:
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in _WORDS)


def _fate(rank: int, process: subprocess.Popen[Any]) -> str:
    code, who = process.returncode, f"Rank {rank} (process {process.pid})"
    if code < 0:
        return f"{who} was killed by {signal.Signals(-code).name}."
    return f"{who} ended with exit code {code}, {EXIT_CODES.get(code, 'unknown')}; what it said is above."


def _silent(processes: Sequence[subprocess.Popen[Any]]) -> str:
    waiting = {rank: p.pid for rank, p in enumerate(processes, start=1) if p.poll() is None}
    stopped = {rank: pid for rank, pid in waiting.items() if _is_stopped(pid)} or waiting
    who = " or ".join(f"rank {rank} (process {pid})" for rank, pid in stopped.items()) or "another process"
    return f"{who[0].upper()}{who[1:]} did not answer within {timeout():g} s (${TIMEOUT_VARIABLE})."


def _is_stopped(pid: int) -> bool:
    with suppress(OSError):  # where there is no /proc, nobody is known to be stopped
        return "\nState:\tT" in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return False


def _first_was_killed(parent: int, run: Run) -> bool:
    """Returns whether the first process, which had started this one, has gone without a word."""
    end = time.monotonic() + GRACE
    while os.getppid() == parent and time.monotonic() < end:
        time.sleep(0.1)
    return os.getppid() != parent and run.read().get("status") == "running"


def _record(text: str, run: Run | None) -> None:
    if run is not None:
        run.update(status="failed", error=text)


def _tell(text: str, run: Run | None) -> None:
    _record(text, run)
    print(f"genlab: {text}", file=sys.stderr, flush=True)
