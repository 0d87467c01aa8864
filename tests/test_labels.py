"""Labels that a table says: whatever its kind, they are those of class folders, and nothing is dropped."""

import json

import numpy as np
import pytest
from PIL import Image

from genlab.data.folder import ImageFolder
from genlab.data.image_tables import label_by_table, read_captions
from genlab.data.sources import BadSource, open_source

KINDS = ("labels.csv", "metadata.csv", "metadata.jsonl")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(path)


def name_of(number):
    return "cat" if number % 3 else "ant"


@pytest.fixture
def flat(tmp_path):
    """Twelve pictures in one folder; picture n has the level 10 n."""
    for number in range(12):
        picture(tmp_path / "flat" / f"{number:02d}.png", number)
    return tmp_path / "flat"


def write_table(folder, kind, rows, column="kind"):
    lines = [f"file_name,note,{column}", *(f"{name},1,{label}" for name, label in rows)]
    if kind.endswith(".jsonl"):
        lines = [json.dumps({"file_name": name, "note": 1, column: label}) for name, label in rows]
    (folder / kind).write_text("\n".join(lines))


def rows(label=name_of):
    return [(f"{number:02d}.png", label(number)) for number in range(12)]


def labels_by_level(data):
    found = {}
    for split in ("train", "val", "test"):
        part = data.split(split)
        found |= dict(zip((part["image"][:, 0, 0, 0] // 10).tolist(), part["label"].tolist(), strict=True))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_labels_as_class_folders_do(flat, tmp_path, kind):
    write_table(flat, kind, rows())
    for number in range(12):
        picture(tmp_path / "folders" / name_of(number) / f"{number:02d}.png", number)
    told = ImageFolder(str(flat), 8, label_column="kind")
    sorted_ = ImageFolder(str(tmp_path / "folders"), 8)
    assert told.spec.num_classes == 2
    assert told.source.classes == sorted_.source.classes == ["ant", "cat"]
    expected = {number: int(number % 3 > 0) for number in range(12)}
    assert labels_by_level(told) == labels_by_level(sorted_) == expected
    assert told.describe()["preprocessing"]["label_column"] == "kind"
    assert "label_column" not in sorted_.describe()["preprocessing"]


def test_another_column_is_another_data_set_of_the_same_pixels(flat):
    write_table(flat, "labels.csv", rows())
    by_kind = ImageFolder(str(flat), 8, label_column="kind").fingerprint("train")
    write_table(flat, "labels.csv", rows(lambda number: number // 6))
    assert ImageFolder(str(flat), 8, label_column="kind").fingerprint("train") != by_kind


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_are_sorted_as_numbers(flat, kind):
    write_table(flat, kind, rows(lambda number: (10, 9, 2)[number % 3]))
    source = open_source(flat)
    label_by_table(source, "kind")
    assert source.classes == ["2", "9", "10"]
    assert source.labels[:3] == [2, 1, 0]


def test_a_table_takes_the_place_of_class_folders_and_of_those_alone(tmp_path):
    for number in range(12):
        picture(tmp_path / "a" / f"box{number % 2}" / f"{number:02d}.png", number)
    write_table(tmp_path / "a", "labels.csv", rows())
    assert open_source(tmp_path / "a").classes == ["box0", "box1"]
    source = open_source(tmp_path / "a")
    label_by_table(source, "kind")
    assert source.labels == [int(int(name[-6:-4]) % 3 > 0) for name in source.names]


def test_captions_and_labels_may_be_columns_of_one_table(flat):
    lines = ["file_name,text,kind", *(f"{name},a {label},{label}" for name, label in rows())]
    (flat / "metadata.csv").write_text("\n".join(lines))
    source = open_source(flat)
    assert read_captions(source)[0] == ["a ant"]
    label_by_table(source, "kind")
    assert source.classes == ["ant", "cat"]


WRONG = [
    ("lables.csv", "file_name,kind\n", "no labels.csv, .* lables.csv. Did you mean 'labels.csv'"),
    (
        "labels.csv",
        "file_name,kid\n00.png,a\n",
        "no column 'kind'.*mean 'kid'.*labels' column by label_column",
    ),
    ("labels.csv", "name,kind\n00.png,a\n", "no column 'file_name'"),
    ("labels.csv", "file_name,kind\n00.png,a\n", "no label for 11 images: 01.png, 02.png"),
    ("labels.csv", "file_name,kind\n00.pgn,a\n", "files that are no images: 00.pgn Did you mean '00.png'"),
    ("labels.csv", "file_name,kind\n00.png, \n", "line 2: the label of '00.png' is empty"),
    ("metadata.jsonl", '{"file_name": "00.png", "kind": 1.5}', "line 1: file_name must be a text, kind one"),
]


@pytest.mark.parametrize(("kind", "content", "message"), WRONG)
def test_a_wrong_table_of_labels_is_named_and_nothing_dropped(flat, kind, content, message):
    (flat / kind).write_text(content)
    with pytest.raises(BadSource, match=message):
        ImageFolder(str(flat), 8, label_column="kind").split("train")


def test_two_labels_of_an_image_and_one_label_of_all_are_refused(flat):
    write_table(flat, "labels.csv", [*rows(), ("03.png", "cat")])
    with pytest.raises(BadSource, match=r"two labels of 03\.png"):
        label_by_table(open_source(flat), "kind")
    write_table(flat, "labels.csv", rows(lambda _: "same"))
    with pytest.raises(BadSource, match="have the label 'same'"):
        label_by_table(open_source(flat), "kind")
    with pytest.raises(ValueError, match="label_column must name a column"):
        ImageFolder(str(flat), 8, labelled=False, label_column="kind")


def test_a_pack_holds_the_labels_of_the_table(flat, tmp_path, genlab_command):
    pytest.importorskip("litdata")
    write_table(flat, "labels.csv", rows())
    packing = ("data", "pack", flat, "-o", tmp_path / "pack", "--image_size", 8, "--workers", 1)
    assert genlab_command(*packing, "--label_column", "kind")[0] == 0
    assert labels_by_level(ImageFolder(str(tmp_path / "pack"), 8)) == {n: int(n % 3 > 0) for n in range(12)}
