"""The commands as functions: the same runs, the same numbers, errors as exceptions; samples in one file."""

import ast
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tqdm import tqdm

import genlab
from genlab import api, progress
from genlab.errors import DataError, MetricError
from genlab.evaluation.sample_file import SampleFile
from genlab.report.table import MetricsTable
from genlab.runs.folder import NotARun, list_runs, open_run
from genlab.shapes import DataSpec, bytes_to_levels, to_float, to_levels

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    "model.generator": "MLPGenerator",
    "model.discriminator": {"class_path": "MLPDiscriminator"},
    "evaluate.num_samples": 20,
    "evaluate.num_test_samples": 40,
    "budget.examples": 640,
    "budget.evaluate_every": None,
    "evaluate.at_start": False,
    "samples.num": 0,
    "trainer.accelerator": "cpu",
}


def options(settings, **more):
    """Settings as they are typed, in the form of a YAML file's values."""
    values = {**settings, **more}
    return [
        part for name, value in values.items() for part in (f"--{name}", yaml.safe_dump(value).split("\n")[0])
    ]


@pytest.fixture(scope="module")
def small(tiny_extractor):
    return {**SETTINGS, "extractor": str(tiny_extractor(1))}


@pytest.fixture(scope="module")
def command_line(small):
    """What trains a GAN of 640 looks at digits."""
    plain = {**small, "model.discriminator": "MLPDiscriminator"}
    return ("--config", "experiments/dcgan_digits.yaml", *options(plain))


@pytest.fixture
def trained(command_line, copy_of_trained):
    return open_run(copy_of_trained(*command_line))


@pytest.fixture(scope="module")
def tested_once(command_line, trained_once, short_measures, tmp_path_factory):
    """The same, and what `genlab test` has found of it; nothing changes this one."""
    folder = tmp_path_factory.mktemp("tested")
    path = shutil.copytree(trained_once(*command_line), folder / "dcgan_digits" / "tested")
    with short_measures(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENLAB_CACHE", str(folder / "cache"))
        genlab.test(path)
    return path


@pytest.fixture
def tested(tested_once, tmp_path):
    return open_run(shutil.copytree(tested_once, tmp_path / "outputs" / "dcgan_digits" / "tested"))


def python(code, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *code], capture_output=True, text=True, check=True, env=environment, **more
    )


# The package itself


def test_importing_genlab_is_quick_and_brings_neither_torch_nor_numpy():
    code = "import time; t = time.process_time(); import genlab; t = time.process_time() - t; import sys; "
    code += "print(t, *(n for n in ('torch', 'numpy', 'yaml', 'rich') if n in sys.modules)); dir(genlab); "
    code += "genlab.open_run; genlab.compare; print(*(n for n in ('torch', 'numpy') if n in sys.modules))"
    found = [python(["-c", code]).stdout.splitlines() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in found) < 0.1
    assert all(not lines for _, lines in found)


