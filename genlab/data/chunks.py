"""Packed images in chunks, on this disk or far away, of which a few are open at a time. Imports no torch.

The chunks and their index are litdata's, as its `TokensLoader` reads them: behind a header the pixels of one
image after another. Beside them `genlab data pack` writes what is known of each image.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from genlab.errors import DataError
from genlab.extras import require
from genlab.files import cache_folder, digest_of, parse_json, replacing

INDEX, PACK, ITEMS, DIGESTS = "index.json", "pack.json", "items.jsonl", "digests.npy"
"""The files beside the chunks: litdata's index, what the pack holds, its items, digests of their pixels."""

REMOTE = ("s3://", "gs://", "azure://", "r2://", "local:")
"""Beginnings of places that litdata copies from. local: is a disk that is copied from like these."""

FORMAT = 1
DIGEST_BYTES = 16
WINDOW = 8


def is_remote(place: str | Path) -> bool:
    """Returns whether a place is one that chunks are copied from."""
    return str(place).startswith(REMOTE)


def is_pack(place: str | Path) -> bool:
    """Returns whether a place holds chunks: any remote one is taken to."""
    return is_remote(place) or (Path(place) / PACK).is_file()


def digest_of_pixels(pixels: np.ndarray) -> bytes:
    """Returns the beginning of the SHA-256 of an image's pixels."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).digest()[:DIGEST_BYTES]


class Chunks:
    """The images of a pack by their numbers.

    Pickled without what it has open, so that it can be sent to loader processes.

    Args:
        place: A folder, or a remote place, whose chunks are copied into the cache as they are needed.
        keep: Chunks that are open at a time, those that were used last.
        cache_bytes: Most bytes of chunks in the cache; those opened longest ago make room. None: all stay.

    Attributes:
        shape: Of an image, (channels, height, width).
        policy: By which the images were packed.
        classes: Names of the classes, empty where there are none.
        key: Changes with any pixel, name, label or caption.

    Raises:
        DataError: There is no whole pack, with the file that is missing or damaged.
    """

    def __init__(self, place: str | Path, keep: int = WINDOW, cache_bytes: int | None = None) -> None:
        self.place, self.keep, self.cache_bytes = str(place), keep, cache_bytes
        self.is_remote = is_remote(place)
        self.folder = self._copied() if self.is_remote else Path(place).expanduser()
        pack, index = self._json(PACK), self._json(INDEX)
        try:
            if pack["format"] != FORMAT:
                raise DataError(f"{place} is a pack of format {pack['format']}; pack the images anew")
            self.shape: tuple[int, ...] = tuple(pack["shape"])
            self.policy: dict[str, Any] = pack["policy"]
            self.classes: list[str] = pack["classes"]
            self.key: str = pack["key"]
            self.files = [(chunk["filename"], chunk["chunk_bytes"]) for chunk in index["chunks"]]
            self.sizes = np.array([chunk["chunk_size"] for chunk in index["chunks"]])
        except (KeyError, TypeError) as error:
            raise DataError(f"{place} is a damaged pack ({error} is missing); pack the images anew") from None
        self.ends = self.sizes.cumsum()
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()
        if not self.is_remote:
            for number in range(len(self.files)):
                self._require_whole(number)

    def __len__(self) -> int:
        return int(self.sizes.sum())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def items(self) -> list[dict[str, Any]]:
        """Returns what is known of each image: its name, and its label, split and captions, if any."""
        with self._file(ITEMS).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    @cached_property
    def digests(self) -> np.ndarray:
        """Of the pixels of each image, (images, DIGEST_BYTES)."""
        return np.load(self._file(DIGESTS))

    def chunk_of(self, numbers: np.ndarray) -> np.ndarray:
        """Returns in which chunk each image lies."""
        return np.searchsorted(self.ends, numbers, side="right")

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Returns images, (numbers, *shape), each chunk being opened once.

        Raises:
            DataError: A chunk is missing or damaged, with its name and the images in it.
        """
        images = np.empty((len(numbers), *self.shape), np.uint8)
        chunks = self.chunk_of(numbers)
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            images[here] = self._opened(chunk)[numbers[here] - self._first(chunk)]
        return images

    def _first(self, chunk: int) -> int:
        return int(self.ends[chunk] - self.sizes[chunk])

    def _opened(self, chunk: int) -> np.ndarray:
        if chunk not in self._open:
            self._open[chunk] = self._mapped(chunk)
            if len(self._open) > self.keep:
                self._open.popitem(last=False)
        self._open.move_to_end(chunk)
        return self._open[chunk]

    def _mapped(self, chunk: int) -> np.ndarray:
        """Returns the images of a chunk, which is copied here where it is not."""
        file, size = self.folder / self.files[chunk][0], int(self.sizes[chunk])
        is_new = self.is_remote and not file.exists()
        if self.is_remote:
            self._touch(file.name)
        self._require_whole(chunk)
        header = 4 * (size + 2)  # how many there are, where each begins, and where the last ends
        images = np.asarray(np.memmap(file, np.uint8, "r", header, (size, *self.shape)))
        if is_new:
            self._require_copied(chunk, images)
            self._make_room(keep=file.name)
        return images

    def _require_whole(self, chunk: int) -> None:
        name, expected = self.files[chunk]
        try:
            found = (self.folder / name).stat().st_size
        except OSError:
            raise DataError(
                f"{self._named(chunk)} is missing; copy it again, or pack the images anew"
            ) from None
        if found != expected:
            raise DataError(
                f"{self._named(chunk)} is damaged: it has {found:,} of {expected:,} bytes; copy it again, or "
                "pack the images anew"
            )

    def _require_copied(self, chunk: int, images: np.ndarray) -> None:
        first = self._first(chunk)
        for number, pixels in enumerate(images, start=first):
            if digest_of_pixels(pixels) != self.digests[number].tobytes():
                (self.folder / self.files[chunk][0]).unlink(missing_ok=True)
                raise DataError(f"{self._named(chunk)} is damaged: image {number} is not what was packed")

    def _named(self, chunk: int) -> str:
        first, last = self._first(chunk), int(self.ends[chunk]) - 1
        return f"{self.place}: chunk {self.files[chunk][0]} (images {first:,} to {last:,})"

    # Copies of what is far away

    def _copied(self) -> Path:
        """Returns the folder for copies of the pack as it is now; another pack of its name has another."""
        with replacing(cache_folder("data", "chunks", digest_of(self.place, length=20), PACK)) as file:
            self._fetch(PACK, file)
            folder = file.parent / digest_of(file.read_text(encoding="utf-8"), length=20)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _json(self, name: str) -> Any:
        try:
            return parse_json(self._file(name).read_bytes())
        except OSError:
            raise DataError(
                f"{self.place} is no pack: {name} is missing; make one by genlab data pack"
            ) from None
        except ValueError as error:
            raise DataError(
                f"{self.place} is a damaged pack ({name}: {error}); pack the images anew"
            ) from None

    def _file(self, name: str) -> Path:
        """Returns a file of the pack, copied here where it is not."""
        file = self.folder / name
        if self.is_remote and not file.exists():
            with FileLock(self.folder / f".{name}.lock"):
                if not file.exists():
                    with replacing(file) as partial:
                        self._fetch(name, partial)
        return file

    def _touch(self, name: str) -> None:
        """Copies a chunk here and marks it as the last to make room, unless another process was faster."""
        while True:
            with suppress(FileNotFoundError):
                os.utime(self._file(name))
                return

    def _fetch(self, name: str, target: Path) -> None:
        require(self.place, "litdata", extra="stream")
        from litdata.streaming.downloader import get_downloader

        place = self.place.rstrip("/")
        try:
            get_downloader(place, str(target.parent), []).download_file(f"{place}/{name}", str(target))
            found = target.exists()
        except Exception as error:  # each kind of storage has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{place}: {name} cannot be copied ({reason})") from None
        if not found:
            raise DataError(f"{place}: {name} is missing; copy the whole pack there")

    def _make_room(self, keep: str) -> None:
        """Removes the chunks that were opened longest ago; a process that reads one does not lose it."""
        if self.cache_bytes is None:
            return
        found = []
        for name, size in self.files:
            with suppress(OSError):
                found.append(((self.folder / name).stat().st_mtime_ns, name, size))
        total = sum(size for *_, size in found)
        for _, name, size in sorted(found):
            if total > self.cache_bytes and name != keep:
                (self.folder / name).unlink(missing_ok=True)
                total -= size


