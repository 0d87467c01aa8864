"""The score that speaks for a run: which it is, which way is better, and who asks for it."""

import importlib
import math
import pkgutil
from inspect import isabstract
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from genlab import metrics
from genlab.callbacks.checkpoints import RunCheckpoints
from genlab.callbacks.progress import last_score
from genlab.cli.runs import headline as listed
from genlab.metrics import text
from genlab.metrics.base import SampleMetric
from genlab.metrics.captions import RightCaptions
from genlab.metrics.duplicates import DuplicateShare
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.inception_score import InceptionScore
from genlab.metrics.kernel_distance import KernelDistance
from genlab.metrics.pairs import PSNR, SSIM
from genlab.metrics.precision_recall import PrecisionRecall
from genlab.metrics.translation import RightTranslations
from genlab.metrics.wasserstein import WassersteinDistance
from genlab.report.columns import COLUMNS
from genlab.runs.headline import HEADLINES, LOSS, SCORES, Headline, headline_of, headlines_of, named
from genlab.runs.settings import facts_of, settings_of
from genlab.shapes import DataSpec

FID, BLEU = named("fid"), named("bleu")


def test_what_some_measurements_share_is_their_headline_in_order():
    gan = {"val/fid@797": 1.0, "val/loss": 0.5}
    vae = {"fid@797": 2.0, "bits_per_dim": 1.8, "loss": 3.0}
    flow = {"test/bits_per_dim": 2.0, "loss": 1.0}
    assert headline_of(gan, vae) is FID
    assert headline_of(vae, flow) is named("bits_per_dim")
    assert headline_of(gan, vae, flow) is LOSS
    assert headline_of(gan, vae, flow, among=SCORES) is headline_of({}) is headline_of() is None
    assert [found.key for found in headlines_of(vae)] == ["fid", "bits_per_dim", "loss"]


def test_a_spread_or_a_part_of_a_name_is_no_headline():
    assert headline_of({"fid_std@797": 0.1, "accuracy_real": 0.5, "generator": 1.0, "bits": 1.0}) is None


def test_every_headline_has_another_key_and_a_column_of_the_same_direction():
    assert len({headline.key for headline in HEADLINES}) == len(HEADLINES)
    columns = {column.key: column for column in COLUMNS}
    for headline in SCORES:
        assert columns[headline.key].better == headline.better != headline.worse
        assert columns[headline.key].place == ("values", headline.key)


@pytest.mark.parametrize(
    ("key", "direction"),
    [("fid", "lower"), ("wasserstein", "lower"), ("bits_per_byte", "lower"), ("bits_per_dim", "lower"),
     ("perplexity", "lower"), ("loss", "lower"), ("bleu", "higher"), ("psnr", "higher"),
     ("accuracy", "higher")],
)  # fmt: skip
def test_the_direction_of_a_headline_is_that_of_its_definition(key, direction):
    headline = named(key)
    assert headline.better == direction and headline.best_is == f"{direction[:-2]}est"
    assert headline.best([1.0, 3.0, 2.0]) == (1.0 if direction == "lower" else 3.0)


def test_what_is_a_factor_has_logarithms_and_what_is_one_already_has_none():
    logarithmic = {headline.key for headline in HEADLINES if headline.is_logarithmic}
    assert logarithmic == {"fid", "wasserstein", "perplexity"}  # decibels and bits are logarithms


def test_costs_sort_from_the_best_to_the_worst_with_what_is_not_finite_last():
    for headline in (FID, BLEU):
        order = sorted([2.0, math.nan, 1.0, math.inf, 3.0], key=headline.cost)
        assert order[:3] == ([1.0, 2.0, 3.0] if headline is FID else [3.0, 2.0, 1.0])


def test_how_much_worse_a_value_is_does_not_depend_on_the_direction():
    assert FID.times_worse(6.0, than=2.0) == BLEU.times_worse(2.0, than=6.0) == 3.0
    assert FID.times_worse(2.0, than=6.0) == BLEU.times_worse(6.0, than=2.0) == 1 / 3
    assert BLEU.times_worse(0.0, than=30.0) == math.inf
    assert FID.times_worse(3.0, than=0.0) == FID.times_worse(3.0, than=-1.0) == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, None, True, "1.0", [1.0]])
