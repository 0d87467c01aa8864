"""The queue of a comparison: nothing is done twice, nothing is lost, and every experiment gets the same."""

import errno
import importlib
import inspect
import json
import os
import pkgutil
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import genlab.data
from genlab.cli.bench import Queue, experiment_files, outcome, plan_of, reason
from genlab.cli.bench import parser as bench_parser
from genlab.cluster.here import Here
from genlab.cluster.worker import Worker
from genlab.data.base import DataModule
from genlab.runs.bench import DRAWN_ANEW, TRIAL_FACTORS, Bench, Job, kept_apart, learning_rates, parse_budget
from genlab.runs.folder import NotARun, Run, create_run, list_runs

ROOT = Path(__file__).parents[1]
RATES = {"generator_optimizer": {"init_args": {"lr": 1e-3}}, "other": {"init_args": {"lr": 3e-4, "eps": 1.0}}}


@pytest.fixture
def plan(tmp_path):
    """A bench of two experiments, two seeds and three trials."""
    files = {}
    for name in ("gan_toy", "vae_toy"):
        files[name] = tmp_path / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({"model": {"init_args": RATES}}))
    bench = Bench(tmp_path / "bench" / "toy", files, parse_budget("90s"), num_seeds=2, num_trials=3)
    bench.save()
    return bench


class Pretend(Queue):
    """A queue whose trainings only leave what a training leaves."""

    def __init__(self, plan, num_workers=1, fids=None, outcomes=None, score="fid@8"):
        self.worker = PretendWorker(fids or {}, outcomes or {}, score)
        super().__init__(plan, Here(num_workers, self.worker))

    @property
    def calls(self):
        return self.worker.calls


class PretendWorker(Worker):
    def __init__(self, fids, outcomes, score):
        super().__init__(threads=1)
        self.fids, self.outcomes, self.score, self.calls = fids, outcomes, score, []

    def run(self, task, arguments):
        self.calls.append((arguments[0], task.name))
        if arguments[0] == "test":
            return Run(task.run).update(test={"values": {"fid@8": 1.0}})
        if arguments[0] == "fit":
            run = create_run(task.run.parent.name, task.run.parents[1], name=task.run.name)
            run.config.write_text("model: {}\n")
        run = Run(task.run)
        told = self.outcomes.get(task.name, [])
        outcome = told.pop(0) if told else "finished"
        if outcome == "stopped":
            checkpoint(run)
        fid = self.fids.get(task.name, 5.0)
        values = {f"val/{self.score}": fid, "val/loss": -fid}
        return run.update(status=outcome, validation=values, training_seconds=90.0)


def checkpoint(run):
    import zipfile

    with zipfile.ZipFile(run.checkpoints / "last.ckpt", "w") as file:
        file.writestr("weights", b"")


@pytest.mark.parametrize(
    ("text", "examples", "seconds"),
    [("90s", None, 90), ("1.5m", None, 90), ("1h", None, 3600), ("300k", 300_000, None), ("7", 7, None)],
)
def test_a_budget_is_a_time_or_a_number_of_examples(text, examples, seconds):
    budget = parse_budget(text)
    assert (budget.examples, budget.seconds) == (examples, seconds)
    assert f"--budget.examples={examples or 'null'}" in budget.options


@pytest.mark.parametrize("text", ["", "0s", "-3k", "90x", "fast", "infs", "nan"])
def test_a_budget_that_is_neither_is_refused(text):
    with pytest.raises(ValueError, match="a time such as 90s"):
        parse_budget(text)


def test_every_learning_rate_of_an_experiment_is_found():
    assert dict(learning_rates(RATES)) == {
        "generator_optimizer.init_args.lr": 1e-3,
        "other.init_args.lr": 3e-4,
    }
    for path in sorted((ROOT / "experiments").glob("*.yaml")):
        assert list(learning_rates(yaml.safe_load(path.read_text())["model"])), path


