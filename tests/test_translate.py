"""`genlab translate`: whatever lies there is translated, named and counted; nothing is lost."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from genlab.cli.translate import score_table
from genlab.evaluation.restoration import enlarged, pair_scores
from genlab.evaluation.tiles import Translator

CONFIG = """
model:
  class_path: Pix2Pix
  init_args:
    given: [source]
    generator: {class_path: UNetGenerator, init_args: {base_channels: 2, norm: instance}}
    discriminator: {class_path: PatchDiscriminator, init_args: {base_channels: 2, num_layers: 1}}
    loss: {class_path: NonSaturating}
    generator_optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
    discriminator_optimizer: {class_path: torch.optim.Adam, init_args: {lr: 1.0e-3}}
data:
  class_path: Degraded
  init_args:
    data: {class_path: Digits}
    degradation: {class_path: Masked}
    batch_size: 64
trainer: {accelerator: cpu, limit_val_batches: 1, limit_train_batches: 1}
budget: {examples: 64}
evaluate: {num_samples: 4, at_start: false, metrics: {psnr: {class_path: PSNR}}}
samples: {num: 2}
"""


@pytest.fixture(scope="module")
def run(trained_once, tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "masked_digits.yaml"
    file.write_text(CONFIG)
    return trained_once("--config", file)


@pytest.fixture(scope="module")
def model(run):
    from genlab.evaluation.load import load_run
    from genlab.runs.folder import Run

    return load_run(Run(run))


def saved(path, size=(20, 13), mode="L", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path, lossless=True)
    return path


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_pictures_of_any_size_and_kind_keep_their_names_and_folders(run, model, tmp_path, genlab_command):
    place, out = tmp_path / "in", tmp_path / "out"
    first = saved(place / "a.png")
    saved(place / "deep/er/b.webp", (3, 50), "RGBA")
    saved(place / "deep/c.png", (8, 8), "RGB")
    saved(place / "deep/c.bmp", (5, 5), "RGB")
    alone = saved(tmp_path / "alone.tiff", (9, 31))
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(first, "packed/d.png")
    code, printed, error = genlab_command("translate", run, place, alone, tmp_path / "more.zip", "-o", out)
    assert code == 0, error
    assert printed.strip().endswith("out")
    assert names_in(out) == [
        *("a.png", "alone.png", "deep/c.bmp.png", "deep/c.png.png", "deep/er/b.png", "packed/d.png")
    ]
    with Image.open(out / "a.png") as image, Image.open(out / "deep/er/b.png") as narrow:
        assert image.size == (20, 13) and narrow.size == (3, 50) and image.mode == "L"
        written = np.asarray(image)
    levels = torch.tensor(np.asarray(Image.open(first))).mul(16 / 255.0).round()[None]
    expected = Translator(model)(levels / 8 - 1)
    assert np.abs(written - (expected[0].numpy() + 1) * 127.5).max() <= 255 / 32 + 0.5
    assert written.std() > 1


def test_tiles_change_no_pixel(run, tmp_path, genlab_command):
    picture = saved(tmp_path / "a.png", (61, 50))
    for name, *options in (("whole", "--tile", 0), ("tiled", "--tile", 16)):
        assert genlab_command("translate", run, picture, "-o", tmp_path / name, *options)[0] == 0
    assert (tmp_path / "whole/a.png").read_bytes() == (tmp_path / "tiled/a.png").read_bytes()


def test_a_broken_picture_is_named_and_the_others_are_done(run, tmp_path, genlab_command):
    whole = saved(tmp_path / "in/b.png").read_bytes()
    (tmp_path / "in/a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in/c.png").write_bytes(b"")
    saved(tmp_path / "in/d.png")
    code, _, error = genlab_command("translate", run, tmp_path / "in", "-o", tmp_path / "out")
    assert code == 3
    assert names_in(tmp_path / "out") == ["b.png", "d.png"]
    assert "! in/a.png: damaged" in error and "! in/c.png: the file is empty" in error
    assert error.splitlines()[-1].startswith(
        "genlab: 2 of 4 pictures could not be translated: in/a.png: damaged"
    )
    assert f"the other 2 are in {tmp_path / 'out'}" in error


def test_nothing_is_written_over_unless_asked_for(run, tmp_path, genlab_command):
    picture = saved(tmp_path / "in/a.png")
    saved(tmp_path / "out/a.png", (1, 1))
    before = (tmp_path / "out/a.png").read_bytes()
    arguments = ("translate", run, tmp_path / "in", "-o", tmp_path / "out")
    code, _, error = genlab_command(*arguments)
    assert code == 2 and "out/a.png would be overwritten" in error and "--overwrite" in error
    assert (tmp_path / "out/a.png").read_bytes() == before
    assert genlab_command(*arguments, "--overwrite")[0] == 0
    assert (tmp_path / "out/a.png").read_bytes() != before
    code, _, error = genlab_command("translate", run, picture, tmp_path / "in", "-o", tmp_path / "two")
    assert code == 2 and "would become" in error and not (tmp_path / "two").exists()


def test_clean_pictures_are_degraded_and_compared(run, model, tmp_path, genlab_command):
    pictures = [saved(tmp_path / f"in/{name}.png", (21, 21), seed=seed) for seed, name in enumerate("ab")]
    code, printed, error = genlab_command(
        "translate", run, tmp_path / "in", "-o", tmp_path / "out", "--degrade"
    )
    assert code == 0, error
    title, *rows, mean, place = printed.splitlines()
    assert title.split() == ["picture", "psnr", "ssim"] and place.endswith("out")
    assert [row.split()[0] for row in rows] == ["in/a.png", "in/b.png"] and mean.split()[0] == "mean"
    first, second = (float(row.split()[1]) for row in rows)
    assert float(mean.split()[1]) == pytest.approx((first + second) / 2, abs=0.011)
    levels = torch.tensor(np.asarray(Image.open(pictures[0]))).mul(16 / 255.0).round()
    with Image.open(tmp_path / "out/a.png") as image:
        errors = np.asarray(image) / 255.0 - levels.numpy() / 16
    assert first == pytest.approx(-10 * np.log10(np.square(errors).mean()), abs=0.05)


def test_what_a_run_cannot_do_is_said(run, trained_once, tiny_extractor, tmp_path, genlab_command):
    picture = saved(tmp_path / "a.png")
    code, _, error = genlab_command("translate", run, picture, "--reverse")
    assert code == 2 and "one direction only" in error
    shutil.copytree(run, tmp_path / "run")
    config = (tmp_path / "run/config.yaml").read_text()
    (tmp_path / "run/config.yaml").write_text(
        config.replace("genlab.data.degraded.Degraded", "genlab.data.digits.Digits")
    )
    code, _, error = genlab_command("translate", tmp_path / "run", picture, "--degrade")
    assert code == 2 and "genlab: " in error


def test_scores_of_pairs_are_those_of_the_metrics_and_a_table_of_means():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 256, (1, 3, 24, 24), generator=generator, dtype=torch.uint8)
    x = target.clone()
    x[..., :2, :] = 0  # within the border, which is left out
    found = pair_scores(x, target, 256, 2)
    assert found["psnr_y"] == found["psnr_rgb"] > 58.0 and found["ssim_y"] == pytest.approx(1.0)
    assert pair_scores(x, target, 256, 0)["psnr_rgb"] < 20.0
    table = score_table({"a": {"psnr_y": 20.0, "ssim_y": 0.5}, "long name": {"psnr_y": 30.0, "ssim_y": 0.7}})
    assert table.splitlines()[-1].split() == ["mean", "25.00", "0.6000"]
    assert score_table({}) == ""


def test_bicubic_enlargement_is_pillows():
    x = torch.randint(64, 192, (1, 1, 9, 7), generator=torch.Generator().manual_seed(0)).float()
    image = Image.fromarray(x[0, 0].byte().numpy()).resize((28, 36), Image.Resampling.BICUBIC)
    expected = torch.tensor(np.asarray(image)).float()
    assert (enlarged(x, 4)[0, 0].clamp(0, 255) - expected).abs().max() <= 1.0
