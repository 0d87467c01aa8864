"""What the scores would be for samples that are real: the training split's images in their place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from genlab.evaluation.score import score_name
from genlab.files import cache_folder, digest_of, write_json
from genlab.metrics.base import Drawn, Reference, chosen_rows
from genlab.metrics.features import Features


def floor_scores(
    train: Reference, test: Reference, metrics: Sequence[Any], num_samples: int, key: Sequence[str]
) -> dict[str, float]:
    """Returns the scores of training images against unseen images, by the names that samples' scores have.

    A model that had learned the data perfectly would score about as much; hence the floor of a comparison.
    As many training images as samples are taken, or all where there are fewer. Metrics of class
    probabilities, such as IS, are left out: a reference keeps features only.

    Args:
        train: The training images' statistics.
        test: Those of the images that samples are compared with.
        metrics: What to compute; copies of them do.
        num_samples: Of the model.
        key: What else the numbers depend on: both splits' fingerprints, the extractor's digest and resizing.
    """
    metrics = [metric for metric in metrics if metric.needs <= {"sums", "features"}]
    rows = chosen_rows(train.index, num_samples)
    applied = {type(metric).__name__: metric.protocol() for metric in metrics}
    path = cache_folder("floors", f"{digest_of(1, *key, len(rows), test.num, applied, length=32)}.json")
    with suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    features = train.features[rows]
    drawn = Drawn(train.index[rows], features, Features(features))
    values: dict[str, float] = {}
    for metric in metrics:
        values |= _alone(metric, test, drawn)
    floor = {score_name(name, test.num, len(rows)): value for name, value in values.items()}
    write_json(path, floor)
    return floor


def _alone(metric: Any, test: Reference, drawn: Drawn) -> dict[str, float]:
    """Returns a metric's values of all rows on this process, without asking the others."""
    own = metric.clone().cpu()
    own.sync_on_compute = False
    own.reset()
    own.set_reference(test)
    own.update(drawn)
    return {name: float(value) for name, value in own.compute().items()}
