"""A run's pictures and texts inside the page: encoded anew, small, each picture stored once."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.files import digest
from genlab.runs.folder import Run, is_inside

LARGEST_SIDE = 1_400
"""Pictures are made smaller than this."""
LOSSLESS_UP_TO = 60_000
"""A picture of more bytes is a photograph rather than a grid of digits and is stored with loss."""
LONGEST_TEXT = 8_000
"""A text is cut after so many characters."""


@dataclass(frozen=True)
class Shown:
    """A picture or a text of a run, ready for a page.

    Attributes:
        alt: What it shows, in words.
        text: A text's content; None for a picture.
        source: A picture's pixels as a data URL, "" where it is a copy.
        id: The name of a picture's pixels within its page.
        size: A picture's width and height.
    """

    alt: str
    text: str | None = None
    source: str = ""
    id: str = ""
    size: tuple[int, int] = (0, 0)


@dataclass
class Album:
    """Pictures and texts of one page; a picture that comes again is shown from its first copy.

    Attributes:
        problems: A sentence for each file that could not be shown.
    """

    problems: list[str] = field(default_factory=list)
    _places: dict[str, str] = field(default_factory=dict)

    def shown(self, run: Run, path: Any, alt: str) -> Shown | None:
        """Returns a file of a run, None where it cannot be shown; one ending in .txt is a text.

        Args:
            run: Its folder; a file elsewhere is refused.
            path: Relative to the folder.
            alt: What it shows, in words.
        """
        try:
            file = run.path / str(path)
            if not is_inside(file, run.path):
                raise ValueError("it lies outside the run's folder.")
            return Shown(alt, _text(file)) if file.suffix == ".txt" else self._picture(file, alt)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow tells damage by any of them
            self.problems.append(
                f"The picture {path} of {run.experiment}/{run.name} is left out: {_reason(error)}"
            )
            return None

    def _picture(self, file: Path, alt: str) -> Shown:
        data, kind, size = encoded(file)
        name = digest(data, 16)
        if name in self._places:
            return Shown(alt, id=self._places[name], size=size)
        self._places[name] = f"picture{len(self._places)}"
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return Shown(alt, source=source, id=self._places[name], size=size)


def _reason(error: Exception) -> str:
    # The system's own sentence names the whole path, which is private.
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _text(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as source:
        text = source.read(LONGEST_TEXT + 1)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"


def opened(file: Path) -> Any:
    """Returns a picture with its pixels read.

    Raises:
        ValueError: It would take too much memory.
        OSError, SyntaxError: It is damaged.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as picture:
                picture.load()
                return picture
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError("it has too many pixels.") from error


def encoded(file: Path) -> tuple[bytes, str, tuple[int, int]]:
    """Returns a picture's pixels as a new file without metadata, its kind, and width and height."""
    whole = opened(file)
    picture = whole.convert("L" if whole.mode in ("1", "L", "I;16") else "RGB")
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    data = _saved(_few_colours(picture), "PNG", optimize=True)
    if len(data) > LOSSLESS_UP_TO:
        smaller = _saved(picture, "WEBP", quality=88, method=4)
        if len(smaller) < len(data):
            return smaller, "webp", picture.size
    return data, "png", picture.size


def _few_colours(picture: Any) -> Any:
    """Returns a colour picture of at most 256 colours with a palette of exactly these."""
    from PIL import Image

    colours = picture.getcolors(256) if picture.mode == "RGB" else None
    if colours is None:
        return picture
    exact = Image.new("P", (1, 1))
    exact.putpalette([level for _, colour in colours for level in colour])
    return picture.quantize(palette=exact, dither=Image.Dither.NONE)


def _saved(picture: Any, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()