def test_a_value_that_is_no_number_is_not_found_but_its_name_still_leads(value):
    scores = {"val/fid@797": value, "loss": 1.0}
    assert headline_of(scores) is FID and FID.found_in(scores) is None


def test_what_is_known_of_a_score_is_known_in_one_place():
    scores = [column for column in COLUMNS if column.place[:1] == ("values",)]
    assert len(scores) > 15
    for column in scores:
        known = named(column.place[-1])
        assert known.has_direction and known.better == column.better, column.key


METRICS = {
    FrechetDistance: ("fid",),
    KernelDistance: ("kid",),
    InceptionScore: ("is",),
    PrecisionRecall: ("precision", "recall"),
    DuplicateShare: ("duplicates",),
    WassersteinDistance: ("wasserstein",),
    PSNR: ("psnr", "psnr_y", "psnr_rgb"),
    SSIM: ("ssim", "ssim_y", "ssim_rgb"),
    text.BLEU: ("bleu",),
    text.ExactMatch: ("accuracy",),
    RightCaptions: ("right", "right_shape", "zero_shot", "zero_shot_colour"),
    RightTranslations: ("right", "right_place"),
}
"""The scores of each metric, as far as its `higher_is_better` speaks of them."""


def test_a_score_has_the_direction_of_its_metric():
    for metric, keys in METRICS.items():
        for key in keys:
            known = named(key)
            assert known.has_direction and known.lower_is_better is not metric.higher_is_better, key


def test_every_metric_has_scores_of_a_known_direction():
    found = set()
    for module in pkgutil.iter_modules(metrics.__path__, "genlab.metrics."):
        found |= {
            value
            for value in vars(importlib.import_module(module.name)).values()
            if isinstance(value, type) and issubclass(value, SampleMetric) and not isabstract(value)
        }
    assert {metric for metric in found if metric.higher_is_better is not None} == METRICS.keys()


@pytest.mark.parametrize(
    ("key", "direction"),
    [("mse", "lower"), ("nll_per_token", "lower"), ("collapsed", "lower"), ("inverted", "lower"),
     ("zero_shot_loss", "lower"), ("image_to_text", "higher"), ("zero_shot_text_to_image", "higher")],
)  # fmt: skip
def test_scores_of_no_column_have_a_direction_too(key, direction):
    assert named(key).better == direction and named(key).has_direction


def test_of_an_unknown_score_no_direction_is_known():
    assert named("energy") == Headline("energy", "energy", has_direction=False)


def test_a_monitor_of_unknown_direction_is_refused_before_training_until_it_is_told():
    with pytest.raises(ValueError, match=r'monitor is "energy".*--checkpoints.mode min or max'):
        RunCheckpoints("energy").setup(None, None, "fit")
    RunCheckpoints("energy").setup(None, None, "test")
    for keeper in (RunCheckpoints("energy", "max"), RunCheckpoints("right"), RunCheckpoints()):
        keeper.setup(None, None, "fit")
    assert improved(RunCheckpoints("right"), "right", [0.1, 0.9, 0.5]) == [True, True, False]


# Who asks


def test_a_list_has_room_for_two_scores_and_shows_a_loss_only_alone():
    values = {"val/loss": 3.0, "val/bits_per_dim": 1.9, "val/fid@797": 1.2, "val/recall@797": 0.8}
    assert listed(values) == [("val/fid@797", 1.2), ("val/bits_per_dim", 1.9)]
    assert listed({"loss": 3.0, "generator": 1.0}) == [("loss", 3.0)]
    assert listed({"perplexity": 3.1, "bits_per_byte": 1.5, "loss": 1.1})[0] == ("bits_per_byte", 1.5)


def trainer(**values):
    return SimpleNamespace(callback_metrics={f"val/{name}": torch.tensor(v) for name, v in values.items()})


def test_the_line_of_a_run_has_its_last_headline():
    assert last_score(trainer(loss=1.0, bleu=31.25)) == "bleu 31.25"
    assert last_score(trainer(loss=1.0)) == ""


def improved(keeper, name, values):
    return [keeper._improved(trainer(**{name: value, "loss": 9.0 - value})) for value in values]


