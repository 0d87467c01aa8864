"""Two processes are one: equal parameters, the gradients of the joined batch, the same scores."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_processes

from genlab.cli.main import main
from genlab.cli.settings import choose_strategy

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


GAN = (*MLP, *SGD, "--model.balance.penalty", "R1", "--model.balance.discriminator_steps", "2")
DIFFUSION = (
    *("--model.network.init_args.channels", "[8]", "--model.network.init_args.num_groups", "4"),
    *("--model.network.init_args.attention", "[]", "--variants", "{}"),
    *("--model.sampler.init_args.grid.init_args.num_steps", "3", "--model.objective.dequantise", "true"),
    *("--model.given", "[label]", "--model.guidance.dropout", "0.3", "--model.optimizer.lr", "0.1"),
    *("--model.optimizer", "torch.optim.SGD", "--model.half_life", "200"),
    *("--model.guidance.guide_after", "300", "--model.guidance.scale", "2.0"),
)
FLOW = (
    *("--model.bijection.num_steps", "2", "--model.bijection.network.hidden_channels", "8"),
    *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.02", "--model.schedule.warmup", "0"),
)
CODES = (
    *("--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"),
    *("--model.encoder.init_args.base_channels", "4", "--model.decoder.init_args.base_channels", "4"),
    *("--model.codebook.init_args.reset_below", "0.9", "--data.flip", "true"),
)
"""Dead codes start anew in the first batch and after it."""

FAMILIES = {"dcgan_digits": GAN, "ddpm_digits": DIFFUSION, "glow_digits": FLOW, "vqvae_digits": CODES}
"""Without batch norm and with plain SGD, so that two processes can be compared with one."""

JOINED = ("--data.batch_size", "64")
SPLIT = ("--data.batch_size", "32", "--trainer.devices", "2")
TEST = (
    *("--variants", json.dumps({"same": {"model.balance.discriminator_steps": 3}})),
    *("--evaluate.num_test_samples", "31", "--trainer.accelerator", "cpu", "--trainer.devices"),
)


def fit_arguments(experiment, extractor, *options):
    return [
        *("fit", "--config", f"experiments/{experiment}.yaml", "--run_name", "run"),
        *("--allow", "rank_weights", "--trainer.callbacks+=rank_weights.SaveWeights"),
        *("--extractor", str(extractor), "--evaluate.num_samples", "31", "--samples.num", "4"),
        *("--budget.examples", "640", "--budget.evaluate_every", "640", "--trainer.accelerator", "cpu"),
        *options,
    ]


def in_processes(command, **more):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_extractor, short_measures):
    """Every family in one process with batches of 64, and in two with 32 each; the GAN is tested by both."""
    folder, extractor = tmp_path_factory.mktemp("processes"), tiny_extractor(1)
    commands = []
    with pytest.MonkeyPatch.context() as patch, short_measures():
        for name in ("GENLAB_RUN", "GENLAB_ALLOW", "PL_GLOBAL_SEED"):
            patch.setenv(name, "")
        patch.setenv("GENLAB_CACHE", str(folder / "cache"))
        for experiment, options in FAMILIES.items():
            one, two = folder / "one" / experiment, folder / "two" / experiment
            for path in (one, two):
                path.mkdir(parents=True)
            patch.setenv("GENLAB_OUTPUTS", str(one))
            patch.setenv("GENLAB_TEST_FOLDER", str(one))
            assert main(fit_arguments(experiment, extractor, *options, *JOINED)) == 0
            split = fit_arguments(experiment, extractor, *options, *SPLIT)
            commands.append((split, str(two), f"{experiment}/run"))
        run = folder / "one" / "dcgan_digits" / "dcgan_digits" / "run"
        tested = shutil.copytree(run, folder / "tested")
        assert main(["test", str(run), "--allow", "rank_weights", *TEST, "1"]) == 0
        arguments = ["test", str(tested), "--allow", "rank_weights", *TEST, "2"]
        commands.append((arguments, str(folder), "tested"))
        in_processes([two_processes.__file__, json.dumps(commands)])
    return folder


def ranks_of(trained, experiment):
    """What each of the two processes holds at the end of training."""
    return [torch.load(trained / "two" / experiment / f"rank{rank}.pt") for rank in range(2)]


def of_one(trained, experiment):
    return torch.load(trained / "one" / experiment / "rank0.pt")


def runs_of(trained, experiment):
    return [trained / number / experiment / experiment / "run" for number in ("one", "two")]


def last_scores(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {name: value for name, value in rows[-1].items() if name.startswith("val/")}


@pytest.mark.parametrize("experiment", FAMILIES)
def test_two_processes_hold_bit_equal_parameters_and_buffers_after_training(experiment, trained):
    a, b = ranks_of(trained, experiment)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("experiment", "tolerance"), [("dcgan_digits", 1e-6), ("ddpm_digits", 1e-5)])
def test_two_processes_train_as_one_on_the_joined_batch(experiment, tolerance, trained):
    one, two = of_one(trained, experiment), ranks_of(trained, experiment)[0]
    assert one.keys() == two.keys() and any("average" in name or "ema" in name for name in one)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < tolerance


@pytest.mark.fault(31)
@pytest.mark.parametrize(("experiment", "tolerance"), [("dcgan_digits", 1e-5), ("ddpm_digits", 1e-4)])
def test_two_processes_give_the_scores_of_one(experiment, tolerance, trained):
    a, b = (last_scores(run) for run in runs_of(trained, experiment))
    assert a.keys() == b.keys() and any("fid" in name for name in a)
    assert experiment != "ddpm_digits" or {"val/loss", "val/x_error@1"} <= a.keys()
    assert all(a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance) for name in a)


def test_two_processes_test_as_one_and_measure_what_one_measures(trained):
    one, _ = runs_of(trained, "dcgan_digits")
    alone, both = (json.loads((run / "run.json").read_text()) for run in (one, trained / "tested"))
    assert alone["test"]["arguments"] != both["test"]["arguments"]
    for a, b in ((alone["test"], both["test"]), (alone["variants"]["same"], both["variants"]["same"])):
        assert a.keys() == b.keys() and a["values"].keys() == b["values"].keys()
        assert all(
            a["values"][name] == pytest.approx(b["values"][name], rel=1e-4, abs=1e-5) for name in a["values"]
        )
        assert a["copies"]["share"] == b["copies"]["share"] and a["floor"] == pytest.approx(b["floor"])
        assert b["speed"]["nfe"] == 1 and b["pictures"]


def test_two_processes_count_the_images_of_both(trained):
    counts = [
        json.loads((run / "run.json").read_text())["examples_seen"]
        for run in runs_of(trained, "dcgan_digits")
    ]
    assert counts == [640, 640]


def test_a_flow_in_two_processes_is_that_of_one_on_the_joined_batch(trained):
    one, two = of_one(trained, "glow_digits"), ranks_of(trained, "glow_digits")[0]
    assert all(two[name] for name in two if name.endswith("initialised"))
    changed = [name for name in one if one[name].is_floating_point() and "average" not in name]
    assert any(name.endswith("log_scale") for name in changed)
    assert max(float((one[name] - two[name]).abs().max()) for name in changed) < 1e-5


def test_two_processes_learn_the_codebook_and_the_networks_of_one(trained):
    alone, first = of_one(trained, "vqvae_digits"), ranks_of(trained, "vqvae_digits")[0]
    assert alone["codebook.num_updates"] == 10
    assert all(torch.allclose(first[name], alone[name], atol=1e-5) for name in alone)
    a, b = (last_scores(run) for run in runs_of(trained, "vqvae_digits"))
    assert a["val/code_perplexity"] > 2 and all(a[name] == pytest.approx(b[name], rel=1e-4) for name in a)


@pytest.mark.parametrize(
    ("strategy", "devices", "found"),
    [
        ("auto", 2, "ddp_find_unused_parameters_true"),
        ("ddp", 2, "ddp_find_unused_parameters_true"),
        ("ddp_spawn", 2, "ddp_spawn_find_unused_parameters_true"),
        ("ddp", 1, "ddp"),
        ("fsdp", 2, "fsdp"),
        ({"class_path": "DDPStrategy"}, 2, {"class_path": "DDPStrategy"}),
    ],
)
def test_alternating_optimisers_look_for_weights_without_a_gradient(strategy, devices, found):
    trainer = {"strategy": strategy, "devices": devices, "num_nodes": 1, "accelerator": "cpu"}
    choose_strategy({"trainer": trainer, "model": {"class_path": "genlab.families.gan.GAN"}})
    assert trainer["strategy"] == found
    choose_strategy({"trainer": trainer, "model": {"class_path": "genlab.families.vae.VAE"}})
    assert trainer["strategy"] == found


@pytest.mark.slow
def test_batch_norm_buffers_are_equal_before_an_evaluation(tmp_path, tiny_extractor):
    """In two processes of which the first starts the second."""
    options = (*SMALL, *SPLIT, "--model.discriminator.init_args.norm", "batch")
    arguments = fit_arguments("dcgan_digits", tiny_extractor(1), *options)
    folders = {"GENLAB_OUTPUTS": str(tmp_path), "GENLAB_TEST_FOLDER": str(tmp_path)}
    in_processes(["-m", "genlab", *arguments], **folders)
    assert len(list(tmp_path.glob("*/*/run.json"))) == 1
    a, b = (torch.load(tmp_path / f"buffers{rank}.pt") for rank in range(2))
    running = [name for name in a if "running" in name]
    assert running and all(torch.equal(a[name], b[name]) for name in a)
    weights = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    parameters = [name for name in weights[0] if name.endswith(("weight", "bias"))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in parameters)
