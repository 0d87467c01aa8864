import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import rgb_to_grayscale

from genlab.data import packed as packing
from genlab.data.captions import CaptionedImages
from genlab.data.decode import BadImage, Policy, decode
from genlab.data.degraded import Degraded, Edges, Grey, Masked, Small
from genlab.data.digits import Digits
from genlab.data.folder import ImageFolder
from genlab.data.image_tables import read_captions
from genlab.data.packed import MappedRows, pack
from genlab.data.pairs import PairedImages, UnpairedImages, deal
from genlab.data.procedural import SHAPES, Shapes, caption, caption_tokenizer, render
from genlab.data.random_data import RandomData
from genlab.data.reversed import WayBackData
from genlab.data.sources import BadSource, open_source
from genlab.data.translated_shapes import TranslatedShapes
from genlab.shapes import DataSpec


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def picture(number, size=(8, 8)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    pixels[0, 0] = number
    return pixels


def saved(folder, numbers, size=(8, 8), ending="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(picture(number, size)).save(folder / f"{number:03d}.{ending}")
    return str(folder)


def numbers_of(rows):
    """The numbers of pictures by their first pixel."""
    return np.asarray(rows)[:, 0, 0, 0].tolist()


# --- pairs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_double_picture_is_its_two_halves(tmp_path, monkeypatch, side, mapped):
    if mapped:
        monkeypatch.setattr(packing, "LARGE", 0)
    path = saved(tmp_path / "both", range(10), (16, 8))
    data = PairedImages(path, image_size=8, side=side, batch_size=4, val_fraction=0)
    seen = []
    for split in ("train", "test"):
        for batch in data.loader(split):
            halves = [batch["image"], batch["source"]][:: 1 if side == "left" else -1]
            for left, right in zip(*halves, strict=True):
                number = int(left[0, 0, 0])
                expected = torch.from_numpy(picture(number, (16, 8))).permute(2, 0, 1)
                assert torch.equal(left, expected[..., :8]) and torch.equal(right, expected[..., 8:])
                seen.append(number)
    assert sorted(seen) == list(range(10))
    assert isinstance(data.split("train")["image"], MappedRows) == mapped


def test_a_half_bleeds_nothing_into_the_other_when_it_is_made_smaller(tmp_path):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "1.png")
    image = pack(open_source(tmp_path / "a"), Policy(8, panels=2), "a").x[0]
    assert image.shape == (3, 8, 16) and not image[..., :8].any() and (image[..., 8:] == 255).all()


@pytest.mark.fault(41)
@pytest.mark.parametrize("size", [(16, 16), (15, 8), (17, 8), (8, 16), (24, 8)])
def test_a_picture_that_is_not_two_squares_is_refused(tmp_path, size):
    data = PairedImages(saved(tmp_path / "a", range(3), size), image_size=8)
    width, height = size
    with pytest.raises(BadSource, match=f"{width}x{height} is not 2 squares side by side .{2 * height}x"):
        data.split("train")


def test_packs_of_single_pictures_keep_their_name_and_pixels(tmp_path):
    assert "panels" not in Policy(8).to_dict() and Policy(8, panels=2).to_dict()["panels"] == 2
    source = open_source(saved(tmp_path / "a", range(3)))
    assert packing.key(source, Policy(8)) != packing.key(source, Policy(8, panels=2))
    with pytest.raises(BadImage, match="not 2 squares"):
        decode((tmp_path / "a" / "000.png").read_bytes(), "x", Policy(8, panels=2))


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("train", "val"), ("train", "test")),
        (("train", "test"), ("train", "test")),
        (("train", "val", "test"), ("train", "val", "test")),
    ],
)
@pytest.mark.parametrize("is_zip", [False, True])
def test_folders_of_splits_are_the_splits(tmp_path, folders, names, is_zip):
    for k, folder in enumerate(folders):
        saved(tmp_path / "set" / folder, range(10 * k, 10 * k + 4 - k), (16, 8))
    path = tmp_path / "set"
    if is_zip:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in path.rglob("*.png"):
                archive.write(file, f"wrapper/{file.relative_to(path)}")
        path = tmp_path / "set.zip"
    loaded = PairedImages(str(path), image_size=8).load()
    assert {name: numbers_of(part["image"]) for name, part in loaded.items()} == {
        name: list(range(10 * k, 10 * k + 4 - k)) for k, name in enumerate(names)
    }


