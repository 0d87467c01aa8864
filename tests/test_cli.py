"""What a person types, and what they get: folders, tables, pictures, one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genlab.cli.main import OTHERS, TRAINING
from genlab.runs.folder import list_runs, open_run

DIGITS = ("--config", "experiments/dcgan_digits.yaml")
NETWORKS = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")


@pytest.fixture
def small(tiny_extractor):
    return (
        *(*DIGITS, *NETWORKS, "--extractor", tiny_extractor(1), "--trainer.accelerator", "cpu"),
        *("--evaluate.num_samples", "20", "--evaluate.num_test_samples", "20", "--samples.num", "4"),
        *("--budget.examples", "640", "--budget.evaluate_every", "320"),
    )


@pytest.fixture
def trained(small, copy_of_trained):
    """Returns the folder of a finished run."""
    return copy_of_trained(*small)


def python(*code_lines, **options):
    code = "; ".join(code_lines)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **options)


@pytest.mark.parametrize("arguments", [["--help"], [], ["runs"], ["--version"], ["nonsense"]])
def test_help_and_lists_do_not_import_torch(arguments):
    code = (
        "import sys",
        "from genlab.cli.main import main",
        f"main({arguments})",
        "print('torch' in sys.modules)",
    )
    assert python(*code).stdout.strip().endswith("False")


def test_help_lists_every_command_in_under_a_second():
    start = time.monotonic()
    text = python("from genlab.cli.main import main", "main(['--help'])").stdout
    assert time.monotonic() - start < 1.0
    for name in (*TRAINING, *OTHERS):
        assert f"  {name} " in text


def test_a_run_leaves_a_folder_that_says_everything(trained, genlab_command):
    record = json.loads((trained / "run.json").read_text())
    assert record["status"] == "finished" and record["examples_seen"] == 640
    assert record["data"]["counts"] == {"train": 900, "val": 100, "test": 797}
    assert record["training_seconds"] > 0 and record["parameters"] > 1000
    assert any(name.startswith("val/fid@20vs100") for name in record["validation"])
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["class_path"] == "genlab.families.gan.GAN"
    pictures = sorted(path.name for path in (trained / "samples").glob("*.png"))
    assert pictures == [f"samples_{seen:010d}.png" for seen in (0, 320, 640)]
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    }
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    scored = [row["examples_seen"] for row in rows if any("fid" in name for name in row)]
    assert scored == [0, 320, 640]
    assert (trained / "metrics.csv").read_text().count("\n") == len(rows) + 1
    code, out, _ = genlab_command("runs")
    assert code == 0 and "dcgan_digits" in out and "finished" in out


def test_test_of_a_run_prints_every_score_with_its_protocol_and_keeps_it(
    trained, short_measures, genlab_command
):
    with short_measures():
        code, out, error = genlab_command("test", trained)
    assert code == 0, error
    for name in ("fid", "kid", "is", "precision", "recall", "duplicates"):
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name}@"))
        protocol = "20 samples (ema, seed 0) against 797 test items of digits"
        assert (protocol if name == "fid" else "as above") in line
    kept = json.loads((trained / "run.json").read_text())["test"]
    assert kept["protocol"]["num_fake"] == 20 and kept["protocol"]["weights"] == "ema"
    assert kept["values"]["fid@20vs797"] > 0


def test_the_same_test_by_configuration_and_checkpoint_gives_the_same_scores(
    trained, short_measures, genlab_command
):
    arguments = ("--config", trained / "config.yaml", "--ckpt_path", trained / "checkpoints/last.ckpt")
    entries = []
    for given in ((trained,), arguments):
        with short_measures():
            assert genlab_command("test", *given)[0] == 0
        entries.append(json.loads((trained / "run.json").read_text())["test"])
    by_run, by_files = entries
    assert by_run["arguments"] != by_files["arguments"]
    for part in ("values", "protocol", "copies", "latent", "floor"):
        assert by_run[part] == by_files[part]


def test_samples_of_a_run_need_no_configuration_and_are_numbered(trained, genlab_command, tmp_path):
    code, out, error = genlab_command("sample", trained, "-n", "5", "--seed", "1")
    assert code == 0, error
    folder = trained / "samples/seed1"
    assert out.strip().endswith("grid.png")
    assert len(list(folder.glob("0*.png"))) == 5
    first = np.asarray(Image.open(folder / "000003.png"))
    genlab_command("sample", trained, "-n", "9", "--seed", "1", "--batch_size", "2", "--output", tmp_path)
    again = np.asarray(Image.open(tmp_path / "000003.png"))
    assert np.abs(first.astype(int) - again).max() <= 16 and (first == again).mean() > 0.9  # one level
    assert first.shape == (8, 8)


def test_predict_writes_one_sample_for_each_item(trained, genlab_command):
    code, _, error = genlab_command("predict", trained)
    assert code == 0, error
    assert len(list((trained / "predictions").glob("*.png"))) == 797


def test_a_fast_dev_run_leaves_nothing_behind(small, genlab_command, tmp_path):
    code, _, error = genlab_command("fit", *small, "--trainer.fast_dev_run", "true")
    assert code == 0, error
    assert not (tmp_path / "outputs").exists()


def test_training_takes_numbers_too_small_to_matter_for_zero(small, genlab_command):
    """Multiplying them takes many times longer on a CPU."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    assert torch.tensor(1e-38) * 0.1 > 0
    code, _, error = genlab_command("fit", *small, "--trainer.fast_dev_run", "true")
    assert code == 0, error
    assert torch.tensor(1e-38) * 0.1 == 0


