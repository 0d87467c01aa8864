"""Many runs to one answer: intervals, who may be compared, tables."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from comparison_runs import (
    LIKELIHOOD,
    PAIRS,
    TEXT,
    changed,
    entry,
    falling,
    record,
    scored,
    write_bench,
    write_run,
)

from genlab.report import fairness
from genlab.report.columns import COLUMNS, chosen, heading, shown
from genlab.report.comparison import compare, in_order
from genlab.report.fairness import Incomparable
from genlab.report.forms import csv_table, markdown_table, text_table
from genlab.report.gather import gather
from genlab.report.intervals import difference, holm, log_interval, spread, t_interval, told_apart
from genlab.report.page import page
from genlab.report.points import with_speed
from genlab.report.rows import COLLAPSE_FACTOR
from genlab.report.test_table import AS_ABOVE, table_of
from genlab.report.verdict import DEQUANTISED, legend, remarks, short_verdict, verdict
from genlab.runs.folder import NotARun, Run
from genlab.runs.settings import facts_of

T_2 = 0.95 * math.sqrt(2 / (1 - 0.95**2))  # Student's 97.5 % quantile of 2 degrees of freedom, in closed form
T_4 = 2.7764451051977987
NUM_TABLES = 300


# Intervals


def test_a_mean_of_three_has_the_interval_of_a_hand_computation():
    found = t_interval([1.0, 2.0, 3.0])  # mean 2, s = 1
    assert (found.value, found.num) == (2.0, 3)
    assert found.high == pytest.approx(2.0 + T_2 / math.sqrt(3), rel=1e-12)
    assert found.low == pytest.approx(2.0 - T_2 / math.sqrt(3), rel=1e-12)


def test_a_mean_of_five_uses_four_degrees_of_freedom():
    values = [0.91, 0.90, 0.93, 0.89, 0.92]  # s^2 = 0.00025
    found = t_interval(values)
    assert found.high - found.low == pytest.approx(2 * T_4 * math.sqrt(0.00025 / 5), rel=1e-9)


def test_the_interval_of_logs_is_geometric_and_positive():
    found = log_interval([math.e**1, math.e**2, math.e**3])
    assert found.value == pytest.approx(math.e**2)
    assert math.log(found.high) == pytest.approx(2 + T_2 / math.sqrt(3))
    assert 0 < found.low < math.e
    assert log_interval([5.0, 10.0, 30.0]).low * 2 == pytest.approx(log_interval([10.0, 20.0, 60.0]).low)


def test_a_score_that_is_not_positive_has_no_logarithm_but_an_interval():
    assert log_interval([-1.0, 0.0, 1.0]) == t_interval([-1.0, 0.0, 1.0])


@pytest.mark.parametrize("interval", [t_interval, log_interval])
def test_one_seed_has_a_value_and_no_interval(interval):
    found = interval([1.25])
    assert (found.low, found.high, found.num) == (None, None, 1)
    assert found.value == pytest.approx(1.25)


@pytest.mark.parametrize("num", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(num):
    rng = np.random.default_rng(0)
    draws = np.exp(0.5 + 0.4 * rng.normal(size=(4000, num)))
    found = [log_interval(list(values)) for values in draws]
    share = np.mean([one.low <= math.exp(0.5) <= one.high for one in found])
    assert share == pytest.approx(0.95, abs=0.013)  # 3.8 standard errors


def test_the_interval_of_a_difference_agrees_with_another_computation():
    from scipy.stats import ttest_ind

    a, b = [1.22, 1.17, 1.28], [1.50, 1.44, 1.71, 1.39, 1.62]
    ends = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    found = difference(a, b)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    logs = ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval(0.95)
    found = difference(a, b, logs=True)
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)), rel=1e-9)


def test_a_difference_has_welchs_degrees_of_freedom_by_hand():
    found = difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0])
    se = math.sqrt(1 / 3 + (20 / 3) / 4)
    freedom = 2.0**2 / ((1 / 3) ** 2 / 2 + (5 / 3) ** 2 / 3)
    from scipy.stats import t

    assert found.value == -3.0
    assert found.high == pytest.approx(-3.0 + t.ppf(0.975, freedom) * se)


def test_differences_of_equal_models_are_ties_as_often_as_they_say():
    rng = np.random.default_rng(1)
    a = np.exp(0.1 * rng.normal(size=(3000, 5)))
    b = np.exp(0.4 * rng.normal(size=(3000, 3)))
    ties = [difference(list(x), list(y), logs=True).outcome == "tie" for x, y in zip(a, b, strict=True)]
    assert np.mean(ties) == pytest.approx(0.95, abs=0.016)


def test_holms_correction_is_that_of_a_hand_computation():
    # 4 pairs: 0.005 * 4, 0.01 * 3, then 0.03 * 2 = 0.06, which 0.04 * 1 may not undercut.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


def test_the_p_value_of_a_difference_is_that_of_welchs_test():
    from scipy.stats import ttest_ind

    a, b = [1.22, 1.17, 1.28], [1.50, 1.44, 1.71, 1.39, 1.62]
    assert difference(a, b).p == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)
    assert difference([1.0, 1.0], [1.0, 1.0]).p == 1.0 and difference([1.0, 1.0], [2.0, 2.0]).p == 0.0
    assert difference([1.0], [2.0, 3.0]).p is None


def test_of_many_equal_models_one_is_called_another_as_rarely_as_said():
    rng = np.random.default_rng(2)
    wrong = {"alone": 0, "together": 0}
    for _ in range(400):
        first, *others = np.exp(0.1 * rng.normal(size=(12, 5))).tolist()
        found = [difference(other, first, logs=True) for other in others]
        wrong["alone"] += any(one.outcome != "tie" for one in found)
        wrong["together"] += any(one.outcome != "tie" for one in told_apart(found))
    assert wrong["alone"] > 80 and wrong["together"] < 33  # of 400: 5 % are 20, with 3 standard errors


def test_a_difference_that_all_pairs_of_the_table_do_not_bear_is_a_tie(tmp_path):
    a, b = [1.0, 1.1, 1.2], [1.35, 1.4, 1.3]
    assert 0.005 < difference(b, a, logs=True).p < 0.05
    write_seeds(tmp_path, "a", a)
    write_seeds(tmp_path, "b", b)
    assert any(line.startswith("b has") for line in verdict(compare([tmp_path])))
    for number in range(10):
        write_seeds(tmp_path, f"c{number}", [1.0 + number / 50, 1.1, 1.25])
    comparison = compare([tmp_path], rank="fid")
    (line,) = (line for line in verdict(comparison) if line.startswith("Tied with it"))
    assert "corrected for 66 pairs" in line and " b," in f"{line.rstrip('.')},"
    ranks = dict(zip([row.name for row in comparison.rows], comparison.ranks(comparison.ranked), strict=True))
    assert ranks["b"] == "1"
    assert any("Holm" in line for line in remarks(comparison))


def test_of_equal_models_the_verdict_calls_one_worse_than_the_best_as_rarely_as_said(tmp_path):
    # The best of a table is chosen on the seeds that it is then tested on.
    write_seeds(tmp_path, "a", [1.0])
    rng, comparison, wrong = np.random.default_rng(3), compare([tmp_path], rank="fid"), 0
    for _ in range(NUM_TABLES):
        fids = np.exp(0.1 * rng.normal(size=(12, 5))).tolist()
        rows = [
            replace(comparison.rows[0], name=f"m{number}", entries=[{"values": {"fid": fid}} for fid in of])
            for number, of in enumerate(fids)
        ]
        table = replace(comparison, rows=in_order(rows, comparison.column))
        worse = [line.split()[0] for line in verdict(table) if "times its FID" in line]
        wrong += bool(worse)
        if worse:
            ranks = table.ranks(table.column)
            assert all(ranks[[row.name for row in table.rows].index(name)] != "1" for name in worse)
    assert wrong <= 0.05 * NUM_TABLES + 2 * math.sqrt(0.05 * 0.95 * NUM_TABLES)


def test_rows_at_the_edge_of_the_learning_rates_tried_are_named(tmp_path):
    factors = {"inside": 1.0, "low": 1 / 3, "high": 3.0}
    for name, factor in factors.items():
        write_run(tmp_path, record(name, **{"bench.learning_rate_factor": factor}), pictures=False)
    write_run(tmp_path, record("untried", **{"bench.tuning_trials": 1}), pictures=False)
    (line,) = (line for line in legend(compare([tmp_path])) if "learning rates" in line)
    assert "low" in line and "high" in line and "inside" not in line and "untried" not in line


def test_a_bound_by_dequantisation_is_told_from_the_exact_density(tmp_path):
    for name, estimator in {"flow": "uniform dequantisation, k = 4", "vae": "bound, k = 64"}.items():
        made = record(name)
        made["test"]["values"]["bits_per_dim"] = 2.0
        made["test"]["protocol"]["likelihood"] = {**LIKELIHOOD, "kind": "<=", "estimator": estimator}
        write_run(tmp_path, made, pictures=False)
    (line,) = (line for line in legend(compare([tmp_path])) if line.startswith("≤"))
    assert line == f"≤ is an upper bound. Of flow {DEQUANTISED}."


def test_the_lower_of_two_models_is_called_lower():
    low, high = [1.0, 1.1, 1.05], [2.0, 2.2, 2.1]
    assert difference(low, high, logs=True).outcome == "lower"
    assert difference(high, low, logs=True).outcome == "higher"
    assert difference(high, low, logs=True).value == pytest.approx(2.0)


@pytest.mark.parametrize("values", [[1.2], [1.2, 1.3], [1.22, 1.17, 1.28]])
def test_a_run_compared_with_itself_is_a_tie(values):
    for logs in (False, True):
        assert difference(values, list(reversed(values)), logs).outcome == "tie"


def test_two_seeds_that_differ_alone_decide_nothing():
    found = difference([1.0], [2.0, 2.1, 2.2])
    assert (found.low, found.outcome) == (None, "undecided")


def test_the_spread_of_logs_is_relative():
    assert spread([1.0, math.e**2], logs=True) == pytest.approx(math.sqrt(2))
    assert spread([1.0, 3.0]) == pytest.approx(math.sqrt(2))
    assert spread([3.0], logs=True) is spread([3.0]) is None


# Rows over seeds


def write_seeds(root, experiment, fids, family="GAN", curves=None, **changes):
    for seed, fid in enumerate(fids):
        made = record(experiment, family, seed, fid, **changes)
        write_run(root, made, (curves or {}).get(seed), pictures=False)


def test_seeds_of_an_experiment_are_one_row(tmp_path):
    write_seeds(tmp_path, "a_digits", [1.0, 2.0, 4.0])
    write_seeds(tmp_path, "b_digits", [3.0, 3.1])
    first, second = compare([tmp_path]).rows
    assert [first.name, second.name] == ["a_digits", "b_digits"]
    assert first.over_seeds("values", "fid").value == pytest.approx(2.0)
    assert first.over_seeds("values", "kid").value == pytest.approx((0.02 + 0.04 + 0.08) / 3)
    assert (len(first.entries), len(second.entries)) == (3, 2)


def test_sampling_noise_is_not_mixed_with_the_spread_over_seeds(tmp_path):
    write_seeds(
        tmp_path / "calm", "a", [1.0, 1.1, 1.2], **{"test.values": {"fid@797": 1.0, "fid_std@797": 0.3}}
    )
    (row,) = compare([tmp_path / "calm"]).rows
    assert row.sampling_noise == pytest.approx(0.3)
    found = row.over_seeds("values", "fid")
    assert found.high == pytest.approx(found.low) == pytest.approx(1.0)


def test_other_settings_of_an_experiment_are_another_row(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    other = write_run(tmp_path, record("a", seed=2, fid=9.0), pictures=False)
    config = (other / "config.yaml").read_text().replace("0.995", "0.9")
    (other / "config.yaml").write_text(config)
    Run(other).update(**facts_of(config))
    names = [row.name for row in compare([tmp_path]).rows]
    assert len(names) == 2
    assert all("ema_decay" in name for name in names)


def test_seconds_of_another_machine_are_another_row(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_run(tmp_path, record("a", seed=2, fid=9.0, threads=8), pictures=False)
    comparison = compare([tmp_path])
    assert [row.name for row in comparison.rows] == ["a [1 x cpu, 1 thread, 32-true]"]
    assert [row.name for row, _ in comparison.apart] == ["a [1 x cpu, 8 threads, 32-true]"]


def test_the_training_seed_alone_makes_no_other_row(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    texts = {path.read_text() for path in tmp_path.glob("*/*/config.yaml")}
    assert len(texts) == 2
    assert len(compare([tmp_path]).rows) == 1


def test_two_trainings_of_one_seed_count_once_and_are_named(tmp_path):
    write_run(tmp_path, record("a", seed=0, fid=1.0, status="diverged", run="first"), pictures=False)
    write_run(tmp_path, record("a", seed=0, fid=2.0, run="second", created="2027"), pictures=False)
    comparison = compare([tmp_path])
    assert [row.numbers("values", "fid") for row in comparison.rows] == [[2.0]]
    (note,) = comparison.notes
    assert "first (diverged) has seed 0 like" in note
    assert note.endswith("second, which counts.")


def test_a_training_that_is_not_tested_yet_replaces_no_result(tmp_path):
    write_run(tmp_path, record("a", seed=0, fid=1.0, run="first"), pictures=False)
    write_run(tmp_path, record("a", seed=0, test={}, run="second", created="2027"), pictures=False)
    assert [row.numbers("values", "fid") for row in compare([tmp_path]).rows] == [[1.0]]


def test_every_way_to_sample_is_a_row_of_its_own(tmp_path):
    for seed in range(2):
        variants = {"ddim-10": entry(2.0 + seed), "ddim-50": entry(1.5)}
        write_run(tmp_path, record("ddpm", "Diffusion", seed, 1.0, variants=variants), pictures=False)
    names = [row.name for row in compare([tmp_path]).rows]
    assert names == ["ddpm", "ddpm/ddim-50", "ddpm/ddim-10"]


def test_variants_are_compared_where_the_own_way_was_not_tested(tmp_path):
    write_run(tmp_path, record("ddpm", test={}, variants={"ddim-10": entry(2.0)}), pictures=False)
    assert [row.name for row in compare([tmp_path]).rows] == ["ddpm/ddim-10"]


# Stability


def stability(root):
    (row,) = compare([root]).rows
    return str(row.stability)


def test_trainings_that_end_well_are_counted(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1, 1.2])
    assert stability(tmp_path) == "3/3"


@pytest.mark.fault(20)
def test_a_seed_that_diverged_is_a_result(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_run(tmp_path, record("a", seed=2, status="diverged", test={}), pictures=False)
    assert stability(tmp_path) == "2/3, 1 diverged"
    assert any("its FID is of the 2 that have one" in line for line in remarks(compare([tmp_path])))


@pytest.mark.parametrize("diverged", [0, 3])
def test_without_a_budget_a_seed_that_ended_early_stays_in_its_row(tmp_path, diverged):
    none = {"bench": {}, "budget": {"examples": None, "seconds": None, "evaluations": None}}
    write_seeds(tmp_path, "other", [2.0, 2.1, 2.2], **none)
    for seed in range(4):
        early = {"status": "diverged", "test": {}, "examples_seen": 5000} if seed == diverged else {}
        write_run(tmp_path, record("a", seed=seed, fid=1.0 + 0.1 * seed, **early, **none), pictures=False)
    comparison = compare([tmp_path])
    assert [(row.name, str(row.stability)) for row in comparison.rows] == [
        ("a", "3/4, 1 diverged"),
        ("other", "3/3"),
    ]
    assert [row.budget for row in comparison.rows] == 2 * ["320,000 images"] and not comparison.apart


def test_an_experiment_whose_only_seed_diverged_has_a_row(tmp_path):
    write_run(tmp_path, record("a", status="diverged", test={}), pictures=False)
    assert stability(tmp_path) == "0/1, 1 diverged"


@pytest.mark.fault(22)
@pytest.mark.parametrize(("last", "word"), [(0.9, "3/3"), (1.1, "2/3, 1 collapsed")])
def test_a_last_fid_far_above_the_best_is_a_collapse(tmp_path, last, word):
    curve = [80.0, 2.0, 2.0 * COLLAPSE_FACTOR * last]
    write_seeds(tmp_path, "a", [2.0, 2.1, 2.2], curves={1: curve})
    assert stability(tmp_path) == word


@pytest.mark.parametrize(
    ("trend", "word"),
    [
        ([{"recall": 0.9}, {"recall": 0.4}], "0/1, 1 collapsed"),
        ([{"recall": 0.9}, {"recall": 0.5}], "1/1"),
        ([{"recall": 0.4}, {"recall": 0.9}], "1/1"),
        ([{"recall": 0.02}, {"recall": 0.0}], "1/1"),
        ([{"duplicates": 0.1}, {"duplicates": 0.4}], "0/1, 1 collapsed"),
        ([{"duplicates": 0.9}, {"duplicates": 0.1}], "1/1"),
    ],
)
def test_lost_modes_at_the_end_are_a_collapse(tmp_path, trend, word):
    write_seeds(tmp_path, "a", [2.0], **{"health.trend": trend})
    assert stability(tmp_path) == word


def test_the_best_evaluation_is_shown_and_never_the_result(tmp_path):
    write_seeds(tmp_path, "a", [2.0], curves={0: [80.0, 1.0, 2.0]})
    comparison = compare([tmp_path])
    (row,) = comparison.rows
    assert (row.stability.best.value, row.stability.last.value) == pytest.approx((1.0, 2.0))
    assert row.over_seeds("values", "fid").value == 2.0
    assert "0.5" not in verdict(comparison)[0]
    assert "FID 2 of one" in verdict(comparison)[0]


def test_the_wobble_is_of_the_last_five_evaluations(tmp_path):
    write_seeds(tmp_path, "a", [2.0], curves={0: [80.0, 40.0, 2.0, 2.0, 2.0, 2.0, 2.0]})
    (row,) = compare([tmp_path]).rows
    assert row.stability.wobble == 0.0


def test_a_run_that_still_trains_does_not_count(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_run(tmp_path, record("a", seed=2, status="created", test={}), pictures=False)
    comparison = compare([tmp_path])
    assert str(comparison.rows[0].stability) == "2/2"
    assert any("still training" in note for note in comparison.notes)


# Who may be compared

UNEQUAL = {
    "extractor": {"test.protocol.extractor_digest": "ffff"},
    "resize": {"test.protocol.resize": "bicubic"},
    "split": {"test.protocol.split": "val"},
    "num_real": {"test.protocol.num_real": 10_000},
    "num_fake": {"test.protocol.num_fake": 10_000},
    "seed": {"test.protocol.seed": 1},
    "data_fingerprint": {"test.protocol.data_fingerprint": "ffff"},
    "levels": {"test.protocol.levels": 256},
    "metric FrechetDistance": {"test.protocol.metrics.FrechetDistance": {"ddof": 0}},
    "training data": {"data.fingerprints.train": "ffff"},
    "data order": {"data.order": "8 chunks at a time"},
    "budget": {"bench.budget": {"seconds": 180.0, "examples": None}},
    "hardware": {"threads": 8},
}


@pytest.mark.parametrize("field", UNEQUAL)
def test_a_row_of_another_protocol_is_set_apart_and_its_field_named(tmp_path, field):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path, "b", [2.0, 2.1])
    write_seeds(tmp_path, "odd", [0.1, 0.1], **UNEQUAL[field])
    comparison = compare([tmp_path])
    assert [row.name for row in comparison.rows] == ["a", "b"]
    ((row, fields),) = comparison.apart
    assert row.name == "odd"
    assert field in [unequal.field for unequal in fields]
    assert "odd" not in verdict(comparison)[0]


@pytest.mark.parametrize("field", UNEQUAL)
def test_a_ranking_of_unequal_protocols_is_refused_by_name(tmp_path, genlab_command, field):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path, "b", [2.0, 2.1])
    write_seeds(tmp_path, "odd", [0.1, 0.1], **UNEQUAL[field])
    with pytest.raises(Incomparable, match=rf"odd has .*{field}: .* instead of"):
        compare([tmp_path], rank="fid")
    code, out, err = genlab_command("compare", tmp_path, "--rank", "fid")
    assert (code, out) == (2, "")
    assert field in err


def test_a_row_that_is_set_apart_is_in_no_line_of_the_verdict(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path, "b", [2.0, 2.1])
    write_seeds(tmp_path, "odd", [9.0, 9.1], **UNEQUAL["split"])
    assert not any("odd" in line for line in verdict(compare([tmp_path])))


def test_seeds_with_images_as_their_budget_may_train_on_any_machine(tmp_path):
    images = {"bench.budget": {"seconds": None, "examples": 320_000}}
    write_seeds(tmp_path, "a", [1.0, 1.1], **images)
    write_seeds(tmp_path, "b", [2.0, 2.1], threads=8, **images)
    assert not compare([tmp_path]).apart


def test_a_budget_of_images_differs_from_one_of_seconds_by_itself_alone(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path, "b", [1.0, 1.1])
    write_seeds(tmp_path, "odd", [2.0, 2.1], **{"bench.budget": {"seconds": None, "examples": 320_000}})
    ((_, fields),) = compare([tmp_path]).apart
    assert [str(field) for field in fields] == ["budget: 320,000 images instead of 90 s"]


def test_speeds_are_ranked_on_one_device_whatever_the_budget(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    other = {"test.speed.ms_per_sample": 1.0, "bench.budget": {"seconds": 5.0}}
    write_seeds(tmp_path, "b", [2.0, 2.1], **other)
    assert compare([tmp_path], rank="ms").ranked.key == "ms"
    write_seeds(tmp_path, "gpu", [2.0, 2.1], **{"test.speed.device": "H200"})
    with pytest.raises(Incomparable, match="gpu has speed device: H200 instead of cpu"):
        compare([tmp_path], rank="ms")


def test_speeds_of_two_devices_are_said_and_never_held_against_each_other(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1], **{"test.speed.ms_per_sample": 240.0})
    write_seeds(tmp_path, "b", [2.0, 2.1], **{"test.speed.ms_per_sample": 90.0})
    gpu = {"test.speed.device": "H200", "test.speed.ms_per_sample": 1.0}
    write_seeds(tmp_path, "gpu", [3.0, 3.1], **gpu)  # trained where the others were
    comparison = compare([tmp_path])
    lines = remarks(comparison)
    assert "Of those timed on cpu, 1 thread, b draws a sample fastest, in 90 ms; a takes 240 ms." in lines
    told = "speed measured (on H200, 1 thread: gpu; on cpu, 1 thread: a, b)"
    assert f"Not held equal: {told}." in lines
    assert [row.name for row, _, _ in with_speed(comparison)] == ["a", "b"]


def test_a_mean_over_speeds_of_two_devices_is_not_ranked_beside_one_of_one(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path, "b", [2.0, 2.1])
    write_run(tmp_path, record("mix", seed=0, fid=3.0), pictures=False)
    gpu = {"test.speed.device": "H200", "test.speed.ms_per_sample": 0.01}
    write_run(tmp_path, record("mix", seed=1, fid=3.1, **gpu), pictures=False)
    with pytest.raises(Incomparable, match=r"mix has speed device: H200 .* and cpu .* instead of cpu"):
        compare([tmp_path], rank="ms")
    lines = remarks(compare([tmp_path]))
    assert not any("mix draws a sample fastest" in line for line in lines)
    (alone,) = (line for line in remarks(compare([tmp_path / "mix"])) if "speed measured" in line)
    assert "on H200, 1 thread (1 of 2 seeds) and on cpu, 1 thread (1 of 2 seeds): mix" in alone


def test_rates_of_other_batches_are_said_and_not_ranked(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1], **{"test.speed.batch": 64})
    write_seeds(tmp_path, "b", [2.0, 2.1], **{"test.speed.batch": 64})
    write_seeds(tmp_path, "slow", [3.0, 3.1], **{"test.speed.batch": 1})
    with pytest.raises(Incomparable, match="slow has speed batch: 1 instead of 64"):
        compare([tmp_path], rank="rate")
    comparison = compare([tmp_path], rank="ms")  # of one sample, whatever the batch
    told = "Not held equal: samples/s measured in batches of (1: slow; 64: "
    assert any(line.startswith(told) for line in remarks(comparison))
    rate = chosen(["rate"])[1]
    assert heading(rate, comparison.rows) == "samples/s @1, 64"
    assert heading(rate, [row for row in comparison.rows if row.name != "slow"]) == "samples/s @64"


def test_averaged_weights_are_a_part_of_a_method_and_a_choice_within_one(tmp_path):
    write_seeds(tmp_path, "gan", [1.0, 1.1], **{"test.protocol.weights": "ema"})
    write_seeds(tmp_path, "vae", [2.0, 2.1], "VAE")
    comparison = compare([tmp_path])
    assert not comparison.apart
    assert any("weights" in line and "ema: gan" in line for line in remarks(comparison))
    for seed in (2, 3, 4):
        write_run(tmp_path, record("gan", seed=seed, fid=3.0), pictures=False)
    ((row, (field,)),) = compare([tmp_path]).apart
    assert row.name == "gan [weights raw]"
    assert (field.field, field.value, field.usual) == ("weights", "raw", "ema")


def test_a_metric_that_one_row_lacks_is_an_empty_cell(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path, "b", [2.0, 2.1], **{"test.protocol.metrics": {"FrechetDistance": {"ddof": 1}}})
    assert not compare([tmp_path]).apart


def with_likelihood(kind, **changes):
    section = changed({**LIKELIHOOD, "kind": kind}, changes)
    return {"test.values.bits_per_dim": 2.0, "test.protocol.likelihood": section}


def test_exact_likelihoods_and_bounds_share_a_table_but_no_ranking(tmp_path):
    write_seeds(tmp_path, "flow", [1.0, 1.1], "Flow", **with_likelihood("exact"))
    write_seeds(tmp_path, "vae", [2.0, 2.1], "VAE", **with_likelihood("<="))
    comparison = compare([tmp_path], rank="fid")
    assert not comparison.apart
    bits = next(column for column in COLUMNS if column.key == "bits_per_dim")
    assert [bits.cell(row).text for row in comparison.rows] == ["2", "≤ 2"]
    with pytest.raises(Incomparable, match="likelihood kind: <= instead of exact"):
        compare([tmp_path], rank="bits_per_dim")


@pytest.mark.parametrize(("field", "value"), [("levels", 256), ("shape", [1, 16, 16]), ("split", "val")])
def test_bits_of_other_data_are_not_ranked(tmp_path, field, value):
    write_seeds(tmp_path, "a", [1.0, 1.1], "Flow", **with_likelihood("exact"))
    write_seeds(tmp_path, "b", [2.0, 2.1], "Flow", **with_likelihood("exact", **{field: value}))
    with pytest.raises(Incomparable, match=f"likelihood {field}"):
        compare([tmp_path], rank="bits_per_dim")


def test_ranks_count_only_what_an_interval_decides(tmp_path):
    write_seeds(tmp_path, "best", [1.00, 1.01, 1.02])
    write_seeds(tmp_path, "near", [1.00, 1.02, 1.01])
    write_seeds(tmp_path, "far", [5.00, 5.10, 5.20])
    comparison = compare([tmp_path], rank="fid")
    ranks = dict(zip([row.name for row in comparison.rows], comparison.ranks(comparison.ranked), strict=True))
    assert ranks == {"best": "1", "near": "1", "far": "3"}
    assert any("Tied with it" in line and "near" in line for line in verdict(comparison))


def test_a_higher_precision_ranks_first(tmp_path):
    for name, values in {"low": (0.5, 0.51), "high": (0.9, 0.91)}.items():
        for seed, value in enumerate(values):
            write_run(
                tmp_path, record(name, seed=seed, **{"test.values.precision@797": value}), pictures=False
            )
    comparison = compare([tmp_path], rank="precision")
    assert [row.name for row in comparison.rows] == ["high", "low"]
    assert comparison.ranks(comparison.ranked) == ["1", "2"]


def test_one_seed_leaves_the_rank_open_and_says_so(tmp_path):
    write_seeds(tmp_path, "a", [1.0])
    write_seeds(tmp_path, "b", [2.0, 2.1])
    comparison = compare([tmp_path], rank="fid")
    assert comparison.ranks(comparison.ranked) == ["?", "?"]
    lines = verdict(comparison)
    assert "One training seed has no interval" in lines[0]
    assert any("Undecided" in line and "b" in line for line in lines)


def test_the_verdict_gives_ratios_of_geometric_means(tmp_path):
    low, high = [0.5, 1.0, 2.0], [8.0, 16.0, 32.0]
    write_seeds(tmp_path, "low", low)
    write_seeds(tmp_path, "high", high)
    half = T_4 * math.sqrt(2 * math.log(2) ** 2 / 3)  # equal variances: Welch's degrees of freedom are 4
    ends = f"[{16 * math.exp(-half):.2f}, {16 * math.exp(half):.2f}]"
    assert f"high has 16.00 times its FID {ends}." in verdict(compare([tmp_path]))


def test_an_interval_has_two_digits_and_no_power_of_ten(tmp_path):
    for seed, seen in enumerate((69_760, 75_000)):
        made = record(
            "ddpm", seed=seed, examples_seen=seen, **{"test.speed.ms_per_sample": 3.0 + 0.01 * seed}
        )
        write_run(tmp_path, made, pictures=False)
    (row,) = compare([tmp_path]).rows
    images, ms = (str(column.cell(row)) for column in chosen(["examples", "ms"])[1:])
    assert (images, ms) == ("72,380 ±33,000", "3.00 ±0.064")


def test_what_all_rows_share_is_held_equal_and_the_rest_is_not(tmp_path):
    write_seeds(tmp_path, "gan", [1.0, 1.1])
    write_seeds(tmp_path, "vae", [1.0, 1.1, 1.2], uses_labels=True)
    rows = compare([tmp_path]).rows
    equal, unequal = dict(fairness.held_equal(rows)), dict(fairness.not_held_equal(rows))
    assert (equal["tuning trials"], equal["budget"], equal["weights"]) == ("3", "90 s", "raw")
    assert unequal.keys() == {"labels", "seeds"} and not equal.keys() & unequal.keys()
    assert "uses labels: vae" in unequal["labels"] and unequal["seeds"] in (
        "2: gan; 3: vae",
        "3: vae; 2: gan",
    )


def test_the_verdict_names_the_best_without_labels_beside_a_winner_with_labels(tmp_path):
    write_seeds(tmp_path, "cvae", [0.3, 0.31, 0.32], "VAE", uses_labels=True)
    write_seeds(tmp_path, "gan", [1.0, 1.1, 1.2])
    write_seeds(tmp_path, "dcgan", [1.05, 1.1, 1.2])
    write_seeds(tmp_path, "cgan", [1.06, 1.1, 1.2], uses_labels=True)  # behind it, and not one of them
    write_seeds(tmp_path, "vae", [5.0, 5.1, 5.2], "VAE")
    lines = verdict(compare([tmp_path]))
    assert lines[0].startswith("cvae has the lowest FID, 0.310")
    (line,) = (line for line in lines if "without labels" in line)
    assert line.startswith("Of the 3 without labels, gan has the lowest FID, 1.10 [0.875, 1.38]")
    assert line.endswith("; tied with it: dcgan.")
    write_seeds(tmp_path, "best", [0.1, 0.11, 0.12])
    assert not any("without labels" in line for line in verdict(compare([tmp_path])))


def test_the_verdict_tells_likelihoods_apart_by_their_kind(tmp_path):
    for name, kind, bits in (
        ("flow", "exact", 2.0),
        ("glow", "exact", 3.0),
        ("vae", "<=", 1.0),
        ("vae2", "<=", 1.01),
    ):
        for seed in range(3):
            how = {"estimator": "k = 64"} if kind == "<=" else {}
            changes = {**with_likelihood(kind, **how), "test.values.bits_per_dim": bits + 0.01 * seed}
            write_run(tmp_path, record(name, seed=seed, **changes), pictures=False)
    lines = verdict(compare([tmp_path]))
    assert "Of the 2 models with an exact likelihood, flow has the lowest bits/dim, 2.01 ±0.025." in lines
    assert (
        "Of the 2 models with an upper bound (k = 64), vae has the lowest bits/dim, ≤ 1.01 ±0.025; "
        "tied with it: vae2." in lines
    )


def test_the_verdict_names_the_fastest_on_one_machine_only(tmp_path):
    write_seeds(tmp_path, "slow", [1.0, 1.1], **{"test.speed.ms_per_sample": 240.0})
    write_seeds(tmp_path, "fast", [2.0, 2.1])
    said = "fast draws a sample fastest, in 3 ms; slow takes 240 ms."
    assert said in verdict(compare([tmp_path]))
    write_seeds(tmp_path, "elsewhere", [3.0, 3.1], threads=8, **{"bench.budget": {"examples": 5}})
    assert said in verdict(compare([tmp_path]))  # the row is set apart


def test_a_column_without_better_or_worse_cannot_rank(tmp_path):
    write_seeds(tmp_path, "a", [1.0])
    with pytest.raises(ValueError, match="cannot be ranked by 'stability'"):
        compare([tmp_path], rank="stability")


def test_labels_and_tuning_trials_are_told(tmp_path):
    write_seeds(tmp_path, "plain", [2.0, 2.1])
    write_seeds(tmp_path, "told", [1.0, 1.1], uses_labels=True, **{"bench.tuning_trials": 30})
    comparison = compare([tmp_path])
    lines = "\n".join(remarks(comparison))
    assert "told" in next(line for line in remarks(comparison) if "uses labels" in line)
    assert "tuning trials (3: plain; 30: told)" in lines or "tuning trials (30: told; 3: plain)" in lines
    assert "| told † |" in markdown_table(comparison)
    assert "† was trained with labels" in lines


def test_the_floor_stands_below_the_models(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    line = csv_rows(compare([tmp_path]))[-1]
    assert (line["name"], float(line["fid"]), line["comparable"]) == ("training split (floor)", 0.1, "floor")


# Rows led by another score than FID


def write_scores(root, experiment, key, values, family="New", curve=None, more=None, **changes):
    for seed, value in enumerate(values):
        made = scored(experiment, family, seed, {key: value, "loss": 1.0, **(more or {})}, **changes)
        write_run(root, made, falling(value) if curve is None else curve, pictures=False, score=key)


@pytest.fixture
def mixed(tmp_path):
    """Three GANs, two models of text, one of pairs: no score that all of them have."""
    for number, name in enumerate(("gan", "dcgan", "wgan")):
        write_seeds(tmp_path, f"{name}_digits", [1.0 + number, 1.1 + number, 1.2 + number])
    write_scores(tmp_path, "gpt_plays", "bits_per_byte", [1.5, 1.52, 1.54], "GPT", more={"perplexity": 2.9})
    write_scores(tmp_path, "lstm_plays", "bits_per_byte", [1.9, 1.92, 1.94], "LSTM", more={"perplexity": 4.0})
    protocol = {"split": "test", "num_real": 400, "num_fake": 400, "weights": "raw", "metrics": {}}
    write_scores(tmp_path, "pix2pix_edges", "psnr", [22.1, 22.3], "Pix2Pix", more={"ssim": 0.8}, spec=PAIRS,
                 protocol=protocol, curve=[9.0, 20.0, 22.2])  # fmt: skip
    return tmp_path


def test_rows_without_a_common_score_are_compared_in_groups_of_their_own(mixed):
    comparison = compare([mixed])
    found = [(group.headline.key, [row.name for row in group.rows]) for group in comparison.groups]
    assert found == [
        ("fid", ["gan_digits", "dcgan_digits", "wgan_digits"]),
        ("bits_per_byte", ["gpt_plays", "lstm_plays"]),
        ("psnr", ["pix2pix_edges"]),
    ]
    assert len(comparison.all_rows) == 6 and not comparison.uncompared
    differs = {line["name"]: (line["comparable"], line["differs"]) for line in csv_rows(comparison)}
    assert differs["gan_digits"] == ("yes", "")
    assert differs["gpt_plays"] == ("no", "score: bits/byte instead of FID")
    assert differs["pix2pix_edges"] == ("no", "score: PSNR instead of FID")


def test_each_group_has_its_own_sentences(mixed):
    lines = verdict(compare([mixed]))
    assert lines[0] == "gan_digits has the lowest FID, 1.10 [0.875, 1.38] over 3 training seeds."
    assert "gpt_plays has the lowest bits/byte, 1.52 ±0.05 over 3 training seeds." in lines
    assert any(line.startswith("lstm_plays is 0.4 bits/byte above it [0.355, 0.445]") for line in lines)
    assert "pix2pix_edges has PSNR 22.2 ±1.3 over 2 training seeds; no row can be compared with it." in lines
    assert not any("Not comparable" in line or "collapsed" in line for line in remarks(compare([mixed])))


def test_each_group_has_a_table_with_the_columns_that_it_has(mixed, genlab_command):
    _, out, _ = genlab_command("compare", mixed, "--markdown")
    heads = [line for line in out.splitlines() if line.startswith("| model")]
    assert ["FID@797" in heads[0], "bits/byte" in heads[1], "PSNR dB" in heads[2]] == [True] * 3
    assert "perplexity" in heads[1] and "SSIM" in heads[2] and "bits/byte" not in heads[0] + heads[2]
    assert "loss" not in "".join(heads) and "tokens seen" in heads[1] and "pairs seen" in heads[2]
    _, out, _ = genlab_command("compare", mixed, "--columns", "fid,recall,ms")
    heads = [line.split() for line in out.splitlines() if line.startswith("model ")]
    assert heads[0] == ["model", "FID@797", "recall@797", "ms/sample"]
    assert [line[:2] for line in heads[1:]] == [["model", "bits/byte"], ["model", "PSNR"]]


def test_the_page_of_a_mixed_report_has_every_row(mixed):
    text = page(compare([mixed]))
    assert all(name in text for name in ("gan_digits", "gpt_plays", "pix2pix_edges", "bits/byte", "PSNR"))


def test_a_short_verdict_of_groups_has_the_first_sentence_of_each_first(mixed):
    lines = short_verdict(compare([mixed]), 3)
    assert [line.split()[0] for line in lines] == ["gan_digits", "gpt_plays", "pix2pix_edges"]
    assert short_verdict(compare([mixed]), 0) == []


def test_a_group_is_ranked_by_its_own_score(mixed):
    comparison = compare([mixed], rank="bits_per_byte")
    assert [row.name for row in comparison.rows] == ["gpt_plays", "lstm_plays"]
    assert comparison.ranks(comparison.ranked) == ["1", "2"]
    assert [group.headline.key for group in comparison.beside] == ["fid", "psnr"]


def test_rows_that_share_a_later_score_are_compared_by_it(tmp_path):
    write_seeds(tmp_path, "vae", [1.0, 1.1], "VAE", **with_likelihood("exact"))
    write_seeds(tmp_path, "flow", [3.0, 3.1], "Flow", **with_likelihood("exact"))
    for path in tmp_path.glob("flow/*/run.json"):
        made = json.loads(path.read_text())
        made["test"]["values"] = {"bits_per_dim": 1.5, "loss": 0.1}
        path.write_text(json.dumps(made))
    comparison = compare([tmp_path])
    assert (comparison.headline.key, comparison.beside, comparison.apart) == ("bits_per_dim", [], [])
    assert [row.name for row in comparison.rows] == ["flow", "vae"]
    assert "flow has the lowest bits/dim, 1.50 over 2 training seeds." in verdict(comparison)


def test_a_loss_compares_no_rows(tmp_path):
    write_scores(tmp_path, "a", "reconstruction_mse", [1.0, 1.1])
    write_scores(tmp_path, "b", "reconstruction_mse", [2.0, 2.1])
    assert verdict(compare([tmp_path])) == ["No comparable row has a score yet."]


def test_a_seed_that_diverged_is_in_the_group_of_its_data(mixed):
    write_run(mixed, scored("rnn_plays", "RNN", 0, {}, status="diverged"), pictures=False)
    comparison = compare([mixed])
    assert [row.name for row in comparison.beside[0].rows][-1] == "rnn_plays"
    assert "rnn_plays: 0/1, 1 diverged of its trainings; none of them has a score." in verdict(comparison)


@pytest.mark.parametrize("key", ["bits_per_byte", "bleu", "psnr", "accuracy"])
def test_a_linear_score_has_the_interval_of_its_values(tmp_path, key):
    values = [0.5, 1.0, 2.0]
    write_scores(tmp_path, "a", key, values)
    (row,) = compare([tmp_path]).rows
    assert row.over_seeds("values", key) == t_interval(values)
    cell = chosen([key])[1].cell(row)
    assert cell.interval.startswith("±") and not cell.skewed


@pytest.mark.parametrize("key", ["fid", "wasserstein", "perplexity"])
def test_a_score_that_spreads_by_factors_has_the_interval_of_its_logarithms(tmp_path, key):
    values = [0.5, 1.0, 2.0]
    write_scores(tmp_path, "a", key, values)
    (row,) = compare([tmp_path]).rows
    assert row.over_seeds("values", key) == log_interval(values) != t_interval(values)
    cell = chosen([key])[1].cell(row)
    assert cell.interval.startswith("[") and cell.skewed


def test_the_distance_of_a_linear_score_is_a_difference_with_its_interval(tmp_path):
    write_scores(tmp_path, "low", "psnr", [20.0, 21.0, 22.0])
    write_scores(tmp_path, "high", "psnr", [30.0, 31.0, 32.0])
    half = T_4 * math.sqrt(2 * 1.0 / 3)  # equal variances: Welch's degrees of freedom are 4
    comparison = compare([tmp_path])
    assert [row.name for row in comparison.rows] == ["high", "low"]  # the highest first
    first, second, *_ = verdict(comparison)
    assert first.startswith("high has the highest PSNR, 31 ±2.5")
    assert second == f"low is 10 dB below it [{10 - half:.3g}, {10 + half:.3g}]."
    assert comparison.ranks(comparison.column) == ["1", "2"]
    assert short_verdict(comparison, 2)[1] == "low is 10 dB below it."


def test_a_tie_of_a_linear_score_is_one_of_its_values(tmp_path):
    write_scores(tmp_path, "a", "bleu", [30.0, 31.0, 32.0])
    write_scores(tmp_path, "b", "bleu", [30.5, 31.0, 31.2])
    tied = "Tied with it (no difference of BLEU that a test at 5 % finds): b."
    assert tied in verdict(compare([tmp_path]))


def test_a_table_of_a_test_leaves_out_what_two_players_reach_against_each_other():
    game = {"loss": -0.4, "generator": -0.4, "discriminator": 2.0, "accuracy_real": 1.0, "accuracy_fake": 0.0}
    entry = {"values": {"fid@797": 0.8, "l1": 0.1, **game}, "split_means": ["l1", *game]}
    assert [cells[0] for cells in table_of(entry, {}).cells] == ["fid@797", "l1"]
    no_game = {name: value for name, value in game.items() if "accuracy" not in name}
    entry = {"values": no_game, "split_means": [*no_game]}
    assert [cells[0] for cells in table_of(entry, {}).cells] == [*no_game]


def test_a_protocol_is_told_once_for_the_numbers_that_share_it():
    speed = {"ms_per_sample": 1.0, "samples_per_second_64": 9.0, "device": "cpu", "threads": 1}
    entry = {"values": {"loss": 1.0, "kl": 2.0}, "split_means": ["loss", "kl"], "speed": speed}
    told = {cells[0]: cells[-1] for cells in table_of(entry, {}).cells}
    assert [told["ms, one sample"], told["samples/s, 64 at once"]] == ["on cpu, 1 thread", AS_ABOVE]
    assert [told["loss"], told["kl"]] == ["mean over the split", AS_ABOVE]


@pytest.mark.parametrize("form", [(), ("--markdown",)], ids=["on a screen", "as Markdown"])
def test_a_short_verdict_comes_before_the_table_and_what_marks_mean_after_it(mixed, form, genlab_command):
    (lead,), below = short_verdict(compare([mixed]), 1), legend(compare([mixed]))[-1]
    lead = lead.partition(" [")[0]  # Markdown has its brackets otherwise
    code, out, _ = genlab_command("compare", mixed, "--verdict", 1, *form)
    assert code == 0 and out.lstrip("- ").startswith(lead)
    assert 0 < out.index("model ") < out.index(below) and out.count(lead) == 1
    code, out, _ = genlab_command("compare", mixed, *form)
    assert code == 0 and out.index("model ") < out.index(lead)


def test_a_short_verdict_tells_how_far_the_others_are(tmp_path):
    for name, fid in (("best", 1.0), ("near", 2.0), ("far", 9.0)):
        write_seeds(tmp_path, name, [fid, 1.01 * fid, 1.02 * fid])
    lead, others = short_verdict(compare([tmp_path]), 2)
    assert lead == verdict(compare([tmp_path]))[0]
    assert others == "The others have 2.00 to 9.00 times its FID."
    write_seeds(tmp_path, "twin", [1.0, 1.01, 1.02])
    told = short_verdict(compare([tmp_path]), 5)
    assert "2 others have 2.00 to 9.00 times its FID." in told and "Tied" in told[1]


def test_ranking_by_another_column_does_not_change_who_leads(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1], **{"test.values.precision@797": 0.5})
    write_seeds(tmp_path, "b", [2.0, 2.1], **{"test.values.precision@797": 0.9})
    comparison = compare([tmp_path], rank="precision")
    assert [row.name for row in comparison.rows] == ["b", "a"]
    assert verdict(comparison)[0].startswith("a has the lowest FID")


@pytest.mark.parametrize(
    ("key", "curve", "word"),
    [
        ("bleu", [0.1, 30.0, 9.0], "0/1, 1 collapsed"),
        ("bleu", [0.1, 30.0, 11.0], "1/1"),
        ("bleu", [0.1, 30.0, 0.0], "0/1, 1 collapsed"),
        ("bits_per_byte", [8.0, 1.5, 5.0], "0/1, 1 collapsed"),
        ("bits_per_byte", [8.0, 1.5, 4.0], "1/1"),
        ("loss", [8.0, 0.1, 5.0], "1/1"),
    ],
)
def test_a_collapse_is_told_by_the_headline_in_its_direction(tmp_path, key, curve, word):
    write_scores(tmp_path, "a", key, [curve[-1]], curve=curve)
    (row,) = compare([tmp_path]).rows or [compare([tmp_path]).apart[0][0]]
    assert str(row.stability) == word


def test_own_evaluations_are_told_in_the_headlines_units(tmp_path):
    curve = [8.0, 3.0, *(s := [1.50, 1.52, 1.49, 1.51, 1.53])]
    write_scores(tmp_path, "a", "bits_per_byte", [1.5], curve=curve, more={"perplexity": 3.0})
    comparison = compare([tmp_path])
    (row,) = comparison.rows
    assert (row.stability.best.value, row.stability.last.value) == (1.49, 1.53)
    assert row.stability.wobble == pytest.approx(np.std(s, ddof=1))
    columns = chosen(["best", "wobble"])[1:]
    table = text_table(comparison, chosen(["best", "wobble", "examples"]))
    assert table.columns == ["model", "bits/byte best", "spread, last 5", "tokens seen"]
    assert [str(column.cell(row)) for column in columns] == ["1.49", "±0.0158"]


def test_an_evaluation_keeps_all_of_its_scores(tmp_path):
    write_seeds(tmp_path, "a", [2.0], curves={0: [80.0, 2.5]})
    (trained,) = gather([tmp_path]).runs
    last = trained.evaluations[-1]
    assert last.values == {"fid": 2.5, "recall": 0.8}
    assert (last.headline.key, last.score) == ("fid", 2.5)


def test_rows_of_several_units_have_seen_examples(tmp_path):
    columns = chosen(["examples", "examples_per_second"])
    write_seeds(tmp_path, "a", [1.0, 1.1])
    assert text_table(compare([tmp_path]), columns).columns[1:] == ["images seen", "train img/s"]
    points = {"spec": {"name": "digits", "shape": [2], "levels": 0}}
    write_seeds(tmp_path, "b", [1.0, 1.1], **points)
    assert text_table(compare([tmp_path]), columns).columns[1:] == ["examples seen", "train ex/s"]


def test_a_budget_is_read_from_the_record_and_told_in_units_of_the_data(tmp_path):
    budget = {"examples": 1_000_000, "seconds": None, "evaluations": 8}
    made = scored("gpt", "GPT", 0, {"bits_per_byte": 1.5}, bench={}, budget=budget)
    run = write_run(tmp_path, made, pictures=False, config=False)
    (trained,) = gather([run]).runs
    assert (trained.budget, trained.is_timed) == ("1,000,000 tokens", False)
    Run(run).update(budget={"seconds": 90.0})
    (trained,) = gather([run]).runs
    assert (trained.budget, trained.is_timed) == ("90 s or 1,000,000 tokens", True)


def test_seeds_that_stand_on_first_stages_of_their_own_are_one_row(tmp_path):
    stage = {"experiment": "vqvae", "family": "VQVAE", "settings_digest": "ab", "training_seconds": 45.0}
    for seed in range(3):
        own = {**stage, "digest": str(seed)}
        run = Run(write_run(tmp_path, record("a", "Latent", seed, 1.0 + seed / 10, first_stage=own)))
        folder = f"latent_dim: 64, first_stage: /stages/vqvae/seed{seed}"
        text = run.config.read_text().replace("latent_dim: 64", folder)
        run.config.write_text(text)
        run.update(**facts_of(text))
    assert [len(row.runs) for row in compare([tmp_path]).rows] == [3]
    run.update(first_stage={"settings_digest": "cd"})  # of other settings
    assert sorted(len(row.runs) for row in compare([tmp_path]).all_rows) == [1, 2]


def test_a_record_without_facts_is_read_through_its_configuration(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1, 1.2], bench={})
    before = [(t.budget, t.settings_digest, t.is_timed) for t in gather([tmp_path]).runs]
    for path in tmp_path.glob("*/*/run.json"):
        made = json.loads(path.read_text())
        del made["budget"], made["settings_digest"]
        path.write_text(json.dumps(made))
    after = [(t.budget, t.settings_digest, t.is_timed) for t in gather([tmp_path]).runs]
    assert before == after == 3 * [("90 s", before[0][1], True)]
    assert len(compare([tmp_path]).rows) == 1
    next(iter(tmp_path.glob("*/*/config.yaml"))).write_text("a: [")
    assert len(compare([tmp_path]).all_rows) == 2


def test_accuracies_are_of_one_test_split(tmp_path):
    write_scores(tmp_path, "a", "accuracy", [0.9, 0.91], protocol={"split": "x"})
    write_scores(tmp_path, "b", "accuracy", [0.8, 0.81], protocol={"split": "x"})
    assert not compare([tmp_path]).apart
    other = {"data.fingerprints": {"train": f"{TEXT['name']} train", "test": "another"}}
    write_scores(tmp_path, "c", "accuracy", [0.99, 0.99], protocol={"split": "x"}, **other)
    ((row, (field,)),) = compare([tmp_path]).apart
    assert (row.name, field.field) == ("c", "test data")


def test_accuracies_of_samples_are_of_one_number_of_them(tmp_path):
    whole, few = ({"split": "test", "num_real": 400, "num_fake": num} for num in (400, 20))
    write_scores(tmp_path, "a", "accuracy", [0.9, 0.91], protocol=whole)
    write_scores(tmp_path, "b", "accuracy", [0.8, 0.81], protocol=whole)
    write_scores(tmp_path, "c", "accuracy@20", [0.99, 1.0], protocol=few)
    comparison = compare([tmp_path])
    ((row, (field,)),) = comparison.apart
    assert (row.name, str(field)) == ("c", "num_fake: 20 instead of 400")
    with pytest.raises(Incomparable, match="num_fake"):
        compare([tmp_path], rank="accuracy")
    accuracy = chosen(["accuracy"])[1]
    assert heading(accuracy, [row]) == f"{accuracy.heading}@20"
    assert heading(accuracy, comparison.rows) == accuracy.heading


# What is left out


@pytest.mark.parametrize("text", ["", '{"status": "fin', "[1, 2]", "\x00"])
def test_a_run_with_a_damaged_record_is_named_and_left_out(tmp_path, text):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    broken = write_run(tmp_path, record("a", seed=2), pictures=False)
    (broken / "run.json").write_text(text)
    comparison = compare([tmp_path])
    assert len(comparison.rows[0].entries) == 2
    assert any("Left out" in note and broken.name in note for note in comparison.notes)


def test_a_run_without_a_record_is_named_and_left_out(tmp_path):
    write_seeds(tmp_path, "a", [1.0])
    missing = write_run(tmp_path, record("a", seed=1), pictures=False)
    (missing / "run.json").unlink()
    for paths in ([tmp_path], [tmp_path / "a"], [missing, tmp_path / "a" / "20260101-000000"]):
        comparison = compare(paths)
        assert len(comparison.rows[0].entries) == 1
        assert any("Left out" in note and missing.name in note for note in comparison.notes)


@pytest.mark.parametrize(
    "field",
    [
        "test",
        "test.values",
        "test.protocol",
        "variants",
        "health",
        "bench",
        "data",
        "test.speed",
        "test.copies",
    ],
)
@pytest.mark.parametrize("value", [None, 5, "text", [1, None], {"a": {"b": None}}, {"fid@797": "nan"}])
def test_a_record_of_another_shape_breaks_no_table(tmp_path, field, value):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_run(tmp_path, record("odd", **{field: value}), pictures=False)
    comparison = compare([tmp_path])
    assert "a" in [row.name for row in comparison.all_rows]
    csv_table(comparison)


def test_a_score_that_was_not_finite_is_an_empty_cell(tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_run(tmp_path, record("a", seed=2, **{"test.values.fid@797": None}), pictures=False)
    (line, _) = csv_rows(compare([tmp_path]))
    assert (float(line["fid"]), line["seeds"]) == (pytest.approx(math.sqrt(1.1)), "3")


GARBAGE = {
    "test": [1, 2],
    "test.values": {"fid@797": [1.0]},
    "test.values.fid@797": math.nan,
    "test.values.kid@797": "1.0",
    "test.values.recall@797": True,
    "seed": {"a": 1},
    "validation": [1.0],
    "variants": {"ddim": "fast"},
    "training_seconds": 10**30,
    "examples_seen": "many",
    "health": {"trend": {"recall": 1.0}},
    "bench": [],
    "parameters": math.inf,
    "spec": {"shape": "8x8"},
    "status": 7,
    "data": {"name": {"deep": json.loads("[" * 200 + "]" * 200)}},
}


@pytest.mark.fault(61)
@pytest.mark.parametrize("command", ["runs", "compare", "report", "records"])
def test_runs_whose_records_hold_garbage_are_named_and_the_others_are_shown(
    tmp_path, command, genlab_command
):
    write_seeds(tmp_path, "good", [1.0, 1.1])
    for number, (field, value) in enumerate(GARBAGE.items()):
        made = changed(record(f"odd{number}"), {field: value})
        write_run(tmp_path, made, pictures=False)
    output = {"report": ("-o", tmp_path / "report.html"), "records": ("-o", tmp_path / "kept")}
    code, out, error = genlab_command(command, tmp_path, *output.get(command, ()))
    shown = (tmp_path / "report.html").read_text() if command == "report" else out
    assert code == 0 and ("good" in shown or "2 records" in shown), error
    for number, field in enumerate(GARBAGE):
        (line,) = (line for line in (out + error).splitlines() if f"odd{number}/" in line)
        assert line.startswith("! Left out:" if line in error.splitlines() else "Left out:"), line
        assert "restore it or remove the run" in line, field


def test_garbage_beside_a_record_breaks_nothing(tmp_path, genlab_command):
    for number, text in enumerate(["[]", "5", "\x00", '"text"', "[" * 5000, '{"packages": [1], "git": 7}']):
        run = write_run(tmp_path, record(f"a{number}"), pictures=False)
        (run / "environment.json").write_text(text)
        (run / "speed.json").write_text(text)
        (run / "metrics.jsonl").write_text(f'{text} "val/fid"\n{{"val/fid@797": 1{"0" * 400}}}\n')
    for command in (("compare",), ("report", "-o", tmp_path / "report.html"), ("runs",)):
        code, out, error = genlab_command(*command, tmp_path)
        shown = (tmp_path / "report.html").read_text() if command[0] == "report" else out
        assert code == 0 and "a0" in shown and "a5" in shown, error


@pytest.mark.parametrize("kind", ["trials", "stages"])
def test_the_trials_and_first_stages_of_a_bench_are_no_results(kind, tmp_path):
    write_seeds(tmp_path, "a", [1.0, 1.1])
    write_seeds(tmp_path / kind, "a", [9.0])
    assert len(gather([tmp_path]).runs) == 3
    (tmp_path / "bench.json").write_text("{}")
    assert len(gather([tmp_path]).runs) == 2
    assert len(gather([tmp_path / kind]).runs) == 1


def test_an_untested_run_is_named_with_the_command_that_tests_it(tmp_path, monkeypatch):
    write_seeds(tmp_path, "a", [1.0])
    folder = write_run(tmp_path, record("b", test={}), pictures=False)
    monkeypatch.chdir(tmp_path)
    assert any(note.endswith(f"genlab test b/{folder.name}") for note in compare([tmp_path]).notes)


def test_runs_are_found_from_every_level_and_counted_once(tmp_path):
    write_seeds(tmp_path / "bench", "a", [1.0, 1.1])
    run = tmp_path / "bench" / "a" / "20260101-000000"
    assert len(gather([run]).runs) == 1
    assert len(gather([run / "config.yaml"]).runs) == 1
    for folder in (run.parent, run.parent.parent, tmp_path):
        assert len(gather([folder]).runs) == 2
    twice = gather([run, tmp_path])
    assert len(twice.runs) == 2
    assert "given twice" in twice.problems[0]


def test_a_path_that_leads_nowhere_is_an_error(tmp_path, genlab_command):
    with pytest.raises(NotARun):
        compare([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    code, _, err = genlab_command("compare", tmp_path / "empty")
    assert code == 2
    assert "There are no runs" in err


# Tables


def csv_rows(comparison):
    return list(csv.DictReader(io.StringIO(csv_table(comparison))))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def comparison(bench):
    return compare([bench])


def test_the_csv_says_exactly_what_was_measured(comparison):
    lines = {line["name"]: line for line in csv_rows(comparison)}
    for row in comparison.all_rows:
        line, found = lines[row.name], row.over_seeds("values", "fid")
        assert float(line["fid"]) == found.value
        assert [line["fid_low"], line["fid_high"]] == [
            str(e) if e is not None else "" for e in (found.low, found.high)
        ]
        assert line["stability"] == str(row.stability)
    assert lines["glow_digits"]["comparable"] == "no"
    assert lines["glow_digits"]["differs"] == "split: val instead of test"
    assert (lines["vae_digits"]["bits_per_dim_sign"], lines["realnvp_digits"]["bits_per_dim_sign"]) == (
        "≤",
        "",
    )
    assert lines["gan_digits"]["bits_per_dim"] == ""
    assert float(lines["dcgan_digits"]["copies"]) == pytest.approx(3.6)


def test_the_markdown_has_every_comparable_row_and_its_cells(comparison):
    text = markdown_table(comparison)
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert {len(line) for line in cells} == {len(cells[0])}
    assert cells[0][0] == "model"
    assert "FID@797" in cells[0]
    assert [line[0].removesuffix(" †") for line in cells[2:-1]] == [row.name for row in comparison.rows]
    assert cells[-1][0] == "training split (floor)"


FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
COMMANDS = "\x1b]0;title\x07\x1b[2Ja\u202eb\u2066c\u200fd\x9be\u2028f"


@pytest.mark.fault(57, 61)
def test_no_text_of_a_record_commands_a_terminal_or_turns_a_line_around(tmp_path, genlab_command):
    """In whatever is printed: tables, sentences, warnings, errors."""
    fields = {"precision": COMMANDS, "error": COMMANDS, "data.name": COMMANDS, "device": COMMANDS}
    for seed in range(2):
        write_run(tmp_path / "runs", record(COMMANDS, seed=seed, **fields), pictures=False)
    variants = {COMMANDS: entry(9.0, **{"protocol.split": COMMANDS})}
    write_run(tmp_path / "runs", record("b", variants=variants), pictures=False)
    odd = write_run(tmp_path / "runs", record(COMMANDS, seed=7), pictures=False)
    (odd / "run.json").write_text("{}" * 2)
    runs = tmp_path / "runs"
    for command in (
        *(("runs", runs), ("compare", runs), ("compare", runs, "--csv"), ("compare", runs, "--markdown")),
        *(("compare", runs, "--markdown", "--adjectives"), ("compare", runs, "--rank", "fid")),
        *(("report", runs, "-o", tmp_path / "r.html"), ("records", runs, "-o", tmp_path / "kept")),
        *(("test", odd), ("samples", odd, "--film"), ("data", "check", f"x{COMMANDS}")),
    ):
        _, out, error = genlab_command(*command)
        page = (tmp_path / "r.html").read_text() if command[0] == "report" else ""
        assert out or error
        assert not any(FORBIDDEN.search(text) for text in (out, error, page)), command


@pytest.mark.fault(57)
def test_no_name_can_break_out_of_a_markdown_cell(tmp_path):
    write_seeds(tmp_path, "a|b <script>alert(1)</script> [x](y) `z`", [1.0, 1.1])
    line = markdown_table(compare([tmp_path])).splitlines()[2]
    assert "<script>" not in line
    assert r"a\|b &lt;script>" in line
    assert r"\[x](y)" in line


def test_a_narrow_terminal_drops_the_least_important_columns(comparison):
    wide, narrow = text_table(comparison, width=400), text_table(comparison, width=80)
    assert narrow.width <= 80
    assert {"model", "FID@797"} <= set(narrow.columns) < set(wide.columns)
    assert "±" not in str(narrow)
    assert "[0.386, 0.420]" in str(narrow)


def test_columns_are_chosen_by_name_and_a_wrong_one_is_corrected(bench, genlab_command):
    code, out, _ = genlab_command("compare", bench, "--columns", "fid, recall")
    assert code == 0
    assert out.splitlines()[0].split() == ["model", "FID@797", "recall@797"]
    code, _, err = genlab_command("compare", bench, "--columns", "fidd")
    assert code == 2
    assert "Did you mean 'fid'?" in err


def test_an_ability_that_a_model_lacks_is_an_empty_cell(comparison):
    gan = next(row for row in comparison.rows if row.name == "gan_digits")
    empty = {column.key for column in COLUMNS if not column.cell(gan).text}
    assert {"bits_per_dim", "reconstruction", "probe", "active"} <= empty


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.2, "1.20"),
        (0.4034, "0.403"),
        (123.4, "123"),
        (83489.0, "83,489"),
        (3.5e6, "3.5M"),
        (2.5e-5, "2.5e-05"),
    ],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert shown(value) == text


def test_textbook_adjectives_stand_beside_the_measurement(bench, genlab_command):
    _, out, _ = genlab_command("compare", bench, "--markdown", "--adjectives")
    line = next(line for line in out.splitlines() if line.startswith("| gan_digits") and "unstable" in line)
    assert "unstable: 1/3, 1 collapsed, 1 diverged" in line
    assert "| none |" in line  # no likelihood: nothing that could have been measured
    line = next(
        line for line in out.splitlines() if line.startswith("| ddpm_digits/ddim-10") and "slow" in line
    )
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert "best: FID" in cells[2] and "network passes" in cells[4] and cells[3] == cells[5] == ""


def test_an_unknown_family_needs_no_change(tmp_path, genlab_command):
    write_seeds(tmp_path, "new", [1.0, 1.1], family="Hamiltonian")
    code, out, _ = genlab_command("compare", tmp_path, "--markdown", "--adjectives")
    assert code == 0
    assert "Hamiltonian" in out
    assert "textbook" not in out


def test_no_room_but_the_adjectives_knows_a_family_by_name():
    from genlab.report.adjectives import TEXTBOOK

    room = Path(sys.modules["genlab.report.adjectives"].__file__).parent
    quoted = re.compile(r"""["'](""" + "|".join(TEXTBOOK) + r""")["']""")
    files = [path for path in room.glob("*.py") if path.name != "adjectives.py"]
    assert len(files) > 5
    assert [path.name for path in files if quoted.search(path.read_text(encoding="utf-8"))] == []


