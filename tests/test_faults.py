"""Faults of docs/faults.md that no other file plants, one after the other in the table's order."""

import multiprocessing.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fault_catalogue
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from planting import FULL, KILL, fill, in_a_fork, planted, send, small_disk
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.precision import MixedPrecision
from short_training import train
from test_callbacks import WRITERS
from test_families import FAMILIES, HARD
from test_resume import differences, lines

from genlab import files
from genlab.callbacks import checkpoints, record
from genlab.callbacks.budget import Budget
from genlab.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints, StopRequest
from genlab.callbacks.divergence import DivergenceGuard
from genlab.callbacks.evaluate import Evaluate
from genlab.callbacks.progress import ProgressLine
from genlab.callbacks.record import Resumption
from genlab.data import loading
from genlab.data.folder import ImageFolder
from genlab.data.packed import Packed
from genlab.data.pairs import UnpairedImages
from genlab.data.random_images import RandomImages
from genlab.errors import CheckpointError, DataError, Diverged, exit_code, explain
from genlab.evaluation.checkpoint import read_checkpoint
from genlab.evaluation.load import check_weights, mismatches
from genlab.evaluation.score import as_memory_allows
from genlab.families.classifier import Classifier
from genlab.families.vae import VAE
from genlab.networks.classifier import ConvClassifier
from genlab.runs import metrics_file
from genlab.runs.changes import TrainedWith
from genlab.runs.folder import Run, create_run, list_runs
from genlab.runs.metrics_file import MetricsFile, read_metrics

KILLS = int(os.environ.get("KILLS") or 30)


def test_the_table_of_faults_names_the_tests_that_plant_them():
    """`python tests/fault_catalogue.py` writes it."""
    assert fault_catalogue.TABLE.read_text(encoding="utf-8") == fault_catalogue.written()


def test_every_row_has_a_test_and_every_test_a_row():
    rows = fault_catalogue.rows()
    assert list(rows) == list(range(1, len(rows) + 1)) and len(rows) >= 60
    assert rows.keys() == fault_catalogue.marked_tests().keys()


VAE_DIGITS = (
    *("--config", "experiments/vae_digits.yaml", "--trainer.callbacks", "[]", "--trainer.accelerator", "cpu"),
    *("--model.encoder.hidden", "[8]", "--model.decoder.hidden", "[8]", "--data.batch_size", "64"),
    *("--trainer.limit_val_batches", "1", "--trainer.log_every_n_steps", "1", "--evaluate.num_samples", "8"),
    *("--evaluate.at_start", "false", "--samples.num", "4", "--budget.evaluate_every", "320"),
)


@pytest.fixture
def fit(tiny_extractor, genlab_command, tmp_path):
    """Trains a small VAE by the command; returns exit code, what was said, and the run."""

    def run(*options, examples=640, name="run"):
        code, _, error = genlab_command(
            *("fit", *VAE_DIGITS, "--extractor", tiny_extractor(1), "--run_name", name),
            *("--budget.examples", examples, *options),
        )
        found = tmp_path / "outputs" / "vae_digits" / name
        return code, error, Run(found) if found.exists() else None

    return run


@pytest.fixture
def whole(tiny_extractor, trained_once):
    """A run of 640 images that nothing has disturbed; read it only."""
    arguments = ("--extractor", tiny_extractor(1), "--budget.examples", "640")
    return Run(trained_once(*VAE_DIGITS, *arguments))


@pytest.fixture
def trained(whole, tmp_path):
    """A copy of it."""
    return Run(shutil.copytree(whole.path, tmp_path / "outputs" / "vae_digits" / "copy"))


def state_of(run, name="last"):
    return torch.load(run.checkpoints / f"{name}.ckpt", weights_only=True)


def assert_equal_runs(a, b):
    """The same to the bit: weights, optimisers, counts, and every line of numbers."""
    assert differences(state_of(a), state_of(b)) == []
    assert lines(a.path) == lines(b.path)


def at(examples):
    """Whether the model that a callback's hook is called with has seen so many examples."""
    return lambda *args: any(getattr(arg, "examples_seen", None) == examples for arg in args)


