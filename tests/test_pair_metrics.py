"""Scores of what is translated: images beside their targets, sentences beside theirs, texts by likelihood."""

import math

import numpy as np
import pytest
import sacrebleu
import torch
from torch import nn
from torch.nn.functional import conv2d

from genlab.callbacks.evaluate import Evaluate, default_metrics
from genlab.data.base import DataModule
from genlab.data.degraded import Small
from genlab.data.packed import Packed
from genlab.data.procedural import FACTORS, render
from genlab.data.tokenizers import Characters
from genlab.data.translated_shapes import TranslatedShapes
from genlab.evaluation.likelihood import score_likelihood
from genlab.evaluation.restoration import enlarged, pair_scores
from genlab.evaluation.score import score, text_decoder
from genlab.families.base import Model
from genlab.metrics.base import Drawn
from genlab.metrics.frechet import FrechetDistance
from genlab.metrics.pairs import DATA_RANGE, PSNR, SSIM, luma
from genlab.metrics.text import BLEU, ExactMatch
from genlab.metrics.translation import RightTranslations
from genlab.shapes import IGNORED, DataSpec, to_float

WORDS = Characters(" abcdefghij", marks=True)


def images(num, seed, shape=(3, 20, 16), levels=256):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (num, *shape), generator=random, dtype=torch.uint8)


def measured(metric, x, target, order=None, batch=4, spec=None, decode=None):
    metric.set_data(spec or DataSpec("pairs", tuple(x.shape[1:])), decode)
    order = torch.arange(len(x)) if order is None else order
    for index in order.split(batch):
        metric.update(Drawn(index, x[index], target=target[index]))
    return metric.compute()


# Images


def test_the_signal_to_noise_ratio_of_a_constant_error_is_known():
    target = images(5, 0) // 2
    for error in (1, 10, 100):
        found = measured(PSNR(), target + error, target)["psnr"]
        assert found == pytest.approx(20 * math.log10(255 / error))
    assert measured(PSNR(), target, target)["psnr"] == pytest.approx(10 * math.log10(12 * 255**2))


def test_the_ratio_is_a_mean_over_images_and_not_over_pixels():
    target = torch.full((2, 1, 12, 12), 100, dtype=torch.uint8)
    x = target + torch.tensor([1, 100], dtype=torch.uint8)[:, None, None, None]
    expected = 0.5 * (20 * math.log10(255) + 20 * math.log10(2.55))
    assert measured(PSNR(), x, target)["psnr"] == pytest.approx(expected)


def test_a_border_is_shaved_from_all_sides():
    target = images(3, 0)
    x = target.clone()
    for edge in (x[:, :, :2], x[:, :, -2:], x[..., :2], x[..., -2:]):
        edge.copy_(255 - edge)
    assert measured(PSNR(border=2), x, target)["psnr_rgb"] == measured(PSNR(), target, target)["psnr"]
    assert measured(PSNR(border=1), x, target)["psnr_rgb"] < 30


