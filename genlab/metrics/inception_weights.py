"""Where the FID Inception's weights are: a named file, the cache, or a checked download."""

from __future__ import annotations

import os
import urllib.request
import warnings
from pathlib import Path
from typing import BinaryIO

import torch

from genlab.files import cache_folder, digest, replacing
from genlab.metrics.features import MissingWeights
from genlab.text import shortened

WEIGHTS_URLS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
)
"""Two places of one file."""
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
WEIGHTS_VARIABLE = "GENLAB_INCEPTION_WEIGHTS"


def find_weights(path: str | Path | None = None) -> Path:
    """Returns the file of the public weights: the one named, else the cache's, else torch's, else a download.

    Args:
        path: A file that the user vouches for; None asks $GENLAB_INCEPTION_WEIGHTS.

    Raises:
        MissingWeights: None can be had.
    """
    named = path or os.environ.get(WEIGHTS_VARIABLE)
    if named:
        return _named_file(Path(os.path.expanduser(named)))
    cached = cache_folder(Path(WEIGHTS_URLS[0]).name)
    if cached.is_file() and digest(cached) != WEIGHTS_SHA256:
        warnings.warn(f"{cached} is damaged (its SHA-256 is not {WEIGHTS_SHA256[:8]}...); removed.")
        cached.unlink(missing_ok=True)
    others = [Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name for url in WEIGHTS_URLS]
    for file in [cached, *others]:
        if file.is_file() and (file == cached or digest(file) == WEIGHTS_SHA256):
            return file
    return _download(cached)


def _named_file(path: Path) -> Path:
    if not os.path.isfile(path):
        raise MissingWeights(
            f"The Inception weights {shortened(str(path))} (from ${WEIGHTS_VARIABLE} or inception:) are "
            "missing."
        )
    if digest(path) != WEIGHTS_SHA256:
        warnings.warn(f"{path} is not the public weights file: its scores compare only with its own.")
    return path


def _download(target: Path) -> Path:
    reasons = []
    for url in WEIGHTS_URLS:
        try:
            with urllib.request.urlopen(url, timeout=10) as source, replacing(target) as file:
                _copy_checked(source, file)
            return target
        except (OSError, ValueError) as error:
            reasons.append(f"{url}: {error}")
    raise MissingWeights(
        f"The Inception weights are not in ${WEIGHTS_VARIABLE} (not set) or {target}, and no download "
        f"succeeded ({'; '.join(reasons)}).\nFetch the first of these where there is a network, then put it "
        f"there, or give inception:/path/file.pth; or use an extractor that needs none, such as digits."
    )


def _copy_checked(source: BinaryIO, file: Path) -> None:
    with file.open("wb") as target:
        while block := source.read(2**20):
            target.write(block)
    found = digest(file)
    if found != WEIGHTS_SHA256:
        raise ValueError(f"the file came with SHA-256 {found[:8]}..., not {WEIGHTS_SHA256[:8]}...; removed")