# 1 to 5: storage


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.parametrize("place", ["same", "other"])
def test_no_kill_while_a_checkpoint_is_written_loses_it(place, tmp_path, record_property):
    """$KILLS of them at random moments, half on the temporary folder's file system, half on another one."""
    shm = Path("/dev/shm")
    if place == "other" and not os.access(shm, os.W_OK):
        pytest.skip("there is no second file system")
    folder = shm / f"faults{os.getpid()}" if place == "other" else tmp_path
    folder.mkdir(exist_ok=True)
    path, draw, leftovers, lost = folder / "last.ckpt", random.Random(place), 0, []
    command, pipes = [sys.executable, "-c", WRITERS, str(path)], {"stdin": subprocess.PIPE, "text": True}
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, **pipes) as process:
            for trial in range(KILLS // 2):
                process.stdin.write("\n")
                process.stdin.flush()
                writer = int(process.stdout.readline())
                time.sleep(draw.uniform(0.0, 0.06))
                os.kill(writer, signal.SIGKILL)
                assert process.stdout.readline() == "gone\n"
                try:
                    state = torch.load(path, weights_only=True)
                    assert (state["weights"] == state["number"]).all()
                except Exception as error:
                    lost.append((trial, error))
                leftovers += len(files.sweep(folder))
        assert os.listdir(folder) == ["last.ckpt"] and not lost
        record_property(
            "table", ("kill -9 while saving", f"{place} file system", f"{len(lost)} of {KILLS // 2}")
        )
        assert leftovers or KILLS < 30  # some kills did come in the middle of one
    finally:
        if place == "other":
            shutil.rmtree(folder)


@pytest.mark.fault(1)
def test_what_a_killed_writer_left_is_swept_when_the_run_goes_on():
    run = create_run("any")
    left = run.checkpoints / ".last.ckpt.0123abcd.tmp"
    left.write_bytes(b"half of a checkpoint")
    (run.checkpoints / "mine.ckpt").write_bytes(b"kept")
    with run.lock():
        assert os.listdir(run.checkpoints) == ["mine.ckpt"]


@pytest.mark.fault(2)
def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_next_step(tmp_path, monkeypatch):
    """Whatever a power cut drops that was not synced: a name leads to what was written whole."""
    events, sync, replace = [], os.fsync, os.replace

    def note_sync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append(("sync", path, path.read_bytes() if path.is_file() else None))
        sync(descriptor)

    def note_rename(source, target):
        events.append(("rename", Path(source), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    target = tmp_path / "last.ckpt"
    for number in range(2):
        AtomicCheckpointIO().save_checkpoint({"number": number, "w": torch.zeros(9999)}, target)
    assert [kind for kind, _, _ in events] == ["sync", "rename", "sync"] * 2
    for first in (0, 3):
        content, rename, folder = events[first : first + 3]
        assert content[1:] == rename[1:] and folder[1] == tmp_path and rename[1].parent == tmp_path
    assert events[4][2] == target.read_bytes()


@pytest.mark.slow
@pytest.mark.fault(3)
def test_a_full_disk_leaves_the_old_checkpoint_and_the_way_on(whole, fit, tmp_path, genlab_command):
    """On a file system that is full in truth."""
    before = files.digest(whole.checkpoints / "last.ckpt")
    size = (whole.checkpoints / "last.ckpt").stat().st_size
    with small_disk(tmp_path / "outputs", 8 * size + 2**20) as disk:
        run = Run(shutil.copytree(whole.path, disk / "vae_digits" / "run"))
        (run.checkpoints / "previous.ckpt").unlink()  # whose room is free again once another takes its place
        os.link(run.checkpoints / "last.ckpt", run.checkpoints / "previous.ckpt")
        filler = fill(disk, leave=size // 2)
        code, _, error = genlab_command("resume", run.path, "--budget.examples", "1280")
        assert code == 7, error
        said = [line for line in error.splitlines() if line.startswith(("genlab:", "Continue"))]
        assert "the storage is full: it needs" in said[0] and f"genlab resume {run.path}" in said[1]
        assert "Traceback" not in error and files.digest(run.checkpoints / "last.ckpt") == before
        assert not list(run.checkpoints.glob(".*.tmp"))
        filler.unlink()
        code, _, error = genlab_command("resume", run.path, "--budget.examples", "1280")
        assert code == 0, error
        _, _, other = fit(examples=1280, name="whole")
        assert_equal_runs(run, other)


@pytest.mark.fault(3)
def test_a_cut_between_the_best_checkpoint_and_the_last_one_loses_no_best(fit, genlab_command, monkeypatch):
    """The run goes on from before the evaluation, and finds it again."""
    scores = {320: 9.0, 640: 5.0, 960: 7.0}
    monkeypatch.setattr(
        checkpoints, "measured", lambda trainer: {"val/loss": scores[trainer.lightning_module.examples_seen]}
    )
    room = [True, False]

    def fault():
        if not room.pop(0):
            raise FULL

    with planted(checkpoints, "copy", fault):
        code, error, run = fit(examples=960)
    assert code == 7 and not room, error
    code, _, error = genlab_command("resume", run.path)
    assert code == 0, error
    best, last = (state_of(run, name) for name in ("best", "last"))
    assert (best["examples_seen"], last["examples_seen"]) == (640, 960)
    assert [state["callbacks"]["RunCheckpoints"]["best"] for state in (best, last)] == [5.0, 5.0]


@pytest.mark.fault(4)
def test_pictures_without_room_are_left_out_and_training_goes_on(fit, whole, monkeypatch):
    def full(*args):
        raise FULL

    monkeypatch.setattr(record.Image.Image, "save", full)
    code, error, run = fit()
    assert code == 0, error
    assert error.count("pictures are left out and numbers wait for room") == 1
    assert not list((run.path / "samples").iterdir()) and "pictures are left out" in run.log.read_text()
    assert_equal_runs(whole, run)


@pytest.mark.fault(4)
def test_numbers_without_room_wait_for_it(fit, whole, monkeypatch):
    """Also where there was room for a part of a line."""
    write, calls = metrics_file._append, []

    def full_for_a_while(path, waiting):
        calls.append(waiting)
        if 3 <= len(calls) <= 6:
            raise FULL
        write(path, waiting)

    monkeypatch.setattr(metrics_file, "_append", full_for_a_while)
    code, error, run = fit()
    assert code == 0 and error.count("numbers wait for room") == 1
    assert_equal_runs(whole, run)


@pytest.mark.fault(4)
def test_a_full_disk_holds_whole_lines_only(tmp_path):
    with small_disk(tmp_path / "disk", 2**16) as disk:
        file = MetricsFile(
            SimpleNamespace(metrics_jsonl=disk / "metrics.jsonl", metrics_csv=disk / "metrics.csv")
        )
        filler = fill(disk, leave=2**13)
        written = [file.write({"loss": float(n)}, n, n, 0.0) for n in range(300)]
        assert True in written and written[-1] is False
        seen = [row["examples_seen"] for row in read_metrics(file.jsonl)]
        assert seen == list(range(len(seen))) and (disk / "metrics.jsonl").read_bytes().endswith(b"}\n")
        filler.unlink()
        assert file.write({"loss": 0.0}, 300, 300, 0.0)
        assert [row["examples_seen"] for row in read_metrics(file.jsonl)] == list(range(301))


@pytest.mark.fault(5)
def test_a_read_only_disk_is_refused_in_a_line(whole, tmp_path, genlab_command):
    with small_disk(tmp_path / "outputs", 2**24) as disk:
        run = shutil.copytree(whole.path, disk / "vae_digits" / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for command in (("fit", *VAE_DIGITS), ("resume", run), ("test", run), ("sample", run)):
            code, _, error = genlab_command(*command)
            assert code == 7 and len(error.splitlines()) == 1, (command, error)
            assert "read-only" in error or "may not be written" in error


# 6 to 10: damage and signals


@pytest.mark.fault(6)
def test_a_checkpoint_cut_or_flipped_anywhere_gives_way_to_the_one_before(trained):
    """Ten cuts and a hundred changed bytes; named by its path, it is refused with its own code."""
    last, draw = trained.checkpoints / "last.ckpt", random.Random(0)
    (trained.checkpoints / "best.ckpt").unlink()
    content = last.read_bytes()
    spoiled = [content[: draw.randrange(len(content))] for _ in range(10)]
    for place in draw.sample(range(len(content)), 100):
        spoiled.append(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
    for number, bytes_ in enumerate(spoiled):
        last.write_bytes(bytes_)
        found = trained.checkpoint()
        if found == last:  # a byte that nothing is read from
            assert differences(state_of(trained), torch.load(last, weights_only=True)) == [] and number >= 10
            continue
        assert found == trained.checkpoints / "previous.ckpt"
        with pytest.raises(CheckpointError) as error:
            read_checkpoint(last)
        assert exit_code(error.value) == 4 and len(str(error.value).splitlines()) == 1


@pytest.mark.slow
@pytest.mark.fault(7, 10)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_an_evaluation_is_obeyed_after_it_and_resumed_to_the_bit(
    number, fit, whole, genlab_command
):
    with planted(Evaluate, "score", send(number), when=at(320)):
        code, error, run = fit()
    assert code == (143 if number == signal.SIGTERM else 130) and "Traceback" not in error
    assert state_of(run)["examples_seen"] == 320
    assert genlab_command("resume", run.path)[0] == 0
    assert_equal_runs(whole, run)


@pytest.mark.slow
@pytest.mark.fault(10)
@pytest.mark.parametrize("seen", [192, 320, 640])
def test_a_kill_within_a_step_or_an_evaluation_is_resumed_to_the_bit(seen, fit, whole, genlab_command):
    """What was not saved is learned again: in the first half, from the beginning."""
    owner, name = (VAE, "losses") if seen == 192 else (Evaluate, "score")
    with planted(owner, name, KILL, when=at(seen)):
        assert in_a_fork(lambda: fit()[0]) == -signal.SIGKILL
    run = list_runs()[-1]
    if run.last_checkpoint is None:
        code, _, error = genlab_command("resume", run.path)
        assert code == 4 and "ended before its first one was written" in error
        return
    assert genlab_command("resume", run.path)[0] == 0
    assert_equal_runs(whole, run)


@pytest.mark.slow
@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGUSR1,),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGUSR1),
        (signal.SIGINT,) * 2,
    ],
)
def test_signals_while_a_checkpoint_is_written_wait_until_it_is(numbers, fit, whole, genlab_command):
    with planted(torch, "save", send(*numbers), when=lambda state, _: state.get("examples_seen") == 320):
        code, error, run = fit()
    assert code == (130 if signal.SIGINT in numbers else 143) and "Traceback" not in error
    assert state_of(run)["examples_seen"] == 320 and not list(run.checkpoints.glob(".*.tmp"))
    assert genlab_command("resume", run.path)[0] == 0
    assert_equal_runs(whole, run)


@pytest.mark.fault(8)
def test_whoever_takes_sigusr1_keeps_it():
    """Such as Lightning under Slurm, which puts the job back into the queue."""
    taken, request = lambda *_: None, StopRequest()
    before = signal.signal(signal.SIGUSR1, taken)
    try:
        request.on_train_start(None, None)
        assert signal.getsignal(signal.SIGUSR1) is taken
        request.teardown(None, None, "fit")
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        request.on_train_start(None, None)
        assert signal.getsignal(signal.SIGUSR1) == request._ask
        request.teardown(None, None, "fit")
    finally:
        signal.signal(signal.SIGUSR1, before)


# 12 to 16: what a resume goes on with


@pytest.mark.slow
@pytest.mark.fault(12)
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_a_resume_with_other_reading_processes_changes_no_bit(before, after, fit, whole, genlab_command):
    with planted(record.RunRecorder, "on_train_batch_end", send(signal.SIGTERM), when=at(448)):
        code, error, run = fit("--data.num_workers", before)
    assert code == 143, error
    code, _, error = genlab_command("resume", run.path, "--data.num_workers", after)
    assert code == 0, error
    assert_equal_runs(whole, run)


def config_of(batch_size):
    return yaml.safe_dump({"data": {"class_path": "Digits", "init_args": {"batch_size": batch_size}}})


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    ("trained_on", "batch_size", "devices", "change"),
    [
        (1, 64, 1, ""),
        (1, 32, 2, ""),
        (4, 256, 1, ""),
        (2, 64, 2, ""),
        (None, 64, 2, ""),  # of before this was kept
        (1, 64, 2, "data.batch_size of all devices 64 -> 128"),
        (4, 64, 1, "data.batch_size of all devices 256 -> 64"),
        (1, 32, 1, "data.batch_size 64 -> 32"),
    ],
)
def test_a_step_sees_as_many_items_on_any_number_of_devices(trained_on, batch_size, devices, change):
    was = TrainedWith.of(yaml.safe_load(config_of(64)), {}, trained_on)
    kept = TrainedWith.read({"trained_with": was.to_dict()})
    resumed = Resumption(Path("last.ckpt"), kept, 640, "0.2.0", accepts=False)
    if not change:
        assert resumed.check(SimpleNamespace(), config_of(batch_size), devices) == []
        return
    with pytest.raises(ValueError, match=f"trained otherwise: {change}") as error:
        resumed.check(SimpleNamespace(), config_of(batch_size), devices)
    assert exit_code(error.value) == 2


@pytest.mark.fault(16)
def test_no_family_takes_the_weights_of_another():
    """Of every pair; where all names and shapes agree, it is one class with other settings."""
    models = {name: family.model() for name, family in FAMILIES.items()}
    shapes = {
        name: {key: tuple(value.shape) for key, value in model.state_dict().items()}
        for name, model in models.items()
    }
    for name, model in models.items():
        for other, theirs in models.items():
            state = {"state_dict": theirs.state_dict()}
            if shapes[name] == shapes[other]:
                assert type(model) is type(theirs) and not mismatches(model, state["state_dict"])
                continue
            with pytest.raises(CheckpointError, match="belongs to another model") as error:
                check_weights(model, state, Path("a.ckpt"))
            assert exit_code(error.value) == 4 and 0 < str(error.value).count(";") + 1 <= 3


# 20 to 25: numbers and memory


def loss_of(value, seen):
    """A VAE whose loss has a value from so many examples on."""
    losses = VAE.losses

    def spoiled(self, batch):
        found = losses(self, batch)
        return (
            {**found, "rate": found["rate"] * value}
            if self.training and self.examples_seen >= seen
            else found
        )

    return spoiled


@pytest.mark.slow
@pytest.mark.fault(20)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_leaves_the_numbers_is_named_and_the_last_checkpoint_stays(
    value, fit, genlab_command, monkeypatch, whole
):
    with monkeypatch.context() as patch:
        patch.setattr(VAE, "losses", loss_of(value, 448))
        code, error, run = fit()
    assert (
        code == 6 and "The rate loss is not finite after 448 img. The last checkpoint is untouched" in error
    )
    assert run.status == "diverged" and state_of(run)["examples_seen"] == 320
    assert genlab_command("resume", run.path)[0] == 0
    assert_equal_runs(whole, run)


@pytest.mark.slow
@pytest.mark.fault(21)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_do_not_take_the_place_of_good_ones(value, fit, whole):
    """Asked to save them by a signal, in the very step."""

    def spoil(self, trainer, model, *rest):
        if model.examples_seen == 448:
            with torch.no_grad():
                next(model.parameters())[0, 0] = value
            os.kill(os.getpid(), signal.SIGTERM)
        saved(self, trainer, model, *rest)

    saved = RunCheckpoints.on_train_batch_end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCheckpoints, "on_train_batch_end", spoil)
        code, error, run = fit()
    assert code == 6 and "weight is not finite after 448 img" in error
    assert run.status == "diverged" and state_of(run)["examples_seen"] == 320
    assert differences(state_of(run), state_of(whole, "previous")) == []


