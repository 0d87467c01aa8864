"""Two processes are one: equal parameters, the gradients of the joined batch, the same scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# One worker, so that the two trainings of the fixture are not made twice.
pytestmark = pytest.mark.xdist_group("several_processes")

TESTS = Path(__file__).parent
MLP = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")
SMALL = (
    "--model.generator.init_args.base_channels",
    "8",
    "--model.discriminator.init_args.base_channels",
    "8",
)
SGD = tuple(
    part
    for player in ("generator", "discriminator")
    for part in (f"--model.{player}_optimizer", "torch.optim.SGD", f"--model.{player}_optimizer.lr", "0.1")
)


def fit(folder, extractor, *options):
    """Trains in processes of its own; returns the run's folder."""
    folder.mkdir()
    environment = {
        **os.environ,
        "GENLAB_OUTPUTS": str(folder),
        "GENLAB_TEST_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "genlab", "fit", "--config", "experiments/dcgan_digits.yaml"]
    command += ["--allow", "rank_weights", "--trainer.callbacks+=rank_weights.SaveWeights"]
    command += ["--extractor", str(extractor), "--evaluate.num_samples", "31", "--samples.num", "4"]
    command += ["--budget.images", "640", "--budget.evaluate_every", "320", "--trainer.accelerator", "cpu"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = folder.glob("*/*/run.json")
    return record.parent


def last_scores(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: value for name, value in rows[-1].items() if name.startswith("val/")}


def record_after_test(run, *options):
    """Tests a run in processes of its own; returns its record."""
    environment = {
        **os.environ,
        "GENLAB_TEST_FOLDER": str(run),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "genlab", "test", str(run), "--allow", "rank_weights"]
    command += ["--trainer.accelerator", "cpu", "--evaluate.num_test_samples", "31"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads((run / "run.json").read_text())


@pytest.fixture(scope="module")
def joined_and_split(tmp_path_factory, tiny_extractor):
    """One process with batches of 64, and two with 32 each; without batch norm, and with plain SGD."""
    folder = tmp_path_factory.mktemp("processes")
    options = (*MLP, *SGD, "--model.penalty", "R1", "--model.discriminator_steps", "2")
    one = fit(folder / "one", tiny_extractor(1), *options)
    two = fit(
        folder / "two", tiny_extractor(1), *options, "--data.batch_size", "32", "--trainer.devices", "2"
    )
    return folder, one, two


def test_two_processes_hold_bit_equal_parameters_after_training(joined_and_split):
    folder, _, _ = joined_and_split
    a, b = (torch.load(folder / "two" / f"rank{rank}.pt") for rank in range(2))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_train_as_one_on_the_joined_batch(joined_and_split):
    folder, _, _ = joined_and_split
    one, two = (torch.load(folder / name / "rank0.pt") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6


def test_two_processes_give_the_scores_of_one(joined_and_split):
    _, one, two = joined_and_split
    a, b = last_scores(one), last_scores(two)
    assert a.keys() == b.keys() and any("fid" in name for name in a)
    assert all(a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-5) for name in a)


def test_two_processes_test_as_one_and_measure_what_one_measures(joined_and_split):
    _, one, _ = joined_and_split
    variants = ("--variants", json.dumps({"same": {"model.discriminator_steps": 3}}))
    alone, both = (record_after_test(one, *variants, "--trainer.devices", number) for number in ("1", "2"))
    assert alone["test"]["arguments"] != both["test"]["arguments"]
    for a, b in ((alone["test"], both["test"]), (alone["variants"]["same"], both["variants"]["same"])):
        assert a.keys() == b.keys() and a["values"].keys() == b["values"].keys()
        assert all(
            a["values"][name] == pytest.approx(b["values"][name], rel=1e-4, abs=1e-5) for name in a["values"]
        )
        assert a["copies"]["share"] == b["copies"]["share"] and a["floor"] == pytest.approx(b["floor"])
        assert b["speed"]["nfe"] == 1 and b["pictures"]


def test_two_processes_count_the_images_of_both(joined_and_split):
    _, one, two = joined_and_split
    counts = [json.loads((run / "run.json").read_text())["images_seen"] for run in (one, two)]
    assert counts == [640, 640]


def test_batch_norm_buffers_are_equal_before_an_evaluation(tmp_path, tiny_extractor):
    fit(
        *(tmp_path / "norm", tiny_extractor(1), *SMALL, "--data.batch_size", "32", "--trainer.devices", "2"),
        *("--model.discriminator.init_args.norm", "batch"),
    )
    a, b = (torch.load(tmp_path / "norm" / f"buffers{rank}.pt") for rank in range(2))
    running = [name for name in a if "running" in name]
    assert running and all(torch.equal(a[name], b[name]) for name in a)
    weights = [torch.load(tmp_path / "norm" / f"rank{rank}.pt") for rank in range(2)]
    parameters = [name for name in weights[0] if name.endswith(("weight", "bias"))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in parameters)
