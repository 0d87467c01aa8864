"""A search for settings: its seed says what is tried, nothing is lost, and the test split decides nothing."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from genlab.cli.resolved import resolved, settled
from genlab.cli.study import Study
from genlab.cli.sweep import Search, allowed
from genlab.cluster.here import Here
from genlab.cluster.worker import Worker
from genlab.configuration.keys import place_of, value_at, with_value
from genlab.report.comparison import compare
from genlab.report.importance import write_importance
from genlab.report.page import _searches, page
from genlab.report.pictures import Album
from genlab.runs.bench import parse_budget
from genlab.runs.folder import SWEEP_RESULT, Run, create_run, list_runs
from genlab.runs.ranges import Range, parse_range, parse_ranges, value_of
from genlab.runs.sweep import Sweep

ROOT = Path(__file__).parents[1]
GAN = ROOT / "experiments" / "gan_digits.yaml"

TOY_DATA = {"class_path": "Toy", "init_args": {"fraction": 0.5}}
MODEL = {"class_path": "Toy", "init_args": {"rate": 1e-3, "size": 4, "loss": {"class_path": "Hinge"}}}
RATE, SIZE = ("model", "init_args", "rate"), ("model", "init_args", "size")


@pytest.fixture
def plan(tmp_path):
    """A sweep of a rate and a size; the experiment's own are 1e-3 and 4."""
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump({"model": MODEL, "data": TOY_DATA}))
    ranges = {RATE: Range("log", 1e-4, 1e-2), SIZE: Range("int", 1, 8)}
    made = Sweep(
        tmp_path / "sweep", file, yaml.safe_load(file.read_text()), ranges, parse_budget("900"), seed=3
    )
    made.save()
    return made


class PretendTrainer(Worker):
    """Leaves what a training would; its score is the distance of the rate from 2e-3, in factors."""

    def __init__(self, outcomes=None, score="fid@8", sign=1.0):
        super().__init__(threads=1)
        self.outcomes, self.score, self.sign, self.calls = outcomes or {}, score, sign, []

    def run(self, task, arguments):
        self.calls.append((task.run.name, arguments[0]))
        outcome = self.outcomes.get(task.run.name, ["finished"])
        outcome = outcome.pop(0) if len(outcome) > 1 else outcome[0]
        run = create_run(task.run.parent.name, task.run.parents[1], name=task.run.name)
        rate = next(
            float(word.partition("=")[2]) for word in arguments if word.startswith("--model.init_args.rate")
        )
        values = {f"val/{self.score}": self.sign * (0.1 + abs(math.log(rate / 2e-3)))}
        run.update(status=outcome, validation=values, training_seconds=1.0)


def search_of(plan, trainer=None, size=2):
    return Search(plan, Here(size, trainer or PretendTrainer()), Study(plan))


def tried(study):
    return [(trial.number, trial.values, trial.cost) for trial in study.trials()]


# Ranges


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log:1e-4:1e-2", Range("log", 1e-4, 1e-2)),
        ("lin:-1:0.5", Range("lin", -1, 0.5)),
        ("int:1:8", Range("int", 1, 8)),
        ("choice:a,b, c", Range("choice", choices=("a", "b", "c"))),
        ("choice:[64, 128],[32]", Range("choice", choices=("[64, 128]", "[32]"))),
        ("choice:true,null", Range("choice", choices=("true", "null"))),
    ],
)
def test_a_range_is_read_as_people_write_it(text, expected):
    assert parse_range(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lgo:1:2", "no range 'lgo'. Did you mean 'log'"),
        ("1:2", "no range '1'"),
        ("log:0:1", "above 0, got 0"),
        ("log:1e-2:1e-4", "first limit must be below the second"),
        ("lin:1:1", "first limit must be below the second"),
        ("lin:1", "lin needs two numbers"),
        ("lin:0:inf", "lin needs two numbers"),
        ("lin:0:nan", "lin needs two numbers"),
        ("int:1:2.5", "int needs two whole numbers"),
        ("choice:a", "two or more different values"),
        ("choice:a,a", "two or more different values"),
        ("choice:a,,b", "two or more different values"),
    ],
)
def test_a_range_that_is_none_is_refused_with_its_key(text, message):
    with pytest.raises(ValueError, match=rf"--over model.lr: .*{message}") as refused:
        parse_ranges([f"model.lr={text}"])
    assert "\n" not in str(refused.value)