class Overflow(Callback):
    """Lets every gradient overflow."""

    def on_after_backward(self, trainer, model):
        for parameter in model.parameters():
            parameter.grad.fill_(float("inf"))


@pytest.mark.fault(23)
def test_a_scale_that_is_used_up_ends_the_training_and_names_the_way_out():
    data = RandomImages((1, 8, 8), num_classes=2, num_train=512, num_test=8, batch_size=8)
    sizes, adam = {"num_features": 4, "base_channels": 4}, partial(torch.optim.Adam, lr=1e-3)
    for steps, ends in ((20, False), (40, True)):
        model = Classifier(data.spec, partial(ConvClassifier, **sizes), adam)
        options = {
            "plugins": [MixedPrecision("16-mixed", "cpu")],
            "callbacks": [Overflow(), DivergenceGuard()],
        }
        if not ends:
            train(model, data, max_steps=steps, **options)
            continue
        with pytest.raises(
            Diverged, match=r"overflow half precision .*--trainer.precision bf16-mixed"
        ) as error:
            train(model, data, max_steps=steps, **options)
        assert exit_code(error.value) == 6


@pytest.mark.fault(24)
def test_memory_that_runs_out_ends_the_training_as_it_is(fit, genlab_command, whole):
    def out(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...\nmore")

    with planted(VAE, "losses", out, when=at(448)):
        code, error, run = fit()
    said = [line for line in error.splitlines() if not line.endswith("left")][1:]
    assert code == 8 and "Tried to allocate 20.00 GiB" in said[0] and "--data.batch_size" in said[0]
    assert said[1] == f"Continue with `genlab resume {run.path}`." and len(said) == 2
    assert run.status == "failed" and "batch_size: 64" in run.config.read_text()
    assert genlab_command("resume", run.path)[0] == 0
    assert_equal_runs(whole, run)


@pytest.mark.fault(25)
@pytest.mark.parametrize("room", [1, 3, 5, 8, 100])
def test_whatever_room_there_is_every_number_comes_once_and_in_order(room):
    tried = []

    def make(index):
        tried.append(len(index))
        if len(index) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return index

    with pytest.warns(UserWarning, match="no room") if room < 8 else pytest.MonkeyPatch.context():
        made = list(as_memory_allows(make, torch.arange(1, 20, 2), batch_size=8))
    assert torch.equal(torch.cat(made), torch.arange(1, 20, 2)) and max(map(len, made)) <= room
    assert sum(size > room for size in tried) <= 3  # is not tried again once it has failed


@pytest.mark.fault(25)
def test_no_room_for_one_sample_and_other_errors_are_not_hidden():
    def out(index):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
        list(as_memory_allows(out, torch.arange(4), 4))
    with pytest.raises(ZeroDivisionError):
        list(as_memory_allows(lambda index: 1 / 0, torch.arange(4), 4))


@pytest.mark.slow
@pytest.mark.fault(25)
def test_scores_are_those_of_enough_memory(fit, whole):
    sample = VAE.sample

    def cramped(self, index, *args, **given):
        if len(index) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return sample(self, index, *args, **given)

    with pytest.MonkeyPatch.context() as patch, pytest.warns(UserWarning, match="no room for 8 samples"):
        patch.setattr(VAE, "sample", cramped)
        code, error, run = fit("--samples.num", "2")
    assert code == 0, error
    for found, expected in zip(lines(run.path), lines(whole.path), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


# 26, 27: processes that read


class Meets(Packed):
    """Rows whose reading process meets a fault at row 8."""

    def __init__(self, fault):
        super().__init__({"image": np.zeros((32, 1, 4, 4), np.uint8)})
        self.fault = fault


class FaultyItems(loading.Items):
    def __getitems__(self, rows):
        if 8 in rows.tolist():
            self.packed.fault()
        return super().__getitems__(rows)


def hang_deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


READERS = {
    "killed": (
        KILL,
        30,
        8,
        "DataLoader worker (pid",
    ),  # a patience of 1 s may end before a busy machine reads
    "hanging": (partial(time.sleep, 60), 1, 9, "timed out after 1"),
    "hanging and deaf": (hang_deaf, 1, 9, "timed out after 1"),
}


@pytest.mark.slow
@pytest.mark.fault(26, 27)
@pytest.mark.parametrize("kind", READERS)
def test_a_reading_process_that_is_lost_ends_the_training_in_a_line(kind, tmp_path, monkeypatch):
    """And is not waited for at the end. In a fork: torch raises at any place once a reader has died."""
    fault, patience, code, words = READERS[kind]
    monkeypatch.setenv("GENLAB_TIMEOUT", str(patience))

    def read():
        signal.alarm(40)
        try:
            list(loading.read(FaultyItems(Meets(fault)), list(torch.arange(32).split(4)), num_workers=1))
        except RuntimeError as error:
            (tmp_path / "said").write_text(explain(error))
            found = exit_code(error)
        multiprocessing.util._exit_function()  # what the interpreter does at its end
        return found

    assert in_a_fork(read) == code
    said = (tmp_path / "said").read_text()
    assert words in said and "--data.num_workers" in said and "\n" not in said


@pytest.mark.fault(26)
@pytest.mark.parametrize("kind", [ConnectionResetError, EOFError])
def test_a_reading_process_that_dies_while_it_hands_over_a_batch_is_named(kind, monkeypatch):
    """Torch passes on an error of the connection where it looks before the kernel knows that it is dead."""
    context = multiprocessing.get_context("fork")
    dying, living = (context.Process(target=time.sleep, args=(seconds,)) for seconds in (0.2, 60))
    dying.start(), living.start()

    class Batches:
        _workers = (living, dying)

        def __iter__(self):
            yield "batch"
            raise kind

    batches = loading._with_losses_named(Batches())
    assert next(batches) == "batch"
    with pytest.raises(RuntimeError) as error:
        next(batches)
    assert exit_code(error.value) == 8 and f"(pid(s) {dying.pid})" in explain(error.value)
    monkeypatch.setattr(loading, "_LAST_BREATH", 0.0)
    Batches._workers = (living,)
    with pytest.raises(kind):  # of something else
        list(loading._with_losses_named(Batches()))
    living.kill(), living.join()


# 36 to 48: data


PEAK = """
import io, resource, sys
from PIL import Image
from genlab.data.decode import Policy, decode
content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(content, "x", Policy(64))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.fault(36)
def test_the_largest_image_that_is_taken_needs_less_than_500_mb(tmp_path):
    Image.new("RGBA", (8000, 7990), (9, 99, 199, 128)).save(tmp_path / "x.png", compress_level=1)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "x.png")]
    peak = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert int(peak) * 1024 < 500e6


def pictures(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.fault(42)
def test_an_empty_side_of_unpaired_images_is_named(tmp_path):
    full, empty = pictures(tmp_path / "full", range(12)), tmp_path / "empty"
    empty.mkdir()
    for sides in ((full, empty), (empty, full)):
        with pytest.raises(DataError, match=r"0 images in .*empty") as error:
            UnpairedImages(*map(str, sides), image_size=8, batch_size=4).require_usable()
        assert exit_code(error.value) == 3


@pytest.mark.fault(43)
def test_links_that_lead_nowhere_and_closed_files_are_named(tmp_path, genlab_command):
    folder = pictures(tmp_path / "d", range(6))
    os.symlink("gone.png", folder / "nowhere.png")
    os.symlink("circle.png", folder / "circle.png")
    closed = folder / "000.png"
    closed.chmod(0)
    code, out, _ = genlab_command("data", "check", folder)
    assert code == 3 and "nowhere.png" in out and "circle.png" in out
    assert os.access(closed, os.R_OK) or "000.png" in out  # root may read everything


@pytest.mark.fault(44)
def test_a_folder_that_changes_while_it_is_trained_on_changes_no_batch(tmp_path):
    folder = pictures(tmp_path / "d", range(20))
    make = partial(ImageFolder, str(folder), image_size=8, batch_size=4)
    data, undisturbed = make(), make()
    expected = [batch["image"].clone() for _ in range(2) for batch in undisturbed.loader("train")]
    batches = iter(data.loader("train"))
    found = [next(batches)["image"].clone()]
    before = data.fingerprint("train")
    (folder / "003.png").unlink()
    pictures(folder, range(100, 110))
    Image.new("RGB", (8, 8)).save(folder / "005.png")
    found += [batch["image"].clone() for batch in batches]
    found += [batch["image"].clone() for batch in data.loader("train")]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert data.fingerprint("train") == before != make().fingerprint("train")


@pytest.mark.slow
@pytest.mark.fault(48)
def test_a_checkpoint_is_not_read_with_another_vocabulary(tmp_path, genlab_command):
    """Even where it has as many words, and other data were accepted."""
    for name, letters in (("a", "abcdefgh"), ("b", "ijklmnop")):
        draw = random.Random(0)
        (tmp_path / name).write_text("".join(draw.choices(letters, k=6000)))
    options = (
        *(
            "--config",
            "experiments/gpt_shakespeare.yaml",
            "--data.tokenizer",
            "characters",
            "--data.context",
            "8",
        ),
        *("--model.network.num_layers", "1", "--model.network.width", "8", "--model.network.num_heads", "2"),
        *("--budget.examples", "512", "--budget.evaluate_every", "256", "--data.batch_size", "8"),
        *("--samples.num", "0", "--trainer.accelerator", "cpu"),
    )
    code, _, error = genlab_command("fit", *options, "--data.path", tmp_path / "a")
    assert code == 0, error
    run = list_runs()[-1]
    other = ("--data.path", tmp_path / "b", "--accept-change", "--budget.examples", "1024")
    code, _, error = genlab_command("resume", run.path, *other)
    assert code == 4 and "was trained on another vocabulary" in error and "Traceback" not in error


# 57 to 60: names, clocks, loggers, terminals


@pytest.mark.slow
@pytest.mark.fault(57)
def test_a_run_lives_in_a_folder_of_any_name(fit, tmp_path, monkeypatch, genlab_command):
    odd = tmp_path / "двa 数据 a b\nc'\"%s{}"
    monkeypatch.setenv("GENLAB_OUTPUTS", str(odd))
    code, error, _ = fit()
    assert code == 0, error
    (run,) = list_runs()
    assert genlab_command("sample", run.path, "-n", "2")[0] == 0
    assert genlab_command("resume", run.path, "--budget.examples", "704")[0] == 0
    code, _, error = genlab_command("report", odd, "-o", odd / "r.html")
    assert code == 0 and (odd / "r.html").stat().st_size > 1000, error


@pytest.mark.slow
@pytest.mark.fault(58)
def test_a_clock_that_jumps_changes_no_duration_and_no_result(fit, whole, monkeypatch):
    """By hours, in both directions: durations come from the clock that only goes on."""
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0.0, 2e9))
    start = time.monotonic()
    code, _, run = fit()
    assert code == 0 and 0 <= run.read()["training_seconds"] <= time.monotonic() - start
    seconds = [row["seconds"] for row in read_metrics(run.metrics_jsonl)]
    assert seconds == sorted(seconds)
    assert_equal_runs(whole, run)


@pytest.mark.fault(58)
def test_the_time_left_is_never_negative():
    draw, budget = random.Random(0), Budget(examples=1000)
    line = ProgressLine(budget)
    for _ in range(200):
        line._start_images = draw.randrange(0, 2000)
        left = line._left(
            draw.randrange(0, 3000), draw.choice([1000.0, 10.0, float("inf")]), draw.uniform(0, 1e6)
        )
        assert "-" not in left


class Outage(Logger):
    """A logger whose service answers no more after the third line."""

    name, version = "outage", 0

    def __init__(self):
        super().__init__()
        self.calls = 0

    def log_metrics(self, metrics, step=None):
        self.calls += 1
        if self.calls > 3:
            raise ConnectionError("the service is away")

    def log_hyperparams(self, *args, **kwargs):
        pass


@pytest.mark.fault(59)
def test_a_logger_that_fails_is_left_out_and_training_goes_on(fit, whole):
    code, error, run = fit("--allow", __name__, f"--trainer.logger={__name__}.Outage")
    assert code == 0, error
    assert error.count("Outage failed (ConnectionError: the service is away) and is left out") == 1
    assert differences(state_of(whole), state_of(run)) in ([], ["trained_with"])
    assert lines(run.path) == lines(whole.path)


@pytest.mark.fault(60)
def test_piped_output_in_the_c_locale_is_plain_text(trained, tmp_path):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "80", "TERM": "xterm-256color"}
    for command in (["runs"], ["compare", str(trained.path)], ["--help"], ["nonsense"]):
        done = subprocess.run(
            [sys.executable, "-m", "genlab", *command], env=environment, capture_output=True
        )
        said = done.stdout + done.stderr
        assert said and b"\x1b" not in said and b"\r" not in said and b"Traceback" not in said, said
        assert done.returncode == (2 if command == ["nonsense"] else 0)


# Several processes, and every family


COUNT = """
import os, signal, sys, time
from pytorch_lightning.callbacks import Callback

class Meet(Callback):
    def on_train_batch_start(self, trainer, model, *_):
        kind, rank = os.environ.get("FAULT", "none -1").split()
        if model.examples_seen == 448 and trainer.global_rank == int(rank):
            if kind == "raises":
                raise ValueError("this batch cannot be learned")
            os.kill(os.getpid(), getattr(signal, kind))
"""


@pytest.fixture
def two_processes(tmp_path):
    """Runs a command whose rank meets a fault; returns exit code, seconds, what was said."""
    (tmp_path / "meeting.py").write_text(COUNT)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GENLAB_TIMEOUT": "90"}

    def run(fault, *command):
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "genlab", *map(str, command)],
            env={**environment, "FAULT": fault},
            capture_output=True,
            text=True,
            timeout=480,
        )
        return done.returncode, time.monotonic() - start, done.stderr

    return run


LOST = {
    "SIGKILL 1": (9, "Rank 1 (process"),
    "SIGKILL 0": (-9, "Rank 0 was killed"),
    "SIGSTOP 1": (9, "did not answer within 90 s ($GENLAB_TIMEOUT)"),
    "raises 1": (9, "Rank 1 (process"),
    "raises 0": (2, "this batch cannot be learned"),
    "SIGTERM 1": (143, ""),
}


@pytest.mark.slow
@pytest.mark.fault(7, 28, 29, 30)
@pytest.mark.parametrize("fault", LOST)
def test_the_loss_of_one_process_of_two_ends_the_training_with_one_cause(
    fault, two_processes, tiny_extractor, genlab_command, tmp_path, monkeypatch
):
    code, words = LOST[fault]
    options = ("--trainer.devices", 2, "--data.batch_size", 32, "--trainer.callbacks", "[meeting.Meet]")
    arguments = (*VAE_DIGITS, "--extractor", tiny_extractor(1), "--run_name", "run", "--budget.examples", 640)
    found, seconds, said = two_processes(fault, "fit", *arguments, *options, "--allow", "meeting")
    run = Run(tmp_path / "outputs" / "vae_digits" / "run")
    assert found == code and words in said, said
    assert "Traceback" not in said and said.count("genlab: ") <= 2 and seconds < 300, said
    assert run.status == ("stopped" if code == 143 else "failed")
    assert run.last_checkpoint is not None, said
    assert state_of(run)["examples_seen"] == (512 if code == 143 else 320)
    deadline = time.monotonic() + 30
    while str(run.path) in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout:
        assert time.monotonic() < deadline  # all are gone
        time.sleep(0.5)
    monkeypatch.syspath_prepend(tmp_path)
    code, _, error = genlab_command(
        *("resume", run.path, "--trainer.devices", 1, "--data.batch_size", 64, "--allow", "meeting")
    )
    assert code == 0 and run.read()["examples_seen"] == 640, error


def bits(places):
    return f"{len(places)} differ"


@pytest.mark.slow
@pytest.mark.fault(1, 11)
@pytest.mark.parametrize("name", [*FAMILIES, *HARD])
def test_a_kill_while_a_checkpoint_is_written_costs_no_family_a_bit(name, tmp_path, record_property):
    """In a process that is killed within its second save; what goes on from the first one equals it."""
    family = (FAMILIES | HARD)[name]
    per_step = family.trainer.get("accumulate_grad_batches", 1) * family.model().batches_per_step

    class Save(Callback):
        def __init__(self, path, dies=False):
            self.path, self.dies, self.saves = path, dies, 0

        def on_train_batch_end(self, trainer, model, *_):
            self.saves += 1
            with planted(files, "sync", KILL, when=lambda path: self.dies and self.saves == 2 * per_step):
                trainer.save_checkpoint(self.path)

    def learn(file, dies=False, start=None):
        options = {
            **family.trainer,
            "callbacks": [Save(tmp_path / file, dies)],
            "plugins": [AtomicCheckpointIO()],
        }
        train(family.model(), family.data(), 3, start=start, **options)

    learn("whole.ckpt")
    assert in_a_fork(lambda: learn("parts.ckpt", dies=True)) == -signal.SIGKILL
    left = torch.load(tmp_path / "parts.ckpt", weights_only=True)
    whole = torch.load(tmp_path / "whole.ckpt", weights_only=True)
    assert left["examples_seen"] * 3 * per_step == whole["examples_seen"] * (2 * per_step - 1)
    assert len(files.sweep(tmp_path)) == 1
    learn("parts.ckpt", start=tmp_path / "parts.ckpt")
    found = differences(whole, torch.load(tmp_path / "parts.ckpt", weights_only=True))
    record_property("table", ("kill -9, tensors and counts", name, bits(found)))
    assert found == []


ACCUMULATING = [name for name, family in FAMILIES.items() if not family.model().alternating]


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize("name", ACCUMULATING)
def test_stopped_within_an_accumulation_equals_never_stopped(name, tmp_path, record_property):
    family = FAMILIES[name]

    class Keep(Callback):
        def on_train_batch_end(self, trainer, model, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    for start in (None, tmp_path / "3.ckpt"):
        options = {"accumulate_grad_batches": 2, "callbacks": [Keep()], "start": start}
        train(family.model(), family.data(), 3, **{**family.trainer, **options})
        if start is None:
            (tmp_path / "6.ckpt").rename(tmp_path / "whole.ckpt")
    whole, parts = (torch.load(tmp_path / f"{file}.ckpt", weights_only=True) for file in ("whole", "6"))
    found = differences(whole, parts)
    record_property("table", ("stopped within an accumulation", name, bits(found)))
    assert found == [] and torch.load(tmp_path / "3.ckpt", weights_only=True)["gradients"]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The states of every family after two steps in two processes, and in one on the joined batch."""
    folder = tmp_path_factory.mktemp("together")
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "families_together.py"), str(folder)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=1200)
    return folder


