"""A run on disk: folders that never collide, records that are never half, metrics that resume, tables."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from genlab import files
from genlab.report.table import metrics_table
from genlab.runs import lock
from genlab.runs.environment import (
    PACKAGES,
    command_line,
    environment,
    private,
    secret_settings,
    without_private,
)
from genlab.runs.folder import STATUSES, NotARun, create_run, folder_name, list_runs, open_run
from genlab.runs.lock import RunIsLive
from genlab.runs.metrics_file import MetricsFile, read_metrics


@pytest.fixture
def run(tmp_path):
    return create_run("dcgan_digits", tmp_path)


def python(code, *arguments, **options):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


def python_output(code, *arguments):
    process = python(code, *arguments, stdout=subprocess.PIPE)
    return process.communicate(timeout=60)[0].strip()


def write_checkpoint(path, age=0.0):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"weights" * 100)
    os.utime(path, (time.time() - age,) * 2)


# Folders


@pytest.mark.fault(56)
def test_twenty_runs_started_together_get_twenty_folders(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from genlab.runs import folder;"
        "folder.time.strftime = lambda _: '20250101-120000';"
        "time.sleep(max(0.0, float(sys.argv[2]) - time.time()));"
        "print(folder.create_run('same', Path(sys.argv[1])).path)"
    )
    start = time.time() + 1.5
    processes = [python(code, tmp_path, start, stdout=subprocess.PIPE) for _ in range(20)]
    folders = {process.communicate(timeout=60)[0].strip() for process in processes}
    names = {Path(folder).name for folder in folders}
    assert names == {"20250101-120000", *(f"20250101-120000-{n}" for n in range(2, 21))}
    assert len(list_runs(tmp_path)) == 20


def test_a_new_run_has_its_record_and_its_folders(run, tmp_path):
    record = run.read()
    assert run.path.parent == tmp_path / "dcgan_digits"
    assert record["status"] == run.status == "created"
    assert (record["experiment"], record["run"]) == (run.experiment, run.name) == ("dcgan_digits", run.name)
    assert run.samples.is_dir()
    assert run.checkpoints.is_dir()
    assert time.strptime(run.name.rsplit("-", 1)[0] if run.name.count("-") > 1 else run.name, "%Y%m%d-%H%M%S")


def test_runs_go_to_the_folder_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_OUTPUTS", str(tmp_path / "elsewhere"))
    assert create_run("a").path.is_relative_to(tmp_path / "elsewhere")
    monkeypatch.delenv("GENLAB_OUTPUTS")
    monkeypatch.chdir(tmp_path)
    assert create_run("a").path.is_relative_to(tmp_path / "outputs")


@pytest.mark.fault(57)
@pytest.mark.parametrize(
    ("experiment", "folder"),
    [
        ("dcgan_digits", "dcgan_digits"),
        ("beta vae / digits", "beta-vae-digits"),
        ("../../etc/passwd", "etc-passwd"),
        ("Übung №1, größer", "Übung-No1-größer"),
        ("扩散 模型", "扩散-模型"),
        (".hidden.", "hidden"),
        ("a\nb\x00c", "a-b-c"),
        ("v1.5", "v1.5"),
    ],
)
def test_the_name_of_an_experiment_becomes_one_plain_folder(experiment, folder, tmp_path):
    assert folder_name(experiment) == folder
    assert create_run(experiment, tmp_path).path.parent == tmp_path / folder


@pytest.mark.fault(57)
def test_a_long_name_still_fits_a_file_system(tmp_path):
    assert create_run("模" * 500, tmp_path).path.is_dir()


@pytest.mark.parametrize("experiment", ["", "..", "///", " . "])
def test_a_name_without_a_letter_is_refused(experiment):
    with pytest.raises(ValueError, match="letter or a digit"):
        folder_name(experiment)


def test_a_run_opens_from_its_folder_its_config_or_a_checkpoint(run, monkeypatch):
    run.config.write_text("model: {}\n")
    write_checkpoint(run.checkpoints / "last.ckpt")
    for place in (run.path, run.config, run.checkpoints, run.checkpoints / "last.ckpt"):
        assert open_run(place) == run
    monkeypatch.chdir(run.checkpoints)
    assert open_run("last.ckpt") == open_run("..") == run


def test_a_wrong_path_names_what_is_missing_and_the_nearest_run_in_one_line(run, tmp_path):
    typo = run.path.with_name(run.name[:-1] + "x")
    with pytest.raises(NotARun) as missing:
        open_run(typo)
    with pytest.raises(NotARun) as above:
        open_run(run.path.parent)
    with pytest.raises(NotARun) as checkpoint:
        open_run(run.checkpoints / "best.ckpt")
    for error in (missing, above, checkpoint):
        assert "\n" not in str(error.value)
        assert run.name in str(error.value).split("Nearest runs:")[1]
    assert "no such file or folder" in str(missing.value)
    assert "no run.json" in str(above.value)
    assert "no such file" in str(checkpoint.value)


def test_a_wrong_path_without_any_run_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotARun, match="genlab fit --config"):
        open_run("nothing/here/at/all")


@pytest.mark.fault(58)
def test_runs_are_listed_by_time_whatever_their_names(tmp_path):
    made = [create_run(name, tmp_path) for name in ("b", "a", "c", "a", "a")]
    assert list_runs(tmp_path) == made
    assert list_runs(tmp_path / "absent") == []


@pytest.mark.fault(61)
def test_a_damaged_record_is_named_and_does_not_hide_the_other_runs(run, tmp_path):
    damaged = create_run("other", tmp_path)
    damaged.record.write_text('{"status": "runn')
    (tmp_path / "other" / "not-a-run").mkdir()
    (tmp_path / "stray.txt").touch()
    with pytest.warns(UserWarning, match="run.json cannot be read"):
        assert list_runs(tmp_path) == [run]
    damaged.record.write_text("[]")
    with pytest.raises(NotARun, match="JSON object"):
        damaged.read()


# The record


def test_an_update_merges_one_level_and_keeps_the_rest(run):
    run.update(results={"fid": 3.0, "kid": {"mean": 1, "std": 2}}, examples_seen=10)
    run.update(results={"recall": 0.5, "kid": {"mean": 3}}, status="finished")
    record = run.read()
    assert record["results"] == {"fid": 3.0, "recall": 0.5, "kid": {"mean": 3}}
    assert (record["examples_seen"], run.status, record["experiment"]) == (10, "finished", "dcgan_digits")


def test_updates_of_several_processes_are_all_kept(run):
    code = (
        "import sys, time; from genlab.runs.folder import open_run; run = open_run(sys.argv[1])\n"
        "for i in range(10): run.update(results={f'{sys.argv[2]}-{i}': i})"
    )
    processes = [python(code, run.path, number) for number in range(4)]
    assert all(process.wait(timeout=60) == 0 for process in processes)
    assert len(run.read()["results"]) == 40


def test_the_record_is_whole_at_every_moment_of_an_update(run):
    run.update(payload="a" * 100_000)
    stop = time.monotonic() + 0.5

    def keep_reading():
        while time.monotonic() < stop:
            assert len(run.read()["payload"]) == 100_000

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(keep_reading)
        while time.monotonic() < stop:
            run.update(payload="b" * 100_000)
        reader.result()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(OSError, match="disk full"), files.replacing(target) as temporary:
        temporary.write_text("half of the n")
        raise OSError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_record_holds_json_of_any_value_that_a_result_may_have(run):
    values = {
        "nan": math.nan,
        "inf": [math.inf, 1],
        "numpy": np.float32(0.5),
        "path": Path("a"),
        "n": np.int64(3),
    }
    run.update(results=values)
    text = run.record.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["results"] == {
        "nan": None,
        "inf": [None, 1],
        "numpy": 0.5,
        "path": "a",
        "n": 3,
    }


def test_only_the_known_statuses_are_accepted(run):
    for status in STATUSES:
        run.update(status=status)
        assert run.status == status
    with pytest.raises(ValueError, match=r"finished.*got 'done'"):
        run.update(status="done")


# Checkpoints


@pytest.mark.fault(6)
def test_a_truncated_last_checkpoint_gives_way_to_the_newest_complete_one(run):
    assert run.last_checkpoint is run.best_checkpoint is None
    for name, age in (("best-old.ckpt", 30), ("best-new.ckpt", 10), ("last.ckpt", 20)):
        write_checkpoint(run.checkpoints / name, age)
    last = run.checkpoints / "last.ckpt"
    assert run.last_checkpoint == last
    last.write_bytes(last.read_bytes()[:-30])
    assert run.last_checkpoint == run.best_checkpoint == run.checkpoints / "best-new.ckpt"
    (run.checkpoints / "best-new.ckpt").write_bytes(b"")
    assert run.last_checkpoint == run.best_checkpoint == run.checkpoints / "best-old.ckpt"


# The lock

HOLD = (
    "import sys, time; from genlab.runs.folder import open_run\n"
    "with open_run(sys.argv[1]).lock():\n"
    "    print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(run):
    process = python(HOLD, run.path, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.mark.fault(56)
def test_a_second_process_is_refused_and_told_who_trains(run, holder):
    assert run.is_live
    with pytest.raises(RunIsLive, match=f"process {holder.pid} on .* delete .*lock.json"), run.lock():
        pass


@pytest.mark.fault(56)
def test_a_killed_process_leaves_a_lock_that_the_next_one_takes(run, holder):
    run.update(status="running")
    assert run.status == "running"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    leftover = run.checkpoints / ".last.ckpt.0123abcd.tmp"
    leftover.touch()
    assert not run.is_live
    assert run.status == "failed"
    with run.lock():
        assert run.is_live
        assert run.status == "running"
        assert not leftover.exists()
    assert not (run.path / "lock.json").exists()


def test_a_lock_is_released_when_training_fails(run):
    with pytest.raises(KeyError), run.lock():
        raise KeyError
    with run.lock(), pytest.raises(RunIsLive), run.lock():
        pass


def test_of_many_processes_that_find_a_stale_lock_one_trains_at_a_time(run):
    (run.path / "lock.json").write_text('{"host": "' + os.uname().nodename + '", "pid": 1, "boot": "over"}')
    code = (
        "import os, sys, time; from genlab.runs import lock; from genlab.runs.folder import open_run\n"
        "lock._PATIENCE = 30; run = open_run(sys.argv[1])\n"
        "for _ in range(5):\n"
        "    with run.lock():\n"
        "        os.mkdir(run.path / 'alone'); time.sleep(0.01); os.rmdir(run.path / 'alone')\n"
    )
    processes = [python(code, run.path) for _ in range(6)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6


def test_who_deletes_the_text_of_a_living_holder_is_still_refused(run, holder):
    (run.path / "lock.json").unlink()
    with pytest.raises(RunIsLive, match="another process trains in it"), run.lock():
        pass


def test_many_who_ask_at_once_do_not_take_each_other_for_the_holder(run):
    (run.path / "lock.json").write_text(json.dumps({"host": "gone", "pid": 1, "boot": lock._boot()}))
    code = (
        "import sys, time; from genlab.runs.folder import open_run; run = open_run(sys.argv[1])\n"
        "print(sum((time.sleep(0.01), run.is_live)[1] for _ in range(30)))"
    )
    processes = [python(code, run.path, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == ["0"] * 4


def test_a_lock_of_this_machine_under_another_name_is_stale_once_its_process_is_gone(run):
    (run.path / "lock.json").write_text(json.dumps({"host": "old-container", "pid": 1, "boot": lock._boot()}))
    assert not run.is_live
    with run.lock():
        assert run.is_live


def of_another_machine(run, **fields):
    """Leaves the lock of a process of another machine."""
    file = run.path / "lock.json"
    file.write_text(json.dumps({"host": "another", "pid": 1, "boot": "another", **fields}))
    return file


@pytest.mark.fault(56)
@pytest.mark.parametrize(("missing", "is_live"), [(lock.SILENCE - 2, True), (lock.SILENCE + 2, False)])
def test_a_lock_of_another_machine_is_taken_once_it_is_silent(run, missing, is_live):
    file = of_another_machine(run, beat=7.0)
    os.utime(file, (0, time.time() - 7 * missing))
    assert run.is_live == is_live
    if is_live:
        with pytest.raises(RunIsLive, match="process 1 on another"), run.lock():
            pass
    else:
        with run.lock():
            assert run.is_live and json.loads(file.read_text())["pid"] == os.getpid()
        assert not file.exists()


def test_silence_is_counted_by_the_clock_of_the_storage(run, monkeypatch):
    of_another_machine(run, beat=7.0)
    monkeypatch.setattr("time.time", lambda: 0.0)  # whatever the clock of this machine says
    assert run.is_live


def test_who_holds_a_lock_touches_its_file(run, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    file = run.path / "lock.json"
    with run.lock():
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime < 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > 1
        file.unlink()  # by hand; nothing brings it back
        time.sleep(0.1)
        assert not file.exists()
    assert not any(thread.name.startswith("heartbeat") for thread in threading.enumerate())


def test_a_process_that_wakes_up_after_another_machine_took_its_run_ends_and_touches_nothing(run):
    code = (
        "import sys, time; from genlab.runs import lock; from genlab.runs.folder import open_run\n"
        "lock.BEAT = 0.1\n"
        "with open_run(sys.argv[1]).lock():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = python(code, run.path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    file = of_another_machine(run, beat=7.0)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 143 and "taken over by process 1 on another" in error
    assert json.loads(file.read_text())["host"] == "another"


def test_a_lock_that_was_taken_over_is_not_removed_by_who_held_it_before(run):
    with run.lock():
        file = of_another_machine(run)
    assert file.exists()


@pytest.mark.fault(56)
def test_a_lock_of_another_machine_without_beats_is_never_taken(run):
    (run.path / "lock.json").write_text('{"host": "another", "pid": 1, "boot": "another"}')
    run.update(status="running")
    assert run.status == "running"
    with pytest.raises(RunIsLive, match="process 1 on another"), run.lock():
        pass


# Metrics


def fill(metrics, first, last):
    for step in range(first, last):
        values = {"train/loss": 1.0 / (step + 1), **({"val/fid": step * 0.1} if step % 3 == 0 else {})}
        metrics.write(values, examples_seen=64 * step, step=step, seconds=2.0 * step)


def test_metrics_of_a_resumed_run_equal_those_of_one_never_stopped(tmp_path):
    straight, resumed = (MetricsFile(create_run(name, tmp_path)) for name in ("straight", "resumed"))
    fill(straight, 0, 10)
    fill(resumed, 0, 7)
    MetricsFile(open_run(resumed.jsonl)).truncate_after(64 * 4)
    assert [row["step"] for row in read_metrics(resumed.jsonl)] == [0, 1, 2, 3, 4]
    fill(resumed, 5, 10)
    for metrics in (straight, resumed):
        metrics.write_csv()
    assert resumed.jsonl.read_bytes() == straight.jsonl.read_bytes()
    assert resumed.csv.read_bytes() == straight.csv.read_bytes()


@pytest.mark.fault(4)
def test_a_torn_last_line_is_neither_read_nor_glued_to_the_next(run):
    metrics = MetricsFile(run)
    fill(metrics, 0, 3)
    with run.metrics_jsonl.open("a") as file:
        file.write('{"examples_seen": 192, "st')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read_metrics(run.metrics_jsonl)) == 3
    fill(metrics, 3, 5)
    assert [row["step"] for row in read_metrics(run.metrics_jsonl)] == [0, 1, 2, 3, 4]


def test_a_damaged_line_is_named_and_left_out(run):
    fill(MetricsFile(run), 0, 3)
    lines = run.metrics_jsonl.read_text().splitlines(keepends=True)
    run.metrics_jsonl.write_text(lines[0] + "\x00garbage\n[]\n" + lines[2])
    with pytest.warns(UserWarning) as named:
        assert [row["step"] for row in read_metrics(run.metrics_jsonl)] == [0, 2]
    assert [str(warning.message).split(", ")[1][:6] for warning in named] == ["line 2", "line 3"]


def test_every_line_is_valid_json_also_when_a_loss_is_not_finite(run):
    values = {"a": math.nan, "b": -math.inf, "c": np.float64(0.1), "d": np.float32(2)}
    MetricsFile(run).write(values, examples_seen=1, step=1, seconds=0.1234567)
    (line,) = run.metrics_jsonl.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "examples_seen": 1,
        "step": 1,
        "seconds": 0.123,
        "a": None,
        "b": None,
        "c": 0.1,
        "d": 2.0,
    }


def test_the_csv_has_a_column_for_every_metric_and_a_row_for_every_line(run):
    metrics = MetricsFile(run)
    metrics.write({"train/loss": 0.5}, 64, 1, 1)
    metrics.write({"val/fid": 7.25}, 128, 2, 2)
    metrics.write_csv()
    assert run.metrics_csv.read_text().splitlines() == [
        "examples_seen,step,seconds,train/loss,val/fid",
        "64,1,1,0.5,",
        "128,2,2,,7.25",
    ]


def test_a_line_is_there_for_others_as_soon_as_it_is_written(run):
    MetricsFile(run).write({"loss": 1.0}, 1, 1, 1.0)
    code = "import sys; from pathlib import Path; print(Path(sys.argv[1]).read_text())"
    assert json.loads(python_output(code, run.metrics_jsonl))["loss"] == 1.0


def test_metrics_that_are_not_there_are_no_metrics(run):
    MetricsFile(run).truncate_after(0)
    assert read_metrics(run.metrics_jsonl) == []


# The environment


def test_the_environment_names_versions_machine_and_commit():
    found = environment()
    assert set(found["packages"]) == set(PACKAGES)
    assert found["packages"]["numpy"] == np.__version__
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["git"] is None or len(found["git"]["commit"]) == 40
    assert json.loads(json.dumps(found)) == found


CANARY = "c4n4ry-5ecret"


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    "arguments",
    [
        ["--wandb.api_key", CANARY],
        ["--trainer.logger.init_args.api_key=" + CANARY],
        ["--token", CANARY, "--seed", "0"],
        ["--data.password='" + CANARY + "'"],
        ["HF_TOKEN=" + CANARY],
        ["--trainer.logger", '{"class_path": "W", "init_args": {"api_key": "' + CANARY + '"}}'],
        ["--trainer.logger", "{api_key: " + CANARY + ", name: x}"],
        ["--data.path", f"https://somebody:{CANARY}@example.org/faces.zip"],
        ["--data.path", f"https://example.org/faces.zip?size=3&token={CANARY}"],
        ["--header", f"Authorization: Bearer {CANARY}"],
        ["-p", "from-the-environment"],
        ["--accessKeyId", CANARY],
        ["--accessKeyId=" + CANARY],
        ["-p", CANARY],
        [f"--signed=https://example.org/x.zip?X-Amz-Date=1&X-Amz-Signature={CANARY}&size=3"],
        [f"https://example.org/x.zip?sv=1&sig={CANARY}"],
        [f"https://example.org/x.zip?anything={CANARY * 3}"],
        [f"--cookie=session={CANARY}; other={CANARY}"],
        ["--header", f"Cookie: a={CANARY}; b={CANARY}"],
        ["--token", "--" + CANARY],
        ["--tokens", CANARY],
        ["--pat", CANARY],
        ["--trainer.logger", f'{{"awsAccessKeyId": "{CANARY}", "name": "x"}}'],
        [f"sk-{CANARY}"],
        ["--note", f"uses sk-proj-{CANARY} now"],
        ["ghp_" + "a1" * 18 + "#" + "from-the-environment"],
    ],
)
def test_no_secret_of_the_command_line_is_kept(arguments, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "from-the-environment")
    shown = " ".join(command_line(["genlab", *arguments]))
    assert CANARY not in shown
    assert "from-the-environment" not in shown
    assert "***" in shown


def test_a_configuration_for_elsewhere_has_neither_secrets_nor_homes(monkeypatch):
    monkeypatch.setenv("HOME", "/elsewhere/ada")
    hidden = {"logger": {"api_key": "***", "keys": ["***"]}, "data": ["~/faces", 3, {"token": "***"}]}
    config = {
        "logger": {"api_key": "topsecretkey", "keys": ["abcdefgh"]},
        "data": ("/elsewhere/ada/faces", 3, {"token": "x"}),
    }
    assert private(config) == hidden and private(hidden) == hidden


@pytest.mark.parametrize("name", ["PWD", "OLDPWD"])
def test_the_working_directory_is_no_secret(name, monkeypatch):
    monkeypatch.setenv(name, "/data/pictures")
    assert without_private("--data.path=/data/pictures/faces.zip") == "--data.path=/data/pictures/faces.zip"


@pytest.mark.parametrize(
    "argument",
    [
        "--model.num_tokens=512",
        "--data.monkey=3",
        "--author=x",
        "--tokenizer",
        "--seed",
        "--monkey",
        "--num-tokens",
        "--tokens",
        "--model.max_new_tokens",
        "--keys",
        "--path",
        "--pattern",
        "--passes",
        "--signal",
        "--prompt=ROMEO: the key, my lord?",
        "--data.path=https://example.org/faces.zip?size=3&page=2",
        "--data.tokenizer=bpe",
        "--model.sk-net",
    ],
)
def test_ordinary_options_are_kept(argument):
    assert command_line(["genlab", "fit", argument, "7"]) == ["genlab", "fit", argument, "7"]


@pytest.mark.fault(62)
@pytest.mark.parametrize(
    "token",
    [
        "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
        "hf_" + "abcdefghij" * 3 + "abcd",
        "AKIAIOSFODNN7EXAMPLE",
        "github_pat_11ABCDEFG0_abcdefgh",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
    ],
)
def test_a_token_is_known_by_its_form_wherever_it_stands(token):
    for text in (token, f"--note={token}", f"see {token}, or not", f"https://x.org/{token}/a"):
        assert token[-6:] not in without_private(text) and "***" in without_private(text)


def test_text_of_any_length_is_searched_in_a_moment():
    start = time.monotonic()
    for text in ("a" * 200_000, "a=" * 100_000, "a:" * 100_000, "?a=b&" * 40_000, "eyJ" * 60_000):
        without_private(text)
    assert time.monotonic() - start < 5


@pytest.mark.fault(62)
def test_secret_settings_of_a_configuration_are_found_by_their_place():
    arguments = {"api_key": CANARY, "name": "x", "num_tokens": 3, "token": None}
    logger = {"class_path": "W", "init_args": arguments}
    config = {"trainer": {"logger": [logger]}, "data": {"init_args": {"tokenizer": "bpe", "keys": ["a"]}}}
    assert list(secret_settings(config)) == ["trainer.logger[0].init_args.api_key"]


@pytest.mark.fault(62)
def test_neither_the_user_nor_the_home_folder_is_kept(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("LOGNAME", "ada")
    assert command_line(["/home/ada/.venv/bin/genlab", "--x=/home/ada/faces"]) == ["genlab", "--x=~/faces"]
    assert without_private("/scratch/ada/faces") == "/scratch/USER/faces"
    assert without_private("/home/ada2/canada") == "/home/ada2/canada"


def test_runs_and_report_import_no_torch():
    code = (
        "import sys, genlab.runs.environment, genlab.runs.metrics_file, genlab.report.table;"
        "print(*sorted({'torch', 'pytorch_lightning', 'rich', 'numpy'} & sys.modules.keys()))"
    )
    assert python_output(code) == ""


# Tables

ROWS = [
    {"metric": "fid@797", "value": 3.14159, "protocol": "digits"},
    {"metric": "[red]kid[/red]", "value": None},
    {"metric": "扩散模型生成图像", "value": 12345.6, "protocol": "a\nb\x1b[2J"},
]


@pytest.mark.fault(60)
def test_a_piped_table_is_plain_aligned_text():
    lines = str(metrics_table(ROWS, ["metric", "value", "protocol"])).splitlines()
    assert lines == [
        "metric            value  protocol",
        "fid@797           3.142  digits",
        "[red]kid[/red]",
        "扩散模型生成图像  12346  a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}[2J",
    ]


def test_a_terminal_shows_the_same_cells_and_no_markup():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, pipe = Terminal(), io.StringIO()
    table = metrics_table(ROWS, ["metric", "value", "protocol"])
    table.show(terminal)
    table.show(pipe)
    assert pipe.getvalue() == f"{table}\n"
    assert "[red]kid[/red]" in terminal.getvalue()
    assert "3.142" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert len(terminal.getvalue().splitlines()) > len(ROWS) + 2


def test_an_empty_table_has_its_headings():
    assert str(metrics_table([], ["experiment", "examples_seen"])) == "experiment  examples seen"


OLD = {
    "status": "finished",
    "genlab": "0.1.0",
    "images_seen": 640,
    "bench": {"budget": {"images": 640, "seconds": None}},
}


@pytest.mark.fault(17)
def test_a_record_of_version_0_1_is_read_in_todays_words(tmp_path):
    run = create_run("old", tmp_path)
    files.write_json(run.record, OLD)
    run.metrics_jsonl.write_text('{"images_seen": 64, "step": 1, "seconds": 0.1, "val/fid@797": 3.0}\n')
    record = run.read()
    assert record["examples_seen"] == 640 and record["bench"]["budget"]["examples"] == 640
    assert read_metrics(run.metrics_jsonl)[0]["examples_seen"] == 64


@pytest.mark.fault(17)
def test_a_model_of_version_0_1_is_refused_in_one_line(tmp_path, genlab_command):
    run = create_run("old", tmp_path)
    files.write_json(run.record, OLD)
    for command in ("test", "resume", "sample"):
        code, _, error = genlab_command(command, run.path)
        assert code == 2 and "was trained by genlab 0.1.0" in error and error.count("\n") == 1
