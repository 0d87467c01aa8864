"""Every test has its own outputs and cache, and one thread."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down twentyfold
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job: it would stay so
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--faults", metavar="ROWS", help="Rows of docs/faults.md, `all` or 6,7; prints each")


def pytest_configure(config):
    if config.option.faults:
        from fault_catalogue import FaultReport

        config.pluginmanager.register(FaultReport(config.option.faults))


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    for name in ("GENLAB_RUN", "GENLAB_ALLOW", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def genlab_command(capsys):
    """Runs the command line in this process; returns exit code, standard output and standard error."""
    from genlab.cli.main import main

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
            gc.collect()  # a stopped training's reading processes, which would hold a browser's pipes open
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """Trains by the command line, once for the same options; returns the folder, which nothing changes."""
    from genlab.cli.main import main
    from genlab.runs.folder import list_runs

    found = {}

    def train(*options):
        options = tuple(str(option) for option in options)
        if options not in found:
            folder = tmp_path_factory.mktemp("trained")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("GENLAB_OUTPUTS", str(folder))
                patch.setenv("GENLAB_CACHE", str(folder / "cache"))
                patch.setenv("GENLAB_RUN", "")
                assert main(["fit", *options]) == 0
            found[options] = list_runs(folder)[-1].path
        return found[options]

    return train


@pytest.fixture
def copy_of_trained(trained_once, tmp_path):
    """Returns the folder of such a run among the test's own outputs, to be tested and changed."""

    def copy(*options):
        run = trained_once(*options)
        target = tmp_path / "outputs" / run.parent.name / run.name
        return target if target.exists() else shutil.copytree(run, target)

    return copy


@pytest.fixture(scope="session")
def short_measures():
    """Makes a test of a run short: its speed by few draws, its latent space by few images.

    A context, for fixtures of any scope. Encoding by a diffusion model takes 16 network evaluations, not 200.
    """
    from functools import partial

    from genlab.evaluation import examine, latent_space
    from genlab.evaluation.speed import measure_speed
    from genlab.families import diffusion

    @contextmanager
    def short():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(latent_space, "FEW", 16)
            patch.setattr(latent_space, "NUM_POINTS", 3)
            patch.setattr(diffusion, "LATENT_STEPS", 4)
            patch.setattr(examine, "measure_speed", partial(measure_speed, seconds=0.05))
            yield

    return short


@pytest.fixture(scope="session")
def tiny_extractor(tmp_path_factory):
    """Returns the file of an extractor of four random features, for images of a number of channels."""
    from genlab.metrics.classifier_extractor import save_extractor
    from genlab.networks.classifier import ConvClassifier
    from genlab.shapes import DataSpec

    folder = tmp_path_factory.mktemp("extractors")

    def path(channels):
        file = folder / f"tiny{channels}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            spec = DataSpec("tiny", (channels, 8, 8), num_classes=4)
            sizes = {"num_features": 4, "base_channels": 4}
            save_extractor(file, ConvClassifier(spec, **sizes), spec, {"init_args": sizes})
        return file

    return path


@pytest.fixture(scope="session")
def two_learners(tmp_path_factory):
    """What each of two processes has that learn together; see `learning_processes`."""
    import learning_processes

    folder = tmp_path_factory.mktemp("learners")
    root = Path(learning_processes.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, learning_processes.__file__, str(folder)]
    subprocess.run(command, env=environment, check=True, timeout=240)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture
def no_inception(monkeypatch):
    """A machine where the weights of the default extractor cannot be had."""
    from genlab.callbacks import evaluate

    monkeypatch.setattr(evaluate, "extractor_available", lambda source: "the weights are not there.")