def normalises_batches(model):
    return any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())


@pytest.mark.slow
@pytest.mark.fault(13, 31)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_learn_what_one_learns_of_the_joined_batch(name, together, record_property):
    """Where no layer normalises a batch, which each process does for its own.

    CycleGAN translates its own translations: norms of what is hardly anything yet, and the signs of errors
    near 0, make much of rounding.
    """
    one, first, second = (
        torch.load(together / f"{name} {place}.pt", weights_only=True) for place in ("1 0", "2 0", "2 1")
    )
    floats = [key for key, value in one.items() if value.is_floating_point()]
    largest = max(float((one[key] - first[key]).abs().max()) for key in floats)
    model, start = FAMILIES[name].model(), torch.load(together / f"{name} 0.pt", weights_only=True)
    parameters = [key for key, _ in model.named_parameters() if not key.startswith("average.")]
    assert all(torch.equal(first[key], second[key]) for key in parameters)
    moved = max(float((one[key] - start[key]).abs().max()) for key in parameters)
    words = "batch norm" if normalises_batches(model) else f"largest difference {largest:.1e}"
    record_property("table", ("two processes and one", name, words))
    near = max(1e-5, 1e-4 * moved) if name != "cyclegan" else 0.05 * moved
    assert moved > 1e-5 and (normalises_batches(model) or largest < near)


