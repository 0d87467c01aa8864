"""Files kept between runs: where they lie, and how one is written so that no reader ever sees half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder of weights and reference statistics: $GENLAB_CACHE, or ~/.cache/genlab."""
    return Path(os.environ.get("GENLAB_CACHE") or Path.home() / ".cache" / "genlab").expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` to write to, and moves it there in one step if all went well.

    Beside it, since a move between file systems is a copy, which a kill can cut in half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's files are the owner's alone; a cache may be shared
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