def test_a_key_stands_once_and_with_a_range():
    with pytest.raises(ValueError, match="needs KEY=RANGE"):
        parse_ranges(["model.lr"])
    with pytest.raises(ValueError, match=r"model\.lr is given twice"):
        parse_ranges(["model.lr=lin:0:1", "model.lr=lin:0:2"])


@pytest.mark.parametrize(
    "key",
    [
        "budget.examples",
        "seed_everything",
        "data.init_args.fraction",
        "data.fresh",
        "evaluate.split",
        "budget",
    ],
)
def test_what_is_the_same_for_all_trials_is_not_searched(key):
    with pytest.raises(ValueError, match="a sweep sets"):
        allowed({key: Range("int", 1, 2)})
    assert allowed({"data.batch_size": Range("int", 1, 2)})


def test_a_value_is_the_same_as_an_option_and_in_yaml():
    assert Range("log", 1e-5, 1).text(0.000123456789) == "0.000123457"
    assert value_of("0.000123457") == 0.000123457 and value_of("1e-4") == 1e-4
    assert Range("int", 1, 8).text(4.0) == "4" and value_of("[64, 128]") == [64, 128]


def test_an_experiments_own_setting_is_a_value_where_it_lies_inside():
    assert Range("log", 1e-4, 1e-2).value_of(1e-3) == 1e-3 and Range("log", 1e-4, 1e-2).value_of(0.1) is None
    assert Range("int", 1, 8).value_of(8) == 8 and Range("int", 1, 8).value_of(2.5) is None
    assert Range("choice", choices=("16", "32")).value_of(32) == "32"
    assert Range("int", 0, 2).value_of(True) is None and Range("lin", 0, 1).value_of(None) is None


# Keys


def test_a_key_is_found_with_and_without_init_args_and_the_nearest_is_named():
    config = {"model": MODEL}
    assert place_of("model.rate", config) == place_of("model.init_args.rate", config) == RATE
    assert place_of("model.loss", config) == ("model", "init_args", "loss")
    with pytest.raises(ValueError, match=r"no such key\. Did you mean 'model\.rate'"):
        place_of("model.rat", config)


def test_a_value_that_is_set_is_found_again_and_nothing_else_changes():
    config = {"model": MODEL, "data": "Digits"}
    for place in (
        RATE,
        ("data", "init_args", "batch_size"),
        ("budget", "examples"),
        ("model", "init_args", "loss"),
    ):
        changed = with_value(config, place, 7, config)
        assert value_at(place, changed) == 7
        assert value_at(SIZE, changed) == 4 and config["model"] == MODEL
    assert with_value(config, ("data", "init_args", "x"), 1, {})["data"]["class_path"] == "Digits"
    missing = with_value({}, RATE, 1, config)
    assert missing == {"model": {"class_path": "Toy", "init_args": {"rate": 1}}}


# Trials


def test_a_trial_is_scored_on_training_images_kept_from_it_and_never_on_the_test_split(plan):
    task = plan.task(0, {".".join(RATE): 1e-3, ".".join(SIZE): 4})
    assert {"--evaluate.split=rest", "--data.fraction=0.4", "--budget.evaluations=1"} <= set(task.fit)
    assert {"--model.init_args.rate=0.001", "--model.init_args.size=4", "--budget.examples=900"} <= set(
        task.fit
    )
    assert not task.is_tested and "--seed_everything=1003" in task.fit


def test_the_first_trial_is_the_experiment_itself_and_the_best_is_no_worse(plan):
    search = search_of(plan)
    assert search.work(6) == []
    first, *others = search.study.ended()
    assert first.is_own and first.values == {".".join(RATE): 1e-3, ".".join(SIZE): 4}
    assert len(others) == 5 and not any(trial.is_own for trial in others)
    assert min(trial.cost for trial in search.study.ended()) <= first.cost


