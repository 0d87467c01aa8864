"""Lightning's callbacks and settings work on genlab's scores, or name what does; every end has its code."""

import csv
import errno
import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelPruning,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
)
from pytorch_lightning.plugins.precision import MixedPrecision
from pytorch_lightning.utilities.model_summary import summarize
from short_training import train

from genlab.callbacks import checkpoints
from genlab.callbacks.example import ExampleInput
from genlab.callbacks.measured import measured, stable_names
from genlab.cli import main as command_line
from genlab.cli import peers
from genlab.cli.guests import check_precision, check_trainer
from genlab.data.random_images import RandomImages
from genlab.errors import LostPeer, Stopped, StorageError, exit_code, explain
from genlab.families.classifier import Classifier
from genlab.families.gan import GAN
from genlab.files import replacing, require_writable
from genlab.networks.classifier import ConvClassifier
from genlab.runs.folder import Run, list_runs
from genlab.runs.metrics_file import read_metrics
from genlab.shapes import DataSpec

POINTS = (
    *("fit", "--config", "experiments/gan_gaussian1d.yaml", "--trainer.accelerator", "cpu"),
    *("--data.num_train", "512", "--data.num_test", "64", "--data.batch_size", "64"),
    *("--evaluate.num_samples", "32", "--samples.num", "4", "--trainer.log_every_n_steps", "2"),
    *("--trainer.callbacks", "[]"),
)
FOUR = ("--budget.examples", "512", "--budget.evaluate_every", "128")
"""Evaluations."""
DIGITS = ("fit", "--config", "experiments/gan_digits.yaml", "--trainer.accelerator", "cpu")


def callback(name, **arguments):
    return f"--trainer.callbacks+={json.dumps({'class_path': name, 'init_args': arguments})}"


def evaluated(run):
    return [row for row in read_metrics(run.metrics_jsonl) if "val/loss" in row]


class Watch(Callback):
    """Notes the progress bars of a trainer."""

    seen: ClassVar[list[str]] = []

    def on_fit_start(self, trainer, pl_module):
        self.seen += [type(guest).__name__ for guest in trainer.callbacks if isinstance(guest, ProgressBar)]


@pytest.fixture(scope="module")
def visited(trained_once):
    """A run with several of Lightning's callbacks, and the bars that it had."""
    best = {"monitor": "val/fid", "filename": "mine-{step}", "auto_insert_metric_name": False}
    path = trained_once(
        *POINTS[1:],
        *FOUR,
        callback("LearningRateMonitor", logging_interval="step"),
        callback("ModelCheckpoint", **best),
        callback("RichProgressBar"),
        callback("Timer", duration=None),
        *("--allow", __name__, callback(f"{__name__}.Watch")),
    )
    return Run(path), Watch.seen


def test_early_stopping_looks_once_after_each_evaluation(genlab_command):
    monitors = {"val/fid": 2, "val/fid@32vs64": 9, "val/loss": 9}
    never_better = [
        callback("EarlyStopping", monitor=m, patience=p, min_delta=1e6) for m, p in monitors.items()
    ]
    code, shown, error = genlab_command(*POINTS, *FOUR, *never_better, callback("TQDMProgressBar"))
    assert code == 0, error
    run = list_runs()[-1]
    assert [row["examples_seen"] for row in evaluated(run)] == [128, 256, 384]
    assert run.read()["status"] == "finished"
    states = torch.load(run.last_checkpoint, weights_only=True)["callbacks"]
    assert [s["wait_count"] for name, s in states.items() if name.startswith("EarlyStopping")] == [2, 2, 2]
    assert "| fid@" not in error and "Epoch" in shown  # TQDM's bar in place of genlab's line


def test_a_bar_of_ones_own_is_the_only_one(visited):
    assert visited[1] == ["RichProgressBar"]


def test_a_score_is_written_under_its_full_name_alone(visited):
    run, _ = visited
    names = {name for row in read_metrics(run.metrics_jsonl) for name in row}
    assert "val/fid@32vs64" in names and "val/fid" not in names
    assert "val/fid@32vs64" in run.read()["validation"] and "val/fid" not in run.read()["validation"]


