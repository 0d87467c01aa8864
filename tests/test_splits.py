"""What is learned from, what chooses, and what is scored: three splits that never meet."""

import io
import json
import os
import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageOps
from PIL.GifImagePlugin import GifImageFile

from genlab.data import decode as decoding
from genlab.data.base import SPLITS
from genlab.data.decode import Policy
from genlab.data.digits import Digits
from genlab.data.folder import ImageFolder
from genlab.data.numbers import NumberNames, NumberText
from genlab.data.packed import Packed
from genlab.data.procedural import Shapes
from genlab.data.random_images import RandomImages
from genlab.data.sentences import SentencePairs
from genlab.data.splits import first_copies, held_out, seeded_split, stratified
from genlab.data.text import TextFile
from genlab.data.torchvision_sets import MNIST, CelebA
from genlab.data.toy import EightGaussians
from genlab.errors import DataError, exit_code
from genlab.runs.folder import list_runs
from genlab.runs.tests import is_without_validation


def digests(data, split):
    return {row.tobytes() for row in np.asarray(data.split(split).x)}


@pytest.mark.parametrize(
    "made",
    [
        lambda seed: Digits(seed=seed),
        lambda seed: RandomImages([1, 4, 4], num_train=50, num_test=20, seed=seed),
        lambda seed: EightGaussians(num_train=50, num_test=20, seed=seed),
        lambda seed: NumberNames(500, seed=seed),
        lambda seed: NumberText(300, context=32, seed=seed),
    ],
)
def test_three_splits_hold_other_items_and_only_training_points_follow_the_seed(made):
    data, other = made(0), made(1)
    found = [digests(data, name) for name in SPLITS]
    assert all(found) and len(set.union(*found)) == sum(map(len, found))
    assert digests(data, "val") == digests(other, "val") and digests(data, "test") == digests(other, "test")


def test_a_validation_split_has_its_share_of_every_label_and_none_of_the_test_split():
    data = Shapes(16, 120, 40, val_fraction=0.25)
    whole = Shapes(16, 120, 40, val_fraction=0)
    assert [len(data.split(name)) for name in SPLITS] == [90, 30, 40]
    counts = [np.bincount(part["label"], minlength=6) for part in (data.split("val"), whole.split("train"))]
    assert np.abs(counts[0] - counts[1] / 4).max() <= 1
    assert digests(data, "train") | digests(data, "val") == digests(whole, "train")
    assert data.fingerprint("test") == whole.fingerprint("test")


def test_without_a_validation_split_nothing_is_trained():
    with pytest.raises(DataError, match=r"digits has no validation split at --data\.val_fraction 0"):
        Digits(val_fraction=0).require_usable()


@pytest.mark.fault(38)
@pytest.mark.parametrize("num", [3, 4])
def test_too_few_items_for_three_splits_are_refused_once(num):
    class Few(Digits):
        def load(self):
            return seeded_split(super().load()["test"].take(np.arange(num)), 2, 0)

    with pytest.raises(DataError, match=f"{num} images are too few: 2 would be the validation split"):
        Few().require_usable()


# --- equal items --------------------------------------------------------------------------------------------


def images_with_copies(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (60, 1, 4, 4)).astype(np.uint8)
    images[[5, 17, 40]] = images[3]
    images[[30, 31]] = images[29]
    return Packed({"image": images, "label": rng.integers(0, 3, 60)})


def test_rows_of_one_content_are_told_by_their_first():
    first = first_copies(images_with_copies().x)
    expected = np.arange(60)
    expected[[5, 17, 40]], expected[[30, 31]] = 3, 29
    assert np.array_equal(first, expected)


@pytest.mark.fault(40)
@pytest.mark.parametrize("seed", range(12))
def test_equal_items_lie_on_one_side_and_are_counted(seed):
    packed = images_with_copies()
    with pytest.warns(UserWarning, match="5 of 60 items are copies of others.* the test split"):
        splits = seeded_split(packed, 20, seed)
    sides = [{image.tobytes() for image in splits[name].x} for name in ("train", "test")]
    assert not sides[0] & sides[1]
    assert [len(splits[name]) for name in ("train", "test")] == [40, 20]


