"""Two processes are one: equal parameters, the gradients of the joined batch, the same scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# One worker, so that the two trainings of a fixture are not made twice.
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


FLOW = (
    *("--model.bijection.num_steps", "2", "--model.bijection.network.hidden_channels", "8"),
    *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.02", "--model.schedule.warmup", "0"),
)


def fit(folder, extractor, *options, experiment="dcgan_digits"):
    """Trains in processes of its own; returns the run's folder."""
    folder.mkdir()
    environment = {
        **os.environ,
        "GENLAB_OUTPUTS": str(folder),
        "GENLAB_TEST_FOLDER": str(folder),
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "genlab", "fit", "--config", f"experiments/{experiment}.yaml"]
    command += ["--allow", "rank_weights", "--trainer.callbacks+=rank_weights.SaveWeights"]
    command += ["--extractor", str(extractor), "--evaluate.num_samples", "31", "--samples.num", "4"]
    command += ["--budget.examples", "640", "--budget.evaluate_every", "320", "--trainer.accelerator", "cpu"]
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
    options = (*MLP, *SGD, "--model.balance.penalty", "R1", "--model.balance.discriminator_steps", "2")
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
    variants = ("--variants", json.dumps({"same": {"model.balance.discriminator_steps": 3}}))
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
    counts = [json.loads((run / "run.json").read_text())["examples_seen"] for run in (one, two)]
    assert counts == [640, 640]


@pytest.fixture(scope="module")
def joined_and_split_diffusion(tmp_path_factory, tiny_extractor):
    """A diffusion model with labels, some of them hidden, in one process and in two."""
    folder = tmp_path_factory.mktemp("diffusion")
    options = (
        *("--model.network.init_args.channels", "[8,8]", "--model.network.init_args.num_groups", "4"),
        *("--model.sampler.init_args.grid.init_args.num_steps", "3", "--model.objective.dequantise", "true"),
        *("--model.given", "[label]", "--model.guidance.dropout", "0.3", "--model.optimizer.lr", "0.1"),
        *("--model.optimizer", "torch.optim.SGD", "--model.half_life", "200"),
    )
    one = fit(folder / "one", tiny_extractor(1), *options, experiment="ddpm_digits")
    two = fit(
        *(folder / "two", tiny_extractor(1), *options, "--data.batch_size", "32", "--trainer.devices", "2"),
        experiment="ddpm_digits",
    )
    return folder, one, two


def test_two_processes_train_a_diffusion_model_as_one_does(joined_and_split_diffusion):
    folder, one, two = joined_and_split_diffusion
    ranks = [torch.load(folder / "two" / f"rank{rank}.pt") for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    alone = torch.load(folder / "one" / "rank0.pt")
    assert any(name.startswith("average") for name in alone)
    assert max(float((alone[name] - ranks[0][name]).abs().max()) for name in alone) < 1e-5
    a, b = last_scores(one), last_scores(two)
    assert a.keys() == b.keys() and {"val/loss", "val/x_error@1"} <= a.keys()
    assert all(a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4) for name in a)


@pytest.fixture(scope="module")
def joined_and_split_flows(tmp_path_factory, tiny_extractor):
    """Glow in one process with batches of 64, and in two with 32 each."""
    folder = tmp_path_factory.mktemp("flows")
    for name, batch_size, devices in (("one", "64", "1"), ("two", "32", "2")):
        options = ("--data.batch_size", batch_size, "--trainer.devices", devices)
        fit(folder / name, tiny_extractor(1), *FLOW, *options, experiment="glow_digits")
    return folder


def test_a_flow_in_two_processes_holds_bit_equal_weights_and_statistics(joined_and_split_flows):
    a, b = (torch.load(joined_and_split_flows / "two" / f"rank{rank}.pt") for rank in range(2))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert all(a[name] for name in a if name.endswith("initialised"))


def test_a_flow_in_two_processes_is_that_of_one_on_the_joined_batch(joined_and_split_flows):
    one, two = (torch.load(joined_and_split_flows / name / "rank0.pt") for name in ("one", "two"))
    changed = [name for name in one if one[name].is_floating_point() and "average" not in name]
    assert any(name.endswith("log_scale") for name in changed)
    assert max(float((one[name] - two[name]).abs().max()) for name in changed) < 1e-5


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


def test_two_processes_learn_the_codebook_and_the_networks_of_one(tmp_path, tiny_extractor):
    """With plain SGD; dead codes start anew in the first batch and after it."""
    options = (
        *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"),
        *("--model.encoder.init_args.base_channels", "4", "--model.decoder.init_args.base_channels", "4"),
        *("--model.codebook.init_args.reset_below", "0.9", "--data.flip", "true"),
    )
    split = ("--data.batch_size", "32", "--trainer.devices", "2")
    one = fit(tmp_path / "one", tiny_extractor(1), *options, experiment="vqvae_digits")
    two = fit(tmp_path / "two", tiny_extractor(1), *options, *split, experiment="vqvae_digits")
    alone = torch.load(tmp_path / "one" / "rank0.pt")
    first, second = (torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in range(2))
    assert alone["codebook.num_updates"] == 10
    assert all(torch.equal(first[name], second[name]) for name in alone)
    assert all(torch.allclose(first[name], alone[name], atol=1e-5) for name in alone)
    a, b = last_scores(one), last_scores(two)
    assert a["val/perplexity"] > 2 and all(a[name] == pytest.approx(b[name], rel=1e-4) for name in a)
