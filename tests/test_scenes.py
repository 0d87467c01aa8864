"""Captioned scenes: what is drawn is what is said, and the judge sees it, all of it and nothing else."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, pad

from genlab.data.procedural import COLOURS, SHAPES, SIZES
from genlab.data.scene_captions import (
    COLUMNS,
    LONGEST,
    NOTHING,
    RELATIONS,
    ZERO_SHOT,
    caption,
    caption_tokenizer,
    is_zero_shot,
    objects,
    parse,
)
from genlab.data.scene_judge import ATTRIBUTES, SceneJudge
from genlab.data.scenes import Scenes, draw, numbers_of, picture, purpose, scenes
from genlab.evaluation.score import check_scorable, score
from genlab.families.base import Model
from genlab.metrics.base import Drawn
from genlab.metrics.captions import RightCaptions
from genlab.shapes import to_float

NUM = 120
COLUMNS_OF = {"size": [2, 5], "colour": [0, 3], "shape": [1, 4], "relation": [6]}
VALUES = [len(COLOURS), len(SHAPES), len(SIZES)] * 2 + [len(RELATIONS)]


@pytest.fixture(scope="module")
def drawn():
    """Scenes, their pictures as bytes."""
    index = np.arange(NUM)
    return scenes(index), torch.from_numpy(picture(index, 64))


@pytest.fixture(scope="module")
def many():
    return scenes(np.arange(8_000))


def tokens(rows):
    encoded = [caption_tokenizer().encode(caption(row)).tolist() for row in rows.tolist()]
    return torch.tensor([[*row, 2, *[0] * (LONGEST - len(row))] for row in encoded])


def shares(found):
    return {name: float(marks[marks >= 0].mean()) for name, marks in found.items()}


# What is said


def test_every_caption_is_one_scenes_and_every_scene_has_one_caption(many):
    rows = np.unique(many, axis=0)
    captions = [caption(row) for row in rows.tolist()]
    assert len(set(captions)) == len(rows) > 5_000
    assert [parse(text) for text in captions] == rows.tolist()
    tokenizer = caption_tokenizer()
    encoded = [tokenizer.encode(text) for text in captions]
    assert [tokenizer.decode(row) for row in encoded] == captions
    assert max(map(len, encoded)) == LONGEST and not any(map(tokenizer.num_unknown, encoded))
    assert caption([0, 0, 0, 2, 1, NOTHING, 0]) == "a small red circle left of a blue square"
    assert caption([5, 5, NOTHING, *[NOTHING] * 4]) == "an orange ring" and len(COLUMNS) == rows.shape[1]


@pytest.mark.parametrize(
    "text", ["", "a pink circle", "an red circle", "a red circle on a blue square", "a red circle above"]
)
def test_what_is_no_caption_is_refused_with_the_grammar(text):
    with pytest.raises(
        ValueError, match=r"is no caption of a scene\. Say: a \[small, medium, large\] COLOUR"
    ):
        parse(text)


# What is drawn for what


def test_zero_shot_pairs_are_in_the_end_of_the_test_split_alone(many):
    data = Scenes(48, num_train=60, num_test=20, num_zero_shot=12)
    for split in ("train", "val"):
        rows = np.asarray(data.split(split)["factors"])
        for colour, shape in objects(rows)[..., :2].reshape(-1, 2).tolist():
            assert colour == NOTHING or ZERO_SHOT[list(COLOURS)[colour]] != SHAPES[shape]
    test = np.asarray(data.split("test")["factors"])
    assert is_zero_shot(test).tolist() == [False] * 20 + [True] * 12
    pairs = {tuple(pair) for pair in objects(many[purpose(many) == 0])[..., :2].reshape(-1, 2).tolist()}
    assert len(pairs) == 1 + len(COLOURS) * (len(SHAPES) - 1)  # all others, and the object that is not there


def test_test_captions_are_no_training_pictures_and_all_kinds_come(many):
    rows = many
    kinds = purpose(rows)
    said = [{tuple(row) for row in rows[kinds == kind].tolist()} for kind in range(3)]
    assert not said[0] & said[1] and not said[0] & said[2] and all(said)
    alone = rows[:, 6] == NOTHING
    assert alone.mean() == pytest.approx(0.25, abs=0.02)
    assert (rows[:, 2] == NOTHING).mean() == pytest.approx(0.5, abs=0.02)
    assert (kinds[kinds < 2] == 1).mean() == pytest.approx(0.1, abs=0.03)
    assert not (rows[~alone, :2] == rows[~alone, 3:5]).all(axis=1).any()
    for column, num in enumerate(VALUES):
        values = rows[rows[:, column] >= 0, column]
        assert np.bincount(values, minlength=num).min() > 0.8 * len(values) / num


def test_a_picture_is_a_function_of_its_number_whatever_the_split():
    few, more = Scenes(48, 30, 8, 6), Scenes(48, 40, 11, 9, seed=3)
    for split in ("train", "val", "test"):
        assert {p.tobytes() for p in few.split(split)["image"]} <= {
            p.tobytes() for name in ("train", "val", "test") for p in more.split(name)["image"]
        }
    train, test, _ = numbers_of(40, 11, 9)
    assert np.array_equal(more.split("test")["image"][:11], picture(test, 48))
    assert numbers_of(30, 8, 6)[0].tolist() == train[:30].tolist()
    batch = next(iter(few.loader("test", batch_size=14)))
    rows = np.asarray(few.split("test")["factors"])
    assert torch.equal(batch["source"], tokens(rows)) and few.spec.source.shape == (LONGEST + 1,)


def test_no_two_pictures_are_equal_and_objects_keep_apart(drawn):
    rows, x = drawn
    assert len({image.numpy().tobytes() for image in x}) == NUM
    assert len({image.tobytes() for image in picture(np.full(1, 3), 64)} | {x[3].numpy().tobytes()}) == 1
    edge = torch.cat([x[:, :, [0, -1]].flatten(1), x[..., [0, -1]].flatten(1)], dim=1)
    assert edge.max() == 0
    assert SceneJudge().seen(x.float().numpy() / 255).num.tolist() == np.where(rows[:, 6] < 0, 1, 2).tolist()


@pytest.mark.parametrize(
    "options", [{"num_zero_shot": -1}, {"image_size": 32}, {"flip": True}, {"num_test": 1}]
)
def test_impossible_settings_of_scenes_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Scenes(**options)


# What is seen


def test_what_is_drawn_as_it_is_said_is_right_in_everything(drawn):
    rows, x = drawn
    for images in (x, to_float(x)):
        found = SceneJudge().marks(images, tokens(rows))
        assert shares({name: marks.double() for name, marks in found.items()}) == dict.fromkeys(
            ATTRIBUTES, 1.0
        )
    assert torch.equal(found["relation"] < 0, torch.from_numpy(rows[:, 6] < 0))
    assert torch.equal(found["size"] < 0, torch.from_numpy((objects(rows)[..., 2] < 0).all(axis=1)))


def test_noise_and_blur_of_a_good_model_are_forgiven(drawn):
    rows, x = drawn
    kernel = torch.exp(-(torch.arange(-3, 4.0) ** 2) / 2 / 0.7**2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    blurred = conv2d(pad(to_float(x), (3,) * 4, value=-1.0), kernel.expand(3, 1, 7, 7), groups=3)
    noise = 0.1 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))
    assert SceneJudge().judged(blurred + noise, rows)["all"].mean() >= 0.97


def changed(rows, column, step):
    """The rows with another value in one column."""
    other = rows.copy()
    other[:, column] = (other[:, column] + step) % VALUES[column]
    return other


def redrawn(rows, index):
    """Pictures of scenes whose sizes are all said."""
    return torch.from_numpy(draw(rows, np.maximum(objects(rows)[..., 2], 0), index, 64))


@pytest.mark.parametrize("attribute", ["colour", "shape", "size", "relation"])
def test_one_wrong_attribute_is_found_in_that_attribute_alone(attribute):
    index = np.arange(400)
    rows = scenes(index)
    keep = (rows[:, 6] >= 0) & (rows[:, 2] >= 0) & (rows[:, 5] >= 0)
    rows, index = rows[keep][:48], index[keep][:48]
    for column in COLUMNS_OF[attribute]:
        step = 1 + np.arange(len(rows)) % (VALUES[column] - 1)
        found = SceneJudge().judged(redrawn(changed(rows, column, step), index), rows)
        wrong = {"all", attribute}
        assert shares(found) == {name: float(name not in wrong) for name in ATTRIBUTES}


def test_a_further_object_makes_the_number_wrong_alone_and_a_missing_one_what_is_said_of_it():
    rows = np.array([parse("a small red circle above a large blue square")] * 8)
    x, index = redrawn(rows, np.arange(8)), np.arange(8)
    further = x.clone()
    further[:, :, 28:36, 2:9] += torch.tensor([255, 255, 255], dtype=torch.uint8)[:, None, None]
    apart = (x[:, :, 24:40, :13].amax((1, 2, 3)) == 0).numpy()
    found = SceneJudge().judged(further[apart], rows[apart])
    assert apart.sum() >= 2
    assert shares(found) == {name: float(name not in ("all", "number")) for name in ATTRIBUTES}
    missing = rows.copy()
    missing[:, 3:] = NOTHING
    assert set(shares(SceneJudge().judged(redrawn(missing, index), rows)).values()) == {0.0}
    for nothing in (torch.zeros_like(x), torch.full_like(x, 255)):
        assert SceneJudge().judged(nothing, rows)["all"].sum() == 0


def test_specks_and_haze_are_forgiven_but_mere_colour_is_no_shape(drawn):
    rows, x = drawn
    hazy = x[:20].clamp(min=20)
    hazy[:, :, 0, ::9] = 255
    assert SceneJudge().judged(hazy, rows[:20])["all"].mean() == 1.0
    colour = torch.tensor(list(COLOURS.values()))[rows[:, 0]].byte()
    blob = torch.zeros_like(x)
    blob[:, :, 20:24, 4:60] = colour[:, :, None, None]  # a line
    found = SceneJudge().judged(blob[rows[:, 6] < 0], rows[rows[:, 6] < 0])
    assert found["number"].all() and not found["shape"].any() and not (found["size"] == 1).any()


def satisfies(said, there, sizes):
    """Whether a scene that is there, with all of its sizes, is as another one's caption says."""
    parts = [[*there[:2], sizes[0]], [*there[3:5], sizes[1]]]
    if (said[6] < 0) != (there[6] < 0):
        return False
    wanted = [said[:3], said[3:6]]

    def fits(want, have):
        return all(w in (-1, h) for w, h in zip(want, have, strict=True))

    if said[6] < 0:
        return fits(wanted[0], parts[0])
    opposite = [1, 0, 3, 2]
    straight = said[6] == there[6] and fits(wanted[0], parts[0]) and fits(wanted[1], parts[1])
    return straight or (
        said[6] == opposite[there[6]] and fits(wanted[0], parts[1]) and fits(wanted[1], parts[0])
    )