def test_the_luma_of_grey_black_white_and_the_primaries_is_that_of_the_norm():
    primaries = torch.tensor([[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]).double() * 255
    found = luma(primaries[:, :, None, None]).flatten()
    assert found.tolist() == pytest.approx([16.0, 235.0, 81.481, 144.553, 40.966])


def test_luma_alone_sees_no_change_of_colour_that_keeps_it():
    target = torch.full((2, 3, 12, 12), 100, dtype=torch.uint8)
    x = target.clone()
    x[:, 0] += 12  # red's weight times 12 is about blue's times 31
    x[:, 2] -= 31
    assert measured(PSNR("y"), x, target)["psnr_y"] > 50 > 25 > measured(PSNR("rgb"), x, target)["psnr"]
    grey = images(2, 0, (1, 12, 12))
    assert measured(PSNR("y"), grey, grey)["psnr_y"] == measured(PSNR("rgb"), grey, grey)["psnr"]


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_a_score_says_by_its_name_what_was_compared(metric):
    kind = metric.kind
    named = {(): kind, ("y",): f"{kind}_y", ("y", 4): f"{kind}_y", ("rgb", 4): f"{kind}_rgb"}
    assert {given: metric(*given).name for given in named} == named


def test_levels_are_compared_as_bytes():
    target = images(4, 0, levels=17)
    spec = DataSpec("digits", (3, 20, 16), levels=17)
    x = (target + 1).clamp(max=16)
    wanted = measured(
        PSNR(), (x.float() * 255 / 16).round().byte(), (target.float() * 255 / 16).round().byte()
    )
    assert measured(PSNR(), x, target, spec=spec) == pytest.approx(wanted)


def ssim_by_hand(x, y):
    """Wang et al. 2004, equation 13, over the windows that lie inside."""
    offset = torch.arange(11.0).double() - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def mean(values):
        return conv2d(values.flatten(0, 1)[:, None], window).unflatten(0, values.shape[:2])[:, :, 0]

    x, y = x.double(), y.double()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    values = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return values.flatten(1).mean(1)


def test_structural_similarity_is_the_papers():
    target = images(4, 0)
    x = (0.7 * target + 0.3 * images(4, 1)).byte()
    assert measured(SSIM(), x, target)["ssim"] == pytest.approx(
        float(ssim_by_hand(x, target).mean()), rel=1e-6
    )
    assert measured(SSIM(), target, target)["ssim"] == pytest.approx(1.0)
    assert measured(SSIM(), 255 - target, target)["ssim"] < 0


def test_images_smaller_than_the_window_have_no_structural_similarity():
    small = images(3, 0, (1, 8, 8))
    assert measured(SSIM(), small, small) == {}
    assert measured(SSIM(border=5), images(3, 0), images(3, 0)) == {}


@pytest.mark.parametrize("metric", [PSNR, SSIM])
def test_pairs_may_come_in_any_order_and_batches(metric):
    target, x = images(23, 0), images(23, 1)
    expected = measured(metric(), x, target, batch=23)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    for batch in (1, 5):
        assert measured(metric(), x, target, order, batch) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="counted twice"):
        measured(metric(), x, target, torch.tensor([0, 1, 1]))


@pytest.mark.parametrize("options", [{"channels": "cmyk"}, {"border": -1}])
def test_impossible_settings_of_pairs_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PSNR(**options)


def keys_filter(size, small):
    """The rows of weights that make `small` numbers of `size`, or more: a = -0.5, mirrored at the ends.

    Keys 1981, equation 4, and MATLAB's imresize: widened by the factor where numbers become fewer.
    """
    scale = small / size
    width = max(1.0, 1 / scale)
    weights = np.zeros((small, size))
    for row in range(small):
        centre = (row + 0.5) / scale - 0.5
        places = np.arange(int(centre - 2 * width) - 1, int(centre + 2 * width) + 3)
        x = np.abs(places - centre) / width
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        values = np.where(x <= 1, near, np.where(x < 2, far, 0))
        np.add.at(weights[row], np.clip(places, 0, size - 1), values / values.sum())
    return torch.from_numpy(weights)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_images_become_small_and_large_by_the_filter_of_published_comparisons(factor):
    """But for the ends, where others mirror and Pillow and torch leave out what is not there."""
    large = images(1, 0, (3, 12 * factor, 12 * factor))
    down, up = keys_filter(12 * factor, 12), keys_filter(12, 12 * factor)
    small = Small(factor)(large, torch.arange(1), 256)
    inner = (..., slice(2, -2), slice(2, -2))
    expected = (down @ large.double() @ down.T).round().clamp(0, 255)
    assert torch.equal(small[inner].double(), expected[inner])
    inner = (..., slice(2 * factor, -2 * factor), slice(2 * factor, -2 * factor))
    expected = up @ small.double() @ up.T
    assert torch.allclose(enlarged(small.double(), factor)[inner], expected[inner], atol=1e-9)


