"""Files of text: how their bytes become characters and lines. Imports no torch.

- Text is UTF-8; the first byte that is not is named by its place, counted from 0.
- A byte order mark at the beginning says nothing and is dropped.
- In running text a line ends in a line feed: a carriage return and a line feed become one, and so does a
  carriage return alone.
- Lines that have partners, such as sentence pairs and captions, are told apart by line feeds alone, as other
  tools count them. A carriage return before one belongs to the end of the line; elsewhere it stays.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from genlab.data.sources import BadSource, opened, read_file

MARK = "\N{ZERO WIDTH NO-BREAK SPACE}"
"""The byte order mark, decoded."""

BLOCK = 2**20
"""Bytes that are decoded at a time, where a text is looked at and not kept."""


def read_text(file: Path, root: str | None = None) -> str:
    """Returns the running text of a file.

    Args:
        file: The file.
        root: The folder, without links, that a link must not leave.

    Raises:
        BadSource: Where there is no such file, or the first byte that is not UTF-8.
    """
    return with_line_feeds(read_utf8(file, root))


def read_lines(file: Path) -> list[str]:
    """Returns the lines of a file that have partners elsewhere; what follows the last line feed is one, too.

    Raises:
        BadSource: Where there is no such file, or the first byte that is not UTF-8.
    """
    lines = [line.removesuffix("\r") for line in read_utf8(file).split("\n")]
    return lines if lines[-1] else lines[:-1]


def read_utf8(file: Path, root: str | None = None) -> str:
    """Returns the characters of a file but for its byte order mark; see `read_text`."""
    try:
        content = read_file(file.expanduser(), root=root)
        return content.decode().removeprefix(MARK)
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error.start, content[error.start]) from None


def with_line_feeds(text: str) -> str:
    """Returns a text whose lines all end in a line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def num_carriage_returns(file: Path) -> int:
    """Returns how many carriage returns a file holds, in little memory."""
    with opened(file.expanduser()) as stream:
        return sum(block.count(b"\r") for block in iter(lambda: stream.read(BLOCK), b""))


def blocks_of(stream: BinaryIO, name: Path | str) -> Iterator[str]:
    """Yields the characters of an open file in blocks, its byte order mark among them.

    None ends between a carriage return and its line feed.

    Raises:
        BadSource: The first byte that is not UTF-8.
    """
    offset, left, waiting = 0, b"", ""
    while True:
        read = stream.read(BLOCK)
        content = left + read
        try:
            text, num = codecs.utf_8_decode(content, "strict", not read)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, offset + error.start, content[error.start]) from None
        offset, left, text = offset + num, content[num:], waiting + text
        waiting = "\r" if read and text.endswith("\r") else ""
        yield text.removesuffix(waiting)
        if not read:
            return


def lines_of(stream: BinaryIO, name: Path | str, longest: int = BLOCK) -> Iterator[str]:
    """Yields the lines of an open file as `read_lines` does, without holding more than one.

    Args:
        stream: The file.
        name: Of the file, for messages.
        longest: Of a line of more bytes only the beginning comes.

    Raises:
        BadSource: The first byte that is not UTF-8.
    """
    offset = 0
    while line := stream.readline(longest):
        rest, num = line, len(line)
        while not rest.endswith(b"\n") and (rest := stream.readline(longest)):
            num += len(rest)
        try:
            text, _ = codecs.utf_8_decode(line, "strict", num == len(line))
        except UnicodeDecodeError as error:
            raise _not_utf8(name, offset + error.start, line[error.start]) from None
        yield (text if offset else text.removeprefix(MARK)).removesuffix("\n").removesuffix("\r")
        offset += num


def unreadable(file: Path, error: OSError) -> BadSource:
    """Returns what to raise where a file cannot be read."""
    return BadSource(f"{file} cannot be read ({error.strerror}); say where it is with --data.path")


def _not_utf8(name: Path | str, place: int, byte: int) -> BadSource:
    return BadSource(f"{name} is not UTF-8: byte {place} is 0x{byte:02x}; convert it to UTF-8")
