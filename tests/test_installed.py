"""Experiments by name, wherever genlab is typed: in a checkout, in an empty folder, from a wheel."""

import json
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
def built(tmp_path_factory):
    """What setuptools makes of a copy of a checkout: source distribution, its wheel, the checkout's wheel."""
    pytest.importorskip("setuptools", "77")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("genlab", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    make = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", make, target], cwd=source, check=True, capture_output=True, timeout=300
    )
    (archive,) = target.glob("*.tar.gz")
    wheels = []
    for place, origin in ((target / "of_sdist", archive), (target / "of_checkout", source)):
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q"]
        options = ["--no-deps", "--no-build-isolation", "--no-index", "-w", place]
        subprocess.run([*pip, *options, origin], check=True, timeout=300)
        wheels += place.glob("*.whl")
    return archive, *wheels


def contents(wheel):
    """The bytes of each file of a wheel, but those that tell of the wheel itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


@pytest.mark.slow
def test_the_wheel_carries_every_experiment_and_all_that_genlab_reads_beside_its_code(built):
    inside = contents(built[1])
    brought = {name.removeprefix("genlab/experiments/") for name in inside if "genlab/experiments/" in name}
    assert brought == {"README.md", *(path.name for path in FILES)}
    listed = subprocess.run(["git", "ls-files", "genlab"], cwd=ROOT, capture_output=True, text=True)
    assert {name for name in listed.stdout.split() if (ROOT / name).is_file()} <= inside.keys()
    assert {name.split("/")[0] for name in inside} == {"genlab"}


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel_as_the_checkout(built):
    _, of_archive, of_checkout = built
    assert contents(of_archive) == contents(of_checkout)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The programs of an environment of its own, which finds all but genlab where this one has it."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", programs / "python"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", built[1]], check=True, timeout=300)
    (packages,) = home.glob("[lL]ib/**/site-packages")
    packages.joinpath("others.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n")
    return programs


FEW = ("--budget.evaluate_every=null", "--trainer.accelerator=cpu", "--evaluate.at_start=false")
FEW += ("--budget.examples=100", "--evaluate.num_samples=8", "--samples.num=0")
RUN = "outputs/gan_digits/mine"

SHELL = (
    ("--version",),
    ("experiments", "gan", "digits"),
    ("experiments", "--copy", "gan_digits"),
    ("new", "loss", "my_package/mine"),
    ("--print_completion", "bash"),
)
"""What takes no torch, as a shell starts it."""

COMMANDS = (
    ("fit", "--config=dcgan_digits", "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"),
    ("fit", "--config=gan_digits.yaml", *FEW, "--run_name=mine", "--log_to=[tensorboard]"),
    ("fit", "--config=vqvae_digits", *FEW),
    ("fit", "--config=vqprior_digits", *FEW),
    ("sample", RUN, "-n=64", "--seed=0"),
    ("sample", RUN, "-n=64", "--seed=1", "--to=samples.npz"),
    (
        "score",
        "samples.npz",
        f"{RUN}/samples/seed0",
        "--extractor=digits",
        "--metrics=fid",
        "--output=s.json",
    ),
    ("export", RUN, "--to=safetensors", "-o=weights.safetensors"),
    ("export", RUN, "--to=hub", "-o=folder", "--licence=apache-2.0"),
    ("export", RUN, "--to=onnx", "-o=graph.onnx"),
    ("sample", "weights.safetensors", "-n=2"),
    ("data", "show", f"{RUN}/samples/seed0", "-o=sheet.png", "-n=8"),
    ("report", RUN, "-o=report.html"),
    ("runs", "--family=GAN"),
)
"""What somebody types in an empty folder, who has installed genlab and nothing else of it."""

IN_PYTHON = """
import sys, genlab
run = genlab.fit("gan_digits", {"budget.examples": 100, "trainer.accelerator": "cpu", "samples.num": 0})
images = genlab.sample(run, 4, seed=0)
assert images.shape == (4, 1, 8, 8) and abs(images).max() <= 1
assert genlab.load("weights.safetensors").spec.name == "digits"
assert "gan_digits" in str(genlab.compare([run]))
"""


@pytest.mark.slow
def test_all_that_one_does_with_genlab_works_from_a_wheel_in_an_empty_folder(installed, tmp_path):
    """What is light has a process of its own; the others share one, since most of each is torch's import."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GENLAB"))
    }
    environment |= {"GENLAB_CACHE": str(tmp_path / "cache"), "WANDB_MODE": "offline"}

    def started(*command):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
        )
        print("$", *command[1:], done.stdout, done.stderr, sep="\n")
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    where = started(installed / "python", "-c", "import genlab; print(genlab.__file__)")
    assert Path(where.strip()).is_relative_to(installed.parent)
    version, listed, copied, made, completion = (started(installed / "genlab", *rest) for rest in SHELL)
    assert version.startswith("genlab ") and "dcgan_digits" in listed and copied.strip() == "gan_digits.yaml"
    assert "my_package" in made and "complete" in completion
    code = "import json, sys; from genlab.cli.main import main\nfor line in json.loads(sys.argv[1]):\n"
    code += "    print('$ genlab', *line, flush=True)\n    assert main(line) == 0"
    started(installed / "python", "-c", code, json.dumps(COMMANDS))
    started(installed / "python", "-c", IN_PYTHON)
    assert numpy.load(folder / "samples.npz")["arr_0"].shape == (64, 8, 8, 3)
    for name in ("s.json", "graph.onnx", "sheet.png", "report.html", "my_package/mine.py", f"{RUN}/run.json"):
        assert (folder / name).is_file(), name
    card = (folder / "folder/README.md").read_text(encoding="utf-8")
    assert "license: apache-2.0" in card and "Licence of the data: CC BY 4.0" in card
    trained = {path.name for path in (folder / "outputs").iterdir()}
    assert {"gan_digits", "vqvae_digits", "vqprior_digits"} <= trained
    assert list((folder / RUN).rglob("events.out.tfevents*"))
