"""The house: who may import whom, read from the syntax tree, and the habits of the repository."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOOR = {
    *("families.capabilities", "families.base", "families.players", "families.weights"),
    *("families.optimizers", "families.sharding", "families.streams", "families.units"),
    *("families.chain_rule", "families.codes", "families.steps", "families.compiling"),
}
"""What every family stands on; no family imports another one's file."""

SHARED = {
    *("shapes", "randomness", "files", "errors", "extras", "amounts", "text", "colour", "distributed"),
    "progress",
}
ARROWS = {
    "losses": set(),
    "processes": {"losses"},
    "samplers": {"processes", "losses"},
    "networks": set(),
    "bijections": {"networks"},
    "metrics": {"networks"},
    "data": set(),
    "families": {"losses", "processes", "samplers", "bijections"},
    "configuration": set(),
    "runs": {"configuration"},
    "report": {"runs"},
    "cluster": {"runs", "configuration"},
    "evaluation": {*FLOOR, "data", "metrics", "samplers", "runs", "configuration"},
    "callbacks": {"evaluation", *FLOOR, "data", "metrics", "samplers", "runs"},
}
"""For each room, the rooms that it may import beside itself and the shared words; cli, api: all."""

LIGHTNING = {"pytorch_lightning", "lightning", "lightning_fabric"}
WITHOUT_LIGHTNING = {"losses", "processes", "samplers", "networks", "bijections", "metrics"}
TORCH = {"torch", "torchvision", "torchmetrics", *LIGHTNING}
WITHOUT_TORCH = (
    "genlab.configuration",
    "genlab.runs",
    "genlab.report",
    "genlab.cluster",
    "genlab.data.decode",
    "genlab.data.sources",
    "genlab.data.image_tables",
    "genlab.data.check",
    "genlab.data.check_text",
    "genlab.data.utf8",
    "genlab.data.tokenizers",
)


# Reading imports


