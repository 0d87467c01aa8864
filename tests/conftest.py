"""Every test has its own outputs and cache, and one thread."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down twentyfold

import pytest
import torch

torch.set_num_threads(1)


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
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


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
