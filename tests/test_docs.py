"""The documentation: what it names exists, what is to be on a page is there, every link goes somewhere."""

import ast
import importlib
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import genlab.families
from genlab.cli import completion
from genlab.cli.main import ALIASES, OTHERS, TRAINING
from genlab.configuration.experiments import experiments
from genlab.families.base import Model

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
sys.path.insert(0, str(SITE))

import links  # noqa: E402
import made  # noqa: E402
import screenshots  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_EVERY_COMMAND = {"--help", "-h", "--allow", "--debug"}
NOT_GENLABS = {
    *("<run>/test/", "file_name", "name<TAB>caption", "source<TAB>target", "imagefolder", "NAME.jpg"),
    *("s3://", "gs://", "azure://", "ddp", "±", "40k/4M img 1%", "x_error@0.3"),
}
"""What stands in code and is neither a command nor a name: file formats, patterns, words of a screen."""


def ids(path):
    return path.name


# Pages that are made


@cache
def families_page():
    return made.expanded((ROOT / "docs" / "families.md").read_text(encoding="utf-8"))


def learned(kind):
    """A class and all that inherit from it."""
    return {kind, *(model for child in kind.__subclasses__() for model in learned(child))}


def test_every_family_stands_on_its_page_with_its_formula_and_papers():
    """By the classes themselves; the page is made of the files, without importing any of them."""
    for module in pkgutil.iter_modules(genlab.families.__path__):
        importlib.import_module(f"genlab.families.{module.name}")
    models = {model for model in learned(Model) if model.__module__.startswith("genlab.families.")}
    page = families_page()
    sections = dict(zip(*[iter(re.split(r"^## (\w+)$", page, flags=re.MULTILINE)[1:])] * 2, strict=False))
    for model in models:
        text = inspect.getdoc(model)
        if model.__subclasses__() and model.__name__ not in sections:
            assert f"- `{model.__name__}` in " in page  # a floor of others
            continue
        section = sections[model.__name__]
        formula = re.search(r"\n\n    (\S.*)\n", text.split("Args:")[0])
        assert formula is None or f"    {formula[1]}\n" in section, model
        for paper in re.findall(r"arXiv:(\d{4}\.\d+)", text.split("Args:")[0]):
            assert f"(https://arxiv.org/abs/{paper})" in section, (model, paper)
    assert len(sections) >= 24


def test_every_experiment_stands_under_the_class_that_it_trains():
    page = families_page()
    sections = dict(zip(*[iter(re.split(r"^## (\w+)$", page, flags=re.MULTILINE)[1:])] * 2, strict=False))
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        (row,) = re.findall(
            rf"^\| \[{path.stem}\]\(\.\./experiments/{path.name}\) \|.*$",
            sections[model["class_path"].rsplit(".", 1)[-1]],
            re.MULTILINE,
        )
        for measured in re.findall(
            rf"^\| `{path.stem}` \|.*? \| ([^|\n]+) \|$", EXPERIMENTS_TABLE, re.MULTILINE
        ):
            assert row.replace("&lt;", "<").endswith(f"| {measured.strip()} |")


EXPERIMENTS_TABLE = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")


def test_prose_of_docstrings_is_shown_as_it_stands_and_formulas_are_left_alone():
    prose = "x_t < y_0 * |z| of `a_b < c`\n\n    a_b * c < |d|"
    assert made._escaped(prose) == "x\\_t &lt; y\\_0 \\* \\|z\\| of `a_b < c`\n\n    a_b * c < |d|"
    assert made._cell("a | b <= c") == "a \\| b &lt;= c"


def test_measured_rows_stand_under_their_families_as_in_the_readme():
    page, table = families_page(), made.comparison()
    rows = re.findall(r"^\| (\w+_digits[^|]*?) \| (.*) \|$", table, re.MULTILINE)
    assert len(rows) == 9
    for name, numbers in rows:
        path = ROOT / "experiments" / f"{re.split(r'[ /]', name)[0]}.yaml"
        family = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["class_path"]
        assert f"| {name} | {numbers} |" in page.split(f"\n## {family}\n")[1].split("\n## ")[0], name


