"""The experiments by name: those of ./experiments, and those that genlab brings. Imports no torch.

A checkout has them in the folder beside the package, an installed package in itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import genlab
from genlab.configuration.plain_yaml import read_yaml
from genlab.text import shortened, similar

OWN = Path("experiments")
"""Where a person's own experiments lie, seen from the folder where a command is typed."""

_CITED = re.compile(r"\(([^()]*? (?:19|20)\d\d\b[^();\"]*)")
_MEASURED = re.compile(r"\bMeasured\b[^:]*: (.+?)(?:;|:|\.(?: |$)|$)")
_ROW = re.compile(r"^\| `(\w+)` \|.*? \| ((?:\\\||[^|])*) \|$", re.MULTILINE)


def packaged() -> Path:
    """Returns the folder of the experiments that genlab brings."""
    package = Path(genlab.__file__).parent
    inside = package / "experiments"
    return inside if inside.is_dir() else package.parent / "experiments"


def folder() -> Path:
    """Returns ./experiments, or the folder of those that genlab brings where there is none."""
    return OWN if OWN.is_dir() else packaged()


def experiments() -> dict[str, Path]:
    """Returns the file of every experiment by its name; of two of one name that of ./experiments counts."""
    files = [path for place in (packaged(), OWN) for path in place.glob("*.yaml")]
    return dict(sorted({path.stem: path for path in files}.items()))


def find(name: str) -> Path | None:
    """Returns the file of an experiment; None where there is none of this name.

    Args:
        name: Such as `ddpm_digits`, `ddpm_digits.yaml` or `experiments/ddpm_digits.yaml`.
    """
    path = Path(name)
    is_name = path.parent in (Path(), OWN) and path.suffix in ("", ".yaml")
    return experiments().get(path.stem) if is_name else None


def require(name: str) -> Path:
    """Returns the file of an experiment.

    Raises:
        ValueError: There is none of this name; the message has the nearest ones.
    """
    found = find(name)
    if found is None:
        raise ValueError(f"There is no experiment {shortened(name)}. {nearest_names(name)}")
    return found


def nearest_names(name: str) -> str:
    """Returns a sentence with the experiments that may have been meant, or how all are listed."""
    near = similar(Path(name).stem, experiments())
    return f"Nearest: {', '.join(near)}." if near else "`genlab experiments` lists them."


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file says of itself.

    Args:
        path: The file.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def family(self) -> str:
        """The class of its model."""
        return _class(self._sections.get("model"))

    @property
    def data(self) -> str:
        """The class of its data, and of what these are made of."""
        section: Any = self._sections.get("data")
        inner = (section.get("init_args") or {}).get("data") if isinstance(section, dict) else None
        return " of ".join(filter(None, [_class(section), _class(inner)]))

    @property
    def paper(self) -> str:
        """The first paper that its head names, "" for none."""
        cited = _CITED.search(self.text)
        return cited[1].rstrip(", ") if cited else ""

    @property
    def measured(self) -> str:
        """What was measured: by the table beside it, or what its head names first; "" for nothing."""
        known = measured_in(self.path.with_name("README.md")).get(self.name)
        found = _MEASURED.search(self.text)
        return known or (found[1] if found else "")

    @cached_property
    def head(self) -> str:
        """The comment at its top, line by line."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        end = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
        return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[:end])

    @property
    def text(self) -> str:
        """The same without commands and what is indented, in one line."""
        lines = self.head.splitlines()
        return " ".join(line for line in lines if not line.startswith(("genlab ", " ")))

    @cached_property
    def _sections(self) -> dict[str, Any]:
        config = read_yaml(self.path)
        return config if isinstance(config, dict) else {}

    def has(self, words: list[str]) -> bool:
        """Returns whether its name, its head, its family or its data hold each of the words."""
        told = " ".join((self.name, self.head, self.family, self.data)).casefold()
        return all(word.casefold() in told for word in words)


def _class(section: Any) -> str:
    named = section.get("class_path") if isinstance(section, dict) else section
    return named.rsplit(".", 1)[-1] if isinstance(named, str) else ""


@cache
def measured_in(table: Path) -> dict[str, str]:
    """Returns the last column of a Markdown table by the first, of the rows that are of one experiment."""
    if not table.is_file():
        return {}
    rows = _ROW.findall(table.read_text(encoding="utf-8"))
    return {name: cell.strip().replace("\\|", "|") for name, cell in rows if cell.strip()}