def test_what_is_tried_depends_on_the_seed(plan, tmp_path):
    def values(seed, name):
        other = Sweep(tmp_path / name, plan.file, plan.resolved, plan.ranges, plan.budget, seed)
        other.save()
        search = search_of(other)
        search.work(5)
        return tried(search.study)

    assert values(3, "a") == values(3, "b") != values(4, "c")
    later = {str(values) for _, values, _ in values(4, "d")[1:]}
    assert not later & {str(values) for _, values, _ in values(5, "e")[1:]}  # no seed repeats its neighbour


def test_a_sweep_that_is_stopped_anywhere_ends_like_one_that_is_not(plan, tmp_path):
    whole = search_of(plan)
    whole.work(6)

    for moment in range(1, 7):
        stopped = Sweep(tmp_path / f"stopped{moment}", plan.file, plan.resolved, plan.ranges, plan.budget, 3)
        stopped.save()
        search = search_of(stopped)
        steps = iter(range(100))

        def counted(function, steps=steps, moment=moment):
            def step(*arguments):
                if next(steps) == moment:
                    raise InterruptedError
                return function(*arguments)

            return step

        search.study.tell, search.study._ask = counted(search.study.tell), counted(search.study._ask)
        with pytest.raises(InterruptedError):
            search.work(6)
        trainer = PretendTrainer()
        again = search_of(stopped, trainer)
        again.work(6)
        assert tried(again.study) == tried(whole.study)
        runs = [run.name for run in list_runs(stopped.folder / "trials")]
        assert sorted(runs) == [f"trial{k}" for k in range(6)]  # each trained once: a second one is refused


def test_a_finished_sweep_tries_more_trials_and_trains_none_again(plan):
    search_of(plan).work(4)
    trainer = PretendTrainer()
    search = search_of(plan, trainer)
    search.work(4)
    assert trainer.calls == []
    search.work(6)
    assert sorted(name for name, _ in trainer.calls) == ["trial4", "trial5"]


def test_a_diverged_trial_is_a_bad_value_and_not_an_error(plan, capsys):
    search = search_of(plan, PretendTrainer({"trial0": ["diverged"], "trial2": ["diverged"]}))
    assert search.work(5) == []
    assert [trial.number for trial in search.study.ended() if math.isinf(trial.cost)] == [0, 2]
    search.conclude(["genlab", "sweep"])
    assert "(2 diverged)" in plan.best_file.read_text().replace("\n", " ")


def test_a_trial_without_a_result_is_left_for_the_next_call(plan):
    search = search_of(plan, PretendTrainer({"trial1": ["failed"]}))
    assert [trial.number for trial in search.work(5)] == [1]
    assert {trial.number for trial in search.study.ended()} == {0, 2, 3, 4}
    assert search_of(plan).work(5) == []
    assert {trial.number for trial in search_of(plan).study.ended()} == set(range(5))


def test_where_no_trial_of_the_first_batch_has_a_result_the_sweep_ends(plan):
    search = search_of(plan, PretendTrainer({f"trial{k}": ["failed"] for k in range(9)}))
    assert len(search.work(9)) == 2


@pytest.mark.parametrize(("score", "sign"), [("fid@8", 1.0), ("bleu@8", -1.0)])
def test_the_best_settings_are_an_experiment_that_says_how_it_was_chosen(plan, capsys, score, sign):
    search = search_of(plan, PretendTrainer(score=score, sign=sign))
    search.work(12)
    search.conclude(["genlab", "sweep", "toy.yaml"])
    best = min(search.study.ended(), key=lambda trial: trial.cost)
    text = plan.best_file.read_text()
    written = yaml.safe_load(text)
    assert written["model"]["init_args"]["rate"] == float(f"{best.values['.'.join(RATE)]:.6g}")
    assert written["model"]["init_args"]["loss"] == {"class_path": "Hinge"} and "evaluate" not in written
    assert written["data"] == {"class_path": "Toy", "init_args": {"fraction": 0.5}}
    comment = [line for line in text.splitlines() if line.startswith("#")]
    assert "of 12 trials (0 diverged) of 900, scored on training images" in comment[0]
    shown = f"{sign * best.cost if sign > 0 else -best.cost:.4g}"
    assert f"{shown} in trial {best.number}, " in comment[0] and comment[2].endswith("genlab sweep toy.yaml")
    assert shown in capsys.readouterr().out