def test_pictures_outside_of_the_folders_of_splits_are_named(tmp_path):
    saved(tmp_path / "set" / "train", range(3), (16, 8))
    saved(tmp_path / "set", [7], (16, 8))
    with pytest.raises(BadSource, match=r"1 pictures outside of these, such as 007\.png"):
        PairedImages(str(tmp_path / "set"), image_size=8).split("train")
    (tmp_path / "set" / "007.png").unlink()
    saved(tmp_path / "set" / "other" / "train", range(3), (16, 8))
    with pytest.raises(BadSource, match="needs a folder train and one of val and test, and holds train"):
        PairedImages(str(tmp_path / "set"), image_size=8).split("train")


@pytest.mark.fault(41)
def test_two_folders_are_matched_by_name_whatever_the_ending(tmp_path):
    images = saved(tmp_path / "a", range(12))
    sources = saved(tmp_path / "b", range(12), ending="bmp")
    data = PairedImages(images, sources, image_size=8, test_fraction=0.25)
    for split, num in (("train", 7), ("val", 2), ("test", 3)):
        columns = data.split(split).columns
        assert len(columns["image"]) == num
        assert np.array_equal(np.asarray(columns["image"]), np.asarray(columns["source"]))
    saved(tmp_path / "a", range(20, 27))
    saved(tmp_path / "b", [99])
    expected = r"8 images .*: a/020\.png, a/021\.png, a/022\.png, a/023\.png, a/024\.png and 3 more"
    with pytest.raises(BadSource, match=expected):
        PairedImages(images, sources, image_size=8).split("train")
    saved(tmp_path / "b", [5])
    with pytest.raises(BadSource, match=r"holds both 005\.bmp and 005\.png"):
        PairedImages(images, sources, image_size=8).split("train")


def test_the_spec_of_pairs_names_both_and_counts_pairs(tmp_path):
    data = PairedImages("nowhere/facades", image_size=32, channels=1)
    assert data.spec == DataSpec("facades", (1, 32, 32), source=DataSpec("facades source", (1, 32, 32)))
    assert data.spec.unit == "pairs"
    told = PairedImages(saved(tmp_path / "a", range(10), (16, 8)), image_size=8).describe()
    assert json.loads(json.dumps(told)) == told
    assert told["preprocessing"]["panels"] == 2 and told["spec"]["source"]["shape"] == [3, 8, 8]


# --- unpaired -----------------------------------------------------------------------------------------------


@pytest.mark.fault(42)
@pytest.mark.parametrize(("num", "num_sources"), [(10, 4), (4, 10), (6, 6), (7, 1)])
def test_sources_are_dealt_anew_in_each_epoch_and_equally_often(num, num_sources):
    dealt = [deal(num, num_sources, 0, epoch) for epoch in range(40)]
    for rows in dealt:
        counts = np.bincount(rows, minlength=num_sources)
        assert counts.max() - counts.min() <= 1 and counts.sum() == num
    assert np.array_equal(dealt[3], deal(num, num_sources, 0, 3))
    if num_sources > 1:
        assert len({tuple(rows) for rows in dealt}) > 10
        assert not np.array_equal(np.stack(dealt), [deal(num, num_sources, 1, epoch) for epoch in range(40)])
    assert set(np.concatenate(dealt)) == set(range(num_sources))


@pytest.mark.fault(42)
def test_unpaired_sets_meet_other_partners_in_each_epoch(tmp_path):
    data = UnpairedImages(
        saved(tmp_path / "a", range(20)), saved(tmp_path / "b", range(100, 140)), image_size=8, batch_size=3
    )
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [16, 2, 2]
    partners = []
    for epoch in range(4):
        batch = data.training_items(epoch).__getitems__(torch.arange(16))
        assert numbers_of(batch["image"]) == numbers_of(data.split("train")["image"])
        partners.append(numbers_of(batch["source"]))
    held_out = {n for name in ("val", "test") for n in numbers_of(data.split(name)["source"])}
    assert len(held_out) == 4
    assert len({tuple(row) for row in partners}) == 4 and not held_out & {n for row in partners for n in row}
    batch = next(iter(data.loader("test")))
    assert numbers_of(batch["source"]) == numbers_of(data.split("test")["source"])


