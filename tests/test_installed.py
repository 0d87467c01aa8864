"""Experiments by name, wherever genlab is typed: in a checkout, in an empty folder, from a wheel."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import yaml

from genlab.cli.experiments import COLUMNS
from genlab.configuration import experiments
from genlab.configuration.experiments import Experiment
from genlab.runs.bench import Bench, Budget
from genlab.runs.folder import list_runs

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, where things are typed."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_every_experiment_is_found_by_its_name_from_anywhere(elsewhere):
    assert experiments.experiments() == {path.stem: path for path in FILES}
    for path in FILES:
        for name in (path.stem, path.name, f"experiments/{path.name}"):
            assert experiments.find(name) == path
    for name in ("nowhere", "a/dcgan_digits", "/experiments/dcgan_digits.yaml", "dcgan_digits.json", ""):
        assert experiments.find(name) is None


def test_an_own_experiment_comes_before_one_of_the_same_name_and_the_others_stay(elsewhere):
    own = elsewhere / "experiments" / "gan_digits.yaml"
    own.parent.mkdir()
    own.write_text("model: {class_path: GAN}\n")
    assert experiments.find("gan_digits").samefile(own)
    assert experiments.find("vae_digits") == ROOT / "experiments/vae_digits.yaml"
    assert experiments.folder().samefile(own.parent)


def test_an_experiment_trains_by_its_name_in_an_empty_folder(elsewhere, genlab_command):
    code, out, error = genlab_command("fit", "--config", "dcgan_digits", "--print_config")
    assert code == 0, error
    assert yaml.safe_load(out)["model"]["class_path"] == "genlab.families.gan.GAN"


@pytest.mark.parametrize("name", ["dcgan_digts", "dcgandigits.yaml", "experiments/dcgan-digits.yaml"])
def test_a_misspelt_name_is_answered_by_the_nearest_ones(name, elsewhere, genlab_command):
    code, _, error = genlab_command("fit", "--config", name)
    assert code == 2 and name in error and "Nearest: dcgan_digits" in error and error.count("\n") == 1


def test_a_misspelt_first_stage_is_answered_by_the_nearest_ones_and_a_right_one_by_its_training(
    elsewhere, genlab_command
):
    first_stage = ("fit", "--config", "vqprior_digits", "--model.first_stage")
    for name, remedy in (("vqvae_digts", "Nearest: vqvae_digits"), ("fsq_digits", "--config fsq_digits")):
        code, _, error = genlab_command(*first_stage, name)
        assert code == 2 and remedy in error


def test_the_list_says_family_data_paper_and_score_of_each_and_words_choose(elsewhere, genlab_command):
    code, out, _ = genlab_command("experiments")
    assert code == 0
    heading, *lines = out.splitlines()
    assert heading.split() == list(COLUMNS)
    assert [line.split()[0] for line in lines] == [path.stem for path in FILES]
    (line,) = (line for line in lines if line.startswith("dcgan_digits "))
    assert all(
        text in line for text in ("GAN", "Digits", "Radford et al. 2016, arXiv:1511.06434", "fid@797 1.17")
    )
    code, out, _ = genlab_command("experiments", "DDPM", "celeba")
    assert code == 0 and [line.split()[0] for line in out.splitlines()[1:2]] == ["ddpm_celeba"]
    assert "79 million parameters" in out  # of one, its whole head
    code, _, error = genlab_command("experiments", "ddpmdigits")
    assert code == 2 and "Nearest: ddpm_digits" in error


def test_what_an_experiment_says_of_itself_is_in_its_file():
    """Families and data by the YAML's own classes; papers with a year; scores wherever a head has some."""
    for path in FILES:
        one, config = Experiment(path), yaml.safe_load(path.read_text())
        assert one.family == config["model"]["class_path"].rsplit(".")[-1]
        assert one.data.startswith(config["data"]["class_path"].rsplit(".")[-1])
        assert not one.paper or re.search(r" (19|20)\d\d\b", one.paper)
        assert one.paper in " ".join(one.head.split())
        assert one.measured or not re.search(r"^Measured[^:]*: \d", one.head, re.MULTILINE)


