"""What a command goes on from: whole checkpoints, the same settings and data, a budget that is left."""

import json
import os
import signal
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from genlab.callbacks.budget import spent_limit
from genlab.callbacks.checkpoints import RunCheckpoints, StopRequest
from genlab.callbacks.evaluate import Evaluate
from genlab.callbacks.record import Resumption, RunRecorder
from genlab.cli.model import resolve_checkpoint
from genlab.errors import CheckpointError, DataError, exit_code
from genlab.evaluation.checkpoint import read_checkpoint, require_resumable
from genlab.files import digest
from genlab.runs import checkpoint_files
from genlab.runs.changes import TrainedWith, fixed_settings, setting_changes
from genlab.runs.folder import Run, create_run, list_runs

LR = "--model.optimizer.lr"


@pytest.fixture
def small(tiny_extractor):
    """The options of a VAE that is evaluated twice in ten batches."""
    return (
        *("--config", "experiments/vae_digits.yaml", "--extractor", tiny_extractor(1)),
        *("--model.encoder.hidden", "[8]", "--model.decoder.hidden", "[8]", "--trainer.callbacks", "[]"),
        *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1", "--data.batch_size", "64"),
        *("--evaluate.num_samples", "8", "--evaluate.at_start", "false", "--samples.num", "4"),
        *("--budget.examples", "640", "--budget.evaluate_every", "320"),
    )


@pytest.fixture
def trained(small, copy_of_trained):
    return Run(copy_of_trained(*small))


def files_of(run):
    return {path: digest(path) for path in sorted(run.path.rglob("*")) if path.is_file()}


