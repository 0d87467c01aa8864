"""When things happen: budgets end runs exactly, health sees collapse, checkpoints survive."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from genlab.callbacks import checkpoints
from genlab.callbacks.budget import Budget
from genlab.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints
from genlab.callbacks.clock import TrainingClock
from genlab.callbacks.divergence import not_finite, read_losses
from genlab.callbacks.health import Health
from genlab.callbacks.progress import ProgressLine, duration, short
from genlab.runs.folder import list_runs
from genlab.runs.metrics_file import read_metrics

TINY = (
    *("--config", "experiments/dcgan_digits.yaml", "--trainer.accelerator", "cpu"),
    *("--trainer.limit_val_batches", "1"),
)
MLP = ("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator")


@pytest.mark.parametrize(("images", "batch_size", "expected"), [(1000, 64, 1024), (600, 100, 600)])
def test_a_budget_of_images_ends_with_the_batch_that_reaches_it(
    images, batch_size, expected, genlab_command, tiny_extractor
):
    code, _, error = genlab_command(
        *("fit", *TINY, *MLP, "--extractor", tiny_extractor(1), "--evaluate.num_samples", "8"),
        *("--budget.examples", images, "--budget.evaluate_every", 500, "--data.batch_size", batch_size),
    )
    assert code == 0, error
    assert list_runs()[-1].read()["examples_seen"] == expected


def test_a_budget_of_seconds_counts_training_alone(genlab_command, tiny_extractor):
    start = time.monotonic()
    code, _, error = genlab_command(
        *("fit", *TINY, *MLP, "--extractor", tiny_extractor(1), "--evaluate.num_samples", "8"),
        *("--budget.examples", "null", "--budget.seconds", "1.0", "--budget.evaluate_every", "640"),
    )
    assert code == 0, error
    seconds = list_runs()[-1].read()["training_seconds"]
    assert 1.0 <= seconds < time.monotonic() - start


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_budget_of_epochs_is_lightnings_own(epochs, genlab_command, tiny_extractor):
    code, _, error = genlab_command(
        *("fit", *TINY, *MLP, "--extractor", tiny_extractor(1), "--evaluate.num_samples", "8"),
        *("--budget", "{}", "--trainer.max_epochs", epochs),
    )
    assert code == 0, error
    assert list_runs()[-1].read()["examples_seen"] == epochs * 14 * 64


@pytest.mark.parametrize(("name", "value"), [("examples", 0), ("seconds", -1.0), ("evaluate_every", 0)])
def test_a_budget_that_is_not_positive_is_refused(name, value):
    with pytest.raises(ValueError, match=f"budget.{name} must be positive"):
        Budget(**{name: value})


@pytest.mark.parametrize(
    ("images", "every", "per_batch"), [(1000, 300, 64), (320_000, 32_000, 64), (10, 100, 4), (999, 10, 7)]
)
def test_the_last_evaluation_falls_on_the_end_of_the_run(images, every, per_batch):
    budget = Budget(images, evaluate_every=every)
    interval = budget._batches_between_evaluations(per_batch)
    num_batches = -(-images // per_batch)
    num_evaluations = -(-num_batches // interval)
    assert num_evaluations <= max(1, round(images / every))
    assert interval <= num_batches


@pytest.mark.parametrize("evaluations", [1, 7])
def test_evaluations_are_counted_over_a_budget_of_images(evaluations, genlab_command, tiny_extractor):
    options = ("--budget.examples", "1280")
    assert len(evaluated_at(genlab_command, tiny_extractor, evaluations, *options)) == evaluations


def test_evaluations_are_spread_evenly_over_a_budget_of_seconds(genlab_command, tiny_extractor):
    options = ("--budget.examples", "null", "--budget.seconds", "2")
    seconds = evaluated_at(genlab_command, tiny_extractor, 4, *options)
    assert len(seconds) == 4
    for found, due in zip(seconds, (0.5, 1.0, 1.5, 2.0), strict=True):
        assert due <= found < due + 0.25


def evaluated_at(genlab_command, tiny_extractor, evaluations, *options):
    """The training seconds at which a small GAN was evaluated."""
    code, _, error = genlab_command(
        *("fit", *TINY, *MLP, "--extractor", tiny_extractor(1), "--evaluate.num_samples", "8"),
        *("--evaluate.at_start", "false", "--budget.evaluate_every", "null", *options),
        *("--budget.evaluations", evaluations),
    )
    assert code == 0, error
    return [row["seconds"] for row in read_metrics(list_runs()[-1].metrics_jsonl) if "val/generator" in row]


def test_an_extractor_of_other_channels_is_refused_before_training(genlab_command):
    colours = "{class_path: RandomImages, init_args: {shape: [3, 8, 8], num_train: 64, num_test: 8}}"
    code, _, error = genlab_command("fit", *TINY, *MLP, "--data", colours, "--extractor", "digits")
    assert code == 2 and "digits-classifier reads 1 channels, got 3" in error
    assert "img/s" not in error


def test_two_spacings_of_evaluations_are_refused():
    with pytest.raises(ValueError, match=r"evaluations 3 and budget.evaluate_every 10 both space"):
        Budget(examples=100, evaluate_every=10, evaluations=3)
    with pytest.raises(ValueError, match="needs a budget to divide"):
        Budget(evaluations=3)


@pytest.mark.fault(58)
def test_the_clock_stands_still_while_the_model_is_evaluated():
    clock = TrainingClock()
    clock.on_train_batch_start(None, None, None, 0)
    time.sleep(0.05)
    clock.on_train_batch_end(None, None, None, None, 0)
    assert clock.seconds < 0.05  # networks are compiled in the first batch
    clock.on_train_batch_start(None, None, None, 1)
    time.sleep(0.05)
    clock.on_validation_start(None, None)
    seconds = clock.seconds
    time.sleep(0.05)
    assert clock.seconds == seconds >= 0.05
    other = TrainingClock()
    other.load_state_dict(clock.state_dict())
    assert other.seconds == seconds


def test_losses_are_read_as_numbers_in_their_order():
    losses = {"b": torch.tensor(2.0), "a": torch.tensor(1, dtype=torch.bfloat16)}
    assert read_losses(losses) == {"b": 2.0, "a": 1.0} and list(read_losses(losses)) == ["b", "a"]
    assert read_losses({}) == {}


HEALTHY = {
    "val/recall@797": 0.8,
    "val/duplicates@797": 0.01,
    "val/accuracy_real": 0.6,
    "val/accuracy_fake": 0.7,
    "val/luminance_correlation": 0.3,
}
SICK = {
    "recall": {"val/recall@797": 0.2},
    "duplicates": {"val/duplicates@797": 0.6},
    "discriminator": {"val/accuracy_real": 1.0, "val/accuracy_fake": 0.99},
    "inverted": {"val/luminance_correlation": -0.2},
}


def evaluated(health, *evaluations):
    for number, values in enumerate(evaluations):
        trainer = SimpleNamespace(
            sanity_checking=False,
            fast_dev_run=0,
            is_global_zero=True,
            callbacks=[],
            state=SimpleNamespace(fn="fit"),
            callback_metrics={name: torch.tensor(value) for name, value in values.items()},
        )
        signs = ("accuracy_real", "accuracy_fake", "luminance_correlation")
        spec = SimpleNamespace(unit="img")
        model = SimpleNamespace(examples_seen=100 * number, signs=signs, spec=spec)
        health.on_validation_end(trainer, model)
    return health


@pytest.mark.fault(22)
@pytest.mark.parametrize("kind", SICK)
def test_health_flags_what_two_evaluations_in_a_row_show(kind):
    sick = {**HEALTHY, **SICK[kind]}
    health = evaluated(Health(), HEALTHY, sick, sick)
    assert [flag["examples_seen"] for flag in health.flags] == [200]
    assert evaluated(Health(), HEALTHY, sick, HEALTHY, sick).flags == []
    assert len(health.trend) == 3 and health.trend[0]["recall"] == pytest.approx(0.8)


def test_health_has_no_flags_for_a_healthy_or_an_unmeasured_run():
    assert evaluated(Health(), HEALTHY, HEALTHY, HEALTHY).flags == []
    assert evaluated(Health(), {}, {"val/loss": 1.0}).flags == []
    one_sided = {"val/accuracy_real": 1.0, "val/accuracy_fake": 0.1}
    assert evaluated(Health(), one_sided, one_sided).flags == []


@pytest.mark.fault(22)
def test_health_flags_a_loss_that_has_exploded_at_once():
    (flag,) = evaluated(Health(), HEALTHY, {**HEALTHY, "val/loss": -3e27}).flags
    assert flag["examples_seen"] == 100 and "the loss is -3e+27: it has exploded" in flag["problem"]


def test_health_remembers_over_a_resumption():
    sick = {**HEALTHY, **SICK["recall"]}
    before = evaluated(Health(), HEALTHY, sick)
    after = Health()
    after.load_state_dict(before.state_dict())
    assert len(evaluated(after, sick).flags) == 1


@pytest.mark.fault(19)
def test_the_best_checkpoint_is_the_one_of_the_best_score():
    keeper = RunCheckpoints("fid")
    worst_to_best = [
        keeper._improved(SimpleNamespace(callback_metrics={"val/fid@797": torch.tensor(value)}))
        for value in (5.0, 4.0, 4.5, float("nan"), 3.0)
    ]
    assert worst_to_best == [True, True, False, False, True]
    highest = RunCheckpoints("accuracy", "max")
    scores = [SimpleNamespace(callback_metrics={"val/accuracy": torch.tensor(v)}) for v in (0.5, 0.4, 0.6)]
    assert [highest._improved(score) for score in scores] == [True, False, True]


def test_the_clock_is_looked_at_after_every_batch_and_by_one_question_to_all_devices(monkeypatch):
    asked, saved = [], []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda says, all: asked.append(says) or says)
    keeper, trainer = RunCheckpoints(every_minutes=2.0), SimpleNamespace(strategy=strategy)
    monkeypatch.setattr(checkpoints, "evaluation_follows", lambda trainer: False)
    monkeypatch.setattr(checkpoints, "is_ending", lambda trainer: False)
    monkeypatch.setattr(keeper, "save", lambda trainer: saved.append(len(asked)))
    keeper.on_train_batch_end(trainer, None, None, None, 7)
    assert asked == [False] and not saved
    keeper._saved_at -= 121.0
    keeper.on_train_batch_end(trainer, None, None, None, 8)
    assert asked == [False, True, False] and len(saved) == 1
    keeper._saved_at += 121.0
    keeper.request.code = 143
    with pytest.raises(SystemExit, match="143"):
        keeper.on_train_batch_end(trainer, None, None, None, 9)
    assert len(saved) == 2


@pytest.mark.fault(21)
def test_weights_that_are_not_finite_are_noticed():
    network = torch.nn.Linear(3, 2)
    assert not not_finite(network)
    with torch.no_grad():
        network.weight.fill_(1e30)  # whose sum of squares overflows
    assert not not_finite(network)
    with torch.no_grad():
        network.bias[1] = float("inf")
    assert not_finite(network) == "bias"
    norm = torch.nn.BatchNorm1d(2)
    norm.running_mean[1] = float("nan")
    assert not_finite(norm) == "running_mean"


WRITERS = """
import os, sys, torch
from genlab.callbacks.checkpoints import AtomicCheckpointIO
io, path = AtomicCheckpointIO(), sys.argv[1]
while sys.stdin.readline():
    writer = os.fork()
    if writer:
        os.waitpid(writer, 0)
        print("gone", flush=True)
        continue
    for number in range(10**6):
        io.save_checkpoint({"number": number, "weights": torch.full((2_000_000,), float(number))}, path)
        if number == 0:
            print(os.getpid(), flush=True)