@pytest.mark.parametrize("name", ["fid", "bits_per_byte", "psnr", "accuracy"])
def test_the_best_checkpoint_follows_the_headline_and_its_direction(name):
    found = improved(RunCheckpoints(), name, [4.0, 5.0, 3.0, 4.5, float("nan"), 6.0])
    rising = named(name).better == "higher"
    assert found == ([True, True, False, False, False, True] if rising else [True, False, True] + 3 * [False])


def test_a_best_value_is_compared_with_the_same_score_only_also_after_a_resumption():
    keeper = RunCheckpoints()
    assert improved(keeper, "psnr", [20.0]) == [True]
    resumed = RunCheckpoints()
    resumed.load_state_dict(keeper.state_dict())
    assert not resumed._improved(trainer(loss=0.1))  # lower than 20, but no PSNR
    assert improved(resumed, "psnr", [19.0, 21.0]) == [False, True]


def test_a_named_monitor_knows_its_direction_and_can_be_told_another():
    losses = [trainer(loss=value, accuracy=1.0 - value) for value in (0.5, 0.7, 0.3)]
    assert [RunCheckpoints("loss")._improved(one) for one in losses[:1]] == [True]
    for keeper, expected in (
        (RunCheckpoints("loss"), [True, False, True]),
        (RunCheckpoints("accuracy"), [True, False, True]),
        (RunCheckpoints("loss", "max"), [True, True, False]),
    ):
        assert [keeper._improved(one) for one in losses] == expected


@pytest.mark.parametrize(
    ("options", "message"), [((None, "max"), "of no score"), (("fid", "best"), "null, got")]
)
def test_a_monitor_without_sense_is_refused_with_its_rule(options, message):
    with pytest.raises(ValueError, match=message):
        RunCheckpoints(*options)


def test_checkpoints_of_before_are_read():
    keeper = RunCheckpoints("fid")
    keeper.load_state_dict({"best": 2.0})
    assert improved(keeper, "fid", [3.0, 1.0]) == [False, True]


# What a record says of its configuration

CONFIG = """# genlab 0.1.0
seed_everything: {seed}
data: {{class_path: Folder, init_args: {{path: {path}, size: 64}}}}
budget: {{examples: null, seconds: 90.0, evaluate_every: null, evaluations: 8}}
"""


def test_seeds_and_the_place_of_the_data_make_no_other_settings():
    facts = facts_of(CONFIG.format(seed=0, path="/a/faces"))
    assert facts == facts_of("# another version\n" + CONFIG.format(seed=7, path="/b/faces"))
    assert facts == facts_of(CONFIG.format(seed=0, path="/a/faces, licence: MIT"))
    assert facts["budget"] == {"examples": None, "seconds": 90.0, "evaluations": 8}
    for other in (("64", "32"), ("90.0", "91.0"), ("Folder", "Zip")):
        changed = facts_of(CONFIG.format(seed=0, path="/a/faces").replace(*other))
        assert changed["settings_digest"] != facts["settings_digest"]


@pytest.mark.parametrize("text", ["", "5", "[1]", "data: 5", "budget: [1]", "data: {init_args: null}"])
def test_a_configuration_of_another_shape_has_facts_too(text):
    assert facts_of(text)["budget"] == {"examples": None, "seconds": None, "evaluations": None}
    assert "seed_everything" not in settings_of(text)


def test_units_of_a_record_are_those_of_the_data():
    from genlab.report.units import unit_of

    image = DataSpec("a", (3, 4, 4))
    specs = [image, DataSpec("b", (2,), levels=0), DataSpec("c", (64,), levels=65), DataSpec("d", (4, 4))]
    specs += [DataSpec("e", (3, 4, 4), source=image), DataSpec("f", (3, 4, 4), levels=0)]
    found = [unit_of(spec.summary()) for spec in specs]
    assert [short for short, _ in found] == [spec.unit for spec in specs]
    assert [word for _, word in found] == ["images", "points", "tokens", "tokens", "pairs", "points"]
    assert unit_of({}) == ("ex", "examples")
    assert all(a != b for a, b in pairwise(found[:3]))
