"""Tars of samples, as WebDataset reads them: files of one name and several endings belong together.

NAME.png (or another image) with NAME.txt (its caption), NAME.cls (its label) or NAME.json, which may hold
both: "caption" or "text", a text or a list of them; "label" or "cls". A name ends at its first dot.
Imports no torch.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from genlab.data.decode import EXTENSIONS, BadImage
from genlab.data.sources import MAX_FILE_BYTES, BadSource, Source, open_source
from genlab.files import digest_of
from genlab.text import shortened

_BESIDE = ("txt", "cls", "json")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_SIDECAR_BYTES = 2**20


@dataclass(frozen=True)
class _Sample:
    """An image in a shard and what stands beside it."""

    name: str
    shard: Path
    offset: int
    size: int
    label: int | None
    captions: list[str] | None


class Shards(Source):
    """The samples of some tars, in the order of the shards and of the names in each.

    All have a caption or none, and all a label or none.

    Args:
        paths: The tars.

    Raises:
        BadSource: A tar is damaged or compressed, or a sample has not one image or not what others have, with
            shard and name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        samples = [sample for path in paths for sample in _samples(path)]
        if not samples:
            raise BadSource(f"0 samples in {', '.join(map(str, paths[:3]))}; they hold no images")
        _require_alike(samples, "caption", ".txt", [one.captions for one in samples])
        _require_alike(samples, "label", ".cls", [one.label for one in samples])
        super().__init__(paths[0] if len(paths) == 1 else paths[0].parent, [one.name for one in samples])
        self.places = [(one.shard, one.offset, one.size) for one in samples]
        self.parts = None
        self.labels, self.classes = _numbered([one.label for one in samples if one.label is not None])
        self.captions = [one.captions for one in samples if one.captions is not None] or None

    def read(self, index: int) -> bytes:
        shard, offset, size = self.places[index]
        try:
            with shard.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise BadImage(self.names[index], f"cannot be read from {shard.name}: {error.strerror}") from None
        if len(data) != size:
            raise BadImage(self.names[index], f"cut off: {shard.name} ends before it does")
        return data

    def fingerprint(self) -> str:
        return digest_of(self.names, self.places, self.labels, self.captions)


def open_images(paths: Sequence[str]) -> Source:
    """Returns the images of one place, or the samples of several tars.

    Args:
        paths: A folder, zip or tar of images; or tars, their folder, or names with {000..003} in them.

    Raises:
        BadSource: There is nothing to read.
    """
    places = [Path(path).expanduser() for each in paths for path in expanded(each)]
    if len(places) == 1 and places[0].is_dir():
        places = _only_tars(places[0]) or places
    if len(places) > 1 or (places[0].is_file() and _is_shard(places[0])):
        return Shards(places)
    return open_source(places[0])


def expanded(path: str) -> list[str]:
    """Returns the names that one with {first..last} stands for, as a shell does; digits are kept."""
    found = _RANGE.search(path)
    if found is None:
        return [path]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    return [
        name
        for number in numbers
        for name in expanded(f"{path[: found.start()]}{number:0{len(first)}}{path[found.end() :]}")
    ]


def _only_tars(folder: Path) -> list[Path]:
    """Returns the tars of a folder that holds nothing else, sorted."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    return files if all(path.suffix == ".tar" and path.is_file() for path in files) else []


def _is_shard(path: Path) -> bool:
    """Whether a file is a tar with captions or labels beside its images."""
    if not path.stat().st_size or not tarfile.is_tarfile(path):
        return False
    files = list(_members(path)) if path.suffix == ".tar" else []
    images = {key for key, ending, _ in files if f".{ending}" in EXTENSIONS}
    return any(key in images for key, ending, _ in files if ending in _BESIDE)


def _members(shard: Path) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yields name, ending and place of the files of a shard."""
    if not shard.exists():
        raise BadSource(f"{shard} does not exist; give the shards' names, such as 'shards-{{000..003}}.tar'")
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isdir():
                    continue
                path = PurePosixPath(member.name)
                if not member.isreg() or member.size > MAX_FILE_BYTES:
                    raise BadSource(
                        f"{shard} is refused: its member {member.name!r} is no plain file of at most 512 MiB"
                    )
                base, _, ending = path.name.partition(".")
                if base and ending:
                    yield str(path.with_name(base)), ending.lower(), member
            _require_end(shard, archive.offset)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise BadSource(
            f"{shard} is no whole tar without compression ({error}); fetch or make it again"
        ) from None


