"""Stopped and resumed equals never stopped, to the bit."""

import json
import os
import signal
from contextlib import contextmanager

import pytest
import torch

from genlab.callbacks.record import RunRecorder

BUDGET = None  # ends by its budget, which is raised then
MLP = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")
CODES = (
    *("--model.encoder.init_args.base_channels", "4", "--model.decoder.init_args.base_channels", "4"),
    *("--trainer.callbacks", "[]"),
)
DENOISER = (
    *("--model.network", "{class_path: MLPDenoiser, init_args: {hidden: [16, 16]}}", "--variants", "{}"),
    *("--model.sampler.init_args.grid.init_args.num_steps", "2"),
)
# An epoch has 15 batches of 64, an evaluation follows each tenth. A run of 30 is sent a signal after so many
# examples, in the middle of an epoch, a cycle or a step of two batches; or its budget is raised at its end.
CASES = {
    "within_a_cycle_of_discriminator_steps": (
        *(704, "dcgan_digits", *MLP, "--model.balance.discriminator_steps", "3"),
        *("--model.balance.penalty", "R1", "--data.flip", "true", "--model.given", "[label]"),
        *("--seed_everything", "3"),
    ),
    "before_an_evaluation_with_reading_processes": (1280, "dcgan_digits", *MLP, "--data.num_workers", "2"),
    "fitted_sampler": (
        *(BUDGET, "autoencoder_digits", *CODES, "--model.noise_std", "0.2"),
        *("--model.sampler.init_args.num_components", "3"),
    ),
    "accumulated_batches_and_a_schedule": (
        *(704, "ddpm_digits", *DENOISER, "--model.objective.dequantise", "true", "--model.given", "[label]"),
        *("--model.guidance.dropout", "0.2", "--model.guidance.scale", "2.0"),
        *("--model.objective.weighting", "MinSNR", "--trainer.accumulate_grad_batches", "2"),
        *("--model.schedule.warmup", "320", "--model.schedule.decay", "1920"),
    ),
    "layers_that_the_first_batch_initialises": (
        *(1344, "glow_digits", "--data.batch_size", "64", "--model.bijection.num_steps", "1"),
        *("--model.bijection.num_levels", "2", "--model.bijection.network.hidden_channels", "8"),
    ),
}
WALL_CLOCK = ("seconds",)


@pytest.fixture
def options_of(tiny_extractor):
    """The options of a short run of an experiment."""
    return lambda experiment: (
        *("--config", f"experiments/{experiment}.yaml", "--extractor", tiny_extractor(1)),
        *("--evaluate.num_samples", "16", "--samples.num", "4", "--trainer.log_every_n_steps", "1"),
        *("--trainer.accelerator", "cpu", "--budget.evaluate_every", "640"),
        *("--trainer.limit_val_batches", "2"),
    )


@contextmanager
def signals(examples, *numbers):
    """Sends this process signals as soon as a training has seen so many examples; None for none."""
    logged = RunRecorder.on_train_batch_end

    def send(self, trainer, model, *rest):
        if model.examples_seen == examples:
            for number in numbers:
                os.kill(os.getpid(), number)
        logged(self, trainer, model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecorder, "on_train_batch_end", send)
        yield


def only_run(folder):
    (record,) = folder.glob("*/*/run.json")
    return record.parent


def differences(a, b, place=""):
    """The places at which two checkpoints differ, times of the clock apart."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = [name for name in {**a, **b} if name not in WALL_CLOCK]
        return [d for name in names for d in differences(a.get(name), b.get(name), f"{place}.{name}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{place}[{i}]")
        ]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    return [] if a == b else [place]


def lines(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in WALL_CLOCK} for row in rows]


SLOW = "before_an_evaluation_with_reading_processes"


@pytest.mark.fault(7, 11)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case == SLOW else case for case in CASES]
)
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(
    case, options_of, genlab_command, tmp_path, monkeypatch
):
    """By the command, with all that a run keeps; test_families resumes the other settings of families."""
    stop_at, experiment, *options = CASES[case]
    for name, budget, at in (("whole", 1920, None), ("parts", 1920 if stop_at else 640, stop_at)):
        monkeypatch.setenv("GENLAB_OUTPUTS", str(tmp_path / name))
        with signals(at, signal.SIGTERM):
            arguments = ("fit", *options_of(experiment), *options, "--budget.examples", budget)
            code, _, error = genlab_command(*arguments)
        assert code == (143 if at else 0), error
    parts, whole = only_run(tmp_path / "parts"), only_run(tmp_path / "whole")
    assert lines(parts) == lines(whole)[: len(lines(parts))]
    code, _, error = genlab_command("resume", parts, *(() if stop_at else ("--budget.examples", "1920")))
    assert code == 0, error
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, parts))
    assert a["examples_seen"] == b["examples_seen"] >= 1920
    assert differences(a, b) == []
    assert lines(whole) == lines(parts)


@pytest.mark.fault(10)
def test_lines_written_after_the_last_checkpoint_are_written_once(options_of, genlab_command, tmp_path):
    """A killed run has logged more than it has saved; the resumed one writes those lines again."""
    code, _, error = genlab_command("fit", *options_of("dcgan_digits"), *MLP, "--budget.examples", "1280")
    assert code == 0, error
    run = only_run(tmp_path / "outputs")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"examples_seen": 1344, "step": 21, "seconds": 9.0, "train/loss": 1.0}\n')
    code, _, error = genlab_command("resume", run, "--budget.examples", "1920")
    assert code == 0, error
    seen = [row["examples_seen"] for row in lines(run) if "train/loss" in row]
    assert seen == list(range(64, 1921, 64))


def test_the_comparison_of_checkpoints_finds_one_changed_bit():
    a = {"state": [torch.zeros(3)], "n": 1, "seconds": 1.0}
    assert differences(a, {"state": [torch.zeros(3)], "n": 1, "seconds": 2.0}) == []
    changed = torch.zeros(3)
    changed[1] = torch.finfo(torch.float32).tiny
    assert differences(a, {"state": [changed], "n": 2}) == [".state[0]", ".n"]
