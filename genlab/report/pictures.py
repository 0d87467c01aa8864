"""A run's pictures inside the page: encoded anew, small, each one stored once."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genlab.report.markup import Markup, tag
from genlab.runs.folder import Run

LARGEST_SIDE = 1_400
"""Pictures are made smaller than this."""
LOSSLESS_UP_TO = 60_000
"""A picture of more bytes is a photograph rather than a grid of digits and is stored with loss."""


@dataclass
class Album:
    """Pictures of one page; one that comes again is shown from its first copy.

    Attributes:
        problems: A sentence for each picture that could not be shown.
    """

    problems: list[str] = field(default_factory=list)
    _places: dict[str, str] = field(default_factory=dict)

    def image(self, run: Run, path: Any, alt: str, **attributes: Any) -> Markup | None:
        """Returns a picture of a run as an element, None where it cannot be shown.

        Args:
            run: Its folder; a picture elsewhere is refused.
            path: Relative to the folder.
            alt: What it shows, in words.
            attributes: Further ones of the element.
        """
        try:
            data, kind, size = encoded(inside(run.path, path))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow tells damage by any of them
            self.problems.append(f"The picture {path} of {run.experiment}/{run.name} is left out: {error}")
            return None
        attributes |= {
            "alt": alt,
            "width": size[0],
            "height": size[1],
            "loading": "lazy",
            "decoding": "async",
        }
        digest = hashlib.sha256(data).hexdigest()[:16]
        if digest in self._places:
            return tag("img", data_copy=self._places[digest], src=_PIXEL, **attributes)
        self._places[digest] = f"picture{len(self._places)}"
        source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        return tag("img", id=self._places[digest], src=source, **attributes)


def inside(folder: Path, path: Any) -> Path:
    """Returns the file of a relative path; a record may be anybody's and must not reach outside its folder.

    Raises:
        ValueError: It would.
    """
    file = (folder / str(path)).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError("it lies outside the run's folder.")
    return file


def encoded(file: Path) -> tuple[bytes, str, tuple[int, int]]:
    """Returns a picture's pixels as a new file without metadata, its kind, and width and height."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as opened:
                picture = opened.convert("L" if opened.mode in ("1", "L", "I;16") else "RGB")
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise ValueError("it has too many pixels.") from error
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


_PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