def test_the_setting_that_decides_explains_the_variance(plan, tmp_path, capsys):
    search = search_of(plan)
    search.work(16)
    shares = search.study.importances()
    assert max(shares, key=shares.get) == ".".join(RATE) and shares[".".join(RATE)] > 0.8
    assert sum(shares.values()) == pytest.approx(1.0)
    write_importance(tmp_path / "importance.svg", shares)
    assert "<svg" in (tmp_path / "importance.svg").read_text()


def test_the_report_of_a_sweep_shows_its_trials_what_matters_and_the_best_settings(plan):
    search = search_of(plan, PretendTrainer({"trial2": ["diverged"]}))
    search.work(8)
    assert "has no result yet" in compare([plan.folder]).notes[0]
    search.conclude(["genlab", "sweep", "toy.yaml"])
    comparison = compare([plan.folder])
    assert comparison.notes == [] and comparison.all_rows == []  # no trial counts as an untested run
    ((one, importance),) = _searches(comparison, Album())
    ended = {trial.number: trial for trial in search.study.ended()}
    best = min(ended.values(), key=lambda trial: trial.cost)
    assert one.trials[0][0].text == str(best.number) and len(one.trials) == 8
    assert one.heads == ["trial", "FID", "rate", "size"] and one.numeric == [True] * 4
    for number, score, rate, size in one.trials:
        trial = ended[int(number.text)]
        assert rate.value == float(f"{trial.values['.'.join(RATE)]:.6g}")
        assert size.value == trial.values[".".join(SIZE)] and (number.mark == "*") == trial.is_own
        assert score.text == ("diverged" if trial.number == 2 else f"{trial.cost:.4g}")
    facts = dict(one.best)
    assert facts["FID"] == f"{best.cost:.4g} in trial {best.number}" and facts["own settings"] == "0.7931"
    assert facts["rate"] == one.trials[0][2].text and facts["written to"] == "toy_best.yaml"
    shares = {plan.short(key): f"{share:.0%}" for key, share in search.study.importances().items()}
    assert dict(importance.numbers) == shares and importance.numbers[0][0] == "rate"
    html = page(comparison)
    assert "Search for settings: sweep" in html
    assert re.findall('<section id="([a-z]+)"', html) == ["search"]


def test_a_result_of_somebody_else_is_shown_as_text_or_not_at_all(plan, tmp_path):
    search_of(plan).work(2)
    garbage = (None, [], {}, "a", 5, {"trials": 3}, {"trials": [None]})
    odd = {"trials": [{"trial": "<b>", "settings": {"<b>": "<b>"}}], "score": "<b>"}
    shares = {"<b>": 1, "c": None, "d": "e"}
    for content in (*garbage, {"trials": [{"settings": 5}]}, odd, {**odd, "importance": shares}):
        (plan.folder / SWEEP_RESULT).write_text(json.dumps(content))
        html = page(compare([plan.folder]))
        assert "<b>" not in html and ('id="search"' in html) == (content not in garbage)
    (plan.folder / SWEEP_RESULT).unlink()
    (tmp_path / "elsewhere").write_text(json.dumps({"trials": [{"trial": 7}]}))
    (plan.folder / SWEEP_RESULT).symlink_to(tmp_path / "elsewhere")
    assert 'id="search"' not in page(compare([plan.folder]))


def test_equal_scores_and_a_single_one_explain_nothing(plan):
    search = search_of(plan, PretendTrainer({f"trial{k}": ["diverged"] for k in range(1, 4)}))
    search.work(4)
    assert search.study.importances() == {}


def test_a_journal_whose_last_line_was_cut_goes_on(plan):
    search_of(plan).work(4)
    journal = plan.folder / "journal.log"
    content = journal.read_bytes()
    journal.write_bytes(content[:-5])
    search = search_of(plan)
    assert search.work(4) == [] and len(search.study.ended()) == 4
    assert journal.read_bytes().startswith(content[: content.rstrip().rfind(b"\n") + 1])
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_as_many_trials_are_asked_for_as_run_at_a_time(plan):
    study = Study(plan)
    study._ask(0)  # and killed before the second one
    assert [trial.number for trial in Study(plan).batch(3, 7)] == [0, 1, 2]
    assert [trial.number for trial in Study(plan).batch(3, 7)] == [0, 1, 2]