def test_held_out_folders_beside_both_training_folders_are_the_test_split(tmp_path):
    paths = saved(tmp_path / "trainA", range(6)), saved(tmp_path / "trainB", range(50, 54))
    saved(tmp_path / "testA", range(10, 15))
    saved(tmp_path / "testB", range(60, 62))
    data = UnpairedImages(*paths, image_size=8, batch_size=2, val_fraction=0)
    assert numbers_of(data.split("train")["image"]) == list(range(6))
    assert numbers_of(data.split("test")["image"]) == list(range(10, 15))
    assert numbers_of(data.split("test")["source"]) == [60, 61, 60, 61, 60]
    assert data.preprocessing()["sources"] == {"train": 4, "test": 2}


# --- degraded -----------------------------------------------------------------------------------------------


def colours(num=6, size=16):
    return RandomData((3, size, size), num_train=40, num_test=num, batch_size=8)


@pytest.mark.parametrize("degradation", [Grey(), Edges(), Small(4), Small(2), Masked()])
def test_a_degraded_set_has_the_images_and_what_is_left_of_each(degradation):
    inner = colours()
    data = Degraded(inner, degradation, batch_size=8, flip=True)
    assert np.array_equal(np.asarray(data.split("test")["image"]), inner.split("test")["image"])
    whole = np.asarray(data.split("train")["source"])
    assert whole.shape[1:] == data.spec.source.shape and whole.dtype == np.uint8
    for batch in data.train_dataloader():
        assert np.array_equal(batch["source"].numpy(), whole[batch["index"].numpy()])
    rows = np.array([5, 2, 9])
    assert np.array_equal(np.asarray(data.split("train").take(rows)["source"]), whole[rows])
    assert np.array_equal(data.split("train")["source"][3], whole[3])
    assert data.fingerprint("test") == Degraded(colours(), degradation).fingerprint("test")
    assert data.fingerprint("test") != inner.fingerprint("test")


def test_a_part_of_a_degraded_set_keeps_what_is_left_of_its_images():
    whole, part = (Degraded(colours(), Masked(), fraction=share) for share in (1.0, 0.5))
    kept = {image.tobytes(): rest.tobytes() for image, rest in zip(*_columns(whole), strict=True)}
    assert all(kept[image.tobytes()] == rest.tobytes() for image, rest in zip(*_columns(part), strict=True))


def _columns(data):
    return [np.asarray(data.split("train")[name]) for name in ("image", "source")]


def test_grey_is_the_brightness_of_torchvision():
    images = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8)
    ours = Grey()(images, torch.arange(5), 256).int()
    assert (ours - rgb_to_grayscale(images).int()).abs().max() <= 1
    flat = torch.full((1, 3, 2, 2), 77, dtype=torch.uint8)
    assert (Grey()(flat, torch.arange(1), 256) == 77).all()


def test_edges_are_where_brightness_changes_and_nowhere_else():
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    images[..., 4:] = 16
    for turned in (images, images.transpose(2, 3)):
        edges = Edges()(turned, torch.arange(1), 17)
        across = edges[0, 0] if turned is images else edges[0, 0].T
        assert (across[:, 3:5] == 16).all() and not across[:, :3].any() and not across[:, 5:].any()
    slope = (torch.arange(8) * 2).to(torch.uint8).expand(1, 1, 8, 8)
    assert (Edges()(slope, torch.arange(1), 17)[..., 1:-1] == 4).all()
    assert (Edges(2.0)(slope, torch.arange(1), 17)[..., 1:-1] == 8).all()