def flip_a_bit(path):
    """Changes one bit of the largest tensor of a checkpoint."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda part: part.file_size)
    name_length, padding = struct.unpack_from("<HH", content, largest.header_offset + 26)
    content[largest.header_offset + 30 + name_length + padding + largest.file_size // 2] ^= 1
    path.write_bytes(content)


# A run that is complete


@pytest.mark.fault(18)
def test_a_finished_run_is_left_as_it_is(trained, genlab_command):
    before = files_of(trained)
    code, out, _ = genlab_command("resume", trained.path, LR, "0.5")
    assert code == 0 and "is complete after 640 img; extend it with --budget.examples N" in out
    assert files_of(trained) == before


def loops(started, processed, is_last):
    progress = {"current": {"started": started, "processed": processed}}
    return {"fit_loop": {"epoch_progress": progress, "epoch_loop.batch_progress": {"is_last_batch": is_last}}}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"budget.examples": 640}, "budget.examples"),
        ({"budget.examples": 641}, ""),
        ({"budget.seconds": 1.5}, "budget.seconds"),
        ({"budget.seconds": 1.6, "trainer.max_epochs": -1, "trainer.max_steps": -1}, ""),
        ({"trainer.max_steps": 10}, "trainer.max_steps"),
        ({"trainer.max_epochs": 2}, "trainer.max_epochs"),
        ({"trainer.max_epochs": 3}, ""),
    ],
)
def test_each_limit_is_spent_where_it_is_reached(limits, expected):
    state = {
        "examples_seen": 640,
        "global_step": 10,
        "callbacks": {"TrainingClock": {"seconds": 1.5}},
        "loops": loops(2, 1, is_last=True),  # the last batch of the second epoch
    }
    assert spent_limit(state, limits) == expected
    counted = {**state, "loops": loops(2, 2, is_last=True)}
    assert spent_limit(counted, {"trainer.max_epochs": 2}) == "trainer.max_epochs"
    within = {**state, "loops": loops(2, 1, is_last=False)}
    assert spent_limit(within, {"trainer.max_epochs": 2}) == ""


# Settings and data


@pytest.mark.fault(15)
def test_only_what_shapes_the_curve_is_fixed():
    config = {
        "seed_everything": 0,
        "trainer": {"accelerator": "cpu", "devices": 1, "accumulate_grad_batches": 2},
        "model": {
            "class_path": "VAE",
            "init_args": {"optimizer": {"class_path": "Adam", "init_args": {"lr": 1}}},
        },
        "data": {"class_path": "Digits", "init_args": {"seed": 3, "path": "here", "licence": "MIT"}},
        "budget": {"examples": 10},
        "evaluate": {"num_samples": 8},
    }
    assert fixed_settings(config) == {
        "seed_everything": 0,
        "trainer.accumulate_grad_batches": 2,
        "model": "VAE",
        "model.optimizer": "Adam",
        "model.optimizer.lr": 1,
        "data": "Digits",
        "data.seed": 3,
    }


def test_keys_that_another_version_does_not_know_are_no_change():
    before, after = {"a": 1, "old": 2}, {"a": 3, "new": 4}
    assert [c.key for c in setting_changes(before, after)] == ["a", "old", "new"]
    assert [c.key for c in setting_changes(before, after, same_version=False)] == ["a"]


class Data(SimpleNamespace):
    split_names = ("train", "test")

    def fingerprint(self, split):
        return self.prints[split]


@pytest.mark.fault(14)
def test_other_data_are_refused_by_name_and_accepted_by_wish():
    trained_with = TrainedWith({}, {"train": "a" * 64, "test": "b" * 64}, {})
    resumed = Resumption(Path("last.ckpt"), trained_with, 640, "0.2.0", accepts=False)
    assert resumed.check(Data(prints={"train": "a" * 64, "test": "b" * 64})) == []
    other = Data(prints={"train": "a" * 64, "test": "c" * 64})
    with pytest.raises(DataError, match=r"data \(test split\) bbbbbbbbbbbb -> cccccccccccc.*--accept-change"):
        resumed.check(other)
    (change,) = replace(resumed, accepts=True).check(other)
    assert change.to_dict() == {"key": "data (test split)", "before": "b" * 12, "after": "c" * 12}


@pytest.mark.fault(14)
def test_a_test_asks_whether_the_data_are_those_of_the_training(trained, genlab_command):
    checkpoint = trained.checkpoints / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)
    state["trained_with"]["data"]["test"] = "0" * 64
    torch.save(state, checkpoint)
    code, _, error = genlab_command("test", trained.path)
    assert code == 3 and "data (test split) 000000000000 -> " in error
    assert "test" not in trained.read()


@pytest.mark.fault(6, 15, 19)
def test_changed_settings_are_refused_unless_accepted_and_then_count_and_are_recorded(
    trained, genlab_command
):
    """From the checkpoint before a damaged one, too, which is said with what is lost."""
    config = trained.config.read_text()
    trained.config.write_text(config.replace("batch_size: 64", "batch_size: 32", 1))
    before = files_of(trained)
    budget = ("--budget.examples", "704")
    code, _, error = genlab_command("resume", trained.path, LR, "0.01", *budget)
    assert code == 2 and "model.optimizer.lr 0.001 -> 0.01" in error and "data.batch_size 64 -> 32" in error
    assert "--accept-change" in error and files_of(trained) == before
    trained.config.write_text(config)

    flip_a_bit(trained.checkpoints / "last.ckpt")
    (trained.checkpoints / "best.ckpt").unlink()
    node, one_more = trained.config.stat().st_ino, ("--budget.examples", "384")
    code, _, error = genlab_command("resume", trained.path, LR, "0.01", *one_more, "--accept-change")
    assert code == 0, error
    assert "last.ckpt of" in error and "previous.ckpt is used in its place" in error
    assert "Goes on from 320 of 640 img: the last 320 are learned again." in error
    change = {"key": "model.optimizer.lr", "before": 0.001, "after": 0.01}
    assert trained.read()["changes"] == [{"examples_seen": 320, **change}]
    state = torch.load(trained.checkpoints / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 0.01
    assert trained.config.stat().st_ino != node  # replaced in one step, not written over
    kept = torch.load(trained.checkpoints / "previous.ckpt", weights_only=True)
    assert kept["examples_seen"] == 320  # and not the damaged one
    assert state["trained_with"]["settings"]["model.optimizer.lr"] == 0.01


def test_a_resumed_run_has_the_scores_and_the_data_of_its_last_settings_alone(trained, genlab_command):
    before = trained.read()["validation"]
    trained.update(data={"fingerprints": {"old": "0" * 64}, "old": "x"})
    more = ("--budget.examples", "704", "--evaluate.num_samples", "9")
    code, _, error = genlab_command("resume", trained.path, *more)
    assert code == 0, error
    record = trained.read()
    lines = [json.loads(line) for line in trained.metrics_jsonl.read_text().splitlines()]
    last = [line for line in lines if any(name.startswith("val/") for name in line)][-1]
    assert record["validation"] == {k: v for k, v in last.items() if k.startswith("val/")}
    assert record["validation"].keys() - before.keys() and before.keys() - record["validation"].keys()
    assert "old" not in record["data"] and "old" not in record["data"]["fingerprints"]


def test_a_resumed_run_that_ends_before_an_evaluation_keeps_its_scores(trained):
    before = trained.read()["validation"]
    recorder = RunRecorder(trained, "", SimpleNamespace(seconds=1.0))
    recorder._outcome(SimpleNamespace(examples_seen=650), "stopped")
    record = trained.read()
    assert record["validation"] == before and (record["status"], record["examples_seen"]) == ("stopped", 650)


@pytest.mark.fault(15)
def test_another_class_of_optimiser_is_refused_even_if_accepted():
    was = {"model.optimizer": "torch.optim.Adam"}
    resumed = Resumption(Path("last.ckpt"), TrainedWith(was, {}, {}), 640, "0.2.0", accepts=True)
    with pytest.raises(ValueError, match="the state of one optimiser says nothing to another"):
        resumed.check(Data(prints={}), "model: {init_args: {optimizer: torch.optim.SGD}}")


# Files


@pytest.mark.fault(6)
def test_every_changed_bit_is_found_or_harmless(tmp_path):
    """What torch reads of a file that passes is what was written."""
    file, state = tmp_path / "last.ckpt", {"w": torch.arange(9.0), "n": 3, "d": {"x": ["text", 1.5]}}
    torch.save(state, file)
    whole = file.read_bytes()
    assert checkpoint_files.damage(file) == ""
    for bit in (*range(0, 8 * len(whole), 53), *attribute_bits(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        file.write_bytes(content)
        if not checkpoint_files.damage(file):
            try:
                read = torch.load(file, weights_only=True)
            except Exception:
                continue
            assert torch.equal(read["w"], state["w"]) and {**read, "w": 0} == {**state, "w": 0}, bit


def attribute_bits(archive):
    """The bit of each part that makes a folder of it, in the archive's table of contents."""
    places = [i for i in range(len(archive)) if archive.startswith(b"PK\x01\x02", i)]
    return [8 * (place + 38) + 4 for place in places]


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (flip_a_bit, "not what was written"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cut short"),
    ],
)
def test_all_checkpoints_damaged_is_said_with_each_and_since_when(spoil, expected):
    run = create_run("any")
    for name in ("last.ckpt", "best.ckpt"):
        torch.save({"w": torch.zeros(2000)}, run.checkpoints / name)
    spoil(run.checkpoints / "last.ckpt")
    assert run.checkpoint() == run.checkpoints / "best.ckpt" == resolve_checkpoint("best", run)
    spoil(run.checkpoints / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"is damaged: best.ckpt of \d{4}-.*; last.ckpt of") as error:
        resolve_checkpoint("last", run)
    assert expected in str(error.value) and exit_code(error.value) == 4