def modules(root):
    """Every module's name and syntax tree."""
    for path in sorted((root / "genlab").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, path, parsed(path.read_text(encoding="utf-8"))


@functools.cache
def parsed(text):
    return ast.parse(text)


def imported_names(node, package):
    """The full names that one statement imports, `a.b.c` for `from a.b import c`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parents = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*parents, *filter(None, [node.module])])
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and called(node.func) in ("import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def called(function):
    return getattr(function, "attr", getattr(function, "id", ""))


def imports(path, tree, nodes=None):
    """The names imported anywhere in a module, or by the given nodes of it."""
    root = next(parent for parent in path.parents if parent.name == "genlab").parent
    package = path.relative_to(root).parent.parts
    return all_imports(tree, package) if nodes is None else names_of(nodes, package)


@functools.cache
def all_imports(tree, package):
    return names_of(ast.walk(tree), package)


def names_of(nodes, package):
    return {name for node in nodes for name in imported_names(node, package)}


def room_of(name):
    parts = name.split(".")
    return parts[1] if parts[0] == "genlab" and len(parts) > 1 else ""


def is_within(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


# The arrows


def wrong_arrows(root):
    rooms = {path.stem for path in (root / "genlab").iterdir()}
    return [
        f"{module} imports {name}"
        for module, path, tree in modules(root)
        for name in sorted(imports(path, tree))
        if room_of(name) in rooms and not is_allowed(module, name)
    ]


def is_allowed(module, name):
    room, target = room_of(module), room_of(name)
    if room in ("", "cli", "api", "__main__") or target in SHARED:
        return True
    if room == target == "families":
        return any(is_within(name, f"genlab.{file}") for file in FLOOR)
    return room == target or any(is_within(name, f"genlab.{arrow}") for arrow in ARROWS.get(room, ()))


def wrong_packages(root):
    """Lightning in a room that knows none."""
    return [
        f"{module} imports {name}"
        for module, path, tree in modules(root)
        if room_of(module) in WITHOUT_LIGHTNING
        for name in sorted(imports(path, tree))
        if name.split(".")[0] in LIGHTNING
    ]


def torch_where_none_may_be(root):
    """Torch in a module that must start fast, or in one that it loads on the way."""
    known = {name: (path, tree) for name, path, tree in modules(root)}
    return [
        f"{start} reaches {name} through {module}"
        for start in known
        if any(is_within(start, prefix) for prefix in WITHOUT_TORCH)
        for module in sorted(loaded_with(start, known))
        for name in sorted(imports(*known[module]))
        if name.split(".")[0] in TORCH
    ]


def loaded_with(start, known):
    """The modules of genlab that importing one loads, packages on the way included."""
    found, open_names = set(), [start]
    while open_names:
        parts = open_names.pop().split(".")
        new = {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & known.keys() - found
        found |= new
        open_names += [name for module in new for name in imports(*known[module]) if room_of(name)]
    return found


def slow_imports_of_the_command(root):
    """What genlab/cli/main.py imports before it knows its command, apart from what starts at once."""
    path = root / "genlab" / "cli" / "main.py"
    if not path.exists():
        return []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    at_module_level = [node for statement in tree.body for node in walk_module_level(statement)]
    return [name for name in sorted(imports(path, tree, at_module_level)) if not starts_at_once(name)]


def walk_module_level(node):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from walk_module_level(child)


def starts_at_once(name):
    light = name == "genlab.__version__" or room_of(name) in ("", "errors", "files", "text", "runs", "report")
    return light if is_within(name, "genlab") else name.split(".")[0] in sys.stdlib_module_names


def circles(root):
    """Groups of files that import each other, by whatever way round, at the top or inside of a function."""
    known = {name: (path, tree) for name, path, tree in modules(root)}
    direct = {
        module: {
            file for name in imports(*known[module]) if (file := file_of(name, known)) not in (None, module)
        }
        for module in known
    }
    return [f"{first} imports {' and '.join(sorted(rest))} in a circle" for first, *rest in knots(direct)]


def file_of(name, known):
    """The module that an imported name is or lies in; None outside of genlab."""
    parent = name.rpartition(".")[0]
    return name if name in known else parent if parent in known else None


def knots(direct):
    """The groups of two or more that all reach each other."""
    reached = {start: reachable(start, direct) for start in direct}
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in direct if a in reached[a]}
    return sorted(groups)


def reachable(start, direct):
    found, open_names = set(), list(direct[start])
    while open_names:
        name = open_names.pop()
        if name not in found:
            found.add(name)
            open_names += direct[name]
    return found


RULES = [wrong_arrows, wrong_packages, torch_where_none_may_be, slow_imports_of_the_command, circles]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_arrows(rule):
    assert rule(ROOT) == []


def test_every_room_has_its_arrows():
    rooms = {path.name for path in (ROOT / "genlab").iterdir() if (path / "__init__.py").exists()}
    assert rooms - {"cli"} <= ARROWS.keys()


PLANTED = [
    (wrong_arrows, "losses/a.py", "from genlab.networks import b"),
    (wrong_arrows, "losses/a.py", "def f():\n    import genlab.networks.b"),
    (wrong_arrows, "losses/a.py", "from ..networks import b"),
    (wrong_arrows, "losses/a.py", "from genlab import networks"),
    (wrong_arrows, "losses/a.py", "import importlib\nimportlib.import_module('genlab.networks.b')"),
    (wrong_arrows, "families/a.py", "from genlab.networks.b import B"),
    (wrong_arrows, "families/a.py", "from genlab.families.b import B"),
    (wrong_arrows, "families/players.py", "from genlab.families.gan import GAN"),
    (wrong_arrows, "families/a.py", "from . import b"),
    (wrong_arrows, "evaluation/a.py", "from genlab.families import b"),
    (wrong_arrows, "data/a.py", "from genlab.metrics.b import B"),
    (wrong_arrows, "networks/a.py", "from genlab.cli import b"),
    (wrong_arrows, "unknown/a.py", "from genlab.data import b"),
    (wrong_packages, "metrics/a.py", "import pytorch_lightning as pl"),
    (wrong_packages, "networks/a.py", "from lightning.pytorch import LightningModule"),
    (torch_where_none_may_be, "runs/a.py", "import torch"),
    (torch_where_none_may_be, "report/a.py", "def f():\n    from torch import nn"),
    (torch_where_none_may_be, "data/decode.py", "from genlab.shapes import to_float"),
    (torch_where_none_may_be, "data/sources/a.py", "from genlab import shapes"),
    (slow_imports_of_the_command, "cli/main.py", "import torch"),
    (slow_imports_of_the_command, "cli/main.py", "try:\n    import yaml\nexcept ImportError:\n    pass"),
    (slow_imports_of_the_command, "cli/main.py", "from genlab.cli import training"),
    (slow_imports_of_the_command, "cli/main.py", "from genlab.shapes import Batch"),
]

PLANTED_CIRCLES = [
    {"a": "from genlab.losses.b import B", "b": "from genlab.losses.a import A"},
    {"a": "from genlab.losses.b import B", "b": "def f():\n    from genlab.losses.a import A"},
    {"a": "from genlab.losses.b import B", "b": "if TYPE_CHECKING:\n    from genlab.losses.a import A"},
    {"a": "from . import b", "b": "from .c import C", "c": "import genlab.losses.a"},
]

SOUND = [
    (
        "losses/a.py",
        "from genlab.shapes import Batch\nfrom genlab import randomness\nfrom genlab.losses.b import B",
    ),
    (
        "families/a.py",
        "from genlab.families.base import Model\nfrom genlab.families import base, players\nimport torch",
    ),
    ("evaluation/a.py", "from genlab.families.base import Model\nfrom genlab.runs.folder import Run"),
    ("runs/a.py", "import genlab\nfrom genlab import __version__\nfrom . import folder\nimport json"),
    (
        "cli/main.py",
        "import sys\nfrom genlab.runs.folder import Run\ndef f():\n    import torch, genlab.families.a",
    ),
]


@pytest.fixture
def small_house(tmp_path):
    for room in (*ARROWS, "cli", "unknown"):
        (tmp_path / "genlab" / room).mkdir(parents=True)
        (tmp_path / "genlab" / room / "__init__.py").touch()
    (tmp_path / "genlab" / "__init__.py").write_text("__version__ = '0'\n")
    for name in SHARED:
        (tmp_path / "genlab" / f"{name}.py").write_text("" if name == "files" else "import torch\n")
    return tmp_path


def plant(house, file, code):
    path = house / "genlab" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(code + "\n")


@pytest.mark.parametrize(("rule", "file", "code"), PLANTED)
def test_a_planted_violation_is_found(small_house, rule, file, code):
    assert rule(small_house) == []
    plant(small_house, file, code)
    assert len(rule(small_house)) >= 1


@pytest.mark.parametrize("files", PLANTED_CIRCLES)
def test_a_planted_circle_is_found(small_house, files):
    assert circles(small_house) == []
    for name, code in files.items():
        plant(small_house, f"losses/{name}.py", code)
    assert len(circles(small_house)) == 1
    plant(small_house, "losses/a.py", "")
    assert circles(small_house) == []


@pytest.mark.parametrize(("file", "code"), SOUND)
@pytest.mark.parametrize("rule", RULES)
def test_a_sound_import_is_let_through(small_house, rule, file, code):
    plant(small_house, file, code)
    assert rule(small_house) == []


# Habits of the repository


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def machine_paths(text):
    """Absolute paths that exist on one person's machine only."""
    places = [
        r"/home/\w",
        r"/Users/\w",
        r"/root\b",
        r"/work/\w",
        r"/mnt/\w",
        r"[A-Z]:\\Users",
        re.escape(str(ROOT)),
    ]
    return re.findall(rf"(?<![\w.~*-])(?:{'|'.join(places)})[^\s\"')]*", text)


def test_the_jobs_for_an_outside_driver_are_found_from_the_root_and_not_installed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    jobs = importlib.import_module("benchmarks.genlab_jobs")
    assert all(
        callable(getattr(jobs, name)) for name in ("ddpm_train", "flow2d_train", "vae_step", "vq_step")
    )
    packaging = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert packaging["find"]["include"] == ["genlab*"]


def test_no_module_is_named_for_having_no_subject():
    shapeless = {"utils", "util", "common", "helpers", "misc", "tools"}
    assert [name for name, _, _ in modules(ROOT) if shapeless & set(name.split("."))] == []


def test_tracked_files_name_no_path_of_one_machine():
    exempt = {Path(__file__), ROOT / "tests" / "test_runs.py"}  # both test such paths
    found = {}
    for path in tracked_files():
        if path not in exempt and path.suffix not in (".safetensors", ".png", ".gif", ".jpg", ".npz"):
            found[str(path)] = machine_paths(path.read_text(encoding="utf-8"))
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "text", ['x = "/home/ada/data"', "see /root/a", "C:\\Users\\ada", f"{ROOT}/README.md"]
)
def test_a_planted_machine_path_is_found(text):
    assert machine_paths(text)