def test_pictures_of_other_captions_are_right_as_often_as_counting_says():
    """Of few colours and shapes, so that some are right by chance."""
    draws = np.random.default_rng(0)
    rows = np.stack([draws.integers(0, num, 90) for num in (2, 2, 2, 2, 2, 2, 4)], axis=1)
    rows[:, 4] = np.where((rows[:, :2] == rows[:, 3:5]).all(axis=1), 1 - rows[:, 4], rows[:, 4])
    sizes = objects(rows)[..., 2] * 2
    x = torch.from_numpy(draw(rows, sizes, np.arange(90), 64))
    said = rows.copy()
    said[:, [2, 5]] = np.where(draws.random((90, 2)) < 0.7, NOTHING, sizes)
    said[:40, 3:] = NOTHING
    rows[:30, 3:] = NOTHING
    x[:30] = torch.from_numpy(draw(rows[:30], sizes[:30], np.arange(30), 64))
    right = 0
    for step in (1, 31):
        other = said[(np.arange(90) + step) % 90]
        expected = [
            satisfies(s, t, z) for s, t, z in zip(other.tolist(), rows.tolist(), sizes.tolist(), strict=True)
        ]
        assert SceneJudge().judged(x, other)["all"].tolist() == expected
        right += sum(expected)
    assert right >= 5