def test_one_picture_is_scored_as_a_set_of_it_on_the_luma_and_on_all_channels():
    target, x = images(1, 0, (3, 32, 24)), images(1, 1, (3, 32, 24))
    found = pair_scores(x, target, 256, 4)
    twice = {name: value.repeat(2, 1, 1, 1) for name, value in {"x": x, "target": target}.items()}
    for metric in (PSNR("y", 4), PSNR("rgb", 4), SSIM("y", 4), SSIM("rgb", 4)):
        assert found.pop(metric.name) == pytest.approx(measured(metric, **twice)[metric.name])
    assert not found and set(pair_scores(x[:, :1], target[:, :1], 256, 0)) == {"psnr", "ssim"}


@pytest.mark.parametrize("channels", ["y", "rgb"])
def test_quality_is_that_of_scikit_image(channels):
    skimage = pytest.importorskip("skimage.metrics")
    colour = pytest.importorskip("skimage.color")
    target = images(1, 0, (3, 40, 52))
    x = (0.8 * target + 0.2 * images(1, 1, (3, 40, 52))).byte()
    theirs = [image[0, :, 4:-4, 4:-4].permute(1, 2, 0).numpy() for image in (x, target)]
    theirs = [colour.rgb2ycbcr(image)[..., 0] if channels == "y" else image for image in theirs]
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    axis = None if channels == "y" else -1
    found = pair_scores(x, target, 256, 4)
    psnr = skimage.peak_signal_noise_ratio(*theirs[::-1], data_range=255)
    ssim = skimage.structural_similarity(*theirs, data_range=255, channel_axis=axis, **window)
    assert found[f"psnr_{channels}"] == pytest.approx(psnr, abs=1e-4)
    assert found[f"ssim_{channels}"] == pytest.approx(ssim, abs=1e-4)


# Sentences

SOURCE = ["a b c d e f", "g h i j a", "b b b b b", "c a f e d e", "h i"]
FOUND = ["a b c d f f", "g h i a", "a b b b b", "c a f e d e", "j"]


def rows(texts, length=16):
    """A row a sentence: its tokens, the end mark, padding."""
    tokens = [[*WORDS.encode(text).tolist(), 2] for text in texts]
    return torch.tensor([row + [IGNORED] * (length - len(row)) for row in tokens])


