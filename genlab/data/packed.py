"""Images packed once into one uint8 array on disk, so that a batch is one indexing of one array.

Packing decodes with several processes; a finished pack appears under its name by one rename, so that neither
a kill nor a second builder can leave a half of one. Imports no torch, so that worker processes start fast.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data import decode
from genlab.data.decode import BadImage, Policy
from genlab.data.parallel import over_images
from genlab.data.sources import BadSource, Source
from genlab.files import cache_folder, digest_of, sync

LARGE = 256 * 2**20
"""Arrays of more bytes are mapped from disk instead of being read."""

FORMAT = 1
_STALE_SECONDS = 24 * 3600


class ImageRows:
    """Rows of an image array on disk that reads like a numpy array: len, shape, [index], np.asarray.

    Pickled as its file's name, so that it can be sent to loader processes.

    Shapes:
        The array: (images, channels, height, width), uint8.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, file: Path, rows: np.ndarray | None = None) -> None:
        self.file, self.rows = file, rows
        self._array: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        if self._array is None:
            # As a plain array: indexing the memmap class costs several microseconds a call more.
            self._array = np.asarray(np.load(self.file, mmap_mode="r"))
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.array.shape[1:])

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[index if self.rows is None else self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.array if self.rows is None else self.array[self.rows]
        return np.asarray(array, dtype=dtype)

    def take(self, rows: np.ndarray) -> ImageRows:
        return ImageRows(self.file, rows if self.rows is None else self.rows[rows])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


@dataclass(frozen=True)
class Packed:
    """Images, or points, of one split with what is known of each.

    Attributes:
        images: uint8 levels; rows of a file where the array is large. Float vectors of a toy density.
        labels: Class numbers.
        captions: One sentence an image.
        factors: The numbers that an image was made from, where it was made.

    Shapes:
        images: (images, channels, height, width), or (points, dimensions).
        labels: (images,), int64.
        factors: (images, factors), int64.
    """

    images: np.ndarray | ImageRows
    labels: np.ndarray | None = None
    captions: list[str] | None = None
    factors: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "captions", "factors"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{len(self.images)} images but {len(values)} {name}.")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: np.ndarray) -> Packed:
        """Returns some of the items, in the given order."""
        images = self.images.take(rows) if isinstance(self.images, ImageRows) else self.images[rows]
        labels = None if self.labels is None else self.labels[rows]
        captions = None if self.captions is None else [self.captions[row] for row in rows]
        factors = None if self.factors is None else self.factors[rows]
        return Packed(images, labels, captions, factors)

    def fingerprint(self, levels: int) -> str:
        """Returns the SHA-256 of shape, pixels, labels, captions and level count."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), str(self.images.dtype), levels)).encode())
        for start in range(0, len(self), 1024):
            digest.update(np.ascontiguousarray(self.images[start : start + 1024]).tobytes())
        digest.update(b"-" if self.labels is None else np.asarray(self.labels, "<i8").tobytes())
        digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()


def pack(
    source: Source, policy: Policy, name: str, cache: Path | None = None, workers: int | None = None
) -> Packed:
    """Returns the images of a source as one array, built on the first call and read from the cache later.

    Args:
        source: Folder, zip or tar.
        policy: Size, channels and background; part of the key together with the source's fingerprint.
        name: Begins the name of the cache's folder.
        cache: Parent of the packs; None means `cache_folder("data")`.
        workers: Decoding processes; None means one a core.

    Raises:
        BadSource: Where some images are damaged, with their number and the first ones' names.
    """
    if policy.image_size is None:
        raise ValueError("image_size must be given: the images of one array have one size.")
    folder = (cache or cache_folder("data")) / f"{name}-{key(source, policy)[:20]}"
    if not _is_finished(folder):
        _build(folder, source, policy, workers)
    return load(folder)


def key(source: Source, policy: Policy) -> str:
    """Returns the name under which these images with this policy are cached."""
    return digest_of(FORMAT, decode.VERSION, asdict(policy), source.fingerprint())


def load(folder: Path) -> Packed:
    """Returns a finished pack."""
    file = folder / "images.npy"
    images = ImageRows(file) if file.stat().st_size > LARGE else np.load(file)
    labels = folder / "labels.npy"
    return Packed(images, np.load(labels) if labels.exists() else None)


def _is_finished(folder: Path) -> bool:
    """Whether a pack is there; one whose array lost bytes since is removed."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if (folder / "images.npy").stat().st_size == meta["bytes"]:
            return True
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _build(folder: Path, source: Source, policy: Policy, workers: int | None) -> None:
    with _appearing(folder) as work:
        size = policy.image_size or 0
        _new_array(work / "images.npy", (len(source), policy.channels, size, size))
        notes = _decode_all(work / "images.npy", source, policy, workers)
        if source.labels is not None:
            np.save(work / "labels.npy", np.asarray(source.labels, np.int64))
        meta = {
            "source": source.path.name,
            "images": len(source),
            "bytes": (work / "images.npy").stat().st_size,
            "policy": asdict(policy),
            "classes": source.classes,
            "conversions": dict(notes),
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1))


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill that takes its name by one rename at the end, or is removed after an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield work
        for file in [*work.iterdir(), work]:
            sync(file)
        try:
            work.rename(folder)
        except OSError:
            if not _is_finished(folder):  # another builder was faster, unless the disk is at fault
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Removes what killed builders left of this pack."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        if time.time() - left.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _new_array(file: Path, shape: tuple[int, ...]) -> None:
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape).flush()


def _decode_all(file: Path, source: Source, policy: Policy, workers: int | None) -> Counter[str]:
    """Decodes every image into its row; returns how often each conversion was needed."""
    notes: Counter[str] = Counter()
    bad: list[BadImage] = []
    work = partial(_decode_rows, file, source, policy)
    for found, failed in over_images(source, work, f"packing {source.path.name}", workers):
        notes.update(found)
        bad += failed
    if bad:
        raise BadSource(_account(source, bad))
    return notes


def _account(source: Source, bad: list[BadImage]) -> str:
    first = "; ".join(str(error) for error in sorted(bad, key=lambda error: error.name)[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    remedy = f"remove or replace them, `genlab data check {source.path}` lists all"
    return f"{len(bad)} of {len(source)} images of {source.path} are unusable: {first}{more}; {remedy}"


def _decode_rows(
    file: Path, source: Source, policy: Policy, rows: list[int]
) -> tuple[Counter[str], list[BadImage]]:
    array = np.load(file, mmap_mode="r+")
    notes: Counter[str] = Counter()
    bad: list[BadImage] = []
    for row in rows:
        try:
            decoded = decode.decode(source.read(row), source.names[row], policy)
        except BadImage as error:
            bad.append(error)
            continue
        array[row] = decoded.pixels
        notes.update(decoded.notes)
    return notes, bad
