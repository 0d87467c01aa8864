"""The extractors by the names that users give them."""

from __future__ import annotations

import os
from pathlib import Path

from genlab.metrics.classifier_extractor import load_classifier_extractor, read_header
from genlab.metrics.features import Extractor, MissingWeights
from genlab.metrics.inception import load_inception
from genlab.metrics.inception_weights import find_weights
from genlab.text import shortened

DEFAULT = "inception"
"""The extractor of whoever names none."""


def load_extractor(source: str | Path | None) -> Extractor:
    """Returns the extractor that a user named.

    Args:
        source: "inception", "inception:/path/weights.pth", "digits" (ships with the package), an extractor's
            .safetensors file, or the folder of a run that trained one; None for the default.

    Raises:
        MetricError: It cannot be had, is damaged, or is something else; no code of a file runs.
    """
    source = source or DEFAULT
    name, _, path = str(source).partition(":")
    if name == "inception":
        return load_inception(find_weights(path or None))
    return load_classifier_extractor(_extractor_file(source))


def extractor_available(source: str | Path | None) -> str | None:
    """Returns None if the extractor can be had, else the reason and the remedy; to be asked before training.

    Inception's weights are downloaded by this question if need be: only that proves that they can be had.
    """
    source = source or DEFAULT
    name, _, path = str(source).partition(":")
    try:
        if name == "inception":
            find_weights(path or None)
        else:
            read_header(_extractor_file(source))
    except ValueError as error:
        return str(error)
    return None


def _extractor_file(source: str | Path) -> Path:
    if str(source) == "digits":
        return Path(__file__).parent / "weights" / "digits.safetensors"
    path = Path(os.path.expanduser(source))
    path = path / "extractor.safetensors" if os.path.isdir(path) else path
    if path.suffix == ".safetensors" and os.path.isfile(path):
        return path
    raise MissingWeights(
        f"There is no extractor {shortened(str(source))}: {shortened(str(path))} is not there. "
        "Give inception, inception:/path/file.pth, "
        "digits, a .safetensors file of an extractor, or the folder of a run that trained one."
    )
