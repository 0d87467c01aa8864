"""Images decoded once into chunks that can be streamed, by several processes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data import chunks, decode
from genlab.data.decode import BadImage, Policy
from genlab.data.image_tables import find_captions, read_captions
from genlab.data.packed import bad_images
from genlab.data.parallel import over_images
from genlab.data.sources import BadSource, Source
from genlab.errors import DataError
from genlab.extras import require
from genlab.files import making

CHUNK_MIB = 32


@dataclass
class Written:
    """What one call has made of its images, all of one chunk.

    Attributes:
        number: Of the chunk.
        entry: The chunk's part of litdata's index; None where images were bad.
        config: The index's part that all chunks share.
        digests: Of the pixels of each image.
        notes: How often each conversion was needed.
        bad: The images that cannot be used.
    """

    number: int
    entry: dict[str, Any] | None = None
    config: dict[str, Any] = field(default_factory=dict)
    digests: list[bytes] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    bad: list[BadImage] = field(default_factory=list)


def write(
    source: Source,
    policy: Policy,
    folder: Path,
    chunk_mib: float = CHUNK_MIB,
    column: str = "text",
    workers: int | None = None,
) -> chunks.Chunks:
    """Writes the images of a source as a pack of chunks, with their labels, splits and captions.

    Args:
        source: The images; row i of the pack is image i.
        policy: Size, channels and background.
        folder: Where to; it appears once it is whole.
        chunk_mib: Size of a chunk at most. No chunk holds images of two splits.
        column: Name of the column of captions, where a table has them.
        workers: Decoding processes; None means one a core.

    Raises:
        DataError: The folder exists; images, labels or captions cannot be used, with the first names.
        ValueError: litdata is not installed, or an image is larger than a chunk.
    """
    require("genlab data pack", "litdata", extra="stream")
    if folder.exists():
        raise DataError(f"{folder} exists; name another folder with -o, or remove it")
    if not source.parallel:
        raise BadSource(f"{source.path} is compressed and cannot be read in any order; decompress it first")
    captions = None if find_captions(source, column) is None else read_captions(source, column)
    blocks = list(_blocks(source, _per_chunk(policy, chunk_mib)))
    with making(folder) as work:
        number = {block[0]: n for n, block in enumerate(blocks)}
        task = partial(_write_chunk, work, source, policy, number)
        done = list(over_images(source, task, f"packing {source.path.name}", workers, blocks))
        bad = [error for one in done for error in one.bad]
        if bad:
            raise BadSource(bad_images(source, bad))
        _describe(work, source, policy, captions, sorted(done, key=lambda one: one.number))
    return chunks.Chunks(folder)


def _per_chunk(policy: Policy, chunk_mib: float) -> int:
    """Returns how many images fill a chunk."""
    size = policy.channels * (policy.image_size or 0) ** 2
    num = int(chunk_mib * 2**20) // size
    if num < 1:
        raise ValueError(
            f"--chunk_mib must be at least {size / 2**20:.3g}, the size of one image, got {chunk_mib:g}."
        )
    return num


def _blocks(source: Source, per_chunk: int) -> Iterator[list[int]]:
    """Yields the images of each chunk: what is scored then needs no chunk that is learned from."""
    parts = source.parts or [""] * len(source)
    for _, group in groupby(range(len(source)), key=parts.__getitem__):
        rows = list(group)
        yield from (rows[start : start + per_chunk] for start in range(0, len(rows), per_chunk))


def _write_chunk(
    work: Path, source: Source, policy: Policy, number: dict[int, int], rows: list[int]
) -> Written:
    """Decodes the images of a chunk and has litdata write it."""
    done, images = Written(number[rows[0]]), []
    for row in rows:
        try:
            decoded = decode.decode(source.read(row), source.names[row], policy)
        except BadImage as error:
            done.bad.append(error)
            continue
        images.append(decoded.pixels)
        done.digests.append(chunks.digest_of_pixels(decoded.pixels))
        done.notes.update(decoded.notes)
    if not done.bad:
        done.entry, done.config = _chunk_of(images, work, f"chunk-{done.number:06d}.bin")
    return done


def _chunk_of(images: list[np.ndarray], work: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes one chunk under a name; returns its entry in the index and what all entries share."""
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    own, size = work / name.removesuffix(".bin"), images[0].size
    writer = BinaryWriter(str(own), chunk_size=len(images) * size, item_loader=TokensLoader(size))
    for place, pixels in enumerate(images):
        writer[place] = pixels.reshape(-1)
    writer.done()
    index = json.loads(next(own.glob("*index.json")).read_text(encoding="utf-8"))
    (entry,) = index["chunks"]
    (own / entry["filename"]).rename(work / name)
    shutil.rmtree(own)
    return {**entry, "filename": name}, {**index["config"], "chunk_size": None}


def _describe(
    work: Path, source: Source, policy: Policy, captions: list[list[str]] | None, done: list[Written]
) -> None:
    """Writes what stands beside the chunks."""
    index = {"chunks": [one.entry for one in done], "config": done[0].config}
    (work / chunks.INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    known = {"name": source.names, "label": source.labels, "split": source.parts, "captions": captions}
    columns = {name: values for name, values in known.items() if values is not None}
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    items = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (work / chunks.ITEMS).write_bytes(items)
    digests = b"".join(digest for one in done for digest in one.digests)
    np.save(work / chunks.DIGESTS, np.frombuffer(digests, np.uint8).reshape(-1, chunks.DIGEST_BYTES))
    size = policy.image_size
    pack = {
        "format": chunks.FORMAT,
        "source": source.path.name,
        "shape": [policy.channels, size, size],
        "policy": policy.to_dict(),
        "classes": source.classes,
        "conversions": dict(sum((one.notes for one in done), Counter[str]())),
        "key": hashlib.sha256(digests + items + json.dumps(source.classes).encode()).hexdigest(),
    }
    (work / chunks.PACK).write_text(json.dumps(pack, indent=1), encoding="utf-8")
