"""The links of a built site: each goes to a page, a file or an anchor that is there, and nothing is fetched.

mkdocs looks at the links of Markdown files; here are those of the pages, as a browser sees them.
`python docs/site/links.py site` prints what is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
"""What a browser gets without being asked to, with `link` where its relation is a style or an icon."""

_LOADING = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "manifest"}


class Page(HTMLParser):
    """What a page links to, what it fetches and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors += [given[name] for name in ("id", "name") if given.get(name)]
        loads = _LOADING & set(given.get("rel", "").split())
        if tag in FETCHED or (tag == "link" and loads):
            self.fetched.append(given.get(FETCHED.get(tag, "href"), ""))
        elif tag in ("a", "link"):
            self.links.append(given.get("href", ""))


def problems(site: Path) -> list[str]:
    """Returns a line for each link of a site's pages that is wrong; external links are not followed."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    return [f"{path.relative_to(site)}: {text}" for path in pages for text in _of_page(path, pages)]


def _of_page(path: Path, pages: dict[Path, Page]) -> Iterator[str]:
    page = pages[path]
    if path.name == "404.html":  # its links begin at the root of a server
        return
    for address in page.fetched:
        if urlsplit(address).scheme not in ("", "data") or address.startswith("//"):
            yield f"fetches {address}"
    for address in dict.fromkeys([*page.links, *page.fetched]):
        parts = urlsplit(address)
        if parts.scheme or address.startswith("//") or not address:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            yield f"{address} is not there"
        elif parts.fragment and target.suffix == ".html":
            there = next((pages[name] for name in pages if name.resolve() == target), None)
            if there is None or unquote(parts.fragment) not in [*there.anchors, "__skip"]:
                yield f"{address}: there is no such place on the page"


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    print("\n".join(wrong) or "Every link goes somewhere.")
    sys.exit(bool(wrong))