def test_small_is_pillows_bicubic_filter():
    image = picture(3, (32, 32))
    theirs = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    ours = Small(4)(torch.from_numpy(image).permute(2, 0, 1)[None], torch.arange(1), 256)[0].numpy()
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_mask_is_one_square_of_its_size_at_a_place_of_the_images_own(share):
    images = torch.full((400, 3, 8, 12), 255, dtype=torch.uint8)
    masked = Masked(share)(images, torch.arange(400), 256)
    hole = masked[:, 0] == 128
    side = round(share * 8)
    assert (masked[hole[:, None].expand_as(masked)] == 128).all()
    assert (masked[~hole[:, None].expand_as(masked)] == 255).all()
    assert (hole.sum((1, 2)) == side**2).all()
    assert (hole.any(1).sum(1) == side).all() and (hole.any(2).sum(1) == side).all()
    assert len({tuple(row.flatten().tolist()) for row in hole}) == (8 - side + 1) * (12 - side + 1)
    assert torch.equal(Masked(share)(images[:3], torch.tensor([9, 0, 7]), 256), masked[[9, 0, 7]])


def test_what_cannot_be_degraded_is_named():
    with pytest.raises(ValueError, match="Grey needs images of 3 channels, got 1"):
        Degraded(Digits(), Grey())
    with pytest.raises(ValueError, match="factor must divide the sides 8 and 8, got 3"):
        Degraded(Digits(), Small(3))
    with pytest.raises(ValueError, match="data must hold images of levels, got RandomData"):
        Degraded(RandomData((2,), levels=0), Masked())
    for bad, name in (
        (lambda: Small(1), "factor"),
        (lambda: Masked(0.0), "share"),
        (lambda: Edges(0.0), "gain"),
    ):
        with pytest.raises(ValueError, match=name):
            bad()


def test_a_degraded_set_is_named_in_a_configuration():
    from jsonargparse import ArgumentParser

    from genlab.data.base import DataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DataModule, "data")
    inner = {"class_path": "genlab.data.digits.Digits"}
    lost = {"class_path": "genlab.data.degraded.Small", "init_args": {"factor": 2}}
    arguments = {"data": inner, "degradation": lost, "batch_size": 5}
    config = {"data": {"class_path": "genlab.data.degraded.Degraded", "init_args": arguments}}
    data = parser.instantiate_classes(parser.parse_object(config)).data
    assert data.spec.source == DataSpec("digits small", (1, 4, 4), levels=17) and data.batch_size == 5


# --- captions -----------------------------------------------------------------------------------------------


def test_shapes_come_with_their_captions_as_sources():
    data = Shapes(16, 60, 40, captions=True, batch_size=8)
    decode = caption_tokenizer().decode
    for split in ("train", "test"):
        chosen = np.asarray(data.split(split)["factors"])
        for batch in data.loader(split):
            expected = [caption(row) for row in chosen[batch["index"]].tolist()]
            assert [decode(row) for row in batch["source"]] == expected
            assert batch["source"].dtype == torch.int64 and (batch["source"] == 2).sum() == len(expected)
    assert data.spec.source.vocabulary == caption_tokenizer().to_json() and Shapes(16).spec.source is None
    with pytest.raises(ValueError, match="flip must be false with captions"):
        Shapes(16, captions=True, flip=True)


def captioned(tmp_path, **options):
    path = saved(tmp_path / "a", range(20))
    lines = [
        f"{n:03d}.png\tpicture {n} as {way}"
        for n in range(20)
        for way in ("one", "two", "three")[: 1 + n % 3]
    ]
    (tmp_path / "a" / "captions.tsv").write_text("\n".join(lines))
    return CaptionedImages(path, **{"image_size": 8, "tokenizer": "bytes", "batch_size": 4, **options})


def test_an_image_comes_with_one_of_its_captions_drawn_anew_in_each_epoch(tmp_path):
    data = captioned(tmp_path)
    seen = {}
    for epoch in range(30):
        batch = data.training_items(epoch).__getitems__(torch.arange(16))
        for number, row in zip(numbers_of(batch["image"]), batch["source"], strict=True):
            text = data.tokenizer.decode(row)
            assert text.startswith(f"picture {number} as ")
            seen.setdefault(number, set()).add(text)
    assert all(len(texts) == 1 + number % 3 for number, texts in seen.items()) and len(seen) == 16
    batch = next(iter(data.loader("test")))
    texts = [data.tokenizer.decode(row) for row in batch["source"]]
    assert texts == [f"picture {number} as one" for number in numbers_of(batch["image"])]


