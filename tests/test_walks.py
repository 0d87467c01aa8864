"""What a trained diffusion model is good for, as commands: fill in, vary, restore, speed; its pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.callbacks.score_field import ScoreField, exact_score, plane
from genlab.data.toy import EightGaussians, Gaussian2D
from genlab.evaluation.restoration import read_mask, signal_to_noise
from genlab.processes.chain import DiscreteChain
from genlab.runs.folder import list_runs
from genlab.shapes import DataSpec

DIGITS = DataSpec("digits", (1, 8, 8), levels=17)
SMALL = (
    *("--model.network.init_args.channels", "[8]", "--model.network.init_args.num_groups", "4"),
    *("--model.network.init_args.attention", "[]", "--variants", "{}"),
    *("--model.sampler.init_args.grid.init_args.num_steps", "3", "--samples.num", "4"),
    *("--model.likelihood", "VariationalBound", "--model.likelihood.grid", "UniformGrid"),
    *("--model.likelihood.grid.num_steps", "2", "--evaluate.num_samples", "16"),
    *("--budget.examples", "128", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"),
)


@pytest.fixture
def trained(tiny_extractor, copy_of_trained):
    def train(name, *more):
        config = ("--config", f"experiments/{name}.yaml", "--extractor", tiny_extractor(1))
        return copy_of_trained(*config, *SMALL, *more)

    return train


@pytest.fixture
def pictures(tmp_path):
    """An image, a mask of its size, and what a person may give by mistake."""
    rows = np.arange(8)[:, None] * np.ones(8)[None]
    found = {
        "image": np.random.default_rng(0).integers(0, 255, (8, 8)),
        "mask": np.where(rows >= 4, 255, 0),
        "large": np.where(np.arange(16)[:, None] * np.ones(16)[None] >= 8, 255, 0),
        "grey": np.full((8, 8), 128),
        "white": np.full((8, 8), 255),
        "black": np.zeros((8, 8)),
    }
    paths = {name: tmp_path / f"{name}.png" for name in found}
    for name, pixels in found.items():
        Image.fromarray(pixels.astype(np.uint8)).save(paths[name])
    return paths


def cell(picture, row, column):
    """One image of a grid of enlarged digits, in its own pixels."""
    top, left = 2 + row * 66, 2 + column * 66
    return picture[top : top + 64 : 8, left : left + 64 : 8]


@pytest.mark.parametrize("resamplings", [2, 0])
def test_inpainting_keeps_what_is_black_in_the_mask_and_fills_the_rest(
    resamplings, trained, pictures, genlab_command
):
    run = trained("ddpm_digits")
    common = ("--steps", 3, "--resamplings", resamplings, "-n", 2)
    code, out, error = genlab_command("inpaint", run, pictures["image"], pictures["mask"], *common)
    assert code == 0, error
    grid = np.asarray(Image.open(out.strip()))
    original, first, second = cell(grid, 0, 0), cell(grid, 1, 0), cell(grid, 1, 1)
    assert np.array_equal(original[:4], first[:4]) and np.array_equal(original[:4], second[:4])
    assert (first[4:] != original[4:]).any() and (first[4:] != second[4:]).any()
    written = sorted(path.name for path in (run / "inpainted" / "image").iterdir())
    assert written == ["000000.png", "000001.png", "grid.png"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("large", "has 16 x 16 pixels and .* 8 x 8: draw the mask in the size of the image"),
        ("grey", "is grey in 100% of its pixels: black keeps a pixel, white fills it in"),
        ("white", "is all white .* nothing to keep"),
        ("black", "is all black .* nothing to fill in"),
    ],
)
def test_a_mask_that_says_nothing_is_refused_with_its_reason(mask, message, pictures):
    with pytest.raises(ValueError, match=message):
        read_mask(pictures[mask], pictures["image"], DIGITS)
    known = read_mask(pictures["mask"], pictures["image"], DIGITS)
    assert known.shape == (1, 1, 8, 8) and known[0, 0, :4].all() and not known[0, 0, 4:].any()


def test_a_mask_of_a_larger_image_keeps_only_pixels_that_are_wholly_known(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[10:] = 255  # two and a half rows of the small image are known
    paths = [tmp_path / name for name in ("mask.png", "image.png")]
    for path in paths:
        Image.fromarray(mask).save(path)
    known = read_mask(*paths, DIGITS)
    assert known[0, 0, :2].all() and not known[0, 0, 2:].any()


@pytest.mark.parametrize("what", [("--noise", 40), ("--blur", 1.0), ("--shrink", 2)])
def test_restoring_degraded_pictures_prints_what_is_won(what, trained, pictures, genlab_command):
    run = trained("ddpm_digits")
    images = (pictures["image"], pictures["mask"])
    code, out, error = genlab_command("restore", run, *images, "--degrade", *what, "--steps", 3)
    assert code == 0, error
    assert out.count(" dB -> ") == 2
    assert Image.open(run / "restored" / "grid.png").size == (6 * 66 + 2, 68)


def test_restoring_takes_small_pictures_as_they_are(trained, pictures, genlab_command, tmp_path):
    run, small = trained("ddpm_digits"), tmp_path / "small.png"
    Image.fromarray(np.array([[30, 30, 220, 220]] * 4, np.uint8)).save(small)
    code, out, error = genlab_command("restore", run, small, "--shrink", 2, "--steps", 4)
    assert code == 0 and out.strip().endswith("grid.png"), error
    restored = np.asarray(Image.open(run / "restored" / "000000.png")).astype(float)
    # The model knows next to nothing; the measurement says which half is dark.
    assert restored[:, :4].mean() + 50 < restored[:, 4:].mean()


def test_commands_of_a_walk_refuse_what_they_cannot_do_in_one_line(trained, pictures, genlab_command):
    run, image = trained("ddpm_digits"), pictures["image"]
    for arguments, message in (
        (("restore", run, image), "Say what to take out: --noise"),
        (("restore", run, image, "--shrink", 3), "must divide the side 8, got 3"),
        (
            ("restore", run, image, "--noise", -1),
            "--noise: must be a number at least 0 and at most 1000",
        ),
        (("restore", run, image, "--blur", -1), "--blur: must be a number above 0"),
        (("inpaint", run, image, pictures["grey"]), "is grey"),
        (("inpaint", run, image, pictures["mask"], "-n", 0), "-n/--num: must be a whole number from 1"),
        (("inpaint", run, image, pictures["mask"], "--label", 3), "trained without labels"),
        (
            ("sample", run, "--image", image, "--strength", 2),
            "--strength: must be a number above 0 and at most 1",
        ),
        (("speed", run, "--samplers", "magic"), "no sampler is called magic; there are DDIM"),
        (("speed", run, "--passes", 0), "--passes: must be a whole number from 1"),
    ):
        code, _, error = genlab_command(*arguments)
        assert code == 2 and message in error and error.count("\n") == 1, error


def test_a_model_without_a_walk_is_refused_with_the_remedy(
    copy_of_trained, tiny_extractor, pictures, genlab_command
):
    config = ("--config", "experiments/dcgan_digits.yaml", "--extractor", tiny_extractor(1))
    networks = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")
    limits = ("--budget.examples", 64, "--evaluate.num_samples", 16, "--trainer.accelerator", "cpu")
    run, image = copy_of_trained(*config, *networks, *limits), pictures["image"]
    for arguments in (
        ("inpaint", run, image, pictures["mask"]), ("restore", run, image), ("speed", run),
        ("sample", run, "--image", image),
    ):  # fmt: skip
        code, _, error = genlab_command(*arguments)
        assert code == 2 and "is a GAN of digits: this needs a diffusion model" in error


def test_a_sample_from_an_image_resembles_it_the_more_the_weaker_the_noise(
    trained, pictures, genlab_command, tmp_path
):
    run = trained("ddpm_digits", "--model.sampler.init_args.grid.init_args.num_steps", "10")
    original = np.asarray(Image.open(pictures["image"])).astype(float)
    distances = []
    for strength in (0.05, 1.0):
        output = tmp_path / f"from{strength}"
        arguments = ("--image", pictures["image"], "--strength", strength, "-n", 2, "--output", output)
        code, _, error = genlab_command("sample", run, *arguments)
        assert code == 0, error
        found = np.asarray(Image.open(output / "000000.png")).astype(float)
        distances.append(np.abs(found - original).mean())
    assert distances[0] < 0.5 * distances[1]


def test_speed_measures_every_sampler_at_every_price(trained, tiny_extractor, genlab_command):
    run = trained("vpsde_digits")
    arguments = ("--passes", 2, 5, "--num_samples", 16, "--extractor", tiny_extractor(1))
    code, out, error = genlab_command("speed", run, *arguments)
    assert code == 0, error
    found = json.loads((run / "speed" / "speed.json").read_text())
    points = found["points"]
    names = {point["sampler"] for point in points}
    assert {"DDIM, even times", "Heun, Karras grid", "DPM++2M, Karras grid", "Euler-Maruyama"} <= names
    assert len(points) == 2 * len(names) and found["protocol"]["num_fake"] == 16
    by_name = {(p["sampler"], p["passes"]): p for p in points}
    assert ("DDIM, even times", 5) in by_name and ("Heun, Karras grid", 5) in by_name
    assert all(p["metric"] == "fid@16vs100" and np.isfinite(p["value"]) and p["seconds"] > 0 for p in points)
    assert Image.open(run / "speed" / "speed.png").size == (800, 500)
    assert out.count("\n") == len(points) + 2


def test_the_speed_of_a_sampler_is_scored_as_a_validation_scores_it(trained, genlab_command):
    run = trained("ddpm_digits")
    arguments = ("--passes", 3, "--num_samples", 16, "--samplers", "DDIM, even")
    genlab_command("speed", run, *arguments)
    value = json.loads((run / "speed" / "speed.json").read_text())["points"][0]["value"]
    code, out, error = genlab_command("validate", run, "--evaluate.num_samples", 16)
    assert code == 0, error
    (line,) = (line for line in out.splitlines() if line.startswith("fid@"))
    assert float(line.split()[1]) == pytest.approx(value, rel=1e-3)


def test_decibels_are_those_of_the_mean_square_error():
    x = torch.zeros(2, 1, 4, 4)
    found = signal_to_noise(x, torch.stack([x[0] + 0.2, x[0] + 2.0]))
    assert torch.allclose(found, torch.tensor([20.0, 0.0]), atol=1e-4)


# The score's picture


class Analytic:
    """A model whose score is the true one, times a factor."""

    def __init__(self, data, factor=1.0):
        self.data, self.factor, self.process, self.device = data, factor, DiscreteChain(), "cpu"

    def score(self, x_t, level):
        return self.factor * exact_score(self.data, x_t, level)


@pytest.mark.parametrize("data", [Gaussian2D(num_test=200), EightGaussians(num_test=200)])
def test_the_scores_error_is_nought_for_the_true_one_and_two_for_the_wrong_sign(data):
    for factor, error in ((1.0, 0.0), (-1.0, 2.0), (0.5, 0.5)):
        assert ScoreField().error(data, Analytic(data, factor), 0.5) == pytest.approx(error, abs=1e-6)


def test_the_scores_error_is_measured_where_noised_data_lie():
    data, seen = Gaussian2D(num_test=2_000), []

    class Watched(Analytic):
        def score(self, x_t, level):
            seen.append((x_t, level))
            return super().score(x_t, level)

    ScoreField().error(data, Watched(data), 2.0)
    (x_t, level) = seen[0]
    expected = level.alpha**2 * data.covariance + level.sigma**2 * torch.eye(2)
    assert torch.allclose(x_t.T.cov().double(), expected, atol=0.06)


def test_the_exact_score_of_a_tilted_normal_density_is_that_of_its_inverse_covariance():
    data, level = Gaussian2D(), DiscreteChain().level_of(0.8)
    x = plane(2.0, 5)
    marginal = level.alpha**2 * data.covariance + level.sigma**2 * torch.eye(2)
    expected = -(x.double() - level.alpha * data.mean) @ torch.linalg.inv(marginal)
    assert torch.allclose(exact_score(data, x, level).double(), expected, atol=1e-5)


def test_training_on_a_plane_logs_the_scores_error_and_draws_it(genlab_command):
    small = ("--data.num_train", 64, "--data.num_test", 64, "--data.batch_size", 32, "--budget.examples", 64)
    steps = (
        *("--model.sampler.init_args.grid.init_args.num_steps", 3, "--evaluate.num_samples", 16),
        *("--model.likelihood.init_args.num_steps", 1),
    )
    code, _, error = genlab_command(
        "fit", "--config", "experiments/ddpm_gaussian2d.yaml", *small, *steps, "--trainer.accelerator", "cpu"
    )
    assert code == 0, error
    run = list_runs()[-1].path
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"val/score_error@0.1", "val/score_error@0.5", "val/score_error@2"} <= rows[-1].keys()
    assert len(list((run / "samples").glob("score_*.png"))) == 1
    assert len(list((run / "samples").glob("density_*.png"))) >= 1
