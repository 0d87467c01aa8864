"""What mkdocs does besides: pages that are made of the repository's files, and a check of every link.

A page in docs/ reads well on a code host, where links go to files of the repository and a line
`<!-- made: NAME -->` is invisible. Here such a line gives way to what `made.NAME()` returns, and a link to a
file goes to the page made of it, or to a copy of it.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

import links
import made
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = made.ROOT

ELSEWHERE = {
    "README.md": "index.md",
    "experiments/README.md": "experiments.md",
    "experiments/results/README.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages that lie outside of docs/, by their file."""

_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)")
_FENCED = re.compile(r"^( *)(```+).*?^\1\2$", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Puts the pages in their final form, and beside them the files that they link to."""
    docs = Path(config.docs_dir)
    pages = {path: f"docs/{path}" for path in (file.src_uri for file in files.documentation_pages())}
    pages |= {page: path for path, page in ELSEWHERE.items()}
    sources = {source: page for page, source in pages.items()}
    copied: set[str] = set()
    for page, source in pages.items():
        there = files.get_file_from_path(page)
        if there is not None:
            files.remove(there)
        text = made.expanded((ROOT / source).read_text(encoding="utf-8"))
        content = linked(text, page, source, sources, copied)
        files.append(File.generated(config, page, content=content))
    for path in sorted(copied):
        target = copy_of(path)
        if files.get_file_from_path(target) is None:
            files.append(File.generated(config, target, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "site.css", abs_src_path=str(docs / "site" / "site.css")))
    add_unlisted(config.nav, pages)
    return files


def add_unlisted(nav: list[Any], pages: dict[str, str]) -> None:
    """Adds the pages that the navigation does not list, at its end."""
    listed = {page for section in nav for inside in section.values() for page in inside}
    unlisted = sorted(pages.keys() - listed)
    if unlisted:
        nav.append({"More": unlisted})


def copy_of(path: str) -> str:
    """Returns where a file of the repository lies in the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path.lstrip('.')}"


def linked(text: str, page: str, source: str, sources: dict[str, str], copied: set[str]) -> str:
    """Returns a page whose links go to pages and files of the site.

    Args:
        text: The page, with links as seen from its source.
        page: Where it stands in the site.
        source: The file that it was made of, as seen from the top.
        sources: The page of each file that has one.
        copied: Takes the files that links go to and that have no page.

    Raises:
        PluginError: A link goes nowhere, out of the repository or to a folder.
    """

    def target(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        if path not in sources:
            if path.startswith("..") or not (ROOT / path).is_file():
                raise PluginError(f"{source}: the link {found[1]} goes to no file of the repository.")
            copied.add(path)
        there = sources.get(path) or copy_of(path)
        return posixpath.relpath(there, posixpath.dirname(page) or ".")

    parts, end = [], 0
    for fence in [*_FENCED.finditer(text), None]:  # what stands in code is no link
        begin = fence.start() if fence else len(text)
        parts.append(_LINK.sub(target, text[end:begin]))
        parts.append(fence[0] if fence else "")
        end = fence.end() if fence else end
    return "".join(parts)


def on_post_build(config: Any) -> None:
    """Refuses a site in which a link goes nowhere, or that fetches anything from elsewhere."""
    wrong = links.problems(Path(config.site_dir))
    if wrong:
        raise PluginError(f"{len(wrong)} links are wrong:{os.linesep}" + os.linesep.join(wrong))
