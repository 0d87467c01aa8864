"""Lines of text on the command line: where they come from, where they go, and what is to be told of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

INPUT = Path("-")
"""Stands for the standard input."""

SHOWN = 20
"""Unknown characters that are named."""


def text_sampler(options: argparse.Namespace, own: Any) -> Any:
    """Returns how translations are found: as asked, else as the run does, without chance.

    Raises:
        ValueError: A length penalty was given, and no beam.
    """
    from genlab.samplers.beam import Beam
    from genlab.samplers.tokens import Categorical, Greedy

    penalty, width = options.length_penalty, options.beams
    beam = own if isinstance(own, Beam) else Beam()
    if width is None and penalty is not None and beam is not own:
        raise ValueError("--length_penalty is of a beam search, and this run has none: give --beams too.")
    if width is None and penalty is None:
        return Greedy() if isinstance(own, Categorical) else own
    return Beam(beam.width if width is None else width, beam.length_penalty if penalty is None else penalty)


def lines_from(inputs: Sequence[Path]) -> Iterator[str]:
    """Yields the lines of files, one after the other, and of the standard input where one is called `-`."""
    from genlab.data.utf8 import lines_of

    for path in inputs:
        if path == INPUT and sys.stdin is None:
            raise ValueError("The standard input is closed: name files of text.")
        if path == INPUT:
            yield from lines_of(sys.stdin.buffer, "the standard input")
        else:
            with path.open("rb") as stream:
                yield from lines_of(stream, path)


@contextmanager
def written_to(target: Path | None) -> Iterator[TextIO]:
    """Yields where lines are written: a file that is there once all are, or the standard output."""
    from genlab.files import replacing

    if target is None:
        yield sys.stdout
        return
    with replacing(target) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        yield file


def tell_of(translator: Any) -> None:
    """Says what of the lines the model could not read, where it is in nobody's way."""
    if translator.unknown:
        shown = " ".join(map(repr, sorted(translator.unknown)[:SHOWN]))
        more = f" and {len(translator.unknown) - SHOWN} more" if len(translator.unknown) > SHOWN else ""
        print(f"! read as unknown, since training had no {shown}{more}", file=sys.stderr)
    if translator.num_cut:
        print(f"! {translator.num_cut:,} lines were cut to {translator.length} tokens", file=sys.stderr)
