"""Parts of pages that are made of the files they are about, so that none is copied by hand. Imports no torch.

`PARTS` holds what a line `<!-- made: NAME -->` of a page gives way to; see `expanded`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from genlab.cli.main import ALIASES, OTHERS, TRAINING, main, overview
from genlab.configuration.experiments import Experiment
from genlab.configuration.plain_yaml import read_yaml
from genlab.report.columns import COLUMNS, chosen, heading
from genlab.report.comparison import Comparison, compare
from genlab.report.forms import as_markdown, text_table

ROOT = Path(__file__).resolve().parents[2]
FAMILIES, EXPERIMENTS = ROOT / "genlab" / "families", ROOT / "experiments"

BASE = "Model"
SCORES = ["fid", "copies", "bits_per_dim", "stability", "ms"]
"""Columns of a family's measured rows: those of the README."""

_PART = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes|Shapes|Raises|Returns|Note|Example):$", re.MULTILINE)
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
_BLOCK = re.compile(r"<!-- genlab compare [^\n]*-->\n(.*?)<!-- end of genlab compare -->", re.DOTALL)


@dataclass(frozen=True)
class Family:
    """A class of genlab/families as its file shows it.

    Attributes:
        name: The class.
        file: Its file.
        bases: The names that it inherits from.
        text: Its docstring.
    """

    name: str
    file: Path
    bases: tuple[str, ...]
    text: str

    @property
    def summary(self) -> str:
        """The first sentence, on one line."""
        return " ".join(self.text.split("\n\n")[0].split())

    @property
    def explanation(self) -> str:
        """All before the arguments: what is minimised, as an indented formula, and after which papers."""
        return _SECTION.split(self.text)[0].strip()


@cache
def models() -> dict[str, Family]:
    """Returns every LightningModule of genlab/families by its name, the base first."""
    found = {}
    for path in sorted(FAMILIES.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases = tuple(ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases)
                found[node.name] = Family(node.name, path, bases, ast.get_docstring(node) or "")
    kept = {BASE: found[BASE]}
    while new := {n: f for n, f in found.items() if n not in kept and kept.keys() & set(f.bases)}:
        kept |= new
    return kept


@cache
def experiments() -> dict[str, list[Experiment]]:
    """Returns the experiments that train each model, as a whole or as the prior of a second stage."""
    found: dict[str, list[Experiment]] = {}
    for path in sorted(EXPERIMENTS.glob("*.yaml")):
        for name in dict.fromkeys(_classes(read_yaml(path).get("model"))):
            if name in models():
                found.setdefault(name, []).append(Experiment(path))
    return found


def _classes(section: Any) -> Iterator[str]:
    """Yields the class paths of a section of an experiment, without their modules."""
    if isinstance(section, dict):
        if isinstance(section.get("class_path"), str):
            yield section["class_path"].rsplit(".", 1)[-1]
        for value in section.values():
            yield from _classes(value)
    elif isinstance(section, list):
        for value in section:
            yield from _classes(value)


def families_of() -> list[Family]:
    """Returns what can be trained: what nothing inherits from, and what an experiment names."""
    parents = {base for model in models().values() for base in model.bases}
    return [model for name, model in models().items() if name not in parents or name in experiments()]


@cache
def comparisons() -> dict[str, Comparison]:
    """Returns the kept comparisons by the names of their folders."""
    folders = sorted(path for path in (EXPERIMENTS / "results").iterdir() if path.is_dir())
    return {folder.name: compare([folder]) for folder in folders}


def families() -> str:
    """Every family: what it minimises, after which papers, its experiments and what they measured."""
    wanted = sorted(families_of(), key=lambda family: family.name.casefold())
    shared = sorted(models().keys() - {family.name for family in wanted})
    index = [f"| [{f.name}](#{f.name.lower()}) | {_cell(f.summary)} | {len(_own(f))} |" for f in wanted]
    floor = [f"- `{name}` in {_source(models()[name])}: {models()[name].summary}" for name in shared]
    return "\n".join(
        [
            *("| family | what it does | experiments |", "| :-- | :-- | --: |", *index, ""),
            *("\n".join([f"## {family.name}", "", _section(family)]) for family in wanted),
            *("## What families share", "", *floor),
        ]
    )


def _section(family: Family) -> str:
    path = ".".join((*family.file.relative_to(ROOT).with_suffix("").parts, family.name))
    hidden = ("members", "show_root_heading", "show_root_toc_entry", "show_docstring_description")
    options = ", ".join(f"{name}: false" for name in hidden)
    parts = [
        _escaped(family.explanation),
        f"In {_source(family)}.{_papers(family)}",
        _table(_own(family)),
        *(_measured(family, name) for name in comparisons()),
        f'??? note "Settings of {family.name}"\n\n    ::: {path}\n        options: {{{options}}}',
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _papers(family: Family) -> str:
    numbers = dict.fromkeys(_ARXIV.findall(family.explanation))
    links = ", ".join(f"[arXiv:{number}](https://arxiv.org/abs/{number})" for number in numbers)
    return f" Papers: {links}." if links else ""


def _own(family: Family) -> list[Experiment]:
    return experiments().get(family.name, [])


def _source(family: Family) -> str:
    path = family.file.relative_to(ROOT)
    return f"[`{path}`](../{path})"


def _escaped(text: str) -> str:
    """Returns a docstring's prose as Markdown that shows it as it stands; what is indented is code anyway."""
    lines = (line if line.startswith("    ") else _shown(line) for line in text.split("\n"))
    return "\n".join(lines)


def _shown(line: str) -> str:
    """Returns a line without emphasis and tags, of which what stands between backticks has none."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*_|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _table(own: list[Experiment]) -> str:
    if not own:
        return "No experiment trains it by itself."
    rows = [
        f"| [{one.name}](../experiments/{one.path.name}) "
        f"| {one.data} | {_cell(one.paper)} | {_cell(one.measured)} |"
        for one in own
    ]
    return "\n".join(["| experiment | data | paper | measured |", "| :-- | :-- | :-- | :-- |", *rows])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _measured(family: Family, name: str) -> str:
    """Returns the rows of a family in a kept comparison, "" where it has none."""
    comparison = comparisons()[name]
    rows = [row for row in comparison.rows if row.family == family.name]
    if not rows:
        return ""
    table = as_markdown(text_table(replace(comparison, rows=rows), chosen(SCORES)))
    return f"In the comparison [{name}](../experiments/results/README.md):\n\n{table}"


def comparison() -> str:
    """The README's table of measured rows, with what it says of them."""
    found = _BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))
    if found is None:
        raise ValueError("README.md has no table of `genlab compare`.")
    return found[1].strip()


