"""HTML and SVG out of nested calls: text is escaped unless it was made here."""

from __future__ import annotations

import re
from html import escape
from typing import Any

_WITHOUT_END = frozenset({"br", "col", "hr", "img", "input", "link", "meta", "wbr"})


class Markup(str):
    """Text that is markup already; everything else becomes text of the page."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """Returns an element.

    Args:
        name: Its name.
        children: Markup, texts (escaped), lists of both; None is left out.
        attributes: `class_` is class and `data_value` data-value; None and False are left out, True stands
            without a value.
    """
    opening = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _WITHOUT_END:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{joined(children)}</{name}>")


def joined(children: Any) -> Markup:
    """Returns children one after the other."""
    if children is None:
        return Markup("")
    if isinstance(children, Markup):
        return children
    if isinstance(children, list | tuple):
        return Markup("".join(map(joined, children)))
    return Markup(escape(_printable(str(children))))


def breakable(name: str) -> Markup:
    """Returns a name that may be broken between its words and nowhere else, where that is enough."""
    return joined([piece for word in re.split(r"(?<=[_/])", name) for piece in (word, tag("wbr"))][:-1])


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_printable(_short(value)))}"'


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _printable(text: str) -> str:
    # Control characters are no HTML; line breaks and tabs are.
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