def _require_end(shard: Path, offset: int) -> None:
    """Refuses a shard that ends where another file might have followed, which tarfile lets pass."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise EOFError("its end is missing")


def _samples(shard: Path) -> Iterator[_Sample]:
    """Yields the samples of a shard by name."""
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    for key, ending, member in _members(shard):
        files = groups.setdefault(key, {})
        if ending in files:
            raise _wrong(shard, key, f"has two files .{ending}; give each sample a name of its own")
        files[ending] = member
    for key, files in sorted(groups.items()):
        images = [ending for ending in files if f".{ending}" in EXTENSIONS]
        if len(images) != 1:
            held = ", ".join(f".{ending}" for ending in files)
            raise _wrong(shard, key, f"has {len(images)} images and must have one; it holds {held}")
        image = files[images[0]]
        beside = {ending: _text(shard, key, files[ending]) for ending in _BESIDE if ending in files}
        told = _told(shard, key, beside)
        name = f"{shard.stem}/{key}.{images[0]}"
        yield _Sample(name, shard, image.offset_data, image.size, *told)


def _text(shard: Path, key: str, member: tarfile.TarInfo) -> str:
    if member.size > _SIDECAR_BYTES:
        raise _wrong(shard, key, f"has {member.name} of {member.size / 2**20:.0f} MiB, the cap is 1 MiB")
    with shard.open("rb") as file:
        file.seek(member.offset_data)
        try:
            return file.read(member.size).decode()
        except UnicodeDecodeError as error:
            raise _wrong(shard, key, f"has {member.name}, which is not UTF-8 at byte {error.start}") from None


def _told(shard: Path, key: str, beside: dict[str, str]) -> tuple[int | None, list[str] | None]:
    """Returns the label and the captions that stand beside an image."""
    row = _json(shard, key, beside["json"]) if "json" in beside else {}
    label = beside["cls"].strip() if "cls" in beside else row.get("label", row.get("cls"))
    caption = beside["txt"] if "txt" in beside else row.get("caption", row.get("text"))
    if label is not None and not re.fullmatch(r"\d{1,9}", str(label)):
        raise _wrong(
            shard, key, f"has the label {shortened(str(label), 20)!r}, which is no whole number from 0 on"
        )
    if caption is None:
        return (None if label is None else int(label)), None
    captions = caption if isinstance(caption, list) else [caption]
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise _wrong(shard, key, "has an empty caption; write one, or leave all out")
    return (None if label is None else int(label)), [text.strip() for text in captions]


def _json(shard: Path, key: str, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise _wrong(shard, key, "has a .json that is no JSON object")
    return row


def _require_alike(samples: list[_Sample], what: str, ending: str, values: Sequence[Any]) -> None:
    without = [one for one, value in zip(samples, values, strict=True) if value is None]
    if without and len(without) < len(samples):
        first = without[0]
        key = PurePosixPath(first.name).with_suffix("").relative_to(first.shard.stem)
        more = f", nor have {len(without) - 1} others" if len(without) > 1 else ""
        raise _wrong(
            first.shard, str(key), f"has no {what} ({ending} or .json){more}, while other samples have one"
        )


def _numbered(labels: list[int]) -> tuple[list[int] | None, list[str]]:
    """Returns labels counted from 0, and what each was called."""
    names = sorted({*labels})
    number = {name: label for label, name in enumerate(names)}
    return ([number[label] for label in labels], list(map(str, names))) if len(names) > 1 else (None, [])


def _wrong(shard: Path, key: str, what: str) -> BadSource:
    return BadSource(f"{shard}: sample {shortened(key)!r} {what}")