def test_every_command_stands_on_its_page_with_all_its_options():
    page = made.expanded((ROOT / "docs" / "commands.md").read_text(encoding="utf-8"))
    sections = page.split("\n## genlab ")[1:]
    assert [text.split("\n")[0] for text in sections] == [*TRAINING, *OTHERS]
    for text in sections:
        for parser in parsers(text.split("\n")[0]):
            assert {name for action in parser._actions for name in action.option_strings} <= words(text)
    (table,) = re.findall(
        r"^# Commands\n(.*?)<!-- ", (ROOT / "docs/commands.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert {*TRAINING, *OTHERS} <= set(re.findall(r"`(?:genlab )?(\w+) ", table))


def words(text):
    return set(re.findall(r"(?<![\w-])--?[\w.]+", text))


def parsers(name):
    """The parsers of a command, none of those whose options Lightning makes."""
    if name in TRAINING or name == "resume":
        return []
    own = importlib.import_module(f"genlab.cli.{ALIASES.get(name, name)}").parser()
    inner = [list(action.choices.values()) for action in own._actions if hasattr(action, "add_parser")]
    return inner[0] if inner else [own]


# What pages tell to type


def typed(text):
    """Every command of genlab in the code blocks of a page, without what is typed around it."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language not in ("", "bash", "console"):
            continue
        for line in block.replace("\\\n", " ").split("\n"):
            for part in re.split(r"[|;]", line.split("  #")[0]):
                found = re.match(
                    r"\s*(?:\$ |then |else )?(?:exec )?(?:python -m |\.venv/bin/)?genlab (\S.*)", part
                )
                if found and not re.fullmatch(r"[\d,.]+.*", found[1]):
                    yield found[1]


def inline(text):
    """Every code span outside of code blocks."""
    return re.findall(
        r"`([^`\n]+(?:\n[^`\n]+)?)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_of_a_page_exists_with_its_options(page):
    text = page.read_text(encoding="utf-8")
    spans = [
        " ".join(span.removeprefix("genlab ").split()) for span in inline(text) if span.startswith("genlab ")
    ]
    for command in [*typed(text), *spans]:
        check_command(command.replace("\\|", "|"))


def check_command(command):
    name, *rest = shlex.split(command.split("...")[0] if command.endswith("...") else command)
    if name.startswith("-"):
        assert name in ("--help", "--version", "--print_completion"), command
        return
    assert name in {*TRAINING, *OTHERS}, command
    options = {word.split("=")[0].rstrip("+") for word in rest if re.match(r"--?[A-Za-z]", word)}
    if name in ("bench", "sweep") and "--" in rest:
        options = {word.split("=")[0] for word in rest[: rest.index("--")] if re.match(r"--?[A-Za-z]", word)}
    if name in TRAINING or name == "resume":
        for option in options - OF_EVERY_COMMAND:
            check_key(option.removeprefix("--").removeprefix("-"))
    else:
        known = {
            string
            for parser in parsers(name)
            for action in parser._actions
            for string in action.option_strings
        }
        assert options - OF_EVERY_COMMAND <= known, command
    check_values(name, rest)


def check_values(name, rest):
    """Experiments that are named must be there; what is written large stands for something."""
    for flag, value in pairwise(rest):
        if flag in ("--config", "-c", "--copy") and not re.search(r"[A-Z]|my_package", value):
            assert Path(value).stem in experiments(), value
        if flag == "--families":
            beginnings = {stem.split("_")[0] for stem in experiments()} | set(experiments())
            data = rest[0]
            assert {f"{family}_{data}" for family in value.split(",")} <= {*experiments(), *beginnings}, value
    if name == "sweep" and rest and not rest[0].isupper():
        assert rest[0] in experiments()


@cache
def settings():
    return {
        "config",
        "c",
        *completion.OF_TRAINING,
        *completion._settings(),
        "accept-change",
        "again",
        "trainer",
    }


@cache
def arguments():
    """Names of arguments and fields of genlab's classes, and the classes, by their files."""
    names, classes = set(), set()
    for path in (ROOT / "genlab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes.add(node.name)
                names |= {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                names |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return names, classes


def check_key(key):
    """A setting of a training by its whole name: known to the parser, or an argument of some part."""
    head, *inner = key.split(".")
    if key in settings():
        return
    assert head in ("model", "data", "trainer", "evaluate", "samples") and inner, key
    if head == "trainer":
        assert f"trainer.{inner[0]}" in settings(), key
        assert inner[0] != "callbacks" or inner[1] in ("monitor", "patience"), key
    else:
        assert set(inner) <= arguments()[0] | {"lr", "weight_decay"}, key


@pytest.mark.parametrize(
    "command",
    [
        "fitt --config dcgan_digits",
        "fit --config dcgan_digit",
        "fit --config dcgan_digits --budget.image 3",
        "fit --config dcgan_digits --model.no_such_part 3",
        "fit --config dcgan_digits --trainer.device 3",
        "sample RUN --sed 0",
        "data check PATH --caption text",
        "bench digits --families gan,vaes",
        "sweep dcgan_digitz --over a=b",
    ],
)
def test_a_wrong_command_is_found(command):
    with pytest.raises(AssertionError):
        check_command(command)


# The questions

FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


def test_there_are_32_questions_and_each_has_an_answer():
    parts = re.split(r"^### (\d+)\. (.*)$", FAQ, flags=re.MULTILINE)[1:]
    numbers, questions, answers = parts[::3], parts[1::3], parts[2::3]
    assert [int(number) for number in numbers] == list(range(1, 33)) and len(set(questions)) == 32
    for question, answer in zip(questions, answers, strict=True):
        assert question.endswith((".", "?")) and len(answer.split("\n## ")[0].strip()) > 80, question


def is_known(span):
    """Whether something in code is a name of genlab's, of its files, or of what it is written for."""
    span = " ".join(span.split())
    if span in NOT_GENLABS:
        return True
    if span.startswith("genlab "):
        return check_command(span.removeprefix("genlab ")) is None
    if span.startswith("--"):
        for option in (word for word in shlex.split(span) if word.startswith("--")):
            name = option.split("=")[0].rstrip("+")
            if name.removeprefix("--") in settings() or name in all_options():
                continue
            check_key(name.removeprefix("--"))
        return True
    if found := re.fullmatch(r"genlab\[(\w+)\]", span):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        return found[1] in project["optional-dependencies"]
    if found := re.fullmatch(r"make ([\w-]+)", span):
        return re.search(rf"^{found[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    if found := re.fullmatch(r"genlab\.(\w+)\(\w*\)", span):
        return found[1] in genlab.__all__
    names, classes = arguments()
    return span in {*experiments(), *classes, *names, *LEFT_BY_A_RUN}


LEFT_BY_A_RUN = {"run.json", "checkpoints/", "last.ckpt", "best.ckpt", "health"}
LEFT_BY_A_RUN |= {"bf16-mixed", "32-true", "RUN"}


@cache
def all_options():
    every = [parser for name in OTHERS for parser in parsers(name)]
    return {string for parser in every for action in parser._actions for string in action.option_strings}


@pytest.mark.parametrize("span", dict.fromkeys(inline(FAQ)))
def test_what_an_answer_names_exists(span):
    assert is_known(span)


@pytest.mark.parametrize("span", ["NoSuchClass", "gan_digit", "--no_such", "genlab[nothing]", "make nothing"])
def test_what_no_answer_may_name_is_found(span):
    try:
        assert not is_known(span)
    except AssertionError as error:
        assert "is_known" not in str(error)


# Links and pictures


def slug(heading):
    """The anchor that code hosts and the site give a heading."""
    text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


@cache
def anchors(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "families.md":
        text = families_page()
    elif path.name == "commands.md":
        text += "".join(f"\n## genlab {name}\n" for name in [*TRAINING, *OTHERS]) + "\n## All commands\n"
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_goes_to_a_file_and_a_heading_that_are_there(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for address in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = address.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file() and target.is_relative_to(ROOT), address
        assert not anchor or anchor in anchors(target), address


def test_the_readme_is_a_newcomers_path():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 170
    assert {"docs/first_hour.md", "docs/commands.md", "docs/faq.md"} <= set(re.findall(r"\]\(([^)#]+)", text))


def test_every_picture_is_small_made_by_the_script_and_shown():
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    assert {picture.stem for picture in pictures} <= set(made_pictures())
    sizes = [picture.stat().st_size for picture in pictures]
    assert max(sizes) < 150_000 and sum(sizes) < 600_000
    shown = set(re.findall(r"\]\(pictures/([\w.]+)\)", "".join(p.read_text(encoding="utf-8") for p in PAGES)))
    assert shown == {picture.name for picture in pictures}


def made_pictures():
    return re.findall(r'keep\(\s*"(\w+)"', inspect.getsource(screenshots))


def test_links_of_a_built_page_that_go_nowhere_or_fetch_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<link rel="stylesheet" href="https://example.org/a.css"><script src="//example.org/a.js"></script>'
        '<h1 id="top">A</h1><a href="#top"></a><a href="#bottom"></a><a href="b.html#top"></a>'
        '<a href="b.html#here"></a><a href="c.html"></a><img src="no.png"><a href="https://example.org"></a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="here">B</h1><a href="a.html">back</a>')
    assert links.problems(tmp_path) == [
        "a.html: fetches https://example.org/a.css",
        "a.html: fetches //example.org/a.js",
        "a.html: #bottom: there is no such place on the page",
        "a.html: b.html#top: there is no such place on the page",
        "a.html: c.html is not there",
        "a.html: no.png is not there",
    ]


def test_links_of_a_page_go_to_pages_and_copies_of_files():
    hooks = hooks_of_mkdocs()
    sources, copied = {"SECURITY.md": "security.md", "docs/faults.md": "faults.md"}, set()
    text = "[a](../SECURITY.md#x) [b](faults.md) [c](../experiments/dcgan_digits.yaml) `[d](no.md)`"
    text = text.replace("`[d](no.md)`", "\n```\n[d](no.md)\n```\n")
    assert hooks.linked(text, "page.md", "docs/page.md", sources, copied) == (
        "[a](security.md#x) [b](faults.md) [c](files/experiments/dcgan_digits.yaml) \n```\n[d](no.md)\n```\n"
    )
    assert copied == {"experiments/dcgan_digits.yaml"}
    for wrong in ("[a](no.md)", "[a](../../elsewhere.md)", "[a](../examples)"):
        with pytest.raises(hooks.PluginError, match="goes to no file"):
            hooks.linked(wrong, "page.md", "docs/page.md", sources, copied)


def test_a_page_that_no_one_listed_is_found_at_the_end_of_the_navigation():
    nav = [{"Start": ["index.md"]}]
    hooks_of_mkdocs().add_unlisted(nav, {"index.md": "README.md", "new.md": "docs/new.md"})
    assert nav == [{"Start": ["index.md"]}, {"More": ["new.md"]}]


def hooks_of_mkdocs():
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make docs")
    return importlib.import_module("hooks")


@pytest.mark.slow
def test_the_site_is_built_with_every_page_and_no_wrong_link(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed: make docs")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(SITE / "mkdocs.yml")]
    done = subprocess.run([*command, "-d", str(tmp_path / "site")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")}
    assert {path.stem for path in PAGES[1:]} | {"index", "results", "experiments", "security"} <= pages
    page = (tmp_path / "site" / "families.html").read_text(encoding="utf-8")
    assert all(f'href="files/experiments/{name}.yaml"' in page for name in experiments())
    assert "latent_dim" in (tmp_path / "site" / "families.html").read_text() and "made:" not in page
    assert links.problems(tmp_path / "site") == []
    assert not re.search(r"\\(&lt;|[|_*<])", re.sub(r"<(pre|code)\b.*?</\1>", "", page, flags=re.DOTALL))