# The metric


class Renderer(Model):
    """Draws what captions say; of every third one, the scene after it."""

    def sample(self, index, seed=0, **given):
        rows = SceneJudge().rows(given["source"])
        wrong = (index.numpy() % 3 == 0)[:, None]
        sizes = np.maximum(objects(rows)[..., 2], 0)
        rows = np.where(wrong, changed(rows, 0, 1), rows)
        return to_float(torch.from_numpy(draw(rows, sizes, index.numpy(), 48)))


@pytest.mark.parametrize("batch_size", [5, 100])
def test_right_captions_are_counted_in_one_pass_and_those_of_unseen_pairs_apart(batch_size):
    data = Scenes(48, num_train=20, num_test=9, num_zero_shot=6)
    model = Renderer(data.spec, ("source",))
    found = score(model, data, None, [RightCaptions()], 1000, batch_size=batch_size)
    assert found.values["right"] == found.values["right_colour"] == pytest.approx(2 / 3)
    assert found.values["zero_shot"] == found.values["zero_shot_colour"] == pytest.approx(2 / 3)
    parts = ("number", "shape", "size", "relation")
    assert all(found.values[f"{name}_{part}"] == 1.0 for name in ("right", "zero_shot") for part in parts)
    assert found.protocol["metrics"]["RightCaptions"] == SceneJudge().protocol()
    valid = score(model, data, None, [RightCaptions()], 1000, split="val")
    assert not any(name.startswith("zero_shot") for name in valid.values)


def test_captions_that_nothing_can_judge_are_refused():
    data = Scenes(48, num_train=20, num_test=9)
    with pytest.raises(ValueError, match="RightCaptions knows no right answer to the sources of scenes"):
        RightCaptions().set_data(data.spec)
    with pytest.raises(ValueError, match=r"RightCaptions .*told no source: give model.given \[source\]"):
        check_scorable(Renderer(data.spec, ()), None, [RightCaptions()])
    with pytest.raises(ValueError, match="there are none"):
        RightCaptions().update(Drawn(torch.arange(2), torch.zeros(2, 3, 48, 48)))