@pytest.mark.parametrize("seed", range(4))
def test_without_equal_items_a_split_is_that_of_the_labels_alone(seed):
    packed = images_with_copies().take(np.setdiff1d(np.arange(60), [5, 17, 40, 30, 31]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = held_out(packed, 15, seed, "test")
    assert np.array_equal(rows, stratified(packed["label"], 55, 15, seed))


@pytest.mark.fault(40)
@pytest.mark.filterwarnings("ignore:.*copies of others")
def test_equal_files_and_equal_pairs_are_never_learned_and_scored(tmp_path):
    (tmp_path / "d").mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number % 25).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "d" / f"{number:02d}.png")
    (tmp_path / "p.tsv").write_text("".join(f"a{n % 25}\tb{n % 25}\n" for n in range(60)))
    for seed in range(5):
        folder = ImageFolder(str(tmp_path / "d"), image_size=8, test_fraction=0.3, seed=seed)
        pairs = SentencePairs(str(tmp_path / "p.tsv"), tokenizer="bytes", test_fraction=0.3, seed=seed)
        for data in (folder, pairs):
            found = [digests(data, name) for name in SPLITS]
            assert len(set.union(*found)) == sum(map(len, found)) == 25


# --- the test split decides nothing -------------------------------------------------------------------------


def fit(genlab_command, name, *more):
    code, _, err = genlab_command(
        "fit",
        *("--config", "experiments/gan_digits.yaml", "--run_name", name, "--budget.examples", 400),
        *("--evaluate.num_samples", 60, "--samples.num", 4, "--budget.evaluate_every", 200, *more),
    )
    assert code == 0, err
    return next(run for run in list_runs() if run.name.endswith(name))


def poisoned(load):
    """Every test image is noise, and nothing but its digest may be asked for."""

    def poison(self):
        splits = load(self)
        noise = np.random.default_rng(7).integers(0, 17, splits["test"].x.shape).astype(np.uint8)
        return {**splits, "test": Packed({**splits["test"].columns, "image": noise})}

    return poison


def of_training(run):
    """What a training leaves: weights, curves, health, the best and the last scores."""
    record = run.read()
    keep = ("health", "validation", "examples_seen", "status")
    lines = [json.loads(line) for line in run.metrics_jsonl.read_text().splitlines()]
    timed = ("seconds", "img_per_second", "images_per_second", "training_seconds")
    curves = [{k: v for k, v in line.items() if not any(t in k for t in timed)} for line in lines]
    states = {
        file.name: torch.load(file, weights_only=True)["state_dict"]
        for file in sorted((run.path / "checkpoints").glob("*.ckpt"))
    }
    return {name: record[name] for name in keep}, curves, states


def test_a_poisoned_test_split_changes_no_weight_curve_flag_or_best_checkpoint(genlab_command, monkeypatch):
    clean = of_training(fit(genlab_command, "clean"))
    monkeypatch.setattr(Digits, "load", poisoned(Digits.load))
    run = fit(genlab_command, "noise")
    poison = of_training(run)
    assert not run.read()["data"]["fingerprints"]["test"].startswith("0e072b84e21ec72e")
    assert clean[0] == poison[0]
    assert clean[1] == poison[1] and clean[2].keys() == poison[2].keys() and "best.ckpt" in clean[2]
    for name, state in clean[2].items():
        assert all(torch.equal(tensor, poison[2][name][key]) for key, tensor in state.items()), name
    assert "val/fid@60vs100" in clean[0]["validation"]


def test_a_training_is_not_compared_with_the_test_split(genlab_command):
    code, _, err = genlab_command(
        "fit", "--config", "experiments/gan_digits.yaml", "--evaluate.split", "test", "--budget.examples", 600
    )
    assert code == 2 and "evaluate.split must not be test" in err and not list_runs()


def test_a_run_of_before_the_validation_split_is_tested_on_what_it_was(genlab_command, short_measures):
    run = fit(genlab_command, "old")
    config = yaml.safe_load(run.config.read_text())
    assert not is_without_validation(run)
    del config["data"]["init_args"]["val_fraction"]
    config["evaluate"]["split"] = "test"
    run.config.write_text(yaml.safe_dump(config))
    for name in ("last", "previous", "best"):  # of then, which said nothing of their data
        path = run.checkpoints / f"{name}.ckpt"
        state = torch.load(path, weights_only=True)
        del state["trained_with"]
        torch.save(state, path)
    assert is_without_validation(run)
    with short_measures():
        code, _, err = genlab_command("test", run.path, "--evaluate.num_test_samples", 60)
    assert code == 0, err
    entry = run.read()["test"]
    assert (
        entry["protocol"]["data_fingerprint"] == "0e072b84e21ec72e" and entry["protocol"]["num_real"] == 797
    )
    assert entry["copies"]["num_train"] == 1000
    code, _, err = genlab_command("resume", run.path)
    assert code in (2, 3) and ("no validation split" in err or "must not be test" in err)