def test_the_score_of_sentences_is_sacrebleus_of_the_whole_corpus():
    spec = DataSpec("words", (16,), levels=WORDS.size, vocabulary=WORDS.to_json())
    expected = sacrebleu.corpus_bleu(FOUND, [SOURCE])
    for batch in (1, 2, 5):
        metric = BLEU()
        order = torch.tensor([3, 0, 4, 1, 2])
        found = measured(metric, rows(FOUND), rows(SOURCE), order, batch, spec, text_decoder(spec))
        assert found["bleu"] == pytest.approx(expected.score, abs=1e-9) and 20 < found["bleu"] < 90
        assert "tok:13a" in metric.protocol()["signature"] and "version:" in metric.protocol()["signature"]
    perfect = measured(BLEU(), rows(SOURCE), rows(SOURCE), spec=spec, decode=text_decoder(spec))
    assert perfect["bleu"] == pytest.approx(100.0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_exact_matches_are_counted_one_by_one(batch):
    spec = DataSpec("words", (16,), levels=WORDS.size, vocabulary=WORDS.to_json())
    found = measured(
        ExactMatch(), rows(FOUND), rows(SOURCE), batch=batch, spec=spec, decode=text_decoder(spec)
    )
    assert found == {"accuracy": 1 / 5}


def test_what_follows_the_end_of_a_sentence_is_not_read():
    spec = DataSpec("words", (16,), levels=WORDS.size, vocabulary=WORDS.to_json())
    longer = rows(SOURCE).clone()
    longer[longer == IGNORED] = 5
    assert text_decoder(spec)(longer) == SOURCE
    assert text_decoder(DataSpec("codes", (16,), levels=9)) is None


# One pass


class Pairs(DataModule):
    """Images and the negatives that they come from."""

    spec = DataSpec("pairs", (1, 12, 12), source=DataSpec("negatives", (1, 12, 12)))

    def load(self):
        x = {name: images(num, num, (1, 12, 12)).numpy() for name, num in (("train", 30), ("test", 13))}
        return {name: Packed({"image": value, "source": 255 - value}) for name, value in x.items()}


class Negative(Model):
    """Turns a source into its negative, one level off."""

    def __init__(self, spec, given=("source",), off=1):
        super().__init__(spec, given)
        self.off = to_float(torch.tensor(off)) + 1.0
        self.drawn = []

    def sample(self, index, seed=0, **given):
        self.drawn += index.tolist()
        return (self.off - given["source"]).clamp(-1, 1) if given else torch.zeros(len(index), 1, 12, 12)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_each_item_of_the_split_is_translated_once_and_meets_its_own_target(batch_size):
    data = Pairs(batch_size=4)
    model = Negative(data.spec)
    found = score(model, data, None, [PSNR(), SSIM()], 1000, batch_size=batch_size)
    assert sorted(model.drawn) == list(range(13))
    assert found.values["psnr"] == pytest.approx(20 * math.log10(255), abs=0.05) and "ssim" in found.values
    assert found.protocol["num_fake"] == found.protocol["num_real"] == 13
    assert "extractor" not in found.protocol and found.protocol["metrics"]["PSNR"]["data_range"] == DATA_RANGE
    assert set(score(model, data, None, [PSNR()], 7).values) == {"psnr@7"}


def test_metrics_that_lack_what_they_compare_are_refused():
    data = Pairs(batch_size=4)
    with pytest.raises(ValueError, match=r"PSNR .*told no source: give model.given \[source\]"):
        score(Negative(data.spec, ()), data, None, [PSNR()], 10)
    with pytest.raises(ValueError, match="there is no extractor"):
        score(Negative(data.spec), data, None, [FrechetDistance()], 10)
    with pytest.raises(ValueError, match="compares features"):
        FrechetDistance().update(Drawn(torch.arange(2), torch.zeros(2, 3)))


def names(spec):
    return [type(metric).__name__ for metric in default_metrics(spec)]


def test_default_metrics_follow_what_is_drawn_and_what_it_is_told():
    alone = ["FrechetDistance", "KernelDistance", "PrecisionRecall", "DuplicateShare", "InceptionScore"]
    assert names(DataSpec("images", (3, 32, 32))) == alone
    assert names(Pairs.spec) == ["PSNR", "SSIM", *alone]
    assert names(Pairs.spec.unconditional()) == alone
    enlarged = DataSpec("large", (3, 32, 32), source=DataSpec("small", (3, 8, 8)))
    chosen = [(metric.name, metric.border) for metric in default_metrics(enlarged)[:4]]
    assert chosen == [("psnr_y", 4), ("psnr_rgb", 4), ("ssim_y", 4), ("ssim_rgb", 4)]
    assert names(enlarged)[4:] == alone
    assert "WassersteinDistance" in names(DataSpec("points", (2,), levels=0))
    text = DataSpec("text", (8,), levels=WORDS.size, vocabulary=WORDS.to_json())
    assert names(text) == []
    sentences = DataSpec("pairs", (8,), levels=WORDS.size, vocabulary=WORDS.to_json(), source=text)
    assert names(sentences) == ["BLEU"] and names(DataSpec("codes", (8,), levels=5, source=text)) == []


def test_without_an_extractor_pairs_are_scored_all_the_same(no_inception):
    data, evaluate = Pairs(batch_size=4), Evaluate()
    model = Negative(data.spec)
    evaluate.prepare(model)
    assert "are not there" in evaluate.missing
    assert set(evaluate.examination(data).scores(model).values) == {"psnr", "ssim"}
    unconditional, other = Negative(data.spec, ()), Evaluate()
    other.prepare(unconditional)
    assert other.missing and other.examination(data).scores(unconditional) is None


def test_no_extractor_is_looked_for_where_no_metric_needs_one(monkeypatch):
    monkeypatch.setattr("genlab.callbacks.evaluate.extractor_available", lambda source: 1 / 0)
    evaluate = Evaluate("inception", {"psnr": PSNR()})
    evaluate.prepare(Negative(Pairs.spec))
    assert evaluate.extractor is None and evaluate.missing is None


# Translations whose right answer is known


def counted(x, data, order=None):
    """The shares of the held-out pictures x that are right, shown to the metric in an order."""
    split, metric = data.split("test"), RightTranslations()
    metric.set_data(data.spec)
    target, source = (torch.from_numpy(split[name]) for name in ("image", "source"))
    for rows in (torch.arange(len(target)) if order is None else order).split(50):
        shown = (x[rows], None, target[rows], to_float(source[rows]))
        metric.update(Drawn(rows, *shown))
    return metric.compute()


def test_of_all_that_can_be_drawn_the_true_translation_alone_is_right():
    data = TranslatedShapes(num_train=1, num_test=60)
    split, index = data.split("test"), np.arange(60)
    target, chosen = torch.from_numpy(split["image"]), np.asarray(split["factors"])
    assert counted(target, data) == {
        **dict.fromkeys(("right", "right_shape", "right_place", "right_colour"), 1.0),
        "inverted": 0.0, "collapsed": 0.0,
    }  # fmt: skip
    for column, num in enumerate(FACTORS.values()):
        for step in range(1, num):
            other = chosen.copy()
            other[:, column] = (other[:, column] + step) % num
            assert counted(torch.from_numpy(render(other, index, 32)), data)["right"] == 0.0
    assert counted(target.roll(1, 3), data)["right"] == 0.0


def test_inverted_and_collapsed_translations_are_counted():
    data = TranslatedShapes(num_train=1, num_test=60)
    target = torch.from_numpy(data.split("test")["image"])
    found = counted(255 - target, data)
    assert found["inverted"] == 1.0 and found["right"] == 0.0
    half = torch.cat([target[:30], target[:1].expand(30, -1, -1, -1)])
    found = counted(half, data)
    assert found["collapsed"] == pytest.approx(31 / 60) and found["right"] == pytest.approx(0.5)
    assert counted(half, data, torch.randperm(60)) == found


# Texts by likelihood


class Windows(DataModule):
    """Two windows of a text of 7 predicted tokens, which stand for 9 bytes."""

    spec = DataSpec("text", (4,), levels=5)

    def load(self):
        tokens = np.array([[0, 1, 2, 3, 4], [4, 1, 2, 3, IGNORED]])
        return {name: Packed({"tokens": tokens}) for name in ("train", "val", "test")}

    def num_bytes(self, split):
        return 9


class EvenTokens(Model):
    """Each of the five tokens is as probable as the others."""

    likelihood_kind, likelihood_estimator = "exact", "closed form"

    def __init__(self, spec):
        super().__init__(spec)
        self.weight = nn.Parameter(torch.zeros(()))

    def log_prob(self, x):
        return -math.log(5) * (x[:, 1:] != IGNORED).sum(dim=1)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_perplexity_of_an_even_guess_is_the_size_of_the_vocabulary(batch_size):
    data = Windows(batch_size=1)
    found = score_likelihood(EvenTokens(data.spec), data, batch_size=batch_size)
    assert found.values == pytest.approx(
        {"nll_per_token": math.log(5), "perplexity": 5.0, "bits_per_byte": 7 * math.log2(5) / 9}
    )
    assert found.protocol["num_tokens"] == 7 and found.protocol["num_real"] == 2


def test_bits_per_byte_are_left_out_of_a_part_of_the_text():
    data = Windows(batch_size=1)
    found = score_likelihood(EvenTokens(data.spec), data, max_items=1)
    assert set(found.values) == {"nll_per_token", "perplexity"}