def test_two_hundred_runs_are_compared_in_two_seconds_without_torch(tmp_path):
    for number in range(200):
        made = record(
            f"model{number // 5}_digits", seed=number % 5, fid=1.0 + 0.01 * number, run=f"run{number}"
        )
        folder = write_run(tmp_path, made, falling(1.0, 100), pictures=False)
        with (folder / "config.yaml").open("a") as config:
            config.write("trainer:\n" + "".join(f"  option_{n}: null\n" for n in range(150)))
    code = (  # the processor's time, all of it: on a quiet machine it is also the clock's
        "import sys, time; from genlab.cli.main import main; main(['compare', sys.argv[1]]);"
        "print(time.process_time()); print({'torch', 'pytorch_lightning', 'PIL', 'yaml'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, seconds, modules = done.stdout.splitlines()
    assert modules == "set()"
    assert sum(line.startswith("model") and " GAN " in line for line in lines) == 40
    assert float(seconds) < 2.0


def test_records_alone_give_the_same_scores(bench, comparison, tmp_path):
    for file in bench.glob("*/*/run.json"):
        (tmp_path / file.parent.relative_to(bench)).mkdir(parents=True)
        shutil.copy(file, tmp_path / file.relative_to(bench))
    stored = {line["name"]: line for line in csv_rows(compare([tmp_path]))}
    for line in csv_rows(comparison):
        for key in ("fid", "fid_low", "fid_high", "precision", "ms", "comparable"):
            assert stored[line["name"]][key] == line[key]
