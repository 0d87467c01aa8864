"""Runs without weights and training losses: the few kilobytes that a comparison reads.

A copy is a run folder again, so that numbers can be kept beside the code that made them and compared later.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from genlab import files
from genlab.runs.folder import Run

_EVALUATION = b'"val/'  # in each line of metrics.jsonl that is one


def keep_record(run: Run, folder: Path, pictures: Iterable[str] = ()) -> Run:
    """Copies what a comparison reads of a run to <folder>/<experiment>/<run>, in place of an older copy.

    Args:
        run: The run.
        folder: Where the copies of all runs go.
        pictures: Files in the run's folder, such as samples/samples_0000000000.png, that are kept, too.

    Raises:
        NotARun: The run's record cannot be read, or a picture lies elsewhere.
        ValueError: The folder is the one that the run lies in.
    """
    kept = Run(folder / run.experiment / run.name)
    if kept.path.resolve() == run.path.resolve():
        raise ValueError(f"{run.path} lies in {folder} itself: choose another folder for the copies.")
    record = run.read()
    kept.path.mkdir(parents=True, exist_ok=True)
    for source, target in ((run.config, kept.config), (run.environment, kept.environment)):
        if source.is_file():
            shutil.copyfile(source, target)
    if run.metrics_jsonl.is_file():
        lines = run.metrics_jsonl.read_bytes().splitlines(keepends=True)
        kept.metrics_jsonl.write_bytes(b"".join(line for line in lines if _EVALUATION in line))
    # On one line: indented, the many small numbers of histograms are most of the file.
    files.write_text(kept.record, json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    shutil.rmtree(kept.samples, ignore_errors=True)
    for picture in pictures:
        target = kept.output(picture)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(run.inside(picture), target)
    return kept
