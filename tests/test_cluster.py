"""Where runs are trained: every place does each task once, whatever dies on the way."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar

import pretend_slurm
import pytest

from genlab.cluster import leash
from genlab.cluster.here import Here
from genlab.cluster.place import work_through
from genlab.cluster.places import place_of
from genlab.cluster.slurm import Slurm, options_of
from genlab.cluster.worker import ATTEMPTS, Worker
from genlab.cluster.workers import Workers
from genlab.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, StorageError
from genlab.runs import lock
from genlab.runs.folder import Run, create_run, list_runs
from genlab.runs.task import Task

ROOT = Path(__file__).parents[1]
PATIENCE = 1200  # seconds for a bench of a busy machine
VERSION = "genlab 0."


@pytest.fixture
def tasks(tmp_path):
    """Makes tasks whose command only prints genlab's version, so that their runs stay to be begun."""

    def make(number, fit=("--version",), **options):
        (tmp_path / "logs").mkdir(exist_ok=True)
        root = tmp_path / "runs" / "toy"
        return [
            Task(
                f"toy {k}", root / f"seed{k}", tuple(fit), tmp_path / "logs" / f"{k}.log", tmp_path, **options
            )
            for k in range(number)
        ]

    return make


def in_checkout(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


class Trainer(Worker):
    """A worker whose trainings take a moment and leave a finished run."""

    def __init__(self, calls, seconds=0.0):
        super().__init__(threads=1)
        self.calls, self.seconds = calls, seconds

    def run(self, task, arguments):
        self.calls.append((task.name, arguments[0]))
        if arguments[0] == "test":
            return Run(task.run).update(test={"values": {"fid@8": 1.0}})
        run = create_run(task.run.parent.name, task.run.parents[1], name=task.run.name)
        run.config.write_text("model: {}\n")
        with run.lock():
            time.sleep(self.seconds)
        return run.update(status="finished")


# A task


def test_a_task_is_trained_then_tested_and_then_nothing_is_left(tasks):
    (task,) = tasks(1, is_tested=True)
    calls = []
    assert task.state() == "new" and task.command() == ["--version"]
    Trainer(calls).work(task)
    assert calls == [("toy 0", "--version"), ("toy 0", "test")]
    assert task.state() == "tested" and task.command() is None
    Trainer(calls).work(task)
    assert len(calls) == 2


def test_a_task_that_two_workers_begin_at_once_is_trained_once(tasks):
    (task,) = tasks(1)
    calls = []
    workers = [threading.Thread(target=Trainer(calls, 1.5).work, args=(task,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
    assert calls == [("toy 0", "--version")]
    assert "Waiting" in task.log.read_text()


def test_a_task_that_never_gets_a_run_is_tried_twice_and_no_more(tasks, monkeypatch):
    in_checkout(monkeypatch)
    (task,) = tasks(1)
    Worker(threads=1).work(task)
    assert task.log.read_text().count(VERSION) == ATTEMPTS


def test_a_folder_that_a_worker_does_not_see_is_named(tasks, tmp_path):
    (task,) = tasks(1)
    (tmp_path / "logs").rename(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match=r"logs is not there: .* storage that every worker sees"):
        Worker(threads=1).work(task)


def test_a_stopped_worker_begins_no_command(tasks):
    worker = Worker(threads=1)
    worker.stop()
    with pytest.raises(KeyboardInterrupt):
        worker.work(tasks(1)[0])


def test_a_command_gets_the_threads_of_its_worker_and_is_no_process_of_slurm_itself(tasks, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    (task,) = tasks(1, allowed="mine")
    environment = Worker(threads=3)._environment(task)
    assert environment["OMP_NUM_THREADS"] == "3" and environment["GENLAB_ALLOW"] == "mine"
    assert environment["GENLAB_OUTPUTS"] == str(task.run.parents[1]) and "SLURM_NTASKS" not in environment


# The leash


PARENT = """
import os, subprocess, sys, time
child = "import os, sys, time; from genlab.cluster.leash import tie; tie(os.getppid()); print(1, flush=True)"
child += "; time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel of Linux tells the child")
def test_a_command_ends_with_the_worker_that_is_killed():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment)
    child = int(parent.stdout.readline())
    assert is_running(child)
    parent.kill()
    parent.wait()
    assert ends(child, seconds=5)


def test_a_command_whose_worker_is_dead_before_does_not_begin():
    with pytest.raises(SystemExit) as stop:
        leash.tie(2**22 + 1)  # above every process number of Linux
    assert stop.value.code == EXIT_TERMINATED


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def ends(pid, seconds):
    deadline = time.monotonic() + seconds
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_running(pid)


# Places by name


@pytest.mark.parametrize(
    ("on", "jobs", "resources", "kind", "slots"),
    [
        (None, None, None, Here, 1),
        (None, 3, None, Here, 3),
        ("slurm", None, None, Slurm, 16),
        ("slurm:partition=gpu,time=120", 4, None, Slurm, 4),
    ],
)
def test_a_place_is_found_by_its_name(tmp_path, on, jobs, resources, kind, slots):
    place = place_of(on, jobs, resources, tmp_path)
    assert type(place) is kind and place.slots == slots


def test_workers_are_found_by_their_number_or_by_their_scheduler(tmp_path):
    local = place_of("local:2", None, None, tmp_path)
    assert (local.address, local.num_workers, local.resources) == (None, 2, {})
    remote = place_of("tls://lab1.example.org:8786", None, "GPU=1,MEM=2.5", tmp_path)
    assert (remote.address, remote.resources) == ("tls://lab1.example.org:8786", {"GPU": 1.0, "MEM": 2.5})


@pytest.mark.parametrize(
    ("on", "jobs", "resources", "message"),
    [
        ("lokal:2", None, None, r"must be one of local:2, .* got 'lokal:2'"),
        ("local", None, None, "needs a number of workers from 1 to 256, got ''"),
        ("local:0", None, None, "from 1 to 256, got '0'"),
        ("local:²", None, None, "from 1 to 256"),
        ("tcp://lab1", None, None, "must be one of"),
        ("tcp://lab1:8786/x", None, None, "must be one of"),
        ("local:2", 3, None, "--jobs does not go with --on local:2"),
        ("tcp://lab1:1", None, "GPU", "'GPU' is no NAME=AMOUNT"),
        ("tcp://lab1:1", None, "GPU=x", "'GPU' is no NAME=AMOUNT"),
        ("local:2", None, "GPU=1", "--resources goes with --on tcp"),
        ("slurm:partitio=gpu", None, None, "no option 'partitio'. Did you mean 'partition'"),
        ("slurm:partition", None, None, "'partition' is no name=value"),
        ("slurm:time=soon", None, None, "time is a whole number of minutes, got 'soon'"),
        ("slurm:time=8:00:00", None, None, "time is a whole number of minutes"),
        ("slurm:array_parallelism=3", None, None, "array_parallelism is set by --jobs"),
        ("slurm:none.yaml", None, None, "none.yaml cannot be read"),
    ],
)
def test_a_place_that_is_none_is_refused_in_one_line(tmp_path, on, jobs, resources, message):
    with pytest.raises(ValueError, match=message) as refused:
        place_of(on, jobs, resources, tmp_path)
    assert "\n" not in str(refused.value)


def test_options_of_slurm_stand_in_the_name_or_in_a_file(tmp_path):
    assert options_of("partition=gpu,gpus_per_node=1") == {"partition": "gpu", "gpus_per_node": 1}
    (tmp_path / "cluster.yaml").write_text("partition: gpu\nsetup: [module load cuda]\n")
    script = Slurm(tmp_path, options_of(str(tmp_path / "cluster.yaml")), slots=2).script(5)
    assert "#SBATCH --partition=gpu\n" in script and "\nmodule load cuda\n" in script
    assert "#SBATCH --array=0-4%2\n" in script and "#SBATCH --signal=USR2@" in script


def test_a_place_needs_its_package_and_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for on in ("local:2", "slurm"):
        with pytest.raises(ValueError, match=r"needs \w+: pip install 'genlab\[cluster\]'"):
            place_of(on, None, None, tmp_path)


# Here


class Counting(Worker):
    """A worker that does nothing but count how many tasks are done at once."""

    guard, now, most = threading.Lock(), 0, 0

    def work(self, task):
        with self.guard:
            Counting.now += 1
            Counting.most = max(Counting.most, Counting.now)
        time.sleep(0.05)
        with self.guard:
            Counting.now -= 1


def test_as_many_tasks_run_at_a_time_as_there_are_slots(tasks):
    Counting.most = 0
    ended = [task for task, _ in Here(2, Counting(threads=1)).work_off(tasks(6))]
    assert Counting.most == 2 and {task.name for task in ended} == {f"toy {k}" for k in range(6)}


def test_each_end_is_told_with_its_place_in_the_queue(tasks, capsys):
    work_through(Here(1, Trainer([])), tasks(2), lambda task: task.state(), before=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[2/3] toy 0: trained", "[3/3] toy 1: trained"]


def test_the_time_that_is_left_counts_what_is_still_to_come(tasks, capsys, monkeypatch):
    clock = iter((0.0, 60.0, 120.0))
    monkeypatch.setattr("genlab.cluster.place.time.monotonic", lambda: next(clock))

    class AtOnce(Here):
        def work_off(self, tasks):
            yield from ((task, "") for task in tasks)

    work_through(AtOnce(1), tasks(2), lambda task: "done", before=1, total=5)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["[2/5] toy 0: done | about 3 min left", "[3/5] toy 1: done | about 2 min left"]


def test_whoever_closes_the_queue_stops_what_runs_and_begins_nothing_more(tasks):
    calls = []
    worker = Trainer(calls, seconds=0.2)
    with closing(Here(1, worker).work_off(tasks(5))) as ends:
        next(ends)
    assert worker._stopping.is_set() and len(calls) <= 2


# Workers of dask


@pytest.fixture(scope="module")
def two_workers():
    with pytest.MonkeyPatch.context() as patch:
        in_checkout(patch)
        with Workers(num_workers=2) as place:
            yield place


@contextmanager
def scheduler_of(**options):
    """A scheduler of dask with workers in this process, reached by its address; yields it."""
    from distributed import LocalCluster

    options = {"threads_per_worker": 1, "host": "127.0.0.1", "protocol": "tcp", **options}
    with LocalCluster(processes=False, dashboard_address=None, **options) as cluster:
        yield cluster.scheduler_address


def test_workers_do_every_task_and_write_where_the_command_was_typed(two_workers, tasks):
    assert two_workers.slots == 2
    made = tasks(3)
    ended = list(two_workers.work_off(made))
    assert {task for task, _ in ended} == set(made) and {problem for _, problem in ended} == {""}
    assert all(task.log.read_text().count(VERSION) == ATTEMPTS for task in made)


def test_what_is_wrong_on_a_worker_is_told_in_one_line(two_workers, tasks, tmp_path):
    (task,) = tasks(1)
    (tmp_path / "logs").rename(tmp_path / "elsewhere")
    ((_, problem),) = two_workers.work_off([task])
    assert "is not there" in problem and "\n" not in problem


def test_own_workers_are_no_processes_and_listen_on_the_loopback_interface_alone():
    psutil = pytest.importorskip("psutil")
    own = psutil.Process()
    children = own.children(recursive=True)
    with Workers(num_workers=2):
        assert own.children(recursive=True) == children
        assert {c.laddr.ip for c in own.net_connections("inet") if c.status == "LISTEN"} <= {"127.0.0.1"}


class Sleeping(Worker):
    """A worker whose trainings end when they are asked to, but the first one's, which ends at once."""

    processes: ClassVar[dict] = {}

    def run(self, task, arguments):
        if self._stopping.is_set():
            raise KeyboardInterrupt
        if task.name != "toy 0":
            process = self.processes[task.name] = subprocess.Popen(["sleep", "60"])
            self._processes.add(process)
            process.wait()


@pytest.mark.parametrize("is_own", [True, False])
def test_whoever_closes_the_queue_of_workers_has_what_began_stopped(tasks, monkeypatch, is_own):
    from genlab.cluster import workers

    monkeypatch.setattr(workers, "Worker", Sleeping)
    monkeypatch.setattr(Sleeping, "processes", {})
    with nullcontext() if is_own else scheduler_of(n_workers=2) as address:
        with Workers(address, num_workers=2) as place:
            with closing(place.work_off(tasks(6))) as ends:
                next(ends)
                deadline = time.monotonic() + 20
                while len(Sleeping.processes) < 2 and time.monotonic() < deadline:
                    time.sleep(0.01)
            begun = list(Sleeping.processes.values())
            assert [process.poll() for process in begun] == [-signal.SIGTERM] * 2
            # Workers are as before: they do what is asked next, and nothing of what was withdrawn.
            assert [problem for _, problem in place.work_off(tasks(1))] == [""]
        assert list(Sleeping.processes.values()) == begun


def test_tasks_share_what_workers_have_of_what_they_need(tasks, monkeypatch):
    from genlab.cluster import workers

    monkeypatch.setattr(workers, "Worker", Counting)
    with scheduler_of(n_workers=1, threads_per_worker=3, resources={"GPU": 2}) as address:
        for needed, at_a_time in (({}, 3), ({"GPU": 1}, 2), ({"GPU": 2}, 1)):
            Counting.most = 0
            with Workers(address, resources=needed) as place:
                assert place.slots == at_a_time
                assert [problem for _, problem in place.work_off(tasks(6))] == [""] * 6
            assert Counting.most == at_a_time
        with pytest.raises(ValueError, match=r"none of the scheduler's 1 workers .* --resources GPU=3"):
            Workers(address, resources={"GPU": 3}).__enter__()


# Encryption


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two certificates that sign themselves: the settings of dask for each, by its name."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")
    return {name: certified(folder, name) for name in ("lab", "other")}


def certified(folder, name):
    pem, key = str(folder / f"{name}.pem"), str(folder / f"{name}.key")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    made = ["openssl", "req", "-x509", *kind, "-subj", f"/CN={name}", "-keyout", key, "-out", pem]
    subprocess.run(made, check=True, capture_output=True)
    tls = {"ca-file": pem}
    for role in ("scheduler", "worker", "client"):
        tls[f"{role}.cert"], tls[f"{role}.key"] = pem, key
    settings = {f"distributed.comm.tls.{name}": value for name, value in tls.items()}
    return {**settings, "distributed.comm.require-encryption": True}


CLIENT = ("distributed.comm.tls.client.cert", "distributed.comm.tls.client.key")


def test_workers_are_reached_with_the_labs_certificate_and_every_other_one_is_refused_in_a_line(
    certificates, tasks, monkeypatch
):
    import dask

    from genlab.cluster import workers

    monkeypatch.setattr(workers, "Worker", Counting)
    monkeypatch.setattr(workers, "_PATIENCE", 5)
    lab, other = certificates["lab"], certificates["other"]
    with dask.config.set(lab), scheduler_of(n_workers=1, protocol="tls") as address:
        assert address.startswith("tls://127.0.0.1:")
        with Workers(address) as place:
            assert [problem for _, problem in place.work_off(tasks(2))] == [""] * 2
        foreign = {name: other[name] for name in CLIENT}
        for settings, message in (
            (other, "certificates here and there do not fit together"),
            ({**lab, **foreign}, "certificates here and there do not fit together"),
            ({**lab, **dict.fromkeys(CLIENT)}, "no certificate and key are set here"),
            ({**lab, "distributed.comm.tls.ca-file": "/none.pem"}, "certificates .* is not there"),
        ):
            with dask.config.set(settings), pytest.raises(ValueError, match=message) as refused:
                Workers(address).__enter__()
            told = str(refused.value)
            assert told.startswith(f"--on {address}: ") and "docs/cluster.md" in told and "\n" not in told
        plain = address.replace("tls", "tcp")
        with pytest.raises(ValueError, match=r"refuse what is not encrypted\. Use tls://"):
            Workers(plain).__enter__()
        told = pytest.raises(ValueError, match=r"hangs up .* was started with TLS is tls://")
        with dask.config.set({"distributed.comm.require-encryption": False}), told:
            Workers(plain).__enter__()


@pytest.mark.slow
def test_a_bench_goes_over_tls_by_the_commands_of_the_page(tmp_path):
    """As they stand in docs/cluster.md, but for the name of the machine and the size of the bench."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate")
    page = (ROOT / "docs" / "cluster.md").read_text()
    certificate, variables, commands = re.findall("```bash\n(.*?)```", page, re.DOTALL)[:3]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        here = f"127.0.0.1:{free.getsockname()[1]}"
    commands = commands.replace("--port 8786", f"--host {here.replace(':', ' --port ')}")
    scheduler, worker, bench = commands.replace("lab1:8786", here).splitlines()
    assert bench.startswith("genlab bench digits --families gan,vae --seeds 5 --on tls://127.0.0.1:")
    bench = bench.split("#")[0].replace("gan,vae --seeds 5", "vae --seeds 1 --budget 1000 --evaluations 1")
    ready = f"Client('tls://{here}', timeout=300).wait_for_workers(1, timeout=300)"
    parts = [
        certificate,
        variables,
        f"cd {ROOT}",
        f"{scheduler.split('#')[0]} &",
        f"{worker.split('#')[0]} &",
    ]
    parts += [f'python -c "from distributed import Client; {ready}"', f"{bench} -- {' '.join(QUICK)}"]
    script = "\n".join([*parts, "code=$?", "kill %1 %2", "wait", "exit $code"])
    own = {"HOME": str(tmp_path), "GENLAB_OUTPUTS": str(tmp_path / "outputs"), "PYTHONPATH": str(ROOT)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **own, "PATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(["bash", "-c", script], env=environment, timeout=PATIENCE, check=True)
    (run,) = list_runs(tmp_path / "outputs" / "bench" / "digits-1000")
    assert run.status == "finished" and (tmp_path / "dask-tls" / "cert.pem").exists()


# SLURM


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM of this machine on the path; returns the folder of what it knows."""
    commands, known = pretend_slurm.install(tmp_path)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PRETEND_SLURM", str(known))
    in_checkout(monkeypatch)
    return known


def test_tasks_are_one_array_job_with_a_limit(slurm, tasks, tmp_path):
    made = tasks(3)
    ended = list(Slurm(tmp_path / "slurm", {"time": 5}, slots=2).work_off(made))
    assert {task for task, _ in ended} == set(made) and {problem for _, problem in ended} == {""}
    assert len(list(slurm.glob("*.job"))) == 1
    assert max(map(int, (slurm / "at_a_time").read_text().split())) == 2
    assert all(task.log.read_text().count(VERSION) == ATTEMPTS for task in made)


def test_a_machine_without_slurm_is_told_so(tmp_path, tasks, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no srun here"):
        list(Slurm(tmp_path / "slurm", {}).work_off(tasks(2)))


def test_only_the_same_job_begun_again_goes_over_the_lock_of_another_machine(tmp_path, monkeypatch):
    held = {"host": "node7", "pid": 1, "boot": "x", "job": "17", "restarts": 0}
    file = tmp_path / "lock.json"
    for job, restarts, is_free in (
        ("17", "1", True),
        ("17", "0", False),
        ("18", "1", False),
        (None, "1", False),
    ):
        file.write_text(json.dumps(held))
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        if job:
            monkeypatch.setenv("SLURM_JOB_ID", job)
        assert lock.is_held(file) != is_free


# The whole, with real trainings

QUICK = ("--evaluate.num_samples=20", "--evaluate.num_test_samples=20", "--trainer.accelerator=cpu")


def bench_command(*options, budget=6000, seeds=3):
    """Six short trainings of two families."""
    named = ("--families", "gan,vae", "--budget", str(budget), "--seeds", str(seeds), "--evaluations", "2")
    return [sys.executable, "-m", "genlab", "bench", "digits", *named, *options, "--", *QUICK]


def start(folder, *options, **settings):
    environment = {
        **os.environ,
        "GENLAB_OUTPUTS": str(folder),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        bench_command(*options, **settings), env=environment, cwd=ROOT, start_new_session=True
    )


def finished(folder, **settings):
    """What six runs hold in everything that is not a time, by their names."""
    runs = list_runs(folder / "bench" / f"digits-{settings.get('budget', 6000)}")
    assert [run.status for run in runs] == ["finished"] * 2 * settings.get("seeds", 3)
    return {f"{run.experiment}/{run.name}": (record_of(run), scores_of(run), weights_of(run)) for run in runs}


TIMES = {"created", "training_seconds", "checkpoint_digest", "ms_per_sample"}
TIMES |= {"samples_per_second_1", "samples_per_second_64"}


def without_times(value):
    if isinstance(value, dict):
        return {name: without_times(inner) for name, inner in sorted(value.items()) if name not in TIMES}
    return value


def record_of(run):
    return without_times(run.read())


def scores_of(run):
    rows = [json.loads(line) for line in run.metrics_jsonl.read_text().splitlines()]
    seen = [row["examples_seen"] for row in rows if any(name.startswith("val/") for name in row)]
    assert seen == sorted(set(seen))  # nothing was learned twice
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def weights_of(run):
    import torch

    state = torch.load(run.last_checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    return {name: value.numpy().tobytes() for name, value in state.items()}


def starts_of(folder, word):
    return [log.read_text().count(f"{word}: ") for log in sorted(folder.glob("bench/*/logs/*.log"))]


@pytest.fixture(scope="module")
def one_after_the_other(tmp_path_factory):
    """The runs of a bench that nothing disturbs, on one core."""
    folder = tmp_path_factory.mktemp("sequential")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # as many threads for each as of two on two cores
    try:
        assert start(folder).wait(timeout=PATIENCE) == 0
    finally:
        os.sched_setaffinity(0, cores)
    return finished(folder)


def training_below(process, folder, has_begun):
    """A training that has got so far, and the process that started it."""
    import psutil

    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for child in psutil.Process(process.pid).children(recursive=True):
            try:
                words = dict(word.partition("=")[::2] for word in child.cmdline())
                if "fit" in words:
                    (run,) = folder.glob(f"bench/*/{words['--experiment']}/{words['--run_name']}")
                    if has_begun(Run(run)):
                        return child, child.parent()
            except (psutil.Error, ValueError):
                continue
        time.sleep(0.05)
    raise AssertionError("no training began")


def is_learning(run):
    return run.metrics_jsonl.exists() and '"step": 0' in run.metrics_jsonl.read_text()


def has_checkpoint(run):
    return run.last_checkpoint is not None


@pytest.fixture
def dask_cluster(tmp_path):
    """A scheduler and two workers as people start them; yields its address and the process of the workers."""
    from distributed import Client

    dask, file = str(Path(sys.executable).with_name("dask")), tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file), "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    commands = (
        [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", *where],
        [dask, "worker", "--nworkers", "2", "--nthreads", "1", "--host", "127.0.0.1", *where],
    )
    started = [subprocess.Popen(command, env=environment, cwd=tmp_path) for command in commands]
    with Client(scheduler_file=str(file), timeout=120, set_as_default=False) as client:  # waits for the file
        client.wait_for_workers(2, timeout=120)
        address = client.scheduler.address
    yield address, started[1]
    for process in reversed(started):
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_nothing_is_trained_twice(
    one_after_the_other, dask_cluster, tmp_path
):
    address, workers = dask_cluster
    bench = start(tmp_path, "--on", address)
    training, worker = training_below(workers, tmp_path, is_learning)
    worker.kill()
    assert ends(training.pid, seconds=300)
    assert bench.wait(timeout=PATIENCE) == 0
    assert finished(tmp_path) == one_after_the_other
    assert starts_of(tmp_path, "Run") == [1] * 6
    assert sum(starts_of(tmp_path, "Resuming")) == 1


@pytest.mark.slow
def test_a_killed_driver_loses_nothing_and_the_same_command_goes_on(one_after_the_other, tmp_path):
    bench = start(tmp_path, "--on", "local:2", seeds=1)
    training, _ = training_below(bench, tmp_path, has_checkpoint)
    os.kill(bench.pid, signal.SIGKILL)
    bench.wait()
    assert ends(training.pid, seconds=300)
    assert start(tmp_path, "--on", "local:2", seeds=1).wait(timeout=PATIENCE) == 0
    ended = finished(tmp_path, seeds=1)
    assert ended == {name: one_after_the_other[name] for name in ended}
    assert starts_of(tmp_path, "Run") == [1] * 2


@pytest.mark.slow
@pytest.mark.parametrize("is_own", [True, False])
def test_after_ctrl_c_what_began_has_a_checkpoint_and_the_same_command_goes_on(
    one_after_the_other, dask_cluster, tmp_path, is_own
):
    address, workers = dask_cluster
    place = ("--on", "local:2" if is_own else address)
    bench = start(tmp_path, *place, seeds=1)
    training, _ = training_below(bench if is_own else workers, tmp_path, is_learning)
    os.kill(bench.pid, signal.SIGINT)  # to the driver alone, as from another terminal
    assert bench.wait(timeout=PATIENCE) == EXIT_INTERRUPTED
    assert not is_running(training.pid)
    runs = list_runs(tmp_path / "bench" / "digits-6000")
    assert runs and {run.status for run in runs} <= {"stopped", "finished"}
    assert start(tmp_path, *place, seeds=1).wait(timeout=PATIENCE) == 0
    ended = finished(tmp_path, seeds=1)
    assert ended == {name: one_after_the_other[name] for name in ended}
    assert starts_of(tmp_path, "Run") == [1] * 2


@pytest.fixture(scope="module")
def two_undisturbed(tmp_path_factory):
    """What `--on slurm` is compared with: two trainings, one after the other."""
    folder = tmp_path_factory.mktemp("two")
    assert start(folder, "--jobs", "2", **LONGER).wait(timeout=PATIENCE) == 0
    return finished(folder, **LONGER)


LONGER = {"budget": 30_000, "seeds": 1}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["preempted", "its node is lost"])
def test_a_job_of_slurm_that_is_begun_again_goes_on_where_it_was(slurm, two_undisturbed, tmp_path, how):
    folder = tmp_path / "outputs"
    bench = start(folder, "--on", "slurm:time=60", "--jobs", "1", **LONGER)
    training, job = training_below(control_of(slurm), folder, has_checkpoint)
    if how == "preempted":  # SLURM asks every process of a job's step
        for process in [job, *job.children(recursive=True)]:
            process.send_signal(signal.SIGUSR2)
    else:
        (slurm / "1000_0.requeue").touch()
        for process in [*job.children(recursive=True), job]:
            process.kill()
    assert ends(training.pid, seconds=300) and ends(job.pid, seconds=300)
    assert bench.wait(timeout=PATIENCE) == 0
    assert finished(folder, **LONGER) == two_undisturbed
    assert starts_of(folder, "Run") == [1, 1] and starts_of(folder, "Resuming") == [1, 0]


def control_of(known):
    """The process that stands for SLURM itself, once it has a job."""
    import psutil

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "control" in words and any(str(known.parent) in word for word in words):
                return process
        time.sleep(0.1)
    raise AssertionError("no job was begun")


TRAIN = """
several="--trainer.devices 2 --trainer.accelerator cpu"
if [ -e $RUN/checkpoints/last.ckpt ]
then exec $PYTHON -m genlab resume $RUN $several
else exec $PYTHON -m genlab fit --config experiments/vae_digits.yaml --run_name one $several $OPTIONS
fi
"""


@pytest.mark.slow
def test_torchrun_starts_a_training_again_that_has_lost_a_process(tmp_path):
    import psutil

    run = Run(tmp_path / "vae_digits" / "one")
    (tmp_path / "train.sh").write_text(TRAIN)
    options = f"--budget.examples 30000 --budget.evaluate_every 3000 {QUICK[0]}"
    own = {
        "GENLAB_OUTPUTS": str(tmp_path),
        "RUN": str(run.path),
        "PYTHON": sys.executable,
        "OPTIONS": options,
    }
    own["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/cluster.md says
    environment = {**os.environ, **own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command = [*torchrun, *meeting, "--no-python", "bash", str(tmp_path / "train.sh")]
    agent = subprocess.Popen(command, env=environment, cwd=ROOT)
    deadline = time.monotonic() + 300
    while not (run.record.exists() and run.last_checkpoint):
        assert agent.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    _, second = psutil.Process(agent.pid).children()
    second.kill()
    assert agent.wait(timeout=300) == 0
    record = run.read()
    assert record["status"] == "finished" and record["examples_seen"] >= 30_000
    scores_of(run)
    assert [found.path for found in list_runs(tmp_path)] == [run.path]