def test_everything_is_done_once_and_trials_come_first(plan):
    queue = Pretend(plan)
    assert queue.work() == []
    trials = [("fit", f"{name} trial {k}") for k in range(3) for name in ("gan_toy", "vae_toy")]
    seeds = [(f"{name} seed {s}") for s in range(2) for name in ("gan_toy", "vae_toy")]
    assert queue.calls == trials + [(step, seed) for seed in seeds for step in ("fit", "test")]
    again = Pretend(plan)
    assert again.work() == [] and again.calls == []


def test_runs_are_found_where_the_folder_is_named_from_here(plan, monkeypatch):
    """As it is where nobody sets $GENLAB_OUTPUTS: all ended runs were without a result."""
    Pretend(plan).work()
    monkeypatch.chdir(plan.folder.parent)
    here = Bench(Path(plan.folder.name), plan.files, plan.budget, plan.num_seeds, plan.num_trials)
    assert all(here.is_done(job) for job in here.jobs) and Pretend(here).work() == []


def test_more_seeds_train_only_what_is_missing(plan):
    Pretend(plan).work()
    more = Bench(plan.folder, plan.files, plan.budget, num_seeds=3, num_trials=3)
    more.save()
    queue = Pretend(more)
    queue.work()
    assert {job for _, job in queue.calls} == {"gan_toy seed 2", "vae_toy seed 2"}


def test_a_diverged_seed_is_a_result_and_is_not_repeated(plan):
    queue = Pretend(plan, outcomes={"gan_toy seed 1": ["diverged"]})
    assert queue.work() == []
    assert ("test", "gan_toy seed 1") not in queue.calls
    assert plan.find(Job("gan_toy", 1)).read()["bench"]["seed"] == 1
    assert Pretend(plan).work() == []


@pytest.fixture
def two_stages(tmp_path):
    """A bench of an experiment and of one that stands on a first stage."""
    models = {
        "vae_toy": {"init_args": RATES},
        "latent_toy": {"init_args": {"first_stage": "codes_toy", "prior": {"init_args": RATES}}},
        "codes_toy": {"init_args": RATES},
    }
    for name, model in models.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": model}))
    files = {name: tmp_path / f"{name}.yaml" for name in ("vae_toy", "latent_toy")}
    bench = Bench(tmp_path / "bench" / "toy", files, parse_budget("90s"), num_seeds=2)
    bench.save()
    return bench


def test_a_first_stage_is_trained_before_and_takes_half_of_the_budget(two_stages):
    queue = Pretend(two_stages)
    assert queue.work() == []
    fits = [job for command, job in queue.calls if command == "fit"]
    assert fits[:2] == ["codes_toy seed 0 (first stage)", "codes_toy seed 1 (first stage)"] and len(fits) == 6
    assert ("test", "codes_toy seed 0 (first stage)") not in queue.calls
    assert {run.experiment for run in list_runs(two_stages.folder)} == {"vae_toy", "latent_toy"}
    assert Pretend(two_stages).work() == []
    jobs = (Job("latent_toy", 1), Job("vae_toy", 1), Job("codes_toy", 1, is_stage=True))
    both, alone, stage = map(two_stages.fit, jobs)
    assert "--budget.seconds=45.0" in stage and "--budget.seconds=45.0" in both
    assert "--budget.seconds=90.0" in alone
    run = two_stages.folder / "stages" / "codes_toy" / "seed1"
    assert f"--model.first_stage={run}" in both and f"--config={two_stages.files['vae_toy']}" in alone
    assert not any(option.startswith("--model.first_stage") for option in alone + stage)
    assert f"--config={two_stages.folder.parents[1] / 'codes_toy.yaml'}" in stage


