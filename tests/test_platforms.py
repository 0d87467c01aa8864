"""What systems differ in: signals, locks, renames, encodings, paths, how processes start. Runs on all."""

import ast
import io
import ntpath
import os
import subprocess
import sys
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy
import pytest
from test_architecture import ROOT, called, modules
from windows_view import LACKING, MODULES, View

from genlab import files
from genlab.cli.main import open_streams
from genlab.cluster import leash
from genlab.data import sources
from genlab.runs import lock
from genlab.runs.folder import list_runs

NAMED = "ünïcode ordner"
DIGITS = ("--config", "dcgan_digits", "--trainer.accelerator", "cpu")
SHORT = (
    *("--budget.examples", "128", "--budget.evaluate_every", "null", "--evaluate.at_start", "false"),
    *("--evaluate.num_samples", "8", "--samples.num", "0"),
)


def as_on_windows(folder, *arguments):
    """A genlab command that sees what Windows has."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(ROOT / "tests/windows_view.py"), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def what_windows_lacks(tree):
    """Names of POSIX alone that a module uses without asking whether they are there."""
    asked = {
        getattr(node.args[1], "value", None)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node.func) in ("hasattr", "getattr")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in LACKING.get(node.value.id, ()) and node.attr not in asked:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in {*MODULES, *LACKING}:
            lacking = LACKING.get(node.module, {alias.name for alias in node.names})
            yield from (alias.name for alias in node.names if alias.name in lacking)


def without_an_encoding(tree):
    """Lines that read or write a text in whatever encoding the machine prefers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and "encoding" not in {word.arg for word in node.keywords}:
            name, given = called(node.func), [getattr(value, "value", None) for value in node.args]
            mode = given[1:2] if isinstance(node.func, ast.Name) else given[:1]  # of a zip: a name
            is_opened = name == "open" and bool({"w", "a", "x"} & {*mode})
            if is_opened or (name, len(given)) in (("read_text", 0), ("write_text", 1)):
                yield node.lineno


def test_no_module_relies_on_what_windows_lacks():
    # Windows runs no leash: see `tied`.
    found = {name: [*what_windows_lacks(tree)] for name, _, tree in modules(ROOT) if "leash" not in name}
    assert {name: lacking for name, lacking in found.items() if lacking} == {}


@pytest.mark.parametrize(
    "code",
    ["import fcntl", "import os\nos.fork()", "from signal import SIGKILL", "import signal\nsignal.SIGHUP"],
)
def test_a_planted_use_of_what_windows_lacks_is_found(code):
    assert [*what_windows_lacks(ast.parse(code))]
    assert not [*what_windows_lacks(ast.parse("import os\nif hasattr(os, 'fork'):\n    os.fork()"))]


def test_every_text_is_read_and_written_in_a_named_encoding():
    found = {name: [*without_an_encoding(tree)] for name, _, tree in modules(ROOT)}
    assert {name: lines for name, lines in found.items() if lines} == {}
    for code in ("path.read_text()", "path.write_text(text)", "path.open('w')"):
        assert [*without_an_encoding(ast.parse(code))]


def test_all_of_genlab_is_imported_and_a_training_tried_as_on_windows(tmp_path):
    assert "img" in as_on_windows(tmp_path, "--import", "fit", *DIGITS, "--trainer.fast_dev_run", "true")


@pytest.mark.slow
def test_a_run_is_trained_gone_on_with_and_sampled_as_on_windows_and_read_by_spawned_processes(
    tmp_path, monkeypatch
):
    folder = tmp_path / NAMED
    folder.mkdir()
    monkeypatch.setenv("GENLAB_OUTPUTS", str(folder / "outputs"))
    as_on_windows(folder, "fit", *DIGITS, *SHORT, "--data.num_workers", "1", "--run_name", "mine")
    (run,) = list_runs()
    as_on_windows(folder, "resume", run.path, "--budget.examples", "192")
    as_on_windows(folder, "sample", run.path, "-n", "4", "--to", "samples.npz")
    assert numpy.load(folder / "samples.npz")["arr_0"].shape == (4, 8, 8, 3)
    assert "mine" in as_on_windows(folder, "runs") and "dcgan_digits" in as_on_windows(
        folder, "compare", run.path
    )
    assert run.read()["examples_seen"] == 192 and str(folder) not in run.config.read_text(encoding="utf-8")


def test_a_file_that_somebody_reads_for_an_instant_is_replaced_once_they_are_done(tmp_path, monkeypatch):
    target, refusals, replace = tmp_path / "a.json", [PermissionError(13, "in use")] * 2, os.replace

    def refused(*paths):
        if refusals:
            raise refusals.pop()
        replace(*paths)

    target.write_text("old")
    monkeypatch.setattr(files, "os", View("os"))
    monkeypatch.setattr(os, "replace", refused)
    files.write_text(target, "new\n")
    assert target.read_bytes() == b"new\n" and not refusals and list(tmp_path.iterdir()) == [target]
    refusals += [PermissionError(13, "in use")] * 1000
    monkeypatch.setattr(files, "_PATIENCE", 0.1)
    with pytest.raises(files.StorageError, match="cannot be written"):
        files.write_text(target, "newer")
    assert target.read_text() == "new\n" and list(tmp_path.iterdir()) == [target]


def test_a_pipe_of_an_old_code_page_takes_every_letter(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", None)
    open_streams()
    print("≤ 1.83 μ", end="", flush=True)
    assert written.getvalue().decode("utf-8") == "≤ 1.83 μ"
    sys.stderr.close()


def test_a_second_process_does_not_get_a_lock(tmp_path):
    code = (
        "import sys, pathlib, genlab.runs.lock\nwith genlab.runs.lock.hold(pathlib.Path(sys.argv[1])): pass"
    )
    place, environment = tmp_path / "lock", {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(place)]
    with lock.hold(place):
        assert lock.is_held(place)
        refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1 and f"process {os.getpid()} on" in refused.stderr
    assert not lock.is_held(place)
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0


def test_names_inside_of_archives_are_joined_by_slashes_everywhere(monkeypatch):
    monkeypatch.setattr(sources, "os", SimpleNamespace(path=ntpath))
    assert sources._common_folder(["a/b/1.png", "a/b/c/2.png"]) == PurePosixPath("a/b")


def test_a_task_is_tied_to_its_worker_where_a_process_can_become_another(monkeypatch):
    assert "genlab.cluster.leash" in leash.tied(["fit"]) or os.name == "nt"
    monkeypatch.setattr(leash, "os", View("os"))
    assert leash.tied(["fit"]) == [sys.executable, "-m", "genlab", "fit"]