@pytest.mark.fault(46)
def test_captions_that_are_missing_or_no_table_are_named(tmp_path):
    data = captioned(tmp_path)
    file = tmp_path / "a" / "captions.tsv"
    whole = file.read_text()
    file.write_text(whole.replace("003.png", "x.png"))
    with pytest.raises(BadSource, match=r"no caption for 1 images: 003\.png"):
        data.split("train")
    file.write_text(whole + "\nno tab")
    with pytest.raises(BadSource, match=r"line 40 is no name<TAB>caption: 'no tab'"):
        captioned_again(data).split("train")


def table(kind, rows, column="text"):
    """Rows of names and captions as a file of one of the three kinds."""
    if kind == "captions.tsv":
        return "".join(f"{name}\t{text}\n" for name, text in rows)
    if kind == "metadata.csv":
        return f"file_name,other,{column}\n" + "".join(f'{name},1,"{text}"\n' for name, text in rows)
    return "".join(json.dumps({"file_name": name, column: text}) + "\n" for name, text in rows)


@pytest.mark.parametrize("kind", ["captions.tsv", "metadata.csv", "metadata.jsonl"])
def test_all_tables_of_captions_say_the_same(tmp_path, kind):
    source = open_source(saved(tmp_path / "a", range(3)))
    rows = [(f"{n:03d}.png", f"picture {n}, {way}") for way in "ab" for n in range(3)]
    (tmp_path / "a" / kind).write_text(table(kind, rows))
    expected = [[f"picture {n}, {way}" for way in "ab"] for n in range(3)]
    assert read_captions(source) == expected
    if kind != "captions.tsv":
        (tmp_path / "a" / kind).write_text(table(kind, rows, "says"))
        assert read_captions(source, "says") == expected
        with pytest.raises(BadSource, match=r"no column 'text', but .*says.*caption_column"):
            read_captions(source)
    if kind == "metadata.jsonl":
        lists = [(f"{n:03d}.png", expected[n]) for n in range(3)]
        (tmp_path / "a" / kind).write_text(table(kind, lists))
        assert read_captions(source) == expected


def test_each_folder_may_have_its_own_table(tmp_path):
    for name, numbers in (("train", range(4)), ("test", range(4, 6))):
        saved(tmp_path / name, numbers)
        rows = [(f"{n:03d}.png", f"picture {n}") for n in numbers]
        (tmp_path / name / "metadata.csv").write_text(table("metadata.csv", rows))
    source = open_source(str(tmp_path))
    assert read_captions(source) == [["picture 4"], ["picture 5"], *([f"picture {n}"] for n in range(4))]


HEAD = "file_name,text\n"
WRONG_TABLES = [
    ("metadata.csv", "file_nam,text\n000.png,a\n", "'file_name', but file_nam, text.* mean 'file_nam'"),
    ("metadata.csv", "file_name,txt\n000.png,a\n", "no column 'text', but .*Did you mean 'txt'"),
    ("metadata.csv", "", "no column 'file_name', but nothing"),
    ("metadata.csv", f"{HEAD}000.png,a, b\n", "line 2 has not the 2 cells"),
    ("metadata.csv", f"{HEAD}000.png\n", "line 2 has not the 2 cells"),
    ("metadata.csv", f'{HEAD}000.png,"a', "is no CSV"),
    ("metadata.csv", f"{HEAD}000.png, \n", "line 2: the caption of '000.png' is empty"),
    ("metadata.jsonl", "[1]\n", "line 1 is no JSON object"),
    ("metadata.jsonl", '{"file_name": "000.png", "text"', "line 1 is no JSON object"),
    ("metadata.jsonl", '{"file_name": "000.png", "text": 3}', "line 1: file_name must be a text, text one"),
    ("metadata.jsonl", '{"file_name": "000.png", "text": []}', "text one or a list"),
    ("metadata.jsonl", '{"file_name": "000.png", "tekst": "a"}', "line 1 has no .* Did you mean 'tekst'"),
    (
        "captions.tsv",
        "000.pgn\ta\n001.png\tb\n",
        "1 files that are no images: 000.pgn Did you mean '000.png'",
    ),
    ("captions.tsv", "000.pgn\ta\n001.png\tb\n", "no caption for 1 images: 000.png"),
    ("captions.tsv", "".join(f"x{n}\ta\n" for n in range(7)), "7 files .*: x0, x1, x2, x3, x4 and 2 more"),
    ("caption.tsv", "000.png\ta\n", "There is no captions.tsv.* caption.tsv. Did you mean 'captions.tsv'"),
]


