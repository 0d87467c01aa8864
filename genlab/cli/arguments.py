"""What a person may type for an option, checked where it is read: numbers, paths, pictures, places to write.

Each is a `type` of argparse that returns the value or says in a few words what it must be. A command that has
parsed its options can use them: whatever is wrong with them was said before torch was imported.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from genlab.errors import StorageError
from genlab.text import shortened

MOST = 1_000_000
"""Of anything that is counted: more is a slip of the finger."""

LARGEST_SEED = 2**63 - 1

FOLDER_CAP = 64
"""Images that are taken of a folder, the first ones by name."""

LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""What a picture may be written as."""

Wrong = argparse.ArgumentTypeError

Commands = argparse._SubParsersAction


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake in one line, like every other error of genlab."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Raises the message.

        Raises:
            ValueError: Always.
        """
        text = shortened(message.removeprefix("argument "), 400).rstrip(".")
        raise ValueError(f"{text}. All options: {self.prog} --help")


def count(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """Returns what reads a whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise Wrong(f"must be a whole number from {least:,} to {most:,}, got {_got(text)}")
        return value

    return read


def number(
    least: float = -math.inf, most: float = math.inf, above: float | None = None
) -> Callable[[str], float]:
    """Returns what reads a finite number from `least` to `most`, or above another one."""
    low = f"above {above:g}" if above is not None else f"at least {least:g}" if least > -math.inf else ""
    high = f"at most {most:g}" if most < math.inf else ""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        too_low = above is not None and value <= above
        if not math.isfinite(value) or not least <= value <= most or too_low:
            limits = " and ".join(filter(None, (low, high)))
            raise Wrong(" ".join(filter(None, ("must be a number", limits))) + f", got {_got(text)}")
        return value

    return read


def seed(text: str) -> int:
    """Reads a seed."""
    return count(0, LARGEST_SEED)(text)


def label(text: str) -> int:
    """Reads the number of a class."""
    return count(0)(text)


def words(text: str) -> str:
    """Reads a text that is not empty."""
    if not text.strip():
        raise Wrong("must not be empty")
    return text


def name(text: str) -> str:
    """Reads the name of a folder or of a part of one: no path."""
    from genlab.runs.folder import folder_name

    try:
        plain = folder_name(text)
    except ValueError:
        plain = ""
    if plain != text or not text:
        raise Wrong(f"must be a plain name, of letters, digits, _ . and -, got {_got(text)}")
    return text


def device(text: str) -> str:
    """Reads the name of a device."""
    if not re.fullmatch(r"cpu|(?:cuda|mps)(?::\d{1,3})?", text):
        raise Wrong(f"must be cpu, cuda or cuda:<number>, got {_got(text)}")
    return text


def path(text: str) -> Path:
    """Reads a path, whether or not something is there."""
    # Not Path.expanduser, which ends where there is no such user.
    return Path(os.path.expanduser(words(text)))


def existing(text: str) -> Path:
    """Reads the path of a file or folder that is there and may be read."""
    found = path(text)
    if not os.path.exists(found):
        raise Wrong(_missing(found))
    if not os.access(found, os.R_OK):
        raise Wrong(f"{_shown(found)} may not be read: its permissions forbid it")
    if not (os.path.isfile(found) or os.path.isdir(found)):
        raise Wrong(f"{_shown(found)} is a pipe or a device")  # whose reading might never end
    return found


def folder(text: str) -> Path:
    """Reads the path of a folder that is there."""
    found = existing(text)
    if not os.path.isdir(found):
        raise Wrong(f"{_shown(found)} is no folder")
    return found


def file(text: str) -> Path:
    """Reads the path of a file that is there."""
    found = existing(text)
    if os.path.isdir(found):
        raise Wrong(f"{_shown(found)} is a folder: name a file{_such_as(found)}")
    return found


def existing_or_input(text: str) -> Path:
    """Reads the path of a file or folder that is there, or `-` for the standard input."""
    return Path(text) if text == "-" else existing(text)


def file_or_input(text: str) -> Path:
    """Reads the path of a file that is there, or `-` for the standard input."""
    return Path(text) if text == "-" else file(text)


def image(text: str) -> Path:
    """Reads the path of an image file that can be decoded."""
    from genlab.data.decode import BadImage, Policy, decode

    found = file(text)
    try:
        decode(found.read_bytes(), _shown(found), Policy(None))
    except BadImage as error:
        raise Wrong(str(error)) from None
    return found