FAULTS = ("SIGTERM", "SIGINT", "SIGKILL", "full disk", "damage")


@pytest.mark.slow
@pytest.mark.fault(63)
@pytest.mark.parametrize("seed", range(3))
def test_three_random_faults_leave_the_weights_of_the_undisturbed_run(
    seed, fit, genlab_command, record_property
):
    """The newest whole checkpoint loads after each, and counts never go back behind it."""
    draw = random.Random(seed)
    _, _, whole = fit(examples=1280, name="whole")
    kinds, run = [draw.choice(FAULTS) for _ in range(3)], None
    for number, kind in enumerate(kinds):
        seen = 320 * (number + 1) + 64 * draw.randint(1, 4)  # not before there is a checkpoint
        command = (
            (lambda: fit(examples=1280)[0]) if run is None else partial(resume_code, genlab_command, run)
        )
        meet(kind, seen, command)
        run = next(each for each in list_runs() if each.path.name == "run")
        if kind == "damage":
            spoil(run.checkpoints / "last.ckpt", draw)
        assert 320 <= torch.load(run.checkpoint(), weights_only=True)["examples_seen"] <= seen + 64
    assert resume_code(genlab_command, run) == 0
    record_property("table", ("three random faults", f"seed {seed}: {', '.join(kinds)}", "0 differ"))
    assert differences(state_of(whole), state_of(run)) == []
    assert lines(whole.path) == lines(run.path)


