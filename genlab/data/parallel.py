"""Work on every image of a source by several processes, with one line that says how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from genlab.data.sources import BadSource, Source

_CHUNK = 64

Result = TypeVar("Result")


def over_images(
    source: Source,
    work: Callable[[list[int]], Result],
    title: str,
    workers: int | None = None,
    chunks: list[list[int]] | None = None,
) -> Iterator[Result]:
    """Returns the results of `work` for all images, a few dozen image numbers a call, in any order.

    Args:
        source: Says in which order, and whether several processes help.
        work: Picklable; is sent once to each process.
        title: Begins the progress line.
        workers: Processes; None means one a core.
        chunks: The image numbers of each call, where it matters which come together.
    """
    if chunks is None:
        order = source.reading_order()
        chunks = [order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK)]
    # For a handful of chunks, starting processes would take longer than the work.
    workers = min(workers or os.cpu_count() or 1, len(chunks) // 4) if source.parallel else 1
    # Silent where no person watches: a log file would get a line for every step of the bar.
    with tqdm(total=len(source), desc=title, unit="img", disable=None) as progress:
        for done, result in _run(work, chunks, workers):
            progress.update(done)
            yield result


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
