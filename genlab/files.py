"""Files that are the old ones or the new ones, never half of each; the cache; digests. Imports no torch."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from genlab.errors import StorageError, is_of_storage

_TEMPORARY = ".tmp"
_STALE_SECONDS = 24 * 3600
_LONGEST_INTEGER = 19  # characters; of 64 bits, sign included
_PATIENCE = 2.0  # seconds: a virus scanner looks at each new file for an instant


def cache_folder(*parts: str) -> Path:
    """Returns the folder of what is kept between runs, or one below it: $GENLAB_CACHE, or ~/.cache/genlab."""
    root = Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab").expanduser()
    return root.joinpath(*parts)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside the target, which replaces the target once the block has ended well.

    Beside, since a rename is atomic within one file system only: a temporary file elsewhere ends as a copy
    onto the final name, which a kill leaves truncated.

    Raises:
        StorageError: There is no room, or writing here is not allowed; the target is as it was.
    """
    with _beside(target) as temporary:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        sync(temporary)
        _rename(temporary, target)
        sync(target.parent)


def require_new(folder: Path) -> None:
    """Refuses a folder that holds something already, and a file.

    Raises:
        ValueError: It does.
    """
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already: name a new folder with --output, or remove it.")


@contextmanager
def making(target: Path, is_made: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Yields a temporary folder beside the target, which becomes the target once the block has ended well.

    By one rename, so that neither a kill nor a second builder leaves a half of it; what killed builders left
    long ago is removed.

    Args:
        target: A folder that is not there, or is empty.
        is_made: Whether what another process has put there by then is as good: this one's is then dropped.

    Raises:
        ValueError: It holds something.
        StorageError: There is no room, or writing here is not allowed.
    """
    if not is_made(target):
        require_new(target)
    with _beside(target) as temporary:
        _sweep_builders(target)
        temporary.mkdir(parents=True)
        yield temporary
        for place in (*temporary.rglob("*"), temporary):
            if place.exists():  # unlike what a link may lead to
                sync(place)
        try:
            if target.is_dir():
                target.rmdir()
            _rename(temporary, target)
        except OSError:
            if not is_made(target):
                require_new(target)
                raise
        sync(target.parent)


def _rename(source: Path, target: Path) -> None:
    """Replaces the target: on Windows, where a file that is being read cannot be, after its readers."""
    end = time.monotonic() + (_PATIENCE if os.name == "nt" else 0.0)
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= end:
                raise
        time.sleep(0.05)


def _sweep_builders(target: Path) -> None:
    """Removes what killed builders left of a folder, once nothing in it has changed for a day."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*{_TEMPORARY}"):
        with suppress(OSError):  # another process removes it, too
            changed = max(place.stat().st_mtime for place in (left, *left.rglob("*")))
            if time.time() - changed > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yields a temporary path beside the target, of which nothing is left; says what the storage lacks."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        yield temporary
    except Exception as error:
        if not is_of_storage(error):
            raise
        raise StorageError(f"{target} cannot be written: {_shortage(error, target, temporary)}.") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def require_writable(folder: Path) -> None:
    """Refuses a folder that could not be made or written into, without touching it.

    Raises:
        StorageError: It lies on a read-only file system, or its permissions forbid it.
    """
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(place, os.W_OK):
        raise StorageError(
            f"{folder} cannot be written: {place} is read-only, or its permissions forbid it. "
            "$GENLAB_OUTPUTS says where runs go."
        )


def _shortage(error: BaseException, target: Path, partial: Path) -> str:
    """Returns what the storage lacks: how much is needed and there, where room is what is missing."""
    link: BaseException | None = error
    while link is not None and not (isinstance(link, OSError) and link.errno):
        link = link.__cause__ or link.__context__
    if not isinstance(link, OSError) or link.errno not in (errno.ENOSPC, errno.EDQUOT):
        return str(getattr(link, "strerror", "") or link)
    written, before = (path.stat().st_size if path.exists() else 0 for path in (partial, target))
    with suppress(OSError):
        there = written + shutil.disk_usage(target.parent).free
        needs = f"{before / 1e6:.1f} MB" if before > there else f"more than {there / 1e6:.1f} MB"
        return f"the storage is full: it needs {needs} and has {there / 1e6:.1f} MB"
    return "the storage is full"


def sweep(folder: Path) -> list[Path]:
    """Removes what `replacing` left in a folder when its process was killed; returns the removed paths."""
    leftovers = sorted(folder.glob(f".*{_TEMPORARY}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


def write_text(target: Path, text: str) -> None:
    """Replaces a text file in one step."""
    with replacing(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # the same bytes on every system


def write_json(target: Path, value: Any) -> None:
    """Replaces a JSON file in one step."""
    write_text(target, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(text: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Returns the value of a JSON text that may be anybody's.

    Numbers that JSON does not have (NaN, infinity) or that no measurement is (integers of more than 64 bits,
    1e999) are refused, and whatever else is wrong is a ValueError, too.

    Raises:
        ValueError: It is none; in a few words why.
    """
    try:
        return json.loads(
            text, object_hook=object_hook, parse_constant=_no_number, parse_int=_integer, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def plain(value: Any) -> Any:
    """Returns the value in JSON's types: NaN and infinity as null, paths as text, scalars as numbers."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch, without importing either
        return plain(value.tolist())
    return str(value)


def digest(content: bytes | str | Path, length: int = 64) -> str:
    """Returns the first digits of the SHA-256 of bytes, of a text, or of a file's content."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:length]
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:length]


def digest_of(*parts: Any, length: int = 64) -> str:
    """Returns the first digits of the SHA-256 of values as JSON: the name of what was made of them."""
    return digest(json.dumps(parts, sort_keys=True, default=str), length)


def sync(path: Path) -> None:
    """Waits until a file or a folder is on the disk."""
    if os.name == "nt":  # Windows can neither sync a folder nor a file opened for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