MISTAKES = {
    "a misspelt command": (["ft"], "Did you mean 'fit'?"),
    "a misspelt option of the data": (
        ["fit", *DIGITS, "--data.batch_sise", "3"],
        "Did you mean 'batch_size'?",
    ),
    "a misspelt option of the trainer": (
        ["fit", *DIGITS, "--trainer.max_epoch", "3"],
        "--trainer.max_epochs",
    ),
    "a misspelt class": (["fit", *DIGITS, "--model.loss", "Hindge"], "Did you mean 'Hinge'?"),
    "a wrong type": (["fit", *DIGITS, "--model.balance.clip", "abc"], "clip must be float or null, got abc"),
    "a misspelt option of a network": (
        ["fit", *DIGITS, "--model.generator.init_args.latent_dmi", "5"],
        "In DCGANGenerator: there is no option 'latent_dmi'. Did you mean 'latent_dim'?",
    ),
    "a missing file": (["fit", "--config", "nowhere.yaml"], "nowhere.yaml"),
    "a folder that is no run": (["test", "tests"], "is not a run"),
    "a missing checkpoint": (["test", *DIGITS, "--ckpt_path", "no.ckpt"], "There is no checkpoint no.ckpt"),
    "too few samples": (["fit", *DIGITS, "--evaluate.num_samples", "1"], "at least 2"),
    "an endless run": (["fit", *DIGITS, "--budget.examples", "null"], "would never end"),
    "a foreign class": (["fit", *DIGITS, "--model", "os_like.evil.Model"], "--allow os_like"),
    "a batch larger than the data": (["fit", *DIGITS, "--data.batch_size", "5000"], "fewer than one batch"),
    "data that are not there": (["fit", "--config", "experiments/gan_mnist.yaml"], "--data.path"),
}


@pytest.mark.fault(38, 55)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_a_short_error_with_its_remedy(mistake, genlab_command):
    arguments, expected = MISTAKES[mistake]
    code, _, error = genlab_command(*arguments)
    message = "\n".join(line for line in error.splitlines() if not line.startswith(("warning", "Run:")))
    assert code == (3 if mistake in ("a batch larger than the data", "data that are not there") else 2)
    assert expected in message
    assert len(message) < 700 and message.count("\n") < 4, message


@pytest.mark.fault(62)
def test_a_secret_of_a_logger_is_refused_before_anything_keeps_it():
    from genlab.cli.settings import refuse_secrets

    logger = {"class_path": "WandbLogger", "dict_kwargs": {"settings": {"api_key": "c4n4ry-5ecret"}}}
    for given, place in ((logger, "logger"), ([logger], "logger[0]")):
        with pytest.raises(ValueError, match=r"is a secret.*WANDB_API_KEY") as refused:
            refuse_secrets({"logger": given})
        assert f"trainer.{place}.dict_kwargs.settings.api_key" in str(refused.value)
        assert "c4n4ry" not in str(refused.value)
    refuse_secrets({"logger": {"class_path": "CSVLogger", "init_args": {"name": "token", "version": None}}})


