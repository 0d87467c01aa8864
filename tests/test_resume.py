"""Stopped and resumed equals never stopped, to the bit."""

import json

import pytest
import torch

MLP = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")
SMALL = (
    "--model.generator.init_args.base_channels",
    "4",
    "--model.discriminator.init_args.base_channels",
    "4",
)
CODES = (
    *("--model.encoder.init_args.base_channels", "4", "--model.decoder.init_args.base_channels", "4"),
    *("--trainer.callbacks", "[]"),
)
CASES = {
    "convolutions": SMALL,
    "three_discriminator_steps": (
        *SMALL,
        "--model.discriminator_steps",
        "3",
    ),  # stopped in the middle of a cycle
    "five_discriminator_steps": (*MLP, "--model.discriminator_steps", "5"),
    "all_options": (
        *SMALL,
        *("--model.discriminator.init_args.spectral_norm", "true"),
        *("--model.penalty", "R1", "--model.penalty.init_args.every", "2"),
        *("--model.balance.augment", "DiffAugment", "--model.given", "[label]", "--data.flip", "true"),
    ),
    "reading_processes": (*MLP, "--data.num_workers", "2"),
    "bfloat16": (*SMALL, "--trainer.precision", "bf16-mixed"),
}
AUTOENCODERS = {
    "vae_with_warmup_and_free_bits": (
        *("vae_digits", "--model.schedule.warmup", "2000", "--model.free_bits", "0.1"),
        *("--model.schedule.decay", "2560"),
    ),
    "importance_weighted_augmented_vae": (
        *("cvae_digits", "--model.num_train_samples", "3", "--model.augment", "AffineAugment"),
        *("--trainer.callbacks", "[]"),
    ),
    "vqvae_with_dead_codes": ("vqvae_digits", *CODES, "--model.codebook.init_args.reset_below", "0.9"),
    "autoencoder_with_noise": (
        *("autoencoder_digits", *CODES, "--model.noise_std", "0.2"),
        *("--model.sampler.init_args.num_components", "3"),
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
    )


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


@pytest.mark.parametrize("case", [*CASES, *AUTOENCODERS])
@pytest.mark.parametrize("stop_at", [640, 1280], ids=["mid_first_epoch", "mid_second_epoch"])
def test_resumed_training_equals_uninterrupted_training_bit_for_bit(
    case, stop_at, options_of, genlab_command, tmp_path, monkeypatch
):
    """An epoch has 15 batches of 64; the run is stopped after 10 or 20 and goes on to 40."""
    experiment, *options = AUTOENCODERS.get(case) or ("dcgan_digits", *CASES[case])
    for name, budget in (("whole", 2560), ("parts", stop_at)):
        monkeypatch.setenv("GENLAB_OUTPUTS", str(tmp_path / name))
        code, _, error = genlab_command("fit", *options_of(experiment), *options, "--budget.examples", budget)
        assert code == 0, error
    parts, whole = only_run(tmp_path / "parts"), only_run(tmp_path / "whole")
    code, _, error = genlab_command("resume", parts, "--budget.examples", "2560")
    assert code == 0, error
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, parts))
    assert a["examples_seen"] == 2560
    assert differences(a, b) == []
    assert lines(whole) == lines(parts)


DIFFUSION = {
    "chain": (),
    "all_options": (
        *("--model.process", "VPSDE", "--model.objective.dequantise", "true", "--model.given", "[label]"),
        *("--model.guidance.dropout", "0.2", "--model.guidance", "2.0", "--model.weighting", "MinSNR"),
        *("--model.network.init_args.dropout", "0.1", "--trainer.accumulate_grad_batches", "2"),
        *("--model.schedule.warmup", "320", "--model.schedule.decay", "2560"),
    ),
}


@pytest.mark.parametrize("case", DIFFUSION)
def test_a_resumed_diffusion_model_equals_the_uninterrupted_one_bit_for_bit(
    case, genlab_command, tiny_extractor, tmp_path, monkeypatch
):
    common = (
        *("--config", "experiments/ddpm_digits.yaml", "--extractor", tiny_extractor(1)),
        *("--evaluate.num_samples", "16", "--samples.num", "4", "--trainer.log_every_n_steps", "1"),
        *("--trainer.accelerator", "cpu", "--budget.evaluate_every", "640"),
        *("--model.network.init_args.channels", "[8,8]", "--model.network.init_args.num_groups", "4"),
        *("--model.sampler.init_args.grid.init_args.num_steps", "2"),
    )
    for name, budget in (("whole", 2560), ("parts", 640)):  # the latter between two steps of two batches
        monkeypatch.setenv("GENLAB_OUTPUTS", str(tmp_path / name))
        code, _, error = genlab_command("fit", *common, *DIFFUSION[case], "--budget.examples", budget)
        assert code == 0, error
    parts, whole = only_run(tmp_path / "parts"), only_run(tmp_path / "whole")
    code, _, error = genlab_command("resume", parts, "--budget.examples", "2560")
    assert code == 0, error
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, parts))
    assert a["examples_seen"] == 2560 and any("average" in name for name in a["state_dict"])
    assert differences(a, b) == []
    assert lines(whole) == lines(parts)


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