def images(text: str) -> list[Path]:
    """Reads an image's file, or a folder: its first images by name, at most FOLDER_CAP."""
    found = existing(text)
    if not os.path.isdir(found):
        return [image(text)]
    inside = images_in(found)
    if not inside:
        raise Wrong(f"there are no images in the folder {_shown(found)} itself")
    if len(inside) > FOLDER_CAP:
        print(
            f"The first {FOLDER_CAP} of {len(inside):,} images in {_shown(found)} are taken.", file=sys.stderr
        )
    return inside[:FOLDER_CAP]


class Images(argparse.Action):
    """Joins what `images` has read of several arguments into one list."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [image for found in values for image in found])


def add_images(parser: argparse.ArgumentParser) -> None:
    """Adds the image files that a command works on, each a file or a folder of them."""
    parser.add_argument(
        "images",
        type=images,
        action=Images,
        nargs="+",
        help=f"image files; of a folder, its first {FOLDER_CAP} by name",
    )


def add_tagged(parser: argparse._ActionsContainer) -> None:
    """Adds the tags that runs must have to be taken."""
    parser.add_argument(
        "--tagged",
        metavar="TAG",
        type=name,
        nargs="+",
        default=[],
        help="only runs with these tags (genlab runs RUN --tag TAG)",
    )


def images_in(place: Path) -> list[Path]:
    """Returns the image files of a folder by name."""
    from genlab.data.decode import EXTENSIONS

    try:
        inside = sorted(place.iterdir())
    except OSError as error:
        raise Wrong(f"{_shown(place)} cannot be read: {error.strerror}") from None
    return [entry for entry in inside if entry.suffix.lower() in EXTENSIONS and entry.is_file()]


def output_folder(text: str | Path) -> Path:
    """Reads the path of a folder to write into, which need not be there yet.

    Raises:
        StorageError: It may not be written.
    """
    found = path(str(text))
    if os.path.lexists(found) and not os.path.isdir(found):
        kind = "a file" if os.path.exists(found) else "a link that leads nowhere"
        raise Wrong(f"must be a folder, but {_shown(found)} is {kind}")
    _require_place(found)
    return found


def output_file(*endings: str) -> Callable[[str | Path], Path]:
    """Returns what reads the path of a file to write, which need not be there yet."""

    def read(text: str | Path) -> Path:
        found = path(str(text))
        if endings and found.suffix.lower() not in endings:
            raise Wrong(f"must end in {' or '.join(endings)}, got {_got(str(found))}")
        if os.path.isdir(found):
            raise Wrong(f"{_shown(found)} is a folder: name a file in it")
        _require_place(found)
        return found

    return read


def _require_place(target: Path) -> None:
    """Refuses a target below a file, or in a folder that may not be written."""
    place = target.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if place != target.absolute() and not os.path.isdir(place):
        raise Wrong(f"{_shown(target)} cannot be made, since {_shown(place)} is no folder")
    if long := [part for part in target.parts if len(os.fsencode(part)) > LONGEST_NAME]:
        raise Wrong(f"the name {shortened(long[0], 40)} is longer than {LONGEST_NAME} bytes")
    if not os.access(place, os.W_OK):
        raise StorageError(f"{_shown(place)} may not be written: choose another place with --output.")


def _missing(path: Path) -> str:
    if os.path.islink(path):
        return f"{_shown(path)} is a link to {shortened(os.readlink(path))}, which is not there"
    parent = path.absolute().parent
    while not os.path.isdir(parent):
        parent = parent.parent
    where = f"the last folder on the way that is there: {_shown(parent)}"
    return f"there is no file or folder {_shown(path)} ({where})"


def _such_as(place: Path) -> str:
    found = next(iter(images_in(place)), None)
    return f" in it, such as {_shown(found)}" if found else ""


def _shown(path: Path) -> str:
    return shortened(str(path))


def _got(text: str) -> str:
    return repr(shortened(text, 60))


def require(read: Callable[[Any], Any], value: Any, option: str) -> Any:
    """Reads a value that depends on other options, once these are known.

    Raises:
        ValueError: With the option's name before what is wrong.
    """
    try:
        return read(value)
    except Wrong as error:
        raise ValueError(f"{option}: {error}.") from None