def test_a_checkpoint_of_ones_own_is_kept_by_the_best_score(visited):
    run, _ = visited
    best = min(evaluated(run), key=lambda row: row["val/fid@32vs64"])
    kept = {path.name for path in run.checkpoints.glob("*.ckpt")}
    assert kept == {"last.ckpt", "previous.ckpt", "best.ckpt", f"mine-{best['step']}.ckpt"}


def test_learning_rates_stand_beside_the_losses(visited):
    with visited[0].metrics_csv.open() as file:
        rows = list(csv.DictReader(file))
    rates = [row for row in rows if row["lr-Adam"]]
    assert len(rates) == 4 and all(float(row["lr-Adam"]) > 0 and row["train/generator"] for row in rates)
    assert len({row["examples_seen"] for row in rates}) == 4


def test_a_timer_ends_a_run_and_no_bar_is_shown_where_none_is_wanted(genlab_command):
    no_bar = ("--trainer.enable_progress_bar", "false")
    code, _, error = genlab_command(*POINTS, *FOUR, *no_bar, callback("Timer", duration={"milliseconds": 1}))
    assert code == 0 and "/s |" not in error
    assert list_runs()[-1].read()["examples_seen"] == 64, error


def test_a_timer_without_a_duration_is_no_budget(genlab_command):
    unlimited = ("--budget.examples", "null", "--budget.evaluate_every", "null")
    code, _, error = genlab_command(*POINTS, *unlimited, callback("Timer", duration=None))
    assert code == 2 and "would never end" in error and not list_runs()