@pytest.mark.fault(54)
def test_a_configuration_cannot_run_foreign_code(genlab_command, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "evil_package.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = yaml.safe_load(Path("experiments/dcgan_digits.yaml").read_text())
    config["model"]["init_args"]["loss"] = {"class_path": "evil_package.Evil"}
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(config))
    for arguments in (["--config", path], [*DIGITS, "--trainer.callbacks+=evil_package.Evil"]):
        code, _, error = genlab_command("fit", *arguments, "--print_config")
        assert code == 2 and "--allow evil_package" in error
        assert not marker.exists()


@pytest.mark.fault(16)
def test_a_checkpoint_of_another_model_is_refused_with_the_difference(trained, genlab_command):
    checkpoint = ("--ckpt_path", trained / "checkpoints/last.ckpt")
    code, _, error = genlab_command("test", *DIGITS, *checkpoint)
    assert code == 4 and "belongs to another model" in error
    code, _, error = genlab_command("test", "--config", "experiments/classifier_digits.yaml", *checkpoint)
    assert code == 4 and "holds a genlab.families.gan.GAN" in error


@pytest.mark.fault(6)
def test_a_damaged_checkpoint_is_named_in_the_error(trained, genlab_command):
    checkpoint = trained / "checkpoints/last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    arguments = ("--config", trained / "config.yaml", "--ckpt_path", checkpoint)
    code, _, error = genlab_command("test", *arguments)
    assert code == 4 and "last.ckpt is no readable checkpoint" in error


@pytest.mark.fault(52)
def test_an_extractor_that_cannot_be_had_is_said_before_training_and_training_goes_on(
    small, genlab_command, no_inception
):
    code, _, error = genlab_command("fit", *small, "--extractor", "null")
    assert code == 0
    assert error.index("No scores by features in this run") < error.index("320/640")
    values = json.loads((list_runs()[-1].path / "run.json").read_text())["validation"]
    assert values and not any("fid" in name for name in values)


TRAININGS = """
import json, os, sys
import genlab.cli.training  # once for all trainings
from genlab.cli.main import main
for line in sys.stdin:
    training = os.fork()
    if not training:
        os.environ["GENLAB_OUTPUTS"], *arguments = json.loads(line)
        sys.exit(main(arguments))
    print(training, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(training, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def trainings():
    """A process that trains in one of its own for each line of arguments; tells its number and exit code."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", TRAININGS], **pipes, text=True, bufsize=1) as process:
        yield process


@pytest.mark.fault(9)
@pytest.mark.slow
def test_ctrl_c_ends_the_run_with_a_checkpoint_and_its_exit_code(small, tmp_path, trainings, genlab_command):
    """In a process of its own; test_resume and test_going_on send the other signals."""
    arguments = ["fit", *map(str, small), "--budget.examples", "100000000", "--run_name", "stopped"]
    print(json.dumps([str(tmp_path), *arguments]), file=trainings.stdin)
    training, deadline = int(trainings.stdout.readline()), time.monotonic() + 90
    folder = tmp_path / "dcgan_digits" / "stopped"
    while time.monotonic() < deadline and not (folder / "checkpoints/last.ckpt").exists():
        time.sleep(0.05)
    os.kill(training, signal.SIGINT)
    assert int(trainings.stdout.readline()) == 130
    run = open_run(folder)
    assert run.status == "stopped"
    seen = run.read()["examples_seen"]
    assert torch.load(run.last_checkpoint, weights_only=True)["examples_seen"] == seen
    code, _, error = genlab_command("resume", run.path, "--budget.examples", str(seen + 640))
    assert code == 0, error
    assert open_run(run.path).read()["examples_seen"] >= seen + 640


@pytest.mark.fault(56)
def test_a_run_that_is_training_cannot_be_resumed_by_another_process(trained, genlab_command):
    code = (
        "import sys",
        "from genlab.runs.folder import open_run",
        f"lock = open_run({str(trained)!r}).lock()",
        "lock.__enter__()",
        "print('locked', flush=True)",
        "sys.stdin.read()",
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", "; ".join(code)], **pipes) as other:
        assert other.stdout.readline() == "locked\n"
        code, _, error = genlab_command("resume", trained, "--budget.examples", "1280")
        other.stdin.close()
    assert code == 2 and "train" in error


@pytest.mark.fault(20)
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(small, genlab_command):
    arguments = ("--model.generator_optimizer.init_args.lr", "1e30", "--trainer.log_every_n_steps", "1")
    code, _, error = genlab_command("fit", *small, *arguments)
    assert code == 6
    assert "not finite" in error
    run = list_runs()[-1]
    assert run.status == "diverged"
