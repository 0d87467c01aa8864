"""`genlab new`: a small, working file for an own part, to be edited; imports no torch."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
from pathlib import Path

from genlab.cli.arguments import Parser, Wrong
from genlab.files import require_writable
from genlab.text import shortened

KINDS = ("family", "network", "loss", "data", "metric", "sampler")

TEMPLATES = Path(__file__).with_name("templates")
_PACKAGE = "genlab.cli.templates"

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def new(arguments: list[str]) -> int:
    """Writes a part, of a family and of data an experiment too, and prints the files and how to train it."""
    options = parser().parse_args(arguments)
    package, name = options.part
    files = texts(options.kind, package, name)
    write(files)
    for file in files:
        print(file)
    print(f"\nEdit it, then: {command(files[Path(package, f'{name}.py')])}")
    return 0


def texts(kind: str, package: str, name: str) -> dict[Path, str]:
    """Returns the text of each file of a new part."""
    own = {
        f"{_PACKAGE}.{kind}": f"{package}.{name}",
        f"{_PACKAGE.replace('.', '/')}/{kind}": f"{package}/{name}",
        _PACKAGE: package,
        f"New{kind.capitalize()}": "".join(word.capitalize() for word in name.split("_")),
    }
    names = re.compile("|".join(map(re.escape, own)))  # the first of them that fits, hence the longer ones
    return {
        Path(package, f"{name}{template.suffix}"): names.sub(
            lambda found: own[found[0]], template.read_text(encoding="utf-8")
        )
        for template in (TEMPLATES / f"{kind}.py", TEMPLATES / f"{kind}.yaml")
        if template.is_file()
    }


def command(text: str) -> str:
    """Returns the command that trains a part, from the head of its file."""
    found = re.search(r"^genlab fit (?:.*\\\n)*.*", text, re.MULTILINE)
    assert found is not None
    return re.sub(r"\\\n\s*", "", found[0])


def write(files: dict[Path, str]) -> None:
    """Writes files of one package, which is made a package where it is none.

    Raises:
        ValueError: One is there already.
        StorageError: Writing here is not allowed.
    """
    for file in files:
        if file.exists() or file.is_symlink():
            raise ValueError(f"{file} is there already, and nothing is overwritten: choose another name.")
    package = next(iter(files)).parent
    require_writable(package)
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    for file, text in files.items():
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)


def part(text: str) -> tuple[str, str]:
    """Reads PACKAGE/NAME: a folder of the current one, and a module in it."""
    package, slash, name = text.removesuffix(".py").partition("/")
    for word in (package, name):
        if not slash or not _NAME.fullmatch(word) or keyword.iskeyword(word):
            raise Wrong(
                "must be PACKAGE/NAME, two words of lower-case letters, digits and _ such as "
                f"my_package/my_part, got {shortened(text)}"
            )
    if Path(package).exists() and not Path(package).is_dir():
        raise Wrong(f"{package} is a file, and must be a folder: choose another name")
    found = importlib.util.find_spec(package)
    places = [] if found is None else [Path(place) for place in found.submodule_search_locations or ["/"]]
    if found is not None and Path(package).absolute() not in places:
        raise Wrong(f"{package} is the name of another package, which Python would find: choose another one")
    return package, name


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab new",
        description="Write a small, working part of your own, to be edited; docs/own_parts.md says what each "
        "must do. Nothing is overwritten.",
    )
    parser.add_argument("kind", choices=KINDS, help="what it is; of a family and data, an experiment too")
    parser.add_argument("part", type=part, metavar="PACKAGE/NAME", help="such as my_package/my_part")
    return parser