"""


@pytest.mark.fault(1)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """Three kills at spread-out moments, each while 8 MB are being written again and again."""
    path = tmp_path / "last.ckpt"
    command, pipes = [sys.executable, "-c", WRITERS, str(path)], {"stdin": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **pipes) as process:
        for trial in range(3):
            process.stdin.write("\n")
            process.stdin.flush()
            writer = int(process.stdout.readline())
            time.sleep(0.0137 * (trial + 1))
            os.kill(writer, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"
            state = torch.load(path, weights_only=True)
            assert (state["weights"] == state["number"]).all()


@pytest.mark.fault(3)
def test_an_error_while_saving_keeps_the_old_checkpoint_and_no_leftover(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"number": 1}, path)
    with pytest.raises((AttributeError, TypeError, RuntimeError, OSError)):
        AtomicCheckpointIO().save_checkpoint({"number": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"number": 1}
    assert os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (950, "950"), (12_800, "12.8k"), (4_812_800, "4.81M"), (3e9, "3G")]
)
def test_numbers_of_images_are_short(number, text):
    assert short(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0s"), (59, "59s"), (72, "1m 12s"), (7260, "2h 01m")])
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_the_time_left_of_a_resumed_run_counts_what_was_left_when_it_was_resumed(monkeypatch):
    """Ten minutes of the four hours that are left have passed, of a budget of eight."""
    budget, now = Budget(seconds=8 * 3600), [1000.0]
    budget.clock.load_state_dict({"seconds": 4 * 3600})
    line = ProgressLine(budget)
    monkeypatch.setattr("genlab.callbacks.progress.time.monotonic", lambda: now[0])
    line.on_train_batch_start(None, SimpleNamespace(examples_seen=500), None, 0)
    now[0] += 600
    budget.clock.load_state_dict({"seconds": 4 * 3600 + 600})
    assert line._left(600, float("inf"), 600.0) == "3h 50m left"
    assert line._left(600, 700, 600.0) == "10m 00s left"  # the examples end it earlier


def test_the_progress_line_shows_images_speed_losses_score_and_time_left():
    budget = Budget(examples=1000)
    line = ProgressLine(budget)
    shown, spec = ("generator", "discriminator"), SimpleNamespace(unit="img", units=1)
    trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch_size=10, spec=spec),
        world_size=1,
        max_epochs=-1,
        max_steps=-1,
        lightning_module=SimpleNamespace(),
        callback_metrics={"val/fid@797": torch.tensor(23.4)},
    )
    losses = {
        "generator": torch.tensor(1.21),
        "discriminator": torch.tensor(0.68),
        "accuracy": torch.tensor(1.0),
    }
    model = SimpleNamespace(examples_seen=250, latest=losses, shown_losses=shown, spec=spec)
    line._start = time.monotonic() - 10
    budget.clock._before = 5.0
    text = line.line(trainer, model)
    assert text == "250/1k img 25% | 50 img/s | generator 1.21 discriminator 0.68 | fid@797 23.4 | 30s left"