def test_a_summary_counts_what_an_item_costs():
    spec = DataSpec("tiny", (1, 8, 8), num_classes=4)
    sizes = {"num_features": 4, "base_channels": 4}
    model = Classifier(spec, partial(ConvClassifier, **sizes), torch.optim.Adam)
    data = RandomImages(shape=(1, 8, 8), num_classes=4, num_train=64, num_test=8, batch_size=8)
    data.setup()
    trainer = SimpleNamespace(callbacks=[ModelSummary()], datamodule=data)
    ExampleInput().on_fit_start(trainer, model)
    model.example_input_array = item = data.to_floats(model.example_input_array)
    costs = []

    def count(layer, inputs, output):
        costs.append(2 * layer.weight[0].numel() * output.numel())

    layers = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(**item)
    for hook in hooks:
        hook.remove()
    assert summarize(model).total_flops == sum(costs) > 0


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true", 64, "64", "transformer-engine"])
def test_a_precision_that_models_do_not_train_in_names_those_that_do(precision):
    with pytest.raises(ValueError, match=f"one of 32-true, bf16-mixed, 16-mixed, got {precision}"):
        check_precision(precision)
    assert [check_precision(p) for p in (32, "16", "bf16")] == ["32-true", "16-mixed", "bf16-mixed"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_in_every_precision_for_fused_optimisers_too(fused, precision):
    data = RandomImages((1, 8, 8), num_classes=2, num_train=32, num_test=8, batch_size=8)
    optimizer = partial(torch.optim.SGD, lr=1.0, fused=fused)
    model = Classifier(data.spec, partial(ConvClassifier, num_features=4, base_channels=4), optimizer)
    before = [p.detach().clone() for p in model.parameters()]
    scaled = [MixedPrecision("16-mixed", "cpu")] if precision == "16-mixed" else []
    options = {"plugins": scaled} if scaled else {"precision": precision}
    train(model, data, max_steps=1, gradient_clip_val=1e-3, **options)
    moved = torch.stack([(p - b).norm() for p, b in zip(model.parameters(), before, strict=True)]).norm()
    assert moved.item() == pytest.approx(1e-3, rel=1e-2)


REFUSED = {
    "averaged weights": (StochasticWeightAveraging(0.1), "--model.half_life"),
    "another average": (EMAWeightAveraging(), "--model.half_life"),
    "a search for the batch": (BatchSizeFinder(), "--data.batch_size"),
    "a search for the rate": (LearningRateFinder(), "genlab bench"),
    "a backbone": (BackboneFinetuning(), "no model here"),
    "pruning": (ModelPruning("l1_unstructured"), "no other command reads"),
    "accumulation": (GradientAccumulationScheduler({0: 2}), "--data.batch_size"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_callback_that_cannot_work_names_what_does(kind):
    guest, words = REFUSED[kind]
    with pytest.raises(ValueError, match=f"{type(guest).__name__} cannot be used: .*{words}"):
        check_trainer({"callbacks": [guest], "accumulate_grad_batches": 1}, alternating=True)


def test_a_monitor_of_a_name_that_never_comes_is_refused_when_the_others_are_there(genlab_command):
    code, _, error = genlab_command(*POINTS, *FOUR, callback("EarlyStopping", monitor="val/fidd"))
    assert code == 2 and "monitors val/fidd, which no evaluation measures; there is val/fid" in error
    assert list_runs() == []  # its name is free for the command that is right


@pytest.mark.parametrize("limit", ["max_steps", "max_epochs"])
def test_no_training_is_refused_and_leaves_nothing(limit, genlab_command):
    code, _, error = genlab_command(*POINTS, f"--trainer.{limit}", "0")
    assert code == 2 and f"trainer.{limit} 0 trains nothing" in error and not list_runs()


def test_no_step_after_no_batch_is_refused():
    with pytest.raises(ValueError, match=r"trainer.accumulate_grad_batches must be at least 1, got 0"):
        check_trainer({"callbacks": [], "accumulate_grad_batches": 0}, alternating=False)


SETTINGS = {
    "--trainer.gradient_clip_val=0.5": "--model.balance.clip 0.5",
    "--trainer.accumulate_grad_batches=2": "--data.batch_size",
    "--trainer.enable_checkpointing=false": "--trainer.fast_dev_run",
    "--trainer.precision=bf16-true": "32-true, bf16-mixed, 16-mixed",
    "--trainer.callbacks+=BatchSizeFinder": "--data.batch_size",
    "--trainer.limit_val_batches=1.5": "limit_val_batches",  # by Lightning itself
}


@pytest.mark.fault(55)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_is_refused_leaves_no_folder(setting, genlab_command):
    code, _, error = genlab_command(*POINTS, *FOUR, setting)
    assert code == 2 and SETTINGS[setting] in error and len(error.splitlines()) <= 3
    assert not Path(os.environ["GENLAB_OUTPUTS"]).exists() or not list_runs()


@pytest.mark.fault(52)
def test_an_extractor_that_was_asked_for_must_be_there(genlab_command, monkeypatch):
    code, _, error = genlab_command(*DIGITS, "--extractor", "/nowhere")
    assert code == 5 and "There is no extractor /nowhere" in error and not list_runs()
    monkeypatch.setenv("GENLAB_INCEPTION_WEIGHTS", "/nowhere.pth")
    code, _, error = genlab_command(*DIGITS, "--evaluate.extractor", "null")
    assert code == 5 and "/nowhere.pth" in error and not list_runs()


def test_stable_names_are_those_of_one_score():
    scores = {"val/fid@32": 1.0, "val/kid": 2.0, "val/error@1": 3.0, "val/error@2": 4.0}
    assert stable_names(scores) == {"val/fid": 1.0}
    both = {name: torch.tensor(value) for name, value in {**scores, **stable_names(scores)}.items()}
    trainer = type("Trainer", (), {"callback_metrics": {**both, "lr-Adam": torch.tensor(0.1)}})
    assert measured(trainer) == scores


OUT_OF_MEMORY = (
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 4 bytes"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
)


@pytest.mark.fault(24)
@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_no_memory_is_said_in_a_line_with_what_to_lower(error):
    assert exit_code(error) == 8
    assert len(explain(error).splitlines()) == 1 and "--data.batch_size" in explain(error)


@pytest.mark.fault(3)
def test_a_full_disk_says_what_is_needed_and_keeps_the_old_file(tmp_path):
    target = tmp_path / "last.ckpt"
    target.write_bytes(b"old")

    def write():
        with replacing(target) as partial:
            partial.write_bytes(b"half of")
            try:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                raise RuntimeError("unexpected pos 64 vs 0") from error  # as torch's writer does

    with pytest.raises(StorageError, match=r"last.ckpt cannot be written: the storage is full: .* MB"):
        write()
    assert target.read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.fault(3)
def test_a_full_disk_in_training_names_the_way_on(genlab_command, monkeypatch):
    saved = []

    def full(checkpoint, file):
        saved.append(checkpoint)
        if len(saved) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(checkpoint, file)

    save = torch.save
    monkeypatch.setattr(checkpoints.torch, "save", full)
    code, _, error = genlab_command(*POINTS, *FOUR)
    run = list_runs()[-1]
    assert code == 7 and run.read()["status"] == "failed"
    said = [line for line in error.splitlines() if "/s |" not in line][1:]
    assert "the storage is full" in said[0] and f"genlab resume {run.path}" in said[1] and len(said) == 2


@pytest.mark.fault(5)
def test_a_folder_that_cannot_be_written_is_refused_before_the_imports(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    with pytest.raises(StorageError, match="read-only"):
        require_writable(tmp_path / "outputs" / "more")
    monkeypatch.setattr(command_line, "quieten", lambda: 1 / 0)
    assert command_line.main(["fit", "--config", "experiments/vae_digits.yaml"]) == 7
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.fault(7, 60)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)]
)
def test_a_signal_ends_any_command_with_a_line(number, code, monkeypatch, capsys):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(command_line, "overview", lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # in tests under nohup, a hang-up is ignored
    try:
        assert command_line.main([]) == code
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.splitlines() in (
        [f"genlab: stopped by {name}."] for name in ("Ctrl-C", signal.Signals(number).name)
    )
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.fault(7)
def test_a_signal_ends_a_test_within_a_step(visited, genlab_command, monkeypatch):
    run = visited[0].path
    monkeypatch.setattr(GAN, "test_step", lambda *arguments: os.kill(os.getpid(), signal.SIGTERM))
    before = (run / "run.json").read_bytes()
    code, _, error = genlab_command("test", run, "--allow", __name__)
    assert code == 143 and error.splitlines()[-1] == "genlab: stopped by SIGTERM."
    assert (run / "run.json").read_bytes() == before


@pytest.mark.fault(60)
def test_what_is_ignored_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with command_line.stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert Stopped(signal.SIGINT).code == 130


@pytest.mark.fault(60)
def test_closed_output_is_quiet(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", None)
    assert command_line.main(["--version"]) == 0


@pytest.mark.fault(29)
def test_the_waiting_for_others_is_limited_and_settable(monkeypatch):
    assert peers.timeout() == 300
    monkeypatch.setenv("GENLAB_TIMEOUT", "20")
    assert peers.timeout() == 20
    monkeypatch.setenv("GENLAB_TIMEOUT", "soon")
    with pytest.raises(ValueError, match="GENLAB_TIMEOUT must be a positive number of seconds, got soon"):
        peers.timeout()


@pytest.mark.fault(28, 29, 30)
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("kill -9 $$", r"Rank 1 \(process \d+\) was killed by SIGKILL"),
        ("exit 6", r"Rank 1 .* ended with exit code 6, the training diverged; what it said is above"),
        ("kill -STOP $$", r"Rank 1 \(process \d+\) did not answer within 300 s"),
    ],
)
def test_the_loss_of_a_process_has_one_cause(command, words):
    launcher = peers.Launcher(SimpleNamespace(cluster_environment=None, num_processes=2, num_nodes=1), print)
    launcher.procs = [subprocess.Popen(["sh", "-c", command])]
    while "STOP" not in command and launcher.procs[0].poll() is None:
        pass
    while "STOP" in command and not peers._is_stopped(launcher.procs[0].pid):
        pass
    trainer = SimpleNamespace(world_size=2, global_rank=0, strategy=SimpleNamespace(launcher=launcher))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LostPeer, match=words):
        patch.setattr(peers, "GRACE", 0.1)
        with peers.together(trainer, None):
            raise RuntimeError("[gloo/transport/tcp/pair.cc:598] Connection closed by peer [127.0.0.1]:1")
    launcher.procs[0].wait(5)


@pytest.mark.fault(30)
def test_an_error_of_ones_own_is_no_loss():
    assert not peers.is_of_peers(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert peers.is_of_peers(RuntimeError("[../gloo/x.cc] Timed out waiting 1ms for recv operation"))
