"""A text and pairs of images through every command: fit, resume, test, sample, compare and report."""

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import differences

from genlab.runs.folder import Run, list_runs

GPT = (
    *("--config", "experiments/gpt_shakespeare.yaml", "--data", "NumberText", "--data.numbers", "200"),
    *("--data.context", "16", "--data.batch_size", "4", "--model.network.init_args.num_layers", "1"),
    *("--model.network.init_args.num_heads", "2", "--model.network.init_args.width", "16"),
    *("--budget.evaluate_every", "256", "--model.schedule.warmup", "0", "--trainer.accelerator", "cpu"),
    *("--evaluate.at_start", "false", "--samples.num", "2", "--experiment", "gpt"),
)
PIX2PIX = (
    *("--config", "experiments/pix2pix_facades.yaml", "--data.image_size", "16", "--data.batch_size", "2"),
    *("--model.generator.init_args.base_channels", "4", "--model.discriminator.init_args.base_channels", "4"),
    *("--model.discriminator.init_args.num_layers", "1", "--budget.evaluate_every", "4"),
    *("--trainer.accelerator", "cpu", "--evaluate.at_start", "false", "--experiment", "pix2pix"),
)


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"


@pytest.fixture
def double_pictures(tmp_path):
    """Negatives of random blocks beside the blocks, 6 to learn from and 3 held out."""
    random = np.random.default_rng(0)
    for number in range(9):
        blocks = np.kron(random.integers(0, 256, (4, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
        folder = tmp_path / "pairs" / ("train" if number < 6 else "val")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([255 - blocks, blocks], axis=1)).save(folder / f"{number}.png")
    return tmp_path / "pairs"


def trained(genlab_command, outputs, options, budget):
    code, _, error = genlab_command("fit", *options, "--budget.examples", budget)
    assert code == 0, error
    return list_runs(outputs)[-1]


def weights(run: Run):
    return torch.load(run.checkpoints / "last.ckpt", weights_only=True)


def test_a_text_walks_through_every_command(genlab_command, outputs, tmp_path):
    whole = trained(genlab_command, outputs, (*GPT, "--run_name", "whole"), 512)
    parts = trained(genlab_command, outputs, (*GPT, "--run_name", "parts"), 256)
    code, _, error = genlab_command("resume", parts.path, "--budget.examples", 512)
    assert code == 0 and differences(weights(whole), weights(parts)) == [], error
    assert whole.read()["spec"]["vocabulary"] == parts.read()["spec"]["vocabulary"]  # by its digest
    assert len(list(whole.samples.glob("samples_*.txt"))) == 3

    code, out, error = genlab_command("test", whole.path)
    values = whole.read()["test"]["values"]
    assert code == 0 and "bits_per_byte" in out and whole.read()["test"]["speed"]["nfe"] == 16, error
    assert 0 < values["bits_per_byte"] < 8 and values["perplexity"] > 1
    copies = whole.read()["test"]["copies"]
    assert (copies["num"], copies["length"]) == (256, 40) and copies["num_pieces"] > 256 * 10
    assert 0 <= copies["share"] < 1 and 0 <= copies["test_share"] < 1 and "copy share" in out
    assert "of the samples stand" in (whole.path / "test" / "passages.txt").read_text() or copies["longest"]

    asked = ("sample", whole.path, "--prompt", "12 ", "--length", 20, "--seed", 3)
    code, out, _ = genlab_command(*asked)
    assert code == 0 and out.startswith("12 ") and len(out) == 3 + 20 + 1
    assert genlab_command(*asked)[1] == out and genlab_command(*asked[:-1], 4)[1] != out
    code, _, error = genlab_command("sample", whole.path, "--prompt", "Ω")
    assert code == 2 and "'Ω'" in error and error.count("\n") == 1

    code, out, _ = genlab_command("compare", outputs, "--markdown")
    assert code == 0 and "bits/byte" in out and "tokens seen" in out
    assert "copies %" in out and "unseen text (floor)" in out
    assert genlab_command("report", whole.path, "-o", tmp_path / "report.html")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert "of the pieces of its samples stand in the training text" in page and "word for word" in page


def test_pairs_walk_through_every_command(genlab_command, outputs, double_pictures, tmp_path):
    options = (*PIX2PIX, "--data.path", double_pictures)
    whole = trained(genlab_command, outputs, (*options, "--run_name", "whole"), 12)
    parts = trained(genlab_command, outputs, (*options, "--run_name", "parts"), 8)
    code, _, error = genlab_command("resume", parts.path, "--budget.examples", 12)
    assert code == 0 and differences(weights(whole), weights(parts)) == [], error

    code, out, error = genlab_command("test", whole.path)
    values = whole.read()["test"]["values"]
    assert code == 0 and "psnr" in out and -1 <= values["ssim"] <= 1, error

    folder = tmp_path / "drawn"
    code, _, error = genlab_command("sample", whole.path, "-n", 3, "--output", folder)
    assert code == 0 and len(list(folder.glob("0*.png"))) == 3, error
    with Image.open(folder / "grid.png") as grid, Image.open(double_pictures / "val" / "6.png") as pair:
        source, target = (np.asarray(grid)[40, 2 + place * 66 + 32] for place in (0, 2))
        expected = np.asarray(pair.resize((32, 16), Image.Resampling.BOX))[9, [24, 8]]
    # Beside the output stand its own source and its own target, resampled.
    assert np.abs(source.astype(int) - expected[0]).max() <= 10
    assert np.abs(target.astype(int) - expected[1]).max() <= 10
    page = tmp_path / "report.html"
    code, _, error = genlab_command("report", outputs, "-o", page)
    assert code == 0 and "PSNR" in page.read_text(), error