def resume_code(genlab_command, run):
    return genlab_command("resume", run.path)[0]


def meet(kind, seen, command):
    """Runs a command that meets a fault once its model has seen so many examples."""
    if kind == "SIGKILL":
        with planted(record.RunRecorder, "on_train_batch_end", KILL, when=at(seen)):
            assert in_a_fork(command) == -signal.SIGKILL
    elif kind == "full disk":

        def full():
            raise FULL

        with planted(torch, "save", full, when=lambda state, _: state["examples_seen"] >= seen):
            assert command() == 7
    else:
        number = signal.SIGTERM if kind == "damage" else getattr(signal, kind)
        with planted(record.RunRecorder, "on_train_batch_end", send(number), when=at(seen)):
            assert command() == (130 if kind == "SIGINT" else 143)


def spoil(path, draw):
    content = bytearray(path.read_bytes())
    for place in draw.sample(range(len(content)), 200):
        content[place] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.bench
def test_guards_cost_at_most_a_hundredth_of_a_step(fit):
    """Finite checks, signals, budget, clock and health, by turns with and without in one process."""
    from genlab.callbacks.clock import TrainingClock
    from genlab.callbacks.health import Health
    from genlab.data.digits import Digits

    def steps(guards):
        times = []

        class Time(Callback):
            def on_train_batch_start(self, *_):
                self.start = time.perf_counter()

            def on_train_batch_end(self, *_):
                times.append(time.perf_counter() - self.start)

        torch.manual_seed(0)
        model = Classifier(data.spec, partial(ConvClassifier, num_features=64, base_channels=64), adam)
        train(model, data, 60, callbacks=[*guards(), Time()])
        return np.median(times[10:])

    def guards():
        budget = Budget(examples=10**9)
        return [TrainingClock(), StopRequest(), DivergenceGuard(), Health(), budget]

    data, adam = Digits(batch_size=128), partial(torch.optim.Adam, lr=1e-3)
    pairs = [(steps(list), steps(guards)) for _ in range(7)]
    ratio = float(np.median([with_ / without for without, with_ in pairs]))
    print(f"a step with guards takes {ratio:.4f} of one without, {1e3 * pairs[0][0]:.1f} ms")
    assert ratio <= 1.01
