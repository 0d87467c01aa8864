"""The real images' side of every metric, measured once and kept on disk."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from genlab.distributed import distributed
from genlab.files import cache_folder, digest_of, replacing
from genlab.metrics.base import Drawn, Reference, checked, chosen_rows, features_of
from genlab.metrics.features import Extractor
from genlab.metrics.frechet import Moments

NUM_KEPT = 10_000
"""Images whose features are kept one by one, unless told otherwise."""

_FORMAT = 1  # of the cached files; counts up when their meaning changes


def collect(
    batches: Iterable[tuple[Tensor, Tensor]],
    extractor: Extractor,
    num_levels: int = 256,
    num_kept: int = NUM_KEPT,
) -> Reference:
    """Returns the statistics of real images, over all processes; each gives its own share of them.

    Args:
        batches: Pairs of uint8 images and their numbers in the split.
        extractor: Computes the features, on the device where it is.
        num_levels: Number of levels of the images.
        num_kept: Number of images whose features are kept, for the metrics that compare images one by
            one; chosen by number where there are more.
    """
    device = next((weights.device for weights in extractor.parameters()), torch.device("cpu"))
    collector = Collector(extractor, num_kept).to(device)
    for levels, index in batches:
        collector.update(Drawn(index, levels, extractor(levels.to(device), num_levels)))
    return collector.reference_of_all()


class Collector(Moments):
    """Moments of all rows, and the rows themselves of a chosen few: what becomes a `Reference`.

    Args:
        extractor: Computes the features.
        num_kept: Number of items whose features are kept, chosen by number where there are more.
    """

    rows: list[Tensor]
    places: list[Tensor]

    def __init__(self, extractor: Extractor, num_kept: int = NUM_KEPT) -> None:
        super().__init__()
        self.allocate(extractor.num_features)
        self.ruler = {
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "resize": extractor.resize,
        }
        self.num_kept = num_kept
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("places", [], dist_reduce_fx="cat")

    def update(self, drawn: Drawn) -> None:
        super().update(drawn)
        pool = features_of(drawn).pool
        self.rows.append(pool)
        self.places.append(drawn.index.to(pool.device))
        if sum(map(len, self.places)) > 2 * self.num_kept:
            rows, places = self._kept()
            self.rows, self.places = [rows], [places]

    def reference_of_all(self) -> Reference:
        """Returns the statistics of what all processes took in, on the CPU."""
        with self.sync_context():
            mean, covariance = self.mean_and_covariance()
            rows, places = self._kept()
            num = len(self.numbers())
        protocol = {**self.ruler, "num_real": num, "num_kept": len(places)}
        return Reference(num, mean, covariance, checked(rows).cpu(), places.cpu(), protocol)

    def compute(self) -> dict[str, float]:
        return {}

    def protocol(self) -> dict[str, Any]:
        return {"num_kept": self.num_kept}

    def _kept(self) -> tuple[Tensor, Tensor]:
        places = dim_zero_cat(self.places)
        chosen = chosen_rows(places, self.num_kept)
        return dim_zero_cat(self.rows)[chosen], places[chosen]


def cached_reference(*key_parts: str | int, build: Callable[[], Reference]) -> Reference:
    """Returns what `build` returned for the same key before, on this machine, or else calls it.

    Args:
        key_parts: All that the statistics depend on: the data's fingerprint, the extractor's digest and
            resizing, counts. The file's name is their hash.
        build: Measures the real images; over several processes, all of them or none build.
    """
    path = cache_folder("references", f"{digest_of(_FORMAT, *key_parts, length=32)}.safetensors")
    found = _read(path)
    if found is not None and _everywhere(True):
        return found
    if found is None:
        _everywhere(False)
    reference = build()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _write(path, reference)
    return reference


def _everywhere(found: bool) -> bool:
    # Building is collective: a process that found its file must join the others that did not.
    if not distributed():
        return found
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(int(found), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


_TENSORS = ("mean", "covariance", "features", "index")


def _write(path: Path, reference: Reference) -> None:
    tensors = {name: getattr(reference, name).contiguous() for name in _TENSORS}
    header = {"num": reference.num, "protocol": reference.protocol}
    with replacing(path) as file:
        save_file(tensors, file, metadata={"genlab": json.dumps(header, sort_keys=True)})


def _read(path: Path) -> Reference | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["genlab"])
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        return Reference(num=header["num"], protocol=header["protocol"], **tensors)
    except (SafetensorError, KeyError, TypeError, ValueError):
        warnings.warn(f"The cached statistics {path} are damaged; measuring the real images again.")
        return None