@pytest.mark.fault(43)
def test_a_named_pipe_and_links_out_of_the_folder_are_refused_by_name(tmp_path, genlab_command):
    folder = tmp_path / "d"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / f"{number:02d}.png")
    os.symlink("00.png", folder / "inside.png")
    os.symlink(folder, tmp_path / "link")
    assert len(ImageFolder(str(tmp_path / "link"), image_size=4).source) == 13
    os.mkfifo(folder / "pipe.png")
    os.symlink("/dev/zero", folder / "zero.png")
    os.symlink(tmp_path / "elsewhere.png", folder / "out.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "elsewhere.png")
    code, out, _ = genlab_command("data", "check", folder)
    assert code == 3 and "pipe.png: cannot be read: a pipe or a device" in out
    for name, target in (("zero", "/dev/zero"), ("out", tmp_path / "elsewhere.png")):
        assert f"{name}.png: cannot be read: a link out of the folder, to {target}" in out
    assert "inside.png: " not in out
    code, _, err = genlab_command("fit", "--config", "experiments/dcgan_digits.yaml", *image_folder(folder))
    assert code == 3 and "3 of 16 images" in err and "Traceback" not in err and not list_runs()


def image_folder(path):
    return "--data=ImageFolder", f"--data.path={path}", "--data.image_size=8", "--data.batch_size=4"


# --- what people have ---------------------------------------------------------------------------------------


def pictures(folder, numbers, mode="RGB"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{number:03d}.png")
    return folder


def test_split_folders_with_classes_are_splits_and_classes(tmp_path):
    for k, part in enumerate(("training", "testing")):
        for label in (0, 1):
            pictures(
                tmp_path / "mnist_png" / part / str(label),
                range(100 * k + 10 * label, 100 * k + 10 * label + 5),
            )
    data = ImageFolder(str(tmp_path / "mnist_png"), image_size=8, val_fraction=0.2)
    assert data.spec.num_classes == 2
    assert [len(data.split(name)) for name in SPLITS] == [8, 2, 10]
    expected = {picture.tobytes() for picture in _pixels(tmp_path / "mnist_png" / "testing")}
    assert digests(data, "test") == expected
    assert np.bincount(data.split("val")["label"]).tolist() == [1, 1]
    (tmp_path / "mnist_png" / "testing").rename(tmp_path / "mnist_png" / "val")
    again = ImageFolder(str(tmp_path / "mnist_png"), image_size=8, val_fraction=0.2)
    assert digests(again, "test") == expected  # never what chooses


def _pixels(folder):
    return [np.asarray(Image.open(file)).transpose(2, 0, 1) for file in sorted(folder.rglob("*.png"))]


@pytest.mark.fault(37)
def test_a_folder_without_images_says_which_command_reads_what_it_holds(tmp_path):
    for name, file, command in (
        ("celeba", "img_align_celeba.zip", "--data.path .*celeba/img_align_celeba.zip"),
        ("idx", "train-images-idx3-ubyte/train-images-idx3-ubyte", "--data MNIST --data.path .*idx"),
        ("cifar", "cifar-10-batches-py/data_batch_1", "--data CIFAR10 --data.path .*cifar"),
    ):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_bytes(b"x")
        (tmp_path / name / "list_attr_celeba.txt").write_text("")
        with pytest.raises(DataError, match=f"0 images in .*{name}; found .*, use {command}"):
            _ = ImageFolder(str(tmp_path / name)).spec


def test_kaggles_celeba_and_mnist_are_found(tmp_path):
    pictures(tmp_path / "c" / "img_align_celeba" / "img_align_celeba", range(12))
    rows = "".join(f"{n:03d}.png,{0 if n < 8 else 1 + n % 2}\n" for n in range(12))
    (tmp_path / "c" / "list_eval_partition.csv").write_text("image_id,partition\n" + rows)
    assert CelebA(str(tmp_path / "c"), image_size=8).describe()["counts"] == {"train": 8, "val": 2, "test": 2}
    for part, num in (("train", 30), ("t10k", 5)):
        for kind, shape in (("images-idx3", (num, 28, 28)), ("labels-idx1", (num,))):
            name = f"{part}-{kind}-ubyte"
            head = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
            (tmp_path / "m" / name).mkdir(parents=True)
            content = np.random.default_rng(num).integers(0, 10, shape).astype(np.uint8).tobytes()
            (tmp_path / "m" / name / name.replace("-idx", ".idx")).write_bytes(head + content)
    assert MNIST(str(tmp_path / "m")).describe()["counts"] == {"train": 27, "val": 3, "test": 5}


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"num_test": 1}, 2, "num_test must be at least 2"),
        ({"num_test": 50}, 3, "20 images of .* are too few for --data.num_test 50"),
        ({"background": "rainbow"}, 2, "background must be a colour .* such as white.*got 'rainbow'"),
        ({"path": ""}, 2, "path is missing: give a folder, a zip or a tar of images with --data.path"),
        ({"batch_size": 0}, 2, "batch_size must be at least 1, got 0"),
        (
            {"batch_size": 64},
            3,
            "20 images are too few: the 16 left .* batch of 64 .*--data.batch_size 16",
        ),
    ],
)
def test_a_wrong_option_ends_with_2_and_wrong_data_with_3(tmp_path, options, code, message):
    path = str(pictures(tmp_path / "d", range(20)))
    with pytest.raises(ValueError, match=message) as caught:
        ImageFolder(**{"path": path, "image_size": 8, "batch_size": 4, **options}).require_usable()
    assert exit_code(caught.value) == code