@pytest.mark.fault(46)
@pytest.mark.parametrize(("kind", "content", "message"), WRONG_TABLES)
def test_a_wrong_table_of_captions_is_named_and_nothing_dropped(
    tmp_path, kind, content, message, genlab_command
):
    source = open_source(saved(tmp_path / "a", range(2)))
    (tmp_path / "a" / kind).write_text(content)
    with pytest.raises(BadSource, match=message):
        read_captions(source)
    code, out, error = genlab_command("data", "check", tmp_path / "a")
    assert (code, error) == (0 if kind == "caption.tsv" else 3, "")
    assert ("\ncaptions" in out) == (kind != "caption.tsv") and "Traceback" not in out


def test_two_tables_of_captions_are_refused(tmp_path):
    source = open_source(saved(tmp_path / "a", range(2)))
    for kind in ("captions.tsv", "metadata.csv"):
        (tmp_path / "a" / kind).write_text(table(kind, [("000.png", "a"), ("001.png", "b")]))
    with pytest.raises(BadSource, match=r"holds captions.tsv and metadata.csv.*remove the other"):
        read_captions(source)


def test_a_caption_without_folders_is_that_of_one_image_alone(tmp_path):
    for name in ("x", "y"):
        saved(tmp_path / "a" / name, [0])
    saved(tmp_path / "a" / "y", [1])
    (tmp_path / "a" / "captions.tsv").write_text("000.png\ta\n001.png\tb\n")
    with pytest.raises(
        BadSource, match=r"no images: 000.png.*; no caption for 2 images: x/000.png, y/000.png"
    ):
        read_captions(open_source(str(tmp_path / "a")))


@pytest.mark.fault(46)
def test_a_check_counts_captions_and_names_the_first_images_without(tmp_path, genlab_command):
    folder = saved(tmp_path / "a", range(9))
    rows = [(f"{n:03d}.png", "a") for n in (0, 0, 1)]
    (tmp_path / "a" / "metadata.csv").write_text(table("metadata.csv", rows, "says"))
    code, out, _ = genlab_command("data", "check", folder, "--caption_column", "says")
    assert code == 3 and "captions: 3 of 2 images in metadata.csv" in out
    assert "images without a caption: 7: 002.png, 003.png, 004.png, 005.png, 006.png and 2 more" in out
    assert "not ok: correct the captions" in out
    rows += [(f"{n:03d}.png", "a") for n in range(2, 9)]
    (tmp_path / "a" / "metadata.csv").write_text(table("metadata.csv", rows))
    code, out, _ = genlab_command("data", "check", folder)
    assert code == 0 and "captions: 10 of 9 images in metadata.csv" in out and out.endswith("ok\n")


def captioned_again(data):
    return CaptionedImages(data.path, image_size=8)


def test_captions_are_cut_and_counted(tmp_path):
    data = captioned(tmp_path, length=17)
    lengths = [len(text) for texts in data.captions for text in texts]
    assert data.preprocessing()["cut"] == sum(length > 16 for length in lengths) > 0
    assert data.preprocessing()["captions"] == len(lengths) == 39
    assert data.spec.source.shape == (17,) and ImageFolder(data.path, labelled=False).spec.source is None


# --- shapes that become others ------------------------------------------------------------------------------


def pictures_of(packed, name):
    return {row.tobytes() for row in np.asarray(packed[name])}