class ChunkRows:
    """Some images of a pack, read from its chunks when they are asked for.

    Args:
        chunks: The pack.
        rows: Which images, in which order; None means all.

    Attributes:
        window: Chunks that are read from at a time where rows come in the order of training.
    """

    def __init__(self, chunks: Chunks, window: int = WINDOW, rows: np.ndarray | None = None) -> None:
        self.chunks, self.window = chunks, window
        self.rows = np.arange(len(chunks)) if rows is None else rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.chunks.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        numbers = self.rows[index]
        images = self.chunks.read(numbers.reshape(-1))
        return images.reshape(*np.shape(numbers), *self.chunks.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def take(self, rows: np.ndarray) -> ChunkRows:
        return ChunkRows(self.chunks, self.window, self.rows[rows])

    @property
    def places(self) -> np.ndarray:
        """The chunk of each row, (rows,)."""
        return self.chunks.chunk_of(self.rows)

    @property
    def digests(self) -> np.ndarray:
        """Of the pixels of each row, (rows, DIGEST_BYTES)."""
        return self.chunks.digests[self.rows]

    @property
    def identity(self) -> bytes:
        """Names these rows of this pack, without reading them."""
        return digest_of(self.chunks.key, hashlib.sha256(self.rows.tobytes()).hexdigest()).encode()