@pytest.mark.parametrize("outcome", ["failed", "stopped", "diverged"])
def test_nothing_is_trained_on_a_first_stage_that_is_not_finished(two_stages, outcome):
    stage = Job("codes_toy", 0, is_stage=True)
    first = replace(two_stages, num_trials=2)
    queue = Pretend(first, outcomes={str(stage): [outcome, outcome]})
    failed = queue.work()
    left_out = [*(job for job in first.trial_jobs if job.experiment == "latent_toy"), Job("latent_toy", 0)]
    assert set(left_out) <= set(failed)
    assert not any("latent_toy" in name for _, name in queue.calls)
    assert first.state(Job("vae_toy", 1)) == "tested"
    told = {"diverged": "diverged"}.get(outcome, "has none")
    assert reason(first, left_out[0]) == f"it needs codes_toy seed 0 (first stage), which {told}."
    assert not {str(job) for job in left_out} & {task.name for task in Pretend(first).next_tasks()}
    if outcome != "diverged":
        assert Pretend(first).work() == []  # the same command again


def test_other_seeds_are_trained_where_one_first_stage_is_missing(two_stages):
    queue = Pretend(two_stages, outcomes={"codes_toy seed 0 (first stage)": ["stopped", "stopped"]})
    assert queue.work() == [Job("codes_toy", 0, is_stage=True), Job("latent_toy", 0)]
    assert two_stages.state(Job("latent_toy", 1)) == "tested"


def test_a_changed_first_stage_and_one_without_a_file_are_refused(two_stages):
    file = two_stages.folder.parents[1] / "codes_toy.yaml"
    file.write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"was begun with another .*codes_toy.yaml"):
        two_stages.save()
    file.unlink()
    with pytest.raises(
        ValueError, match=r"latent_toy.yaml stands on the first stage codes_toy, and there is no"
    ):
        two_stages.save()


def test_a_stopped_run_is_continued_and_one_without_checkpoint_begins_anew(plan):
    outcomes = {"gan_toy seed 0": ["stopped"], "vae_toy seed 0": ["failed"]}
    queue = Pretend(plan, outcomes=outcomes)
    assert queue.work() == []
    steps = [step for step, job in queue.calls if job == "gan_toy seed 0"]
    assert steps == ["fit", "resume", "test"]
    steps = [step for step, job in queue.calls if job == "vae_toy seed 0"]
    assert steps == ["fit", "fit", "test"]


def spoiled(run):
    """Leaves a run as it was stopped, its checkpoints cut short; returns every file's content."""
    run.config.write_text("model: {}\n")
    run.update(status="stopped")
    for name in ("last.ckpt", "previous.ckpt"):
        (run.checkpoints / name).write_bytes(b"half a check")
    return contents(run)