@pytest.mark.parametrize("paired", [False, True])
def test_circles_become_squares_of_the_same_colour_place_and_size(paired):
    data = TranslatedShapes(paired=paired, image_size=16, num_train=300, num_test=216, batch_size=4)
    index = np.arange(216)
    test = data.split("test")
    chosen = np.asarray(test["factors"])
    assert (np.bincount(chosen[:, 0]) > 10).all() and (np.bincount(chosen[:, 3]) > 50).all()
    for name, shape in (("image", "square"), ("source", "circle")):
        chosen[:, 1] = SHAPES.index(shape)
        assert np.array_equal(test[name], render(chosen, index, 16))
    train = data.split("train")
    assert len(train) == 300 and not pictures_of(train, "image") & pictures_of(test, "image")
    squares = TranslatedShapes("square", "circle", True, 16, 300, 216).split("train")
    partners = pictures_of(train, "source") & pictures_of(squares, "image")
    assert len(partners) == (300 if paired else 0)
    first, again, later = (data.training_items(e).__getitems__(torch.arange(300)) for e in (0, 0, 1))
    assert torch.equal(first["source"], again["source"]) and torch.equal(first["image"], later["image"])
    assert torch.equal(first["source"], later["source"]) == paired
    assert {row.numpy().tobytes() for row in later["source"]} == pictures_of(train, "source")


def test_shapes_that_cannot_be_translated_are_refused():
    for arguments, message in (
        (("circle", "star"), "target_shape must be one of circle, .*, got 'star'"),
        (("ring", "ring"), "must differ, got 'ring' twice"),
        (("circle", "square", False, 8), "image_size must be at least 16"),
    ):
        with pytest.raises(ValueError, match=message):
            TranslatedShapes(*arguments)


def test_the_way_back_has_every_source_that_is_held_out_as_its_image(tmp_path):
    paths = saved(tmp_path / "a", range(20)), saved(tmp_path / "b", range(100, 170))
    data = UnpairedImages(*paths, image_size=8, test_fraction=0.2, batch_size=2)
    back = WayBackData(data)
    assert back.spec == data.spec.reversed() and back.spec.name == "a source"
    for split in ("val", "test"):
        images, sources = (data.sides[side][split]["image"] for side in (0, 1))
        found = back.items(split).__getitems__(torch.arange(len(sources)))
        assert np.array_equal(found["image"], sources) and len(sources) > len(images)
        assert np.array_equal(found["source"], np.asarray(images)[np.arange(len(sources)) % len(images)])
        assert back.fingerprint(split) != data.fingerprint(split)
    with pytest.raises(ValueError, match="digits has no source, and so no way back"):
        Digits().spec.reversed()


# --- random data --------------------------------------------------------------------------------------------

SPECS = [
    DataSpec("a", (3, 8, 8), 4, source=DataSpec("b", (1, 4, 4), levels=17)),
    DataSpec("a", (12,), 0, 300, DataSpec("b", (9,), levels=50), "x"),
    DataSpec("a", (4, 5), 3, 512),
    DataSpec("a", (2,), 0, 0, DataSpec("b", (6,), levels=0)),
    DataSpec("a", (3, 4, 4), 0, 0),
]


@pytest.mark.parametrize("spec", SPECS)
def test_random_data_are_of_any_declared_form(spec):
    data = RandomData(**spec.to_dict(), num_train=9, num_test=4, batch_size=4)
    assert data.spec == spec
    batch = next(iter(data.loader("train", batch_size=9)))
    is_text = spec.kind == "tokens" and len(spec.shape) == 1
    form = (spec.shape[0] + 1,) if is_text else spec.shape
    assert batch[spec.kind].shape == (9, *form)
    assert ("label" in batch) == (spec.num_classes > 0)
    for name, one in ((spec.kind, spec), ("source", spec.source)):
        if one is not None:
            values = batch[name]
            assert not one.levels or (int(values.min()) >= 0 and int(values.max()) < one.levels)
            assert (values.dtype == torch.int64) == (one.kind == "tokens")
            assert len({row.numpy().tobytes() for row in values}) == 9
    floats = data.to_floats(batch)
    assert floats[spec.kind].is_floating_point() == (spec.kind != "tokens")