def test_best_and_last_are_those_of_a_run():
    with pytest.raises(ValueError, match="name the run first"):
        resolve_checkpoint("best")
    run = create_run("any")
    with pytest.raises(CheckpointError, match="ended before its first one was written"):
        run.checkpoint()
    torch.save({}, run.checkpoints / "last.ckpt")
    with pytest.raises(CheckpointError, match="no score was measured: take --ckpt_path last"):
        run.checkpoint("best")


def without(name):
    return lambda state: state.pop(name)


def with_spec(spec):
    return lambda state: state["genlab"].update(spec=spec)


WEIGHT = "encoder.net.0.weight"
HOSTILE = {
    "of a later version": (
        lambda s: s["genlab"].update(version="99.0.0"),
        "written by genlab 99.0.0, and this",
    ),
    "of an early version": (lambda s: s["genlab"].update(version="0.1.9"), "written by genlab 0.1.9, whose"),
    "of no version": (lambda s: s["genlab"].update(version=[1]), "does not say what version"),
    "with a head that is text": (lambda s: s.update(genlab="0.2"), "does not say what version"),
    "with a spec that is a list": (with_spec([1, 2]), "its spec cannot be used"),
    "with a spec that lacks fields": (with_spec({"name": "x"}), "its spec cannot be used"),
    "with a spec of wrong types": (with_spec({"name": "x", "shape": [1], "levels": "y"}), "levels is a str"),
    "without a model": (lambda s: s["genlab"].update(model=[]), "its model is a list"),
    "without weights": (without("state_dict"), "its state_dict is missing"),
    "with a weight that is text": (lambda s: s["state_dict"].update({WEIGHT: "x"}), "is a str"),
    "without optimisers": (without("optimizer_states"), "its optimizer_states is missing"),
    "with loops that are a list": (lambda s: s.update(loops=[]), "its loops is a list"),
}


@pytest.mark.fault(16, 17)
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_checkpoint_is_refused_in_one_line(kind, trained, tmp_path):
    spoil, expected = HOSTILE[kind]
    state = torch.load(trained.checkpoints / "last.ckpt", weights_only=True)
    spoil(state)
    torch.save(state, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=expected) as error:
        require_resumable(tmp_path / "odd.ckpt", read_checkpoint(tmp_path / "odd.ckpt"))
    assert "\n" not in str(error.value)


