"""Data packed once into one array a column, so that a batch is one indexing of each.

Packing images decodes with several processes; a finished pack appears under its name by one rename, so that
neither a kill nor a second builder can leave a half of one. Imports no torch, so that worker processes start
fast.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from genlab.data import decode
from genlab.data.decode import LONGEST, BadImage, Policy
from genlab.data.parallel import over_images
from genlab.data.sources import BadSource, Source
from genlab.files import cache_folder, digest_of, making, write_text

LENGTHS = "lengths.npy"
"""The file of a pack whose images keep their longer side."""

LARGE = 256 * 2**20
"""Arrays of more bytes are mapped from disk instead of being read."""

FORMAT = 1

MODELLED = ("image", "point", "tokens")
"""The columns that hold what is modelled; every split has one of them."""


FOLLOWING = ("factors", "code")
"""The columns that follow from others, or others from them."""


class Rows(Protocol):
    """Rows that are found or made when they are asked for, and read like a numpy array's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray: ...

    def take(self, rows: np.ndarray) -> Rows:
        """Returns some of the rows, in the given order."""


class MappedRows:
    """Rows of an array on disk, mapped into memory.

    Pickled as its file's name, so that it can be sent to loader processes.

    Args:
        file: The array, as numpy saves it.
        rows: Which rows, in which order; None means all.
        part: Which part of the last axis, such as one half of pictures side by side.
    """

    def __init__(self, file: Path, rows: np.ndarray | None = None, part: slice = slice(None)) -> None:
        self.file, self.rows, self.part = file, rows, part
        self._array: np.ndarray | None = None

    @property
    def array(self) -> np.ndarray:
        if self._array is None:
            # As a plain array: indexing the memmap class costs several microseconds a call more.
            self._array = np.asarray(np.load(self.file, mmap_mode="r"))[..., self.part]
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.array.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.array[index if self.rows is None else self.rows[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def take(self, rows: np.ndarray) -> MappedRows:
        return MappedRows(self.file, rows if self.rows is None else self.rows[rows], self.part)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


@dataclass(frozen=True)
class Packed:
    """The items of one split: a column for everything that is known of them, under its key in a batch.

    Attributes:
        columns: "image", "point" or "tokens" (what is modelled), "source", "label", "code", what a first
            stage makes of it, and "factors", the numbers that an item was made from, which no batch holds.
            Images are uint8 levels; tokens may be of the smallest type that holds them. Each is an array, or
            rows that are read when asked for.

    Shapes:
        image: (items, channels, height, width), and a source that is one.
        label: (items,), int64.
        factors: (items, factors), int64.
    """

    columns: Mapping[str, np.ndarray | Rows]

    def __post_init__(self) -> None:
        if not any(name in self.columns for name in MODELLED):
            raise ValueError(
                f"columns must hold one of {', '.join(MODELLED)}, got {', '.join(self.columns)}."
            )
        for name, values in self.columns.items():
            if len(values) != len(self):
                raise ValueError(f"{len(self)} items but {len(values)} rows of {name}.")

    @property
    def x(self) -> np.ndarray | Rows:
        """What is modelled."""
        return next(self.columns[name] for name in MODELLED if name in self.columns)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, name: str) -> np.ndarray | Rows:
        return self.columns[name]

    def get(self, name: str) -> Any:
        """Returns a column, or None where there is none of this name."""
        return self.columns.get(name)

    def take(self, rows: np.ndarray) -> Packed:
        """Returns some of the items, in the given order."""
        return Packed({name: _taken(values, rows) for name, values in self.columns.items()})

    def fingerprint(self, levels: int) -> str:
        """Returns the SHA-256 of the level count and of all columns but those of `FOLLOWING`.

        Images with and without labels keep the hash that older records name. Rows that are told apart without
        being read are read once, and their hash is remembered.
        """
        identity = getattr(self.x, "identity", None)
        if identity is None:
            return self._digest(levels)
        file = cache_folder("data", "fingerprints", self._digest(levels, identity))
        if not file.exists():
            write_text(file, self._digest(levels))
        return file.read_text(encoding="utf-8")

    def _digest(self, levels: int, identity: bytes | None = None) -> str:
        """Returns the SHA-256 of everything, with an identity in the place of what is modelled."""
        digest = hashlib.sha256(repr((tuple(self.x.shape), str(self.x.dtype), levels)).encode())
        if identity is None:
            _add(digest, self.x)
        else:
            digest.update(identity)
        label = self.get("label")
        digest.update(b"-" if label is None else np.asarray(label, "<i8").tobytes())
        digest.update(b"null")
        for name in sorted(self.columns.keys() - {*MODELLED, *FOLLOWING, "label"}):
            values = self.columns[name]
            digest.update(repr((name, tuple(values.shape), str(values.dtype))).encode())
            _add(digest, values)
        return digest.hexdigest()


class WindowRows:
    """Images whose longer side is kept, read as squares: the middle one of each, or one at a given place.

    Args:
        strips: The images along their longer side, upright ones with their axes exchanged, filled up.
        lengths: Of the longer sides in pixels, negative for upright images.
        places: How far along the way that a square has its own begins, in [0, 1); None for the middle.

    Shapes:
        strips: (images, channels, size, LONGEST * size); lengths, places: (images,).
    """

    def __init__(
        self, strips: np.ndarray | Rows, lengths: np.ndarray, places: np.ndarray | None = None
    ) -> None:
        self.strips, self.lengths, self.places = strips, lengths, places

    @property
    def shape(self) -> tuple[int, ...]:
        *first, size, _ = self.strips.shape
        return (*first, size, size)

    @property
    def dtype(self) -> np.dtype:
        return self.strips.dtype

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.arange(len(self))[index]
        squares = self._squares(np.atleast_1d(rows))
        return squares if np.ndim(rows) else squares[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def take(self, rows: np.ndarray) -> WindowRows:
        places = None if self.places is None else self.places[rows]
        return WindowRows(_taken(self.strips, rows), self.lengths[rows], places)

    def at(self, places: np.ndarray) -> WindowRows:
        """Returns the squares at places, (images,)."""
        return WindowRows(self.strips, self.lengths, places)

    def _squares(self, rows: np.ndarray) -> np.ndarray:
        size, lengths = self.shape[-1], self.lengths[rows]
        spare = np.abs(lengths) - size
        start = spare // 2 if self.places is None else (self.places[rows] * (spare + 1)).astype(np.int64)
        columns = start[:, None] + np.arange(size)
        squares = np.take_along_axis(np.asarray(self.strips[rows]), columns[:, None, None], axis=3)
        return np.where((lengths < 0)[:, None, None, None], squares.swapaxes(2, 3), squares)


def part_of(values: Any, part: slice) -> np.ndarray | MappedRows:
    """Returns a part of the last axis of a packed array, such as one half of pictures side by side."""
    if isinstance(values, MappedRows):
        return MappedRows(values.file, values.rows, part)
    return np.ascontiguousarray(values[..., part])


def _taken(values: np.ndarray | Rows, rows: np.ndarray) -> np.ndarray | Rows:
    return values[rows] if isinstance(values, np.ndarray) else values.take(rows)


def _add(digest: Any, values: np.ndarray | Rows) -> None:
    # Of images of which squares are drawn, all that may be seen.
    for part in (values.strips, values.lengths) if isinstance(values, WindowRows) else (values,):
        for start in range(0, len(part), 1024):
            digest.update(np.ascontiguousarray(part[start : start + 1024]).tobytes())


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
    return digest_of(FORMAT, decode.VERSION, policy.to_dict(), source.fingerprint())


def load(folder: Path) -> Packed:
    """Returns a finished pack."""
    columns: dict[str, Any] = {"image": column_of(folder / "images.npy")}
    labels, lengths = folder / "labels.npy", folder / LENGTHS
    if lengths.exists():
        columns["image"] = WindowRows(columns["image"], np.load(lengths))
    return Packed({**columns, "label": np.load(labels)} if labels.exists() else columns)


def column_of(file: Path) -> np.ndarray | MappedRows:
    """Returns the rows of a file that numpy has saved: read, or mapped where they are many."""
    return MappedRows(file) if file.stat().st_size > LARGE else np.load(file)


def _is_finished(folder: Path) -> bool:
    """Whether a pack is there; one whose array lost bytes since is removed."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if (folder / "images.npy").stat().st_size == meta["bytes"]:
            return True
    except (OSError, ValueError, KeyError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _build(folder: Path, source: Source, policy: Policy, workers: int | None) -> None:
    with making(folder, _is_finished) as work:
        size, is_drawn = policy.image_size or 0, policy.crop == "random"
        width = (LONGEST if is_drawn else policy.panels) * size
        _new_array(work / "images.npy", (len(source), policy.channels, size, width))
        if is_drawn:
            _new_array(work / LENGTHS, (len(source),), np.int32)
        notes = _decode_all(work / "images.npy", source, policy, workers)
        if source.labels is not None:
            np.save(work / "labels.npy", np.asarray(source.labels, np.int64))
        meta = {
            "source": source.path.name,
            "images": len(source),
            "bytes": (work / "images.npy").stat().st_size,
            "policy": policy.to_dict(),
            "classes": source.classes,
            "conversions": dict(notes),
        }
        (work / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")


def _new_array(file: Path, shape: tuple[int, ...], dtype: type = np.uint8) -> None:
    np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape).flush()


def _decode_all(file: Path, source: Source, policy: Policy, workers: int | None) -> Counter[str]:
    """Decodes every image into its row; returns how often each conversion was needed."""
    notes: Counter[str] = Counter()
    bad: list[BadImage] = []
    work = partial(_decode_rows, file, source, policy)
    for found, failed in over_images(source, work, f"packing {source.path.name}", workers):
        notes.update(found)
        bad += failed
    if bad:
        raise BadSource(bad_images(source, bad))
    return notes


def bad_images(source: Source, bad: list[BadImage]) -> str:
    """Returns how many images are unusable, why the first ones are, and what to do."""
    first = "; ".join(str(error) for error in sorted(bad, key=lambda error: error.name)[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    remedy = f"remove or replace them, `genlab data check {source.path}` lists all"
    return f"{len(bad)} of {len(source)} images of {source.path} are unusable: {first}{more}; {remedy}"


def _decode_rows(
    file: Path, source: Source, policy: Policy, rows: list[int]
) -> tuple[Counter[str], list[BadImage]]:
    array = np.load(file, mmap_mode="r+")
    lengths = np.load(file.with_name(LENGTHS), mmap_mode="r+") if policy.crop == "random" else None
    notes: Counter[str] = Counter()
    bad: list[BadImage] = []
    for row in rows:
        try:
            decoded = decode.decode(source.read(row), source.names[row], policy)
        except BadImage as error:
            bad.append(error)
            continue
        if lengths is None:
            array[row] = decoded.pixels
        else:
            lengths[row] = _lay(decoded.pixels, array[row])
        notes.update(decoded.notes)
    return notes, bad


def _lay(pixels: np.ndarray, strip: np.ndarray) -> int:
    """Writes an image along a strip; returns the length of its longer side, negative for an upright one."""
    height, width = pixels.shape[1:]
    along = pixels if width >= height else pixels.swapaxes(1, 2)
    strip[..., : along.shape[2]] = along
    return width if width >= height else -height