def test_a_partition_in_another_encoding_is_named(tmp_path):
    pictures(tmp_path / "celeba" / "img_align_celeba", range(5))
    (tmp_path / "celeba" / "list_eval_partition.txt").write_bytes("000.png 0\nü".encode("latin-1"))
    with pytest.raises(DataError, match=r"list_eval_partition\.txt is not UTF-8: byte 10 is 0xfc"):
        CelebA(str(tmp_path), image_size=8).split("train")


@pytest.mark.fault(43)
def test_texts_are_files_inside_their_folder(tmp_path):
    (tmp_path / "t").mkdir()
    os.mkfifo(tmp_path / "t" / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt cannot be read \(a pipe or a device"):
        TextFile(str(tmp_path / "t")).split("train")
    (tmp_path / "t" / "a.txt").unlink()
    os.symlink("/dev/zero", tmp_path / "t" / "b.txt")
    with pytest.raises(DataError, match=r"b\.txt cannot be read \(a link out of the folder"):
        TextFile(str(tmp_path / "t")).split("train")


def images_of_every_kind(rng):
    grey = rng.integers(0, 256, (9, 7)).astype(np.uint8)
    colours = rng.integers(0, 256, (9, 7, 4)).astype(np.uint8)
    yield "L", Image.fromarray(grey), "png"
    yield "LA", Image.fromarray(colours).convert("LA"), "png"
    yield "RGBA", Image.fromarray(colours), "png"
    yield "I;16", Image.fromarray(rng.integers(0, 65536, (9, 7)).astype(np.uint16)), "png"
    yield "F", Image.fromarray(rng.random((9, 7)).astype(np.float32)), "tiff"
    yield "turned", Image.fromarray(colours[..., :3]), "jpg"


@pytest.mark.fault(36)
@pytest.mark.parametrize("background", ["white", "red"])
@pytest.mark.parametrize("channels", [1, 3])
def test_strips_of_an_image_give_the_pixels_of_the_whole(monkeypatch, background, channels):
    for name, image, ending in images_of_every_kind(np.random.default_rng(0)):
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned" else 1
        stream = io.BytesIO()
        image.save(stream, {"jpg": "jpeg"}.get(ending, ending), **({"exif": exif} if ending == "jpg" else {}))
        policy = Policy(None, channels, background)
        whole = decoding.decode(stream.getvalue(), name, policy)
        with monkeypatch.context() as patch:
            patch.setattr(decoding, "_STRIP_PIXELS", 15)
            strips = decoding.decode(stream.getvalue(), name, policy)
        assert np.array_equal(whole.pixels, strips.pixels) and whole.notes == strips.notes, name


@pytest.mark.fault(35)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_pillows(orientation):
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(stream.getvalue()))))
    found = decoding.decode(stream.getvalue(), "x", Policy(None)).pixels
    assert np.array_equal(found, expected.transpose(2, 0, 1))


@pytest.mark.fault(35)
def test_a_film_is_not_read_to_its_end(monkeypatch):
    stream = io.BytesIO()
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    frames[0].save(stream, "gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(GifImageFile, "n_frames", property(lambda self: pytest.fail("read to its end")))
    found = decoding.decode(stream.getvalue(), "x", Policy(None, 1))
    assert "first of several frames" in found.notes and (found.pixels == 10).all()
