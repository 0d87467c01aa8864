"""Work on every image of a source by several processes, with one line that says how far it is."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from genlab.data.sources import BadSource, Source

_CHUNK = 64

Result = TypeVar("Result")


def over_images(
    source: Source, work: Callable[[list[int]], Result], title: str, workers: int | None = None
) -> Iterator[Result]:
    """Returns the results of `work` for all images, a few dozen image numbers a call, in any order.

    Args:
        source: Says in which order, and whether several processes help.
        work: Picklable; is sent once to each process.
        title: Begins the progress line.
        workers: Processes; None means one a core.
    """
    order = source.reading_order()
    chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
    # For a handful of chunks, starting processes would take longer than the work.
    workers = min(workers or os.cpu_count() or 1, len(chunks) // 4) if source.parallel else 1
    progress = Progress(len(source), title)
    for done, result in _run(work, chunks, workers):
        progress.advance(done)
        yield result
    progress.close()


def _run(
    work: Callable[[list[int]], Result], chunks: list[list[int]], workers: int
) -> Iterator[tuple[int, Result]]:
    if workers < 2:
        yield from ((len(chunk), work(chunk)) for chunk in chunks)
        return
    with ProcessPoolExecutor(workers, initializer=_remember, initargs=(work,)) as pool:
        sizes = {pool.submit(_call, chunk): len(chunk) for chunk in chunks}
        try:
            for future in as_completed(sizes):
                yield sizes[future], future.result()
        except BrokenProcessPool:
            raise BadSource("a reading process was killed, perhaps for lack of memory; try again") from None
        finally:
            pool.shutdown(cancel_futures=True)


_remembered: Callable[[list[int]], Any]


def _remember(work: Callable[[list[int]], Any]) -> None:
    global _remembered
    _remembered = work


def _call(chunk: list[int]) -> Any:
    return _remembered(chunk)


class Progress:
    """One line on stderr that says how far the work is: rewritten on a terminal, else a few lines in all.

    Args:
        total: Number of images.
        title: Begins the line.
    """

    def __init__(self, total: int, title: str) -> None:
        self.total, self.title, self.done = total, title, 0
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def advance(self, num: int) -> None:
        """Counts `num` more images."""
        self.done += num
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else 10.0):
            self.shown = now
            self._write(self._line(now), "" if self.terminal else "\n")

    def close(self) -> None:
        """Says how long it took, where it took long enough to matter."""
        seconds = time.monotonic() - self.start
        if seconds > 1.0:
            rate = self.total / seconds
            self._write(f"{self.title}: {self.total} images in {seconds:.0f} s, {rate:.0f} images/s", "\n")

    def _line(self, now: float) -> str:
        rate = self.done / max(now - self.start, 1e-9)
        left = (self.total - self.done) / max(rate, 1e-9)
        return f"{self.title}: {self.done}/{self.total} images, {rate:.0f} images/s, eta {left:.0f} s"

    def _write(self, line: str, end: str) -> None:
        sys.stderr.write(("\r\x1b[K" if self.terminal else "") + line + end)
        sys.stderr.flush()