def contents(run):
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.fault(6, 19)
def test_a_run_whose_checkpoints_cannot_be_read_is_kept_and_has_no_result(plan, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    job = Job("gan_toy", 0)
    run = create_run(job.experiment, plan.folder, name=job.name)
    before = spoiled(run)
    assert plan.state(job) == "started"
    Worker(threads=1).work(plan.task(job))
    assert contents(run) == before
    told = plan.log(job).read_text()
    assert re.search(r"Every checkpoint of .* is damaged: last\.ckpt of .* is cut short; previous", told)
    assert Queue(plan, Here(1))._ended(job) == "no result" and not plan.is_done(job)


@pytest.mark.fault(19)
def test_a_run_whose_record_or_folder_cannot_be_seen_is_kept(plan, monkeypatch):
    job = Job("gan_toy", 0)
    run = create_run(job.experiment, plan.folder, name=job.name)
    before = spoiled(run)

    def gone(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("genlab.runs.folder.os.listdir", gone)
        assert plan.state(job) == "started"
    run.record.rename(run.path / "elsewhere")
    with pytest.raises(NotARun, match=r"no run\.json"):
        Pretend(plan).worker.work(plan.task(job))
    (run.path / "elsewhere").rename(run.record)
    assert contents(run) == before


def test_a_run_that_fails_twice_is_reported_and_the_others_go_on(plan):
    queue = Pretend(plan, outcomes={"gan_toy seed 0": ["failed", "failed"]})
    assert queue.work() == [Job("gan_toy", 0)]
    assert plan.state(Job("vae_toy", 1)) == "tested"
    assert Pretend(plan).work() == []  # the next call tries again


def test_the_best_trial_sets_the_learning_rates_and_a_diverged_one_cannot_win(plan):
    fids = {"gan_toy trial 0": 3.0, "gan_toy trial 1": 1.0, "gan_toy trial 2": 2.0, "vae_toy trial 2": 0.1}
    Pretend(plan, fids=fids, outcomes={"vae_toy trial 2": ["diverged"]}).work()
    assert plan.best_trial("gan_toy") == 1 and plan.best_trial("vae_toy") == 0
    rate = 1e-3 * TRIAL_FACTORS[1]
    assert f"--model.init_args.generator_optimizer.init_args.lr={rate:.6g}" in plan.settings(
        Job("gan_toy", 0)
    )
    record = plan.find(Job("gan_toy", 0)).read()["bench"]
    assert record["tuning_trials"] == 3 and record["learning_rate_factor"] == TRIAL_FACTORS[1]


def test_no_run_begins_before_every_trial_has_a_result(plan):
    fids = {"gan_toy trial 1": 1.0}
    queue = Pretend(plan, fids=fids, outcomes={"gan_toy trial 1": ["failed", "failed"]})
    missing = Job("gan_toy", 1_001, 1)
    assert queue.work() == [missing, Job("gan_toy", 0), Job("gan_toy", 1)]
    assert not any(name.startswith("gan_toy seed") for _, name in queue.calls)
    assert plan.state(Job("vae_toy", 1)) == "tested"
    assert reason(plan, Job("gan_toy", 0)) == "it needs gan_toy trial 1, which has none."
    assert reason(plan, missing) == f"its output: {plan.log(missing)}"
    assert Pretend(plan, fids=fids).work() == []
    assert plan.find(Job("gan_toy", 0)).read()["bench"]["learning_rate_factor"] == TRIAL_FACTORS[1]


def test_a_finished_run_keeps_the_factor_that_it_was_trained_with(plan):
    Pretend(plan).work()
    run = plan.find(Job("gan_toy", 0))
    assert run.read()["bench"]["learning_rate_factor"] == 1.0
    plan.find(Job("gan_toy", 1_001, 1)).replace(validation={"val/fid@8": 0.1})
    assert plan.best_trial("gan_toy") == 1
    more = replace(plan, num_seeds=3)
    assert Pretend(more).work() == []
    assert run.read()["bench"]["learning_rate_factor"] == 1.0
    assert more.find(Job("gan_toy", 2)).read()["bench"]["learning_rate_factor"] == TRIAL_FACTORS[1]
    replace(plan, num_trials=1).mark(Job("gan_toy", 0))
    assert run.read()["bench"]["tuning_trials"] == 3


def test_a_trial_of_data_that_are_drawn_anew_learns_the_same_ones_in_each_epoch():
    file = ROOT / "experiments" / "realnvp_moons.yaml"
    options = kept_apart(yaml.safe_load(file.read_text()))
    assert options == ["--data.fraction=0.8", "--data.fresh=false", "--evaluate.split=rest"]
    rest = kept_apart({"data": {"class_path": "genlab.data.toy.Pinwheel"}})
    assert "--data.fresh=false" in rest and "--data.fresh=false" not in kept_apart({})


def test_all_data_that_are_drawn_anew_are_known():
    for module in pkgutil.iter_modules(genlab.data.__path__, "genlab.data."):
        importlib.import_module(module.name)
    found, classes = set(), [DataModule]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        inits = (inspect.signature(c.__init__).parameters for c in cls.__mro__ if "__init__" in vars(c))
        if cls.__module__.startswith("genlab.") and any("fresh" in init for init in inits):
            found.add(cls.__name__)
    assert found - {"PointData"} == DRAWN_ANEW


def test_the_best_trial_has_the_highest_score_where_higher_is_better(plan):
    scores = {"gan_toy trial 0": 20.0, "gan_toy trial 1": 31.0, "gan_toy trial 2": 30.0}
    Pretend(plan, fids=scores, score="bleu@8").work()
    assert plan.best_trial("gan_toy") == 1


def test_trials_are_told_apart_by_the_score_that_all_of_them_have(plan):
    Pretend(plan, fids={"gan_toy trial 1": 9.0}).work()
    for trial, values in ((0, {"bits_per_dim": 2.0}), (1, {"bits_per_dim": 1.0}), (2, {"bits_per_dim": 3.0})):
        run = plan.find(Job("gan_toy", 1_000 + trial, trial))
        record = json.loads(run.record.read_text())
        record["validation"] = values if trial == 1 else {**values, "fid@8": 5.0 - trial}
        run.record.write_text(json.dumps(record))
    assert plan.best_trial("gan_toy") == 1  # by FID, which it has not, it would be 2


def test_a_trial_whose_score_is_not_finite_is_not_judged_by_another_score(plan):
    Pretend(plan, fids={"gan_toy trial 1": float("nan"), "gan_toy trial 2": 4.0}).work()
    assert plan.best_trial("gan_toy") == 2


def test_the_end_of_a_job_is_told_by_its_headline():
    record = {"status": "finished", "training_seconds": 90.0}
    values = {"val/loss": 1.0, "val/bits_per_byte": 1.52, "val/perplexity": 2.9}
    told = outcome({**record, "validation": values})
    assert told == "finished, bits_per_byte 1.52, 90 s of training"
    assert outcome({**record, "test": {"values": {"fid@8": 2.0}}}).split(", ")[1] == "fid@8 2"


def test_trials_are_scored_against_images_kept_from_them_and_runs_are_not(plan):
    Pretend(plan).work()
    assert {"--evaluate.split=rest", "--data.fraction=0.8"} <= set(plan.fit(Job("gan_toy", 1_001, 1)))
    assert not any("split" in option or "data" in option for option in plan.fit(Job("gan_toy", 7)))


def test_a_trial_of_scarce_data_learns_a_part_of_what_the_experiment_learns(plan):
    file = plan.files["gan_toy"]
    file.write_text(file.read_text() + "data: {class_path: Toy, init_args: {fraction: 0.05}}\n")
    assert "--data.fraction=0.04" in plan.fit(Job("gan_toy", 1_001, 1))


def test_trials_use_other_seeds_and_are_not_among_the_runs_that_are_compared(plan):
    Pretend(plan).work()
    assert not {job.seed for job in plan.trial_jobs} & {job.seed for job in plan.jobs}
    assert {run.name for run in list_runs(plan.folder)} == {"seed0", "seed1"}


def test_every_experiment_gets_the_same_budget_and_evaluations(plan):
    options = [
        [option for option in plan.fit(job) if option.startswith("--budget")]
        for job in (Job("gan_toy", 9), Job("vae_toy", 9))
    ]
    assert options[0] == options[1]
    assert {"--budget.seconds=90.0", "--budget.examples=null", "--budget.evaluations=8"} <= set(options[0])


def test_a_trial_is_scored_once_since_only_its_end_decides(plan):
    assert "--budget.evaluations=1" in plan.fit(Job("gan_toy", 1_001, 1))


def test_experiments_whose_scores_will_not_compare_are_named(plan):
    assert plan.differences() == []
    plan.files["gan_toy"].write_text(yaml.safe_dump({"evaluate": {"num_test_samples": 797}}))
    (told,) = plan.differences()
    assert "evaluate.num_test_samples is 797 in gan_toy; its default in vae_toy" in told
    assert replace(plan, options=["--evaluate.num_test_samples=797"]).differences() == []


def test_the_scores_of_the_headline_compare():
    recipe = re.search(r"^headline:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    families = re.search(r"--families (\S+)", recipe)[1]
    files = experiment_files(ROOT / "experiments", "digits", families)
    assert len(files) == 14
    assert Bench(Path("bench"), files, parse_budget("90s"), num_seeds=5).differences() == []


def test_a_changed_experiment_or_budget_is_refused_by_name(plan):
    with pytest.raises(ValueError, match="begun with another budget"):
        Bench(plan.folder, plan.files, parse_budget("60s"), 2, 3).save()
    Bench(plan.folder, {"gan_toy": plan.files["gan_toy"]}, plan.budget, 2, 3).save()  # forgets nothing
    plan.files["vae_toy"].write_text("model: {}\n")
    with pytest.raises(ValueError, match=r"begun with another .*vae_toy\.yaml"):
        plan.save()


def test_a_run_is_untested_until_its_last_variant_is(plan):
    Pretend(plan).work()
    job = Job("gan_toy", 0)
    plan.find(job).config.write_text("variants: {fast: {model.steps: 2}}\n")
    assert plan.state(job) == "trained"
    plan.find(job).update(variants={"fast": {"values": {}}})
    assert plan.state(job) == "tested"


def test_a_training_that_outlived_its_queue_is_waited_for(plan):
    job = Job("gan_toy", 0)
    run = create_run(job.experiment, plan.folder, name=job.name)
    run.config.write_text("model: {}\n")
    queue = Pretend(plan)
    with run.lock():
        thread = threading.Thread(target=queue.worker.work, args=(plan.task(job),))
        thread.start()
        time.sleep(0.3)
        assert queue.calls == []
        run.update(status="finished", validation={"val/fid@8": 1.0})
    thread.join(timeout=10)
    assert [step for step, _ in queue.calls] == ["test"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits", "--families", "gan,dcgam"), "Did you mean 'dcgan'"),
        (("digits",), "Say what to compare"),
        (("faces", "--families", "gan"), "no experiment on 'faces'"),
        (
            ("digits", "--families", "gan", "--seeds", "0"),
            "--seeds: must be a whole number from 1",
        ),
        (("digits", "--families", "gan", "--trials", "99"), "--trials: must be a whole number from 1 to 5"),
    ],
)
def test_a_wrong_request_says_what_there_is(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_of(bench_parser().parse_args(arguments), [])


def test_experiments_are_found_by_family_and_data():
    files = experiment_files(ROOT / "experiments", "digits", "dcgan,vae")
    assert list(files) == ["dcgan_digits", "vae_digits"]


BENCH = ("bench", "digits", "--families", "gan", "--budget", "1200", "--evaluations", "2")
QUICK = ("--", "--evaluate.num_samples=20", "--evaluate.num_test_samples=20", "--trainer.accelerator=cpu")


def test_a_bench_trains_tests_and_goes_on_with_more_seeds(genlab_command, tmp_path):
    code, _, error = genlab_command(*BENCH, "--seeds", 1, *QUICK)
    assert code == 0, error
    folder = tmp_path / "outputs" / "bench" / "digits-1200"
    run = list_runs(folder)[0].read()
    assert run["status"] == "finished" and run["examples_seen"] == 1200 and run["test"]["values"]
    assert run["bench"]["budget"] == {"examples": 1200, "seconds": None}
    code, _, error = genlab_command(*BENCH, "--seeds", 1, *QUICK)
    assert code == 0 and "1 of 1 are there already" in error


@pytest.mark.slow
def test_a_bench_that_is_killed_at_random_moments_ends_with_the_same_table(tmp_path):
    whole = values_after(tmp_path / "whole", kills=0)
    killed = values_after(tmp_path / "killed", kills=4)
    assert killed == whole


def values_after(folder, kills):
    """Every score of a small bench whose processes were killed so many times."""
    options = ("--seeds", "2", "--trials", "2", "--jobs", "2", *QUICK)
    command = [sys.executable, "-m", "genlab", *BENCH, *options]
    environment = {**os.environ, "GENLAB_OUTPUTS": str(folder)}
    for _ in range(kills):
        process = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
        time.sleep(random.Random().uniform(8, 25))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    records = [json.loads(run.record.read_text()) for run in list_runs(folder / "bench" / "digits-1200")]
    return {record["run"]: record["test"]["values"] for record in records}