def test_a_copy_is_the_file_and_nothing_is_overwritten(elsewhere, genlab_command):
    code, out, _ = genlab_command("experiments", "--copy", "ddpm_digits")
    copy = elsewhere / "ddpm_digits.yaml"
    assert code == 0 and out.strip() == "ddpm_digits.yaml"
    assert copy.read_bytes() == (ROOT / "experiments/ddpm_digits.yaml").read_bytes()
    copy.write_text("mine")
    for target in ((), ("--output", "."), ("--output", "ddpm_digits.yaml")):
        code, _, error = genlab_command("experiments", "--copy", "ddpm_digits", *target)
        assert code == 2 and "is there already" in error and copy.read_text() == "mine"
    code, _, _ = genlab_command("experiments", "--copy", "ddpm_digits", "--output", "new/mine.yaml")
    assert code == 0 and (elsewhere / "new/mine.yaml").is_file()
    code, _, error = genlab_command("experiments", "--copy", "ddpm_digts")
    assert code == 2 and "Nearest: ddpm_digits" in error


def test_a_bench_in_an_empty_folder_compares_what_genlab_brings_first_stages_included(
    elsewhere, genlab_command
):
    code, _, error = genlab_command("bench", "digits", "--families", "vqprio")
    assert code == 2 and "Did you mean 'vqprior'?" in error
    own = elsewhere / "mine_digits.yaml"
    own.write_text("model: {class_path: Latent, init_args: {first_stage: vqvae_digits}}\n")
    plan = Bench(elsewhere / "bench", {"mine_digits": own}, Budget(2), 1)
    assert plan.needs("mine_digits") == "vqvae_digits"
    (job,) = plan.stage_jobs
    assert f"--config={ROOT / 'experiments/vqvae_digits.yaml'}" in plan.fit(job)


def test_the_list_of_experiments_does_not_import_torch(elsewhere):
    code = "from genlab.cli.main import main; main(['experiments']); import sys; exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the setuptools that are there of a copy of what a checkout holds."""
    pytest.importorskip("setuptools", "77")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("genlab", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", target]
    subprocess.run([*pip, *options, source], check=True, timeout=300)
    (file,) = target.glob("*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_carries_every_experiment_and_no_records(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = [
        name.removeprefix("genlab/experiments/") for name in names if name.startswith("genlab/experiments/")
    ]
    assert sorted(inside) == sorted(["README.md", *(path.name for path in FILES)])
    for name in ("genlab/py.typed", "genlab/__init__.pyi", "genlab/report/page.html"):
        assert name in names
    assert not [name for name in names if name.split("/")[0] in ("experiments", "tests", "benchmarks")]


@pytest.mark.slow
def test_genlab_of_a_wheel_trains_by_name_in_an_empty_folder(wheel, elsewhere, tmp_path):
    """In an environment of its own, which finds the other packages where this one has them."""
    home = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True, timeout=300)
    (packages,) = home.glob("[lL]ib/**/site-packages")
    packages.joinpath("others.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def genlab(*arguments):
        command = [python, "-m", "genlab", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, cwd=elsewhere
        )

    where = subprocess.run(
        [python, "-c", "import genlab; print(genlab.__file__)"],
        env=environment,
        capture_output=True,
        text=True,
        cwd=elsewhere,
    )
    assert Path(where.stdout.strip()).is_relative_to(packages)
    assert len(genlab("experiments").stdout.splitlines()) == len(FILES) + 1
    assert genlab("experiments", "--copy", "gan_digits").returncode == 0
    few = ("--budget.examples", "100", "--budget.evaluate_every", "null", "--trainer.accelerator", "cpu")
    no_scores = ("--evaluate.at_start", "false", "--evaluate.num_samples", "8", "--samples.num", "0")
    for config in ("dcgan_digits", "gan_digits.yaml", "vqvae_digits", "vqprior_digits"):
        trained = genlab("fit", "--config", config, *few, *no_scores)
        assert trained.returncode == 0, trained.stderr
    assert {run.experiment for run in list_runs()} == {
        "dcgan_digits",
        "gan_digits",
        "vqvae_digits",
        "vqprior_digits",
    }
