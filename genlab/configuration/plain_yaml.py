"""YAML as configurations may use it: one document of plain values, every key once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError, YAMLError
from yaml.nodes import MappingNode, Node

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000
MAX_DEPTH = 100

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, and strict where YAML is silent."""


def read_yaml(path: Path, what: str = "configuration") -> Any:
    """Returns what a file holds.

    Raises:
        ValueError: It cannot be read, with the place of the fault in it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_CHARACTERS + 1)
    except OSError as error:
        raise ValueError(f"The {what} {path} cannot be read ({error.strerror}).") from error
    return parse_yaml(decoded(content, path), str(path))


def decoded(content: bytes, path: Path) -> str:
    """Returns a file's text.

    Raises:
        ValueError: It is not UTF-8, or holds bytes that no text has.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}. Save it as UTF-8."
        ) from error
    return text


def parse_yaml(text: str, name: str) -> Any:
    """Returns the value of a YAML text, checked by `check_yaml`.

    Raises:
        ValueError: It is not what it should be, with file, line and column.
    """
    try:
        check_yaml(text)
        return yaml.load(text, _Loader)
    except YAMLError as error:
        raise ValueError(f"{name}{place(error)}") from error


def check_yaml(text: str) -> None:
    """Refuses what no configuration needs, without building any of it.

    That is more than one document, foreign tags, a key twice in one mapping (the later would win in silence),
    a value that contains itself, and aliases that unfold to more than anyone wrote.

    Raises:
        yaml.YAMLError: With the place.
    """
    if len(text) > MAX_CHARACTERS:
        raise YAMLError(f"longer than {MAX_CHARACTERS:,} characters; a configuration has some thousands")
    if _depth(text) > MAX_DEPTH:
        raise YAMLError(f"brackets nested deeper than {MAX_DEPTH}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _count(node, {})
    finally:
        loader.dispose()


def place(error: YAMLError) -> str:
    """Returns where and what a fault is, as `:line:column: what`."""
    if not isinstance(error, MarkedYAMLError):
        return f": {' '.join(str(error).split())}."
    mark = error.problem_mark or error.context_mark
    where = f":{mark.line + 1}:{mark.column + 1}" if mark is not None else ""
    problem = _PLAIN_WORDS.get(error.problem or "", error.problem)
    return f"{where}: {problem}{_context(error, mark)}."


_PLAIN_WORDS = {
    "found character that cannot start any token": "a character that may not stand here, such as a tab: "
    "indent by spaces",
    "but found another document": "a second document begins; give one file for each",
    "found undefined alias": "an alias of an anchor that is not there",
}
"""What libyaml says, in the words of whoever writes the file."""


def _context(error: MarkedYAMLError, mark: Any) -> str:
    begins = error.context_mark
    if begins is None or mark is None or begins.line == mark.line:
        return ""
    return f" (in what begins in line {begins.line + 1})"


def _depth(text: str) -> int:
    # Before the parser, whose recursion has no limit of its own. Brackets inside quotes count, too: nobody
    # writes a hundred of them.
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _count(node: Node, known: dict[int, int | None], depth: int = 0) -> int:
    """Returns how many values a node unfolds to, each node visited once."""
    if id(node) in known:
        number = known[id(node)]
        if number is None:
            raise ConstructorError(None, None, "a value that contains itself", node.start_mark)
        return number
    if depth > MAX_DEPTH:
        raise ConstructorError(None, None, f"nested deeper than {MAX_DEPTH}", node.start_mark)
    known[id(node)] = None
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise ConstructorError(None, None, f"a tag, {_shown(node.tag)}; plain values only", node.start_mark)
    number = 1 + sum(_count(part, known, depth + 1) for part in _parts(node))
    if number > MAX_VALUES:
        raise ConstructorError(
            None, None, f"aliases that unfold to more than {MAX_VALUES:,} values", node.start_mark
        )
    known[id(node)] = number
    return number


def _parts(node: Node) -> list[Node]:
    if isinstance(node, MappingNode):
        _require_single_keys(node)
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node.value, list) else []


def _require_single_keys(node: MappingNode) -> None:
    seen: dict[str, Any] = {}
    for key, _ in node.value:
        if not isinstance(key.value, str):
            raise ConstructorError(None, None, "a key that is no plain text", key.start_mark)
        if key.value in seen and key.tag != _MERGE:
            raise ConstructorError(
                None,
                None,
                f"the key '{_shown(key.value)}' stands here a second time, after line {seen[key.value] + 1}",
                key.start_mark,
            )
        seen[key.value] = key.start_mark.line


def _shown(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in text.replace("tag:yaml.org,2002:", "!!"))
    return printable if len(printable) <= 60 else printable[:57] + "..."
