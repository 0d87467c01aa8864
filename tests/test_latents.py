"""Walks through latent spaces, as functions, as pictures of a run, and as commands."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.callbacks.latents import bars, scatter, spread_of_channels
from genlab.cli.interpolate import require_one_shape
from genlab.evaluation.latents import lerp, read_images, reconstruct, slerp, traverse
from genlab.families.vae import VAE
from genlab.losses.likelihoods import DiscretizedLogistic
from genlab.metrics.posterior import ActiveUnits
from genlab.networks.autoencoder import MLPDecoder, MLPEncoder
from genlab.runs.folder import Run
from genlab.shapes import DataSpec

SMALL = ("--evaluate.num_samples", "16", "--evaluate.num_test_samples", "16", "--samples.num", "4")
BUDGET = (
    *("--budget.examples", "128", "--budget.evaluate_every", "64", "--trainer.accelerator", "cpu"),
    *("--trainer.limit_val_batches", "1"),
)
SHRUNK = {
    "ddpm_digits": (
        *("--model.network.init_args.channels", "[8]", "--model.network.init_args.num_groups", "4"),
        *("--model.network.init_args.attention", "[]", "--variants", "{}"),
        *("--model.sampler.init_args.grid.init_args.num_steps", "3"),
    ),
    "crealnvp_digits": ("--model.bijection.network.hidden_channels", "8"),
}


def digits_vae(**options):
    torch.manual_seed(0)
    networks = (partial(MLPEncoder, hidden=[8]), partial(MLPDecoder, hidden=[8]))
    spec = DataSpec("digits", (1, 8, 8), num_classes=10, levels=17)
    return VAE(spec, *networks, DiscretizedLogistic, torch.optim.Adam, **{"latent_dim": 4, **options})


@pytest.mark.parametrize("walk", [lerp, slerp])
def test_a_walk_begins_and_ends_at_its_ends(walk):
    torch.manual_seed(0)
    a, b = torch.randn(2, 5)
    points = walk(a, b, 7)
    assert points.shape == (7, 5)
    assert torch.allclose(points[0], a, atol=1e-6) and torch.allclose(points[-1], b, atol=1e-6)
    assert torch.allclose(walk(b, a, 7), points.flip(0), atol=1e-5)


def test_a_straight_walk_has_equal_steps_and_an_arc_equal_angles():
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    steps = lerp(a, b, 5).diff(dim=0)
    assert torch.allclose(steps, steps[:1].expand(4, 3))
    arc = slerp(a, b, 5)
    assert torch.allclose(arc.norm(dim=1), torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    angles = torch.atan2(arc[:, 1], arc[:, 0])
    assert torch.allclose(angles, torch.arange(5) * math.pi / 8, atol=1e-5)


@pytest.mark.parametrize("b", [[2.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
def test_an_arc_between_parallel_or_empty_ends_is_the_straight_line(b):
    a, b = torch.tensor([1.0, 0.0]), torch.tensor(b)
    assert torch.allclose(slerp(a, b, 4), lerp(a, b, 4))


def test_a_traversal_changes_one_dimension_a_row():
    model, seen = digits_vae(), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    z = torch.tensor([0.5, -0.5, 1.0, 2.0])
    low, high = torch.full((4,), -2.0), torch.full((4,), 2.0)
    assert traverse(model, z, low, high, [1, 3], 5, {}).shape == (10, 1, 8, 8)
    (rows,) = seen
    assert torch.equal(rows[:5, 1], torch.linspace(-2, 2, 5)) and torch.equal(rows[5:, 3], rows[:5, 1])
    assert (rows[:5, [0, 2, 3]] == z[[0, 2, 3]]).all() and (rows[5:, [0, 1, 2]] == z[[0, 1, 2]]).all()


def test_image_files_become_what_the_data_module_would_give(tmp_path):
    levels = torch.randint(17, (8, 8))
    Image.fromarray((levels.float() * 255 / 16).round().byte().numpy()).save(tmp_path / "a.png")
    x = read_images([tmp_path / "a.png"], DataSpec("digits", (1, 8, 8), levels=17))
    assert torch.equal(x[0, 0], levels.float() / 8 - 1)
    with pytest.raises(ValueError, match="brought to a square"):
        read_images([tmp_path / "a.png"], DataSpec("points", (2,)))


def test_active_units_are_those_whose_means_vary():
    torch.manual_seed(0)
    mean = torch.randn(500, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + 3.0
    kl = torch.rand(500, 4)
    metric = ActiveUnits(4)
    for rows in torch.arange(500).split(90):
        metric.update(mean[rows], kl[rows])
    values = metric.compute()
    assert values["active_units"] == 2
    assert torch.allclose(values["kl_per_dim"], kl.double().mean(dim=0))


def test_a_map_of_codes_shows_its_mean_and_the_spread_of_its_channels():
    z = torch.randn(64, 2, 3, 3) * torch.tensor([0.5, 3.0])[:, None, None] + 1.0
    metric = ActiveUnits(18)
    for part in z.split(24):
        metric.update(part.flatten(1), torch.zeros(len(part), 18))
    model = SimpleNamespace(code_spec=DataSpec("codes", (2, 3, 3), levels=0))
    found = spread_of_channels(metric.compute(), model)
    std = z.double().transpose(0, 1).flatten(1).std(dim=1, unbiased=False)
    assert found["code_mean"] == pytest.approx(float(z.double().mean()))
    assert [found["code_std_smallest"], found["code_std_largest"]] == pytest.approx(std.tolist())


def test_a_posterior_that_says_nothing_has_no_active_unit_and_no_kl():
    model = digits_vae()
    model.encoder.layers[-1].weight.data.zero_()
    model.encoder.layers[-1].bias.data.zero_()
    posterior = model.posterior(torch.rand(50, 1, 8, 8))
    metric = ActiveUnits(4)
    metric.update(posterior.mean, posterior.kl())
    assert metric.compute()["active_units"] == 0
    assert metric.compute()["kl_per_dim"].abs().max() == 0


@pytest.mark.parametrize("num_dims", [1, 2, 7])
def test_plots_of_codes_are_drawn_for_any_dimension(num_dims):
    picture = scatter(torch.randn(20, num_dims), torch.arange(20) % 3)
    assert picture.ndim == 3 and picture.std() > 0
    assert bars(torch.rand(num_dims)).dtype == np.uint8


# Commands


@pytest.fixture
def digit_files(tmp_path):
    from sklearn.datasets import load_digits

    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, load_digits().images, strict=False):
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(path)
    return paths


@pytest.fixture
def trained(tiny_extractor, copy_of_trained):
    def train(name, *more):
        extractor = ("--extractor", tiny_extractor(1)) if "vqvae" not in name else ()
        config = ("--config", f"experiments/{name}.yaml")
        return copy_of_trained(*config, *SMALL, *BUDGET, *extractor, *SHRUNK.get(name, ()), *more)

    return train


@pytest.mark.parametrize("name", ["vae_digits", "cvae_digits", "autoencoder_digits", "vqvae_digits"])
def test_a_run_is_scored_reconstructs_and_interpolates(name, trained, digit_files, genlab_command):
    run = trained(name)
    pictures = {path.name.rsplit("_", 1)[0] for path in (run / "samples").glob("*.png")}
    label = ("--label", 3) if name == "cvae_digits" else ()
    code, out, error = genlab_command("reconstruct", run, *digit_files, *label)
    assert code == 0, error
    assert out.count("rms error") == 3 and "reconstructions" in pictures
    written = sorted(path.name for path in (run / "reconstructions").iterdir())
    assert written == ["000000.png", "000001.png", "000002.png", "grid.png"]
    if name == "vqvae_digits":
        for command, reason in (("interpolate", "no latent space"), ("sample", "its codes need a prior")):
            code, _, error = genlab_command(command, run)
            assert code == 2 and reason in error and error.count("\n") == 1
        return
    assert {"samples", "reconstructions", "traversal", "scatter"} <= pictures
    code, out, error = genlab_command("interpolate", run, "--images", *digit_files[:2], "-n", 6, *label)
    assert code == 0, error
    assert Image.open(out.strip()).size == (6 * 66 + 2, 68)
    code, out, error = genlab_command("interpolate", run, "--seeds", 3, 4, "--path", "lerp", *label)
    assert code == 0 and out.strip().endswith("interpolation_seeds3-4_lerp.png"), error


def test_interpolation_between_images_ends_at_their_reconstructions(trained, digit_files, genlab_command):
    run = trained("vae_digits")
    _, out, _ = genlab_command("interpolate", run, "--images", *digit_files[:2], "-n", 4)
    genlab_command("reconstruct", run, *digit_files[:2])
    row = np.asarray(Image.open(out.strip()))
    for number, left in ((0, 2), (1, 2 + 3 * 66)):
        whole = np.asarray(Image.open(run / "reconstructions" / f"{number:06d}.png"))
        end = row[2:66:8, left : left + 64 : 8].astype(int)
        assert np.abs(end - whole).max() <= 16 and (end == whole).mean() > 0.9  # one level


def test_a_gan_interpolates_between_seeds_and_says_that_it_cannot_encode(
    trained, digit_files, genlab_command
):
    networks = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")
    run = trained("dcgan_digits", *networks)
    code, out, error = genlab_command("interpolate", run)
    assert code == 0 and out.strip().endswith("interpolation_seeds0-1_slerp.png"), error
    for arguments in (
        ("interpolate", run, "--images", *digit_files[:2]),
        ("reconstruct", run, digit_files[0]),
    ):
        code, _, error = genlab_command(*arguments)
        assert code == 2 and "cannot encode images" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["crealnvp_digits", "ddpm_digits"])
def test_models_whose_latents_are_noise_interpolate_between_seeds_and_images(
    name, trained, digit_files, genlab_command
):
    run = trained(name)
    label = ("--label", 3) if name == "crealnvp_digits" else ()
    code, out, error = genlab_command("interpolate", run, "-n", 3, *label)
    assert code == 0 and out.strip().endswith("interpolation_seeds0-1_slerp.png"), error
    code, out, error = genlab_command("reconstruct", run, *digit_files[:2], *label)
    assert code == 0, error
    if name == "crealnvp_digits":
        assert all(float(line.split()[-3]) < 0.1 for line in out.splitlines() if "rms error" in line)
    code, _, error = genlab_command("interpolate", run, "--images", *digit_files[:2], "-n", 3, *label)
    assert code == 0, error


def test_several_runs_interpolate_in_rows_of_one_picture(trained, genlab_command):
    runs = {trained("vae_digits"): (), trained("cvae_digits"): ("--label", 3)}
    alone = []
    for run, label in runs.items():
        _, out, error = genlab_command("interpolate", run, "-n", 3, *label)
        alone.append(np.asarray(Image.open(out.strip())))
    code, out, error = genlab_command("interpolate", *runs, "-n", 3, "--label", 3)
    vae, cvae = runs
    assert code == 0 and out.strip() == str(vae / "samples/interpolation_seeds0-1_slerp_of_2_runs.png"), error
    together = np.asarray(Image.open(out.strip()))
    assert together.shape == (2 + 2 * 66, 2 + 3 * 66)
    assert np.array_equal(together[:68], alone[0]) and np.array_equal(together[66:], alone[1])
    assert f"Rows: vae_digits/{vae.name}, cvae_digits/{cvae.name}" in error
    code, out, error = genlab_command("interpolate", *runs, "-n", 3)  # class 0, if none is said
    assert code == 0 and not np.array_equal(together[66:], np.asarray(Image.open(out.strip()))[66:]), error
    code, _, error = genlab_command("interpolate", vae, "--label", 3)
    assert code == 2 and "trained without labels" in error


def test_runs_of_different_images_are_no_rows_of_one_picture():
    one, two = (SimpleNamespace(spec=DataSpec("a", shape, levels=17)) for shape in ((1, 8, 8), (3, 8, 8)))
    with pytest.raises(ValueError, match="one kind of image"):
        require_one_shape([(one, Run(Path("a"))), (two, Run(Path("b")))])


def test_a_conditional_run_asks_for_the_label(trained, digit_files, genlab_command):
    run = trained("cvae_digits")
    for arguments in (("reconstruct", run, digit_files[0]), ("interpolate", run)):
        code, _, error = genlab_command(*arguments)
        assert code == 2 and "--label is missing: this run has labels 0 to 9" in error


def test_the_test_of_a_vae_prints_its_bound_as_a_bound(trained, short_measures, genlab_command):
    run = trained("vae_digits")
    with short_measures():
        code, out, error = genlab_command("test", run, "--model.bound.num_test_samples", 3)
    assert code == 0, error
    nll, bits = (line for line in out.splitlines() if line.startswith(("nll ", "bits_per_dim ")))
    assert "<=, 797 test items" in nll and "k = 3" in nll and "17 levels" in nll
    assert bits.endswith("as above")


def test_reconstruction_is_the_same_each_time():
    model, x = digits_vae(), torch.rand(3, 1, 8, 8)
    assert torch.equal(reconstruct(model, x, {}), reconstruct(model, x, {}))