def columns() -> str:
    """What each column of a comparison holds."""
    rows = [f"| `{c.key}` | {_cell(heading(c, []))} | {c.explanation} |" for c in COLUMNS]
    return "\n".join(["| column | heading | what it holds |", "| :-- | :-- | :-- |", *rows])


def commands() -> str:
    """The help of every command."""
    with _columns(84):
        parts = [f"## All commands\n\n{_code(overview())}"]
        parts += [f"## genlab {name}\n\n{text}" for name, text in helps().items()]
    return "\n\n".join(parts)


def helps() -> dict[str, str]:
    """Returns the help of every command, as Markdown."""
    found = {name: _folded(f"genlab {name} --help", _training_help(name)) for name in TRAINING}
    for name in OTHERS:
        if name == "resume":
            found[name] = "`genlab resume RUN` takes the options of [genlab fit](#genlab-fit)."
        else:
            parser = importlib.import_module(f"genlab.cli.{ALIASES.get(name, name)}").parser()
            found[name] = "\n\n".join(_code(one.format_help()) for one in _parsers(parser))
    return found


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yields a command's parser, or those of its own commands."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield parser
    for action in inner:
        yield from action.choices.values()


def _training_help(name: str) -> str:
    """Returns what Lightning's parser prints; importing it takes seconds."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"])
    return printed.getvalue()


def _code(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


def _folded(title: str, text: str) -> str:
    inside = "\n".join(f"    {line}".rstrip() for line in _code(text).split("\n"))
    return f'??? note "{title}"\n\n{inside}'


@contextlib.contextmanager
def _columns(number: int) -> Iterator[None]:
    """Lets help be so many characters wide whatever the terminal."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(number)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before


PARTS = {part.__name__: part for part in (families, comparison, columns, commands)}


def expanded(text: str) -> str:
    """Returns a page with what is made in the place of the lines that name it."""
    return _PART.sub(lambda found: PARTS[found[1]](), text)