@pytest.mark.parametrize("change", ["budget", "seed", "over", "options", "experiment"])
def test_a_sweep_that_was_begun_otherwise_is_refused_by_name(plan, change):
    other = {
        "budget": {"budget": parse_budget("800")},
        "seed": {"seed": 4},
        "over": {"ranges": {RATE: Range("log", 1e-4, 1e-1)}},
        "options": {"options": ["--trainer.precision=32"]},
        "experiment": {},
    }[change]
    plan.save()
    if change == "experiment":
        plan.file.write_text("model: {}\n")
    with pytest.raises(ValueError, match=f"begun with another {change}"):
        Sweep(**{**vars(plan), **other}).save()


# Against the real parser, and with real trainings


@pytest.mark.slow
def test_keys_and_values_are_checked_by_the_parser_of_training():
    config, places = settled([f"--config={GAN}"], {"model.generator_optimizer.lr": Range("log", 1e-4, 1e-2)})
    (place,) = places
    assert place == ("model", "init_args", "generator_optimizer", "init_args", "lr")
    assert value_at(place, config) == 2e-4
    for key, found, message in (
        ("model.generator_optimiser.lr", Range("lin", 0, 1), "Did you mean 'model.generator_optimizer.lr'"),
        ("data.batch_size", Range("choice", choices=("10", "x")), "batch_size must be int, got x"),
        ("model.loss", Range("choice", choices=("Hinge", "Hing")), "Did you mean 'Hinge'"),
    ):
        with pytest.raises(ValueError, match=rf"--over {key}: .*{message}"):
            settled([f"--config={GAN}"], {key: found})


def test_the_best_experiment_is_one_that_training_takes(tmp_path):
    over = {
        "model.generator_optimizer.lr": Range("log", 1e-4, 1e-2),
        "model.loss": Range("choice", choices=("Hinge", "NonSaturating")),
    }
    config, places = settled([f"--config={GAN}"], over)
    plan = Sweep(tmp_path, GAN, config, places, parse_budget("900"))
    first, second = (".".join(place) for place in places)
    plan.write_best({first: 0.00123456, second: "Hinge"}, ["A comment\nof two lines"])
    back = resolved([f"--config={plan.best_file}"])
    assert value_at(tuple(first.split(".")), back) == 0.00123456
    assert value_at(tuple(second.split(".")), back)["class_path"].endswith(".Hinge")
    assert back["budget"] == config["budget"]


QUICK = ("--evaluate.num_samples=20", "--evaluate.num_test_samples=20", "--trainer.accelerator=cpu")
SWEEP = ("sweep", str(GAN), "--over", "model.generator_optimizer.lr=log:1e-4:1e-2", "--trials", "2")


@pytest.mark.slow
@pytest.mark.parametrize("where", [("--jobs", "1"), ("--on", "local:2")])
def test_a_sweep_of_two_trials_that_is_killed_ends_like_one_that_is_not(tmp_path, where):
    options = (*SWEEP, "--budget", "3000", *where, "--", *QUICK)
    command = [sys.executable, "-m", "genlab", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def begun(folder):
        return subprocess.Popen(
            command, env={**environment, "GENLAB_OUTPUTS": str(folder)}, cwd=ROOT, start_new_session=True
        )

    folder = tmp_path / "killed"
    first = begun(folder)
    trial = Run(folder / "sweep" / "gan_digits-3000" / "trials" / "gan_digits" / "trial0")
    while not trial.metrics_jsonl.exists():
        assert first.poll() is None
        time.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert begun(folder).wait(timeout=300) == 0
    assert begun(tmp_path / "whole").wait(timeout=300) == 0
    ends = [what_came_of(root / "sweep" / "gan_digits-3000") for root in (folder, tmp_path / "whole")]
    assert ends[0] == ends[1]
    assert (folder / "sweep" / "gan_digits-3000" / "logs" / "trial0.log").read_text().count("Run: ") == 1


def what_came_of(folder):
    runs = list_runs(folder / "trials")
    assert len(runs) == 2 and {run.status for run in runs} == {"finished"}
    best = yaml.safe_load((folder / "gan_digits_best.yaml").read_text())
    return [run.read()["validation"] for run in sorted(runs, key=lambda run: run.name)], best