@pytest.mark.parametrize(
    "text", ["https://example.org/home/ada", "path/to/work/x", "~/home/x", "/path/to/faces"]
)
def test_other_paths_are_let_through(text):
    assert not machine_paths(text)


def test_one_module_alone_knows_which_names_are_alike():
    assert [name for name, path, tree in modules(ROOT) if "difflib" in imports(path, tree)] == ["genlab.text"]


def test_packages_that_are_asked_for_are_those_of_the_extra_that_the_message_names():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = set()
    for module, _, tree in modules(ROOT):
        for node in ast.walk(tree):
            named = {word.arg: word.value for word in getattr(node, "keywords", ())}
            if isinstance(node, ast.Call) and called(node.func) == "require" and "extra" in named:
                extra = named["extra"].value
                brought = {re.match(r"[\w-]+", line)[0] for line in extras[extra]}
                for package in node.args[1:]:
                    assert package.value in brought, f"{module}: {package.value} is not in {extra}"
                    asked.add(package.value)
    assert asked == {"distributed", "submitit", "optuna", "shtab", "litdata", "diffusers"} | {
        *("onnx", "onnxruntime", "onnxscript")
    }


def test_the_outputs_are_ignored_at_the_top_only():
    lines = (ROOT / ".gitignore").read_text().split()
    assert "/outputs/" in lines
    assert not {"outputs", "outputs/", "*outputs*"} & set(lines)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_begins_with_the_command_that_runs_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    head = lines[: next(n for n, line in enumerate([*lines, ""]) if not line.startswith("#"))]
    assert f"genlab fit --config experiments/{path.name}" in "\n".join(head)


def test_every_public_class_and_function_says_what_it_is():
    assert [
        f"{module}.{node.name}"
        for module, _, tree in modules(ROOT)
        for node in tree.body
        if isinstance(node, ast.ClassDef | ast.FunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ] == []


def test_tests_are_sentences():
    names = [
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert [name for name in names if len(name.split("_")) < 4] == []
