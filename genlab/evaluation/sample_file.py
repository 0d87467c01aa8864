"""Samples in one .npz, as evaluation suites read them, written piece by piece so that it can go on."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.files import parse_json, plain, replacing, write_json
from genlab.shapes import DataSpec, levels_to_bytes, to_levels

_CHUNK = 1024


class SampleFile:
    """An .npz in the making: `arr_0` of bytes, (n, height, width, 3), and of labelled samples `arr_1`, (n,).

    The form of the samples that Dhariwal and Nichol 2021 (arXiv:2105.05233) published with their evaluation;
    grey images are three equal channels, which such suites expect. What was drawn lies in `<name>.part`
    beside it until all is there, hence memory holds one batch at a time and a stopped command goes on.

    Args:
        target: The .npz, which is not there yet.
        spec: The images.
        labelled: Whether each has a label.
        made_of: What the samples depend on; what lies in the .part of others is not taken for these.

    Raises:
        ValueError: The target is there, or what lies in its .part is of something else.
    """

    def __init__(self, target: Path, spec: DataSpec, labelled: bool, made_of: dict[str, Any]) -> None:
        self.target, self.levels = target, spec.levels
        self.part = target.with_name(f"{target.name}.part")
        self.about = target.with_name(f"{target.name}.part.json")
        image = ("image", np.uint8, (*spec.shape[1:], 3))
        self.row = np.dtype([image, ("label", "<i8")] if labelled else [image])
        if target.exists():
            raise ValueError(f"{target} is there already: remove it, or name another file.")
        self._require_same(plain({**made_of, "shape": spec.shape, "labelled": labelled}))
        self.num_done = self.part.stat().st_size // self.row.itemsize

    def _require_same(self, made_of: dict[str, Any]) -> None:
        if not self.about.exists():
            write_json(self.about, made_of)
            self.part.write_bytes(b"")
            return
        try:
            before = parse_json(self.about.read_bytes())
            differs = [name for name in made_of if before.get(name) != made_of[name]]
            self.part.touch()
        except (ValueError, AttributeError):
            differs = ["content"]
        if differs:
            raise ValueError(
                f"{self.part} was begun with another {' and '.join(differs)}: go on with that command, "
                f"remove it and {self.about.name}, or name another file."
            )

    def __enter__(self) -> SampleFile:
        self._file = self.part.open("r+b")
        self._file.truncate(self.num_done * self.row.itemsize)  # a kill may have left half a sample
        self._file.seek(0, 2)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, images: Tensor, labels: Tensor | None) -> None:
        """Takes in the next samples.

        Shapes:
            images: (n, 1 or 3, height, width), in [-1, 1]; labels: (n,).
        """
        pixels = levels_to_bytes(to_levels(images, self.levels), self.levels).expand(-1, 3, -1, -1)
        rows = np.empty(len(pixels), self.row)
        rows["image"] = pixels.permute(0, 2, 3, 1).cpu().numpy()
        if labels is not None:
            rows["label"] = labels.cpu().numpy()
        self._file.write(rows.tobytes())
        self._file.flush()
        self.num_done += len(rows)

    def rest(self, num: int, batch_size: int) -> Iterator[Tensor]:
        """Yields the numbers of the samples that are still to be drawn of so many, in batches."""
        yield from torch.arange(min(self.num_done, num), num).split(batch_size)

    def finish(self, num: int) -> None:
        """Puts the first samples into the .npz, and takes the .part away."""
        rows = np.memmap(self.part, self.row, "r", shape=(num,))
        with replacing(self.target) as partial, zipfile.ZipFile(partial, "w") as archive:
            _add(archive, "arr_0", rows["image"])
            if "label" in (self.row.names or ()):
                _add(archive, "arr_1", rows["label"])
        del rows
        self.part.unlink()
        self.about.unlink()


def _add(archive: zipfile.ZipFile, name: str, rows: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(rows), _CHUNK):
            file.write(np.ascontiguousarray(rows[start : start + _CHUNK]).tobytes())