def test_the_names_of_the_package_are_its_functions_and_the_types_beside_them_say_the_same():
    public = set(genlab.__all__) - {"__version__"}
    assert public == set(api.__all__) == set(genlab._FUNCTIONS) and public <= set(dir(genlab))
    assert all(getattr(genlab, name) is getattr(api, name) for name in public)
    stub = ast.parse((ROOT / "genlab/__init__.pyi").read_text())
    imported = [
        alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert set(imported) == public
    assert (
        f"__all__ = {sorted(genlab.__all__)!r}".replace("'", '"')
        in (ROOT / "genlab/__init__.pyi").read_text()
    )
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        genlab.nothing  # noqa: B018


@pytest.mark.slow
def test_a_checker_of_types_knows_the_functions(tmp_path):
    file = tmp_path / "user.py"
    file.write_text(
        "import genlab\nreveal_type(genlab.fit('x'))\nreveal_type(genlab.score('a', 'b').values)\n"
    )
    told = python(["-m", "mypy", str(file)], cwd=ROOT).stdout
    assert 'Revealed type is "genlab.runs.folder.Run"' in told
    assert re.search(r"Revealed type is \".*dict\[.*str, .*float\]\"", told)


# Training and testing


def test_fit_trains_what_the_command_trains_to_the_bit(trained, small):
    run = genlab.fit("dcgan_digits", small)
    assert run.path != trained.path and run.status == "finished"
    ours, theirs = (genlab.load(one).state_dict() for one in (run, trained))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and ours.keys() == theirs.keys()


@pytest.mark.slow
def test_fit_of_a_run_goes_on_with_it(trained):
    assert genlab.fit(trained, {"budget.examples": 1280}) == trained
    assert trained.read()["examples_seen"] == 1280


@pytest.mark.slow
def test_fit_of_a_run_takes_other_settings_only_where_that_is_said(trained):
    with pytest.raises(ValueError, match="--accept-change"):
        genlab.fit(trained, {"budget.examples": 1920, "data.seed": 5})
    genlab.fit(trained, {"budget.examples": 1920, "data.seed": 5, "accept-change": True})
    assert trained.read()["changes"]


@pytest.mark.slow
def test_ctrl_c_in_a_training_is_a_keyboard_interrupt_and_the_run_goes_on(small):
    settings = {**small, "budget.examples": 10**9}

    def interrupt():
        while not any(run.last_checkpoint or run.metrics_jsonl.exists() for run in list_runs()):
            time.sleep(0.02)
        time.sleep(0.2)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        genlab.fit("dcgan_digits", {**settings, "trainer.log_every_n_steps": 1})
    thread.join()
    (run,) = list_runs()
    seen = run.read()["examples_seen"]
    assert run.status == "stopped" and run.last_checkpoint is not None
    assert genlab.fit(run, {"budget.examples": seen + 64}).status == "finished"


def test_test_returns_what_the_record_keeps_and_measures_nothing_twice(tested):
    values = tested.read()["test"]["values"]
    before = tested.record.read_bytes()
    assert genlab.test(tested.path) == values and values["fid@40vs797"] > 0
    assert tested.record.read_bytes() == before


MISTAKES = {
    "a misspelt experiment": (lambda run: genlab.fit("dcgan_digts"), ValueError, "Nearest: dcgan_digits"),
    "a misspelt setting": (
        lambda run: genlab.fit("dcgan_digits", {"budget.secnds": 1}),
        ValueError,
        "Did you mean '--budget.seconds'",
    ),
    "data that are not there": (lambda run: genlab.fit("gan_mnist"), DataError, "--data.path"),
    "a folder that is no run": (lambda run: genlab.load(ROOT / "tests"), NotARun, "is not a run"),
    "no folder": (lambda run: genlab.open_run("nowhere"), NotARun, "is not a run"),
    "a trial": (
        lambda run: genlab.fit("dcgan_digits", {"trainer.fast_dev_run": True, "extractor": "digits"}),
        ValueError,
        "leaves no run",
    ),
    "an extractor that is not there": (
        lambda run: genlab.score(run, run, extractor="nowhere"),
        MetricError,
        "no extractor nowhere",
    ),
    "a number of images that are there": (
        lambda run: genlab.score(np.zeros((4, 8, 8), np.uint8), run, num=3, extractor="digits"),
        ValueError,
        "of images all are scored",
    ),
    "a column that is not there": (lambda run: genlab.compare([run], columns=["fod"]), ValueError, "fid"),
    "a label that is not there": (lambda run: genlab.sample(run, 2, label=3), ValueError, "without labels"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_an_exception_in_the_words_of_the_command(mistake, trained):
    call, kind, message = MISTAKES[mistake]
    with pytest.raises(kind, match=message):
        call(trained)


# Samples and scores


def test_samples_of_a_run_are_those_of_its_model_and_of_the_command(trained, genlab_command, tmp_path):
    model = genlab.load(trained, device="cpu")
    x = genlab.sample(trained, 9, seed=3, batch_size=4)
    torch.testing.assert_close(x, model.sample(9, seed=3))
    torch.testing.assert_close(x, genlab.sample(model, 9, seed=3))
    assert x.shape == (9, 1, 8, 8) and not x.requires_grad
    assert genlab_command("sample", trained.path, "-n", 9, "--seed", 3, "--output", tmp_path)[0] == 0
    levels = np.stack([np.asarray(Image.open(tmp_path / f"{number:06d}.png")) for number in range(9)])
    found = bytes_to_levels(torch.from_numpy(levels)[:, None], 17)
    assert (found.int() - to_levels(x, 17).int()).abs().max() <= 1
    assert (found == to_levels(x, 17)).float().mean() > 0.99


def test_a_loaded_model_takes_classes_in_turn_as_samples_of_its_run_do(trained_once):
    settings = {"samples.num": 0, "evaluate.at_start": False, "evaluate.num_samples": 20}
    fit = options({**settings, "budget.examples": 64, "trainer.accelerator": "cpu"})
    run = trained_once("--config", "cvae_digits", *fit)
    model = genlab.load(run, device="cpu")
    assert torch.equal(model.sample(12, seed=3), genlab.sample(run, 12, seed=3))
    assert torch.equal(genlab.sample(model, 12, seed=3), genlab.sample(run, 12, seed=3))
    label = torch.full((12,), 7)
    assert torch.equal(model.sample(12, seed=3, label=label), genlab.sample(run, 12, seed=3, label=7))


def test_the_same_samples_have_the_fid_of_the_test_wherever_they_come_from(
    tested, small, genlab_command, tmp_path
):
    """And every other score, against the same real images: from the run, its npz, its pictures, a tensor."""
    entry = tested.read()["test"]
    names = {"fid@40vs797", "kid@40vs797", "precision@40vs797", "recall@40vs797", "is@40vs797"}
    expected = {name: entry["values"][name] for name in {*names, "fid_std@40vs797", "duplicates@40vs797"}}
    file, folder = tmp_path / "samples.npz", tmp_path / "pictures"
    for target in (("--to", file), ("--output", folder)):
        assert genlab_command("sample", tested.path, "-n", 40, *target)[0] == 0
    ruler = small["extractor"]
    found = [
        genlab.score(images, tested, extractor=ruler, **more)
        for images, more in (
            (tested, {"num": 40}),
            (file, {}),
            (folder, {}),
            (genlab.sample(tested, 40), {}),
            (np.load(file)["arr_0"], {}),
        )
    ]
    for score in found:
        assert {name: score.values[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        assert score.protocol["data_fingerprint"] == entry["protocol"]["data_fingerprint"]
        assert score.protocol["extractor_digest"] == entry["protocol"]["extractor_digest"]
        assert score.protocol["metrics"] == entry["protocol"]["metrics"]
        assert score.protocol["images_digest"] == found[0].protocol["images_digest"]
        assert score.copies["share"] == entry["copies"]["share"]
    assert found[0].protocol["weights"] == "ema" and "weights" not in found[1].protocol


def test_score_prints_the_protocol_and_keeps_it_as_json(tested, small, genlab_command, tmp_path, monkeypatch):
    target, ruler = tmp_path / "score.json", small["extractor"]
    arguments = (
        tested.path,
        tested.path,
        "-n",
        30,
        "--extractor",
        ruler,
        "--metrics",
        "fid,kid",
        "--seed",
        2,
    )
    code, out, error = genlab_command("score", *arguments, "--output", target)
    assert code == 0, error
    entry = json.loads(target.read_text())
    assert {name.split("@")[0] for name in entry["values"]} <= {"fid", "fid_std", "kid", "kid_std"}
    protocol = entry["protocol"]
    assert (protocol["num_fake"], protocol["num_real"], protocol["seed"]) == (30, 797, 2)
    for told in (
        "30 images",
        "797 test items of digits",
        protocol["resize"],
        protocol["extractor_digest"][:8],
    ):
        assert told in out
    assert protocol["versions"]["torch"] == torch.__version__.split("+")[0]
    monkeypatch.chdir(tmp_path)
    assert genlab_command("score", *arguments)[0] == 0
    (kept,) = (tmp_path / "outputs/scores").glob("*.json")
    assert json.loads(kept.read_text())["values"] == entry["values"]


def test_a_run_whose_pictures_are_scored_is_no_run(trained, small, genlab_command):
    """Its folder of samples lies inside of it, and is a folder of pictures."""
    assert genlab_command("sample", trained.path, "-n", 12)[0] == 0
    place = trained.path / "samples/seed0"
    found = genlab.score(place, trained, ["fid"], extractor=small["extractor"])
    assert found.protocol["num_fake"] == 12 and found.protocol["images"] == "seed0"


def test_an_own_metric_can_be_given(trained, small):
    from genlab.metrics.kernel_distance import KernelDistance

    own = KernelDistance(num_subsets=3, subset_size=5)
    found = genlab.score(genlab.sample(trained, 12), trained, ["fid", own], extractor=small["extractor"])
    assert found.protocol["metrics"]["KernelDistance"]["num_subsets"] == 3


# Comparisons


def test_a_comparison_has_the_rows_of_the_csv_as_numbers(tested, genlab_command):
    table = genlab.compare([tested])
    code, out, _ = genlab_command("compare", tested.path, "--csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(lines) == len(table) == len(list(table))
    for line, row in zip(lines, table.rows, strict=True):
        assert line.keys() == row.keys()
        for name, value in row.items():
            is_number = isinstance(value, float)
            assert (float(line[name]) == value) if is_number else (line[name] == (value or ""))
    assert table.to_dict()["name"] == [row["name"] for row in table.rows]
    assert all(len(column) == len(table) for column in table.to_dict().values())
    assert isinstance(table.rows[0]["fid"], float) and "dcgan_digits" in str(table)
    assert genlab.compare(tested, columns=["fid"]).rows[0].keys() == {"name", "fid", "comparable", "differs"}


def test_a_notebook_shows_tables_in_which_no_cell_is_markup():
    table = MetricsTable(["<b>name", "n"], [["<script>alert(1)</script>", "1"]], [False, True])
    shown = table._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<b>" not in shown
    assert shown.count("<tr>") == 2 and "right" in shown


def test_comparisons_and_scores_show_themselves_in_a_notebook(tested, small):
    score = genlab.score(genlab.sample(tested, 12), tested, ["fid"], extractor=small["extractor"])
    for shown, word in ((genlab.compare([tested]), "dcgan_digits"), (score, "fid@12vs797")):
        html = shown._repr_html_()
        assert word in html and html.startswith("<table>") and "<li>" in html
        assert word in str(shown)


# Samples in one file


SPEC = DataSpec("grey", (1, 4, 5), num_classes=3, levels=17)


def rows_of(numbers):
    """Images that say their number, and labels."""
    levels = (numbers.reshape(-1, 1, 1, 1) + torch.arange(20).reshape(1, 1, 4, 5)) % 17
    return to_float(levels.to(torch.uint8), 17), numbers % 3


def write(target, num, stop=None, batch_size=7, labelled=True, **about):
    file = SampleFile(target, SPEC, labelled, {"seed": 0, **about})
    drawn = []
    with file:
        for numbers in file.rest(num, batch_size):
            if stop is not None and numbers[0] >= stop:
                return drawn
            images, labels = rows_of(numbers)
            file.append(images, labels if labelled else None)
            drawn += numbers.tolist()
    file.finish(num)
    return drawn


def test_a_file_of_samples_holds_what_evaluation_suites_read(tmp_path):
    write(tmp_path / "s.npz", 25)
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        x, labels = arrays["arr_0"], arrays["arr_1"]
    images, expected = rows_of(torch.arange(25))
    assert x.dtype == np.uint8 and x.shape == (25, 4, 5, 3) and labels.dtype == np.int64
    assert all(np.array_equal(x[..., 0], x[..., channel]) for channel in range(3))
    assert torch.equal(
        bytes_to_levels(torch.from_numpy(x[..., :1]), 17).permute(0, 3, 1, 2), to_levels(images, 17)
    )
    assert labels.tolist() == expected.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    write(tmp_path / "unlabelled.npz", 4, labelled=False)
    assert np.load(tmp_path / "unlabelled.npz").files == ["arr_0"]


@pytest.mark.parametrize("damage", [0, 1, 30])
def test_a_file_that_was_stopped_goes_on_and_is_the_same(damage, tmp_path):
    write(tmp_path / "whole.npz", 25)
    target = tmp_path / "s.npz"
    first = write(target, 25, stop=14)
    part = tmp_path / "s.npz.part"
    with part.open("ab") as file:
        file.write(b"x" * damage)  # half a sample, as a kill leaves one
    second = write(target, 25, batch_size=4)
    assert first + second == list(range(25))
    assert target.read_bytes()[-200:] and not part.exists()
    for name in ("arr_0", "arr_1"):
        assert np.array_equal(np.load(target)[name], np.load(tmp_path / "whole.npz")[name])


def test_a_stopped_file_can_end_earlier_or_later(tmp_path):
    write(tmp_path / "s.npz", 25, stop=14)
    assert write(tmp_path / "s.npz", 10) == []
    assert np.load(tmp_path / "s.npz")["arr_0"].shape[0] == 10


def test_a_file_is_neither_overwritten_nor_gone_on_with_by_other_samples(tmp_path):
    target = tmp_path / "s.npz"
    write(target, 25, stop=14)
    with pytest.raises(ValueError, match="was begun with another seed"):
        write(target, 25, seed=1)
    with pytest.raises(ValueError, match="was begun with another labelled"):
        write(target, 25, labelled=False)
    (tmp_path / "s.npz.part.json").write_text("{")
    with pytest.raises(ValueError, match="was begun with another content"):
        write(target, 25)
    target.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is there already"):
        write(target, 25)
    assert target.read_bytes() == b"mine"


def test_a_large_file_is_written_in_little_memory(tmp_path):
    import tracemalloc

    spec = DataSpec("colours", (3, 64, 64))
    file = SampleFile(tmp_path / "s.npz", spec, False, {})
    x = torch.zeros(50, 3, 64, 64)
    tracemalloc.start()
    with file:
        for _ in range(60):
            file.append(x, None)  # 37 MB in all
    file.finish(3_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6 and (tmp_path / "s.npz").stat().st_size > 36e6


def test_a_stopped_command_goes_on_with_the_same_samples(trained, genlab_command, tmp_path, monkeypatch):
    from genlab.cli import sample

    whole, target = tmp_path / "whole.npz", tmp_path / "s.npz"
    given = ("sample", trained.path, "-n", 30, "--batch_size", 8, "--to")
    assert genlab_command(*given, whole)[0] == 0
    draw, drawn = sample.draw, []

    def counted(model, index, *others):
        if len(drawn) == 16:
            os.kill(os.getpid(), signal.SIGINT)
        drawn.extend(index.tolist())
        return draw(model, index, *others)

    monkeypatch.setattr(sample, "draw", counted)
    code, _, error = genlab_command(*given, target)
    assert code == 130 and "16 of 30 are drawn; the same command goes on" in error and not target.exists()
    code, _, error = genlab_command(*given, target, "--seed", "1")
    assert code == 2 and "another seed" in error
    drawn = []
    monkeypatch.setattr(
        sample, "draw", lambda model, index, *o: drawn.extend(index.tolist()) or draw(model, index, *o)
    )
    code, out, error = genlab_command(*given, target)
    assert code == 0 and out.strip().endswith("s.npz") and drawn == list(range(16, 30)), error
    assert np.array_equal(np.load(target)["arr_0"], np.load(whole)["arr_0"])
    code, _, error = genlab_command(*given, target)
    assert code == 2 and "is there already" in error


# How far it is


@pytest.mark.parametrize(
    "terminal, patience, shown", [(True, 0.0, True), (True, 9.0, False), (False, 0.0, False)]
)
def test_what_takes_long_shows_on_a_terminal_how_far_it_is(
    terminal, patience, shown, trained, small, monkeypatch, tmp_path
):
    output = io.StringIO()
    output.isatty = lambda: terminal
    monkeypatch.setattr(progress, "PATIENCE", patience)
    x = genlab.sample(trained, 12)
    monkeypatch.setattr(sys, "stderr", output)
    genlab.score(x, trained, ["fid"], extractor=small["extractor"])
    for title in ("features of test", "scoring"):
        assert (title in output.getvalue()) is shown


def test_a_bar_counts_every_part_once(monkeypatch):
    output = io.StringIO()
    output.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", output)
    bars = []
    monkeypatch.setattr(progress, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    parts = torch.arange(25).split(10)
    assert [len(part) for part in progress.watched(parts, "title", 25, "thing", patience=0.0)] == [10, 10, 5]
    assert bars[0].n == bars[0].total == 25