@pytest.mark.fault(16)
def test_a_state_that_is_not_of_such_a_training_is_refused_in_one_line(trained, genlab_command):
    file = trained.checkpoints / "last.ckpt"
    state = torch.load(file, weights_only=True)
    state["optimizer_states"] = [{"state": 1}]
    torch.save(state, file)
    before = files_of(trained)
    code, _, error = genlab_command("resume", trained.path, "--budget.examples", "704")
    assert code == 4 and "last.ckpt cannot be restored" in error and files_of(trained).keys() == before.keys()
    state["loops"] = {"fit_loop": []}
    torch.save(state, file)
    code, _, error = genlab_command("resume", trained.path, "--budget.examples", "704")
    assert code == 4 and "last.ckpt cannot be restored" in error


@pytest.mark.fault(16)
def test_complex_weights_are_refused(trained, genlab_command):
    file = trained.checkpoints / "last.ckpt"
    state = torch.load(file, weights_only=True)
    name = next(iter(state["state_dict"]))
    state["state_dict"][name] = state["state_dict"][name].to(torch.complex64)
    torch.save(state, file)
    code, _, error = genlab_command("sample", trained.path, "-n", "1")
    assert code == 4 and f"{name} holds torch.complex64 instead of torch.float32" in error


# Signals


@pytest.mark.fault(9)
def test_two_requests_at_once_are_one_and_leave_a_checkpoint(small, genlab_command, monkeypatch):
    """They come while the untrained model is evaluated, before there is anything to save."""

    def score(self, trainer, model):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Evaluate, "score", score)
    code, _, error = genlab_command("fit", *small, "--evaluate.at_start", "true")
    run = list_runs()[-1]
    assert code == 143 and run.status == "stopped" and "Traceback" not in error
    assert torch.load(run.checkpoint(), weights_only=True)["examples_seen"] == 64


@pytest.mark.fault(8, 9)
def test_a_second_ctrl_c_stops_at_once_but_not_within_a_save(monkeypatch):
    request, now = StopRequest(), [0.0]
    monkeypatch.setattr("genlab.callbacks.checkpoints.time.monotonic", lambda: now[0])
    request._ask(signal.SIGINT, None)
    request._ask(signal.SIGINT, None)  # passed on twice by a wrapper
    now[0], written = 5.0, []
    with pytest.raises(SystemExit) as stop, request.held():
        request._ask(signal.SIGINT, None)
        written.append(True)
    assert stop.value.code == 130 and written
    with pytest.raises(SystemExit):
        request._ask(signal.SIGINT, None)


@pytest.mark.fault(60)
def test_signals_are_given_back_and_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        request, handler = StopRequest(), signal.getsignal(signal.SIGTERM)
        request.on_train_start(None, None)
        assert signal.getsignal(signal.SIGTERM) == request._ask != handler
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        request.teardown(None, None, "fit")
        assert signal.getsignal(signal.SIGTERM) == handler
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        request.on_train_start(None, None)
        assert signal.getsignal(signal.SIGHUP) == request._ask
        request.teardown(None, None, "fit")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_asked_in_the_last_evaluation_comes_too_late(small, genlab_command, monkeypatch):
    """So status and exit code agree: the run is finished."""
    improved = RunCheckpoints._improved
    asked = []

    def ask(self, trainer):
        if trainer.lightning_module.examples_seen == 320:
            self.request.code = 143
        asked.append(trainer.lightning_module.examples_seen)
        return improved(self, trainer)

    monkeypatch.setattr(RunCheckpoints, "_improved", ask)
    code, _, error = genlab_command(
        "fit", *small, "--budget.evaluate_every", "320", "--budget.examples", "320"
    )
    assert code == 0, error
    assert list_runs()[-1].status == "finished" and asked == [320]


# Divergence


FAST_DEV_RUN = pytest.param(("--trainer.fast_dev_run", "3"), marks=pytest.mark.slow)


@pytest.mark.fault(20)
@pytest.mark.parametrize("trial", [(), FAST_DEV_RUN])
def test_divergence_is_seen_before_an_evaluation_where_no_loss_was_logged(trial, small, genlab_command):
    asked = ("--trainer.callbacks", "[PosteriorHealth, LatentPictures]", *trial)
    code, _, error = genlab_command("fit", *small, LR, "1e20", "--trainer.log_every_n_steps", "50", *asked)
    assert code == 6, error
    assert "not finite after" in error and "The last checkpoint is untouched" in error
    assert trial or list_runs()[-1].status == "diverged"
