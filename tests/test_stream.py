"""Images in chunks are those of the packed array: in bounded memory, once an epoch, resumed to the bit."""

import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import MLP, differences, only_run, signals
from test_several_processes import fit_arguments, in_processes

from genlab.data.captions import CaptionedImages
from genlab.data.check import check
from genlab.data.chunk_writer import write
from genlab.data.chunks import Chunks
from genlab.data.decode import Policy, decode
from genlab.data.degraded import Degraded, Grey
from genlab.data.folder import ImageFolder
from genlab.data.loading import ChunkOrder, Order, ScoringLoader
from genlab.data.shards import expanded, open_images
from genlab.data.sources import BadSource, open_source
from genlab.errors import DataError

TESTS = Path(__file__).parent
SIZE, PER_CHUNK = 8, 7
CHUNK_MIB = PER_CHUNK * 3 * SIZE**2 / 2**20
NUM = 60


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 256, (10, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def folder_of(root, split=""):
    """Images of three classes."""
    for number in range(NUM):
        file = root / split / "abc"[number % 3] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
    return root


def pack_of(source, folder, **options):
    write(open_images([str(source)]), Policy(SIZE), folder, chunk_mib=CHUNK_MIB, **options)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("images") / "faces")


@pytest.fixture(scope="module")
def pack(images, tmp_path_factory):
    return pack_of(images, tmp_path_factory.mktemp("packs") / "faces")


def streamed(path, **options):
    return ImageFolder(str(path), SIZE, stream=True, **{"stream_window": 3, "batch_size": 10, **options})


def array_of(path, **options):
    return ImageFolder(str(path), SIZE, **{"batch_size": 10, **options})


def assert_equal_items(data, other):
    for split in ("train", "val", "test"):
        a, b = data.split(split), other.split(split)
        assert a.columns.keys() == b.columns.keys()
        assert all(np.array_equal(np.asarray(a[name]), np.asarray(b[name])) for name in a.columns)


# --- a pack holds what the array holds ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"stream": True}], ids=["array", "streamed"])
def test_a_pack_gives_the_items_splits_labels_and_fingerprints_of_its_images(options, images, pack):
    data, packed = array_of(images, fraction=0.7), array_of(pack, fraction=0.7, **options)
    assert_equal_items(data, packed)
    assert data.spec.num_classes == packed.spec.num_classes == 3
    for _ in range(2):  # the second time it is remembered
        assert data.describe()["fingerprints"] == packed.describe()["fingerprints"]
        packed = array_of(pack, fraction=0.7, **options)


def test_a_pack_is_trained_from_by_the_options_that_packing_tells(images, tmp_path, genlab_command):
    form = ("--image_size", SIZE, "--channels", 1, "--crop", "none", "--workers", 1)
    code, told, error = genlab_command("data", "pack", images, "-o", tmp_path / "pack", *form)
    assert code == 0, error
    options = dict(re.findall(r"--data\.(\w+) (\S+)", told))
    assert options.keys() == {"path", "stream", "image_size", "channels", "crop"}
    data = ImageFolder(
        options["path"],
        int(options["image_size"]),
        int(options["channels"]),
        crop=options["crop"],
        stream=options["stream"] == "true",
    )
    data.setup()
    assert data.spec.shape == (1, SIZE, SIZE)


def test_rows_are_read_by_number_slice_mask_and_array_as_of_an_array(images, pack):
    whole, rows = array_of(images).load()["train"]["image"], streamed(pack).load()["train"]["image"]
    for index in (
        3,
        -1,
        slice(5, 40, 3),
        np.array([30, 2, 2, 51]),
        np.arange(54) % 5 == 0,
        np.eye(2, dtype=int),
    ):
        assert np.array_equal(rows[index], whole[index]) and rows[index].dtype == np.uint8
    assert rows.shape == whole.shape and np.array_equal(rows.take(np.array([9, 1]))[:], whole[[9, 1]])


def test_every_chunk_is_of_one_split_and_no_larger_than_asked_for(tmp_path):
    source = open_source(folder_of(folder_of(tmp_path / "faces", "train"), "test"))
    chunks = write(source, Policy(SIZE), tmp_path / "pack", chunk_mib=CHUNK_MIB)
    parts = [item["split"] for item in chunks.items()]
    by_chunk = list(zip(chunks.chunk_of(np.arange(len(chunks))).tolist(), parts, strict=True))
    assert len({*by_chunk}) == len(chunks.sizes) and chunks.sizes.max() == PER_CHUNK
    assert {*parts} == {"train", "test"}
    assert_equal_items(array_of(tmp_path / "faces"), streamed(tmp_path / "pack"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """A folder of images with one or two captions each, and its pack."""
    root = tmp_path_factory.mktemp("captioned")
    rows = []
    for number in range(NUM):
        (root / "faces").mkdir(exist_ok=True)
        (root / "faces" / f"{number:03}.png").write_bytes(picture(number))
        texts = [f"a face of {number} years", f"one of {number}"][: 1 + number % 2]
        rows.append(json.dumps({"file_name": f"{number:03}.png", "words": texts}))
    (root / "faces" / "metadata.jsonl").write_text("\n".join(rows))
    return root / "faces", pack_of(root / "faces", root / "pack", column="words")


def test_captions_and_those_that_an_epoch_draws_are_kept(captioned):
    folder, pack = captioned
    options = {"tokenizer": "characters", "batch_size": 10}
    data = CaptionedImages(str(folder), SIZE, caption_column="words", **options)
    packed = CaptionedImages(str(pack), SIZE, stream=True, **options)
    assert_equal_items(data, packed)
    for epoch in (0, 1):
        rows = torch.arange(40)
        a, b = (each.training_items(epoch).__getitems__(rows) for each in (data, packed))
        assert torch.equal(a["source"], b["source"]) and torch.equal(a["image"], b["image"])


def test_litdata_itself_reads_the_images_of_a_pack(images, pack):
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader

    found = StreamingDataset(str(pack), item_loader=TokensLoader(3 * SIZE**2))
    whole = np.asarray(streamed(pack).source.chunks.read(np.arange(NUM)))
    assert len(found) == NUM
    assert all(np.array_equal(np.asarray(found[n]).reshape(3, SIZE, SIZE), whole[n]) for n in range(NUM))


def test_images_without_pixels_alike_are_told_apart_and_copies_stay_together(tmp_path):
    for number in range(NUM):
        (tmp_path / "faces").mkdir(exist_ok=True)
        (tmp_path / "faces" / f"{number:03}.png").write_bytes(picture(number % 30))
    pack = pack_of(tmp_path / "faces", tmp_path / "pack")
    with pytest.warns(UserWarning, match="30 of 60 items are copies"):
        data, packed = array_of(tmp_path / "faces"), streamed(pack)
        assert_equal_items(data, packed)


def test_degraded_images_of_a_pack_come_in_its_order(images, pack):
    a, b = (Degraded(data, Grey(), batch_size=10) for data in (array_of(images), streamed(pack)))
    assert_equal_items(a, b)
    assert isinstance(b.train_dataloader().sampler, ChunkOrder)
    assert b.describe()["order"] == "3 chunks at a time"


# --- the order of training ----------------------------------------------------------------------------------


def numbers_of(order, epoch):
    order.epoch = epoch
    return order.numbers()


@pytest.mark.parametrize("window", [1, 3, 4])
def test_an_epoch_has_every_item_once_and_so_many_chunks_at_a_time(window):
    places = torch.arange(100) // 8  # 13 chunks
    orders = [numbers_of(ChunkOrder(100, 10, 5, places, window), epoch) for epoch in (0, 1, 1)]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert orders[1].equal(orders[2]) and not orders[0].equal(orders[1])
    chunks = places[orders[0]].tolist()
    for start in range(0, 13, window):
        here = [*dict.fromkeys(chunks)][start : start + window]
        first, last = min(map(chunks.index, here)), 99 - min(chunks[::-1].index(chunk) for chunk in here)
        assert {*chunks[first : last + 1]} == {*here}
    assert [*dict.fromkeys(chunks)] != sorted({*chunks})


def test_the_items_of_a_window_are_mixed_and_a_window_of_all_is_the_permutation():
    places = torch.arange(1000) // 100
    whole = numbers_of(ChunkOrder(1000, 10, 0, places, 10), 3)
    assert whole.equal(numbers_of(Order(1000, 10, 0), 3))
    first = places[numbers_of(ChunkOrder(1000, 10, 0, places, 5), 3)][:500]
    counts = torch.stack([first[part : part + 100].bincount(minlength=10) for part in range(0, 500, 100)])
    assert counts[counts > 0].min() >= 8 and (counts > 0).sum(1).tolist() == [5] * 5


def test_training_reads_from_so_many_chunks_at_a_time(pack):
    data = streamed(pack)
    rows, read = data.split("train").x, [batch["index"] for batch in data.train_dataloader()]
    chunks = rows.chunks.chunk_of(rows.rows[torch.cat(read).numpy()]).tolist()
    seen = [*dict.fromkeys(chunks)]
    windows = [seen[start : start + 3] for start in range(0, len(seen), 3)]
    turn = [next(n for n, window in enumerate(windows) if chunk in window) for chunk in chunks]
    assert turn == sorted(turn) and len(seen) == 9


class _Place:
    def __init__(self, rank, world_size):
        self.global_rank, self.world_size = rank, world_size


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_read_each_item_once_an_epoch_and_what_one_process_reads(world_size, pack):
    def epoch(rank, size, batch_size):
        data = streamed(pack, batch_size=batch_size)
        data.trainer = _Place(rank, size)
        return [batch["index"].tolist() for batch in data.train_dataloader()]

    alone = epoch(0, 1, 5 * world_size)
    ranks = [epoch(rank, world_size, 5) for rank in range(world_size)]
    assert len({n for rank in ranks for batch in rank for n in batch}) == 5 * world_size * len(alone)
    for rank, batches in enumerate(ranks):
        assert batches == [batch[rank::world_size] for batch in alone]


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (4, 2), (6, 1)])
def test_a_stopped_loader_goes_on_to_the_bit_with_other_reading_processes(stop, workers, pack):
    def batches(loader, num):
        while num:
            for batch in loader:
                yield batch
                num -= 1
                if not num:
                    return

    whole = list(batches(streamed(pack, flip=True).train_dataloader(), 13))
    stopped = streamed(pack, flip=True, num_workers=2 - workers).train_dataloader()
    list(batches(stopped, stop))
    resumed = streamed(pack, flip=True, num_workers=workers).train_dataloader()
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for expected, batch in zip(whole[stop:], batches(resumed, 13 - stop), strict=True):
        assert all(torch.equal(expected[name], batch[name]) for name in ("image", "label", "index", "flip"))


def test_scoring_reads_every_streamed_item_once_as_of_the_array(images, pack):
    a, b = array_of(images).items("train"), streamed(pack).items("train")
    for workers in (0, 1):
        pairs = zip(ScoringLoader(a, 8, 0, 1), ScoringLoader(b, 8, 0, 1, workers), strict=True)
        assert all(torch.equal(x["image"], y["image"]) for x, y in pairs)


# --- what can be wrong --------------------------------------------------------------------------------------


@pytest.fixture
def own_pack(pack, tmp_path):
    """A copy of the pack that may be damaged."""
    return Path(shutil.copytree(pack, tmp_path / "own"))


def damaged(kind, pack):
    chunk = pack / "chunk-000003.bin"
    if kind == "missing":
        chunk.unlink()
    if kind == "cut off":
        chunk.write_bytes(chunk.read_bytes()[:-5])
    return r"chunk-000003\.bin \(images 21 to 27\) is (missing|damaged: it has \S+ of \S+ bytes)"


@pytest.mark.parametrize("kind", ["missing", "cut off"])
def test_a_missing_or_damaged_chunk_is_named_with_its_images(kind, own_pack, genlab_command):
    message = damaged(kind, own_pack)
    with pytest.raises(DataError, match=message):
        streamed(own_pack).split("train")
    code, _, error = genlab_command("data", "check", own_pack)
    assert code == 3 and error.count("\n") == 1 and "chunk-000003.bin" in error


@pytest.mark.parametrize("workers", [0, 2])
def test_a_chunk_that_is_lost_in_the_middle_of_training_is_named_in_one_line(workers, own_pack):
    loader = streamed(own_pack, num_workers=workers).train_dataloader()
    message = damaged("missing", own_pack)
    with pytest.raises(DataError, match=message) as error:
        list(loader)
    assert "\n" not in str(error.value)


def test_a_changed_pixel_is_found_by_the_check(own_pack):
    chunk = own_pack / "chunk-000003.bin"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    found = check(own_pack)
    assert [name for name, _ in found.bad] == [open_source(own_pack).names[27]] and not found.ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 16}, "was packed with image_size 8, not 16"),
        ({"channels": 1}, "was packed with channels 3, not 1"),
        ({"stream_window": 0}, "stream_window must be at least 1 chunk, got 0"),
        ({"stream_cache_gib": 0.0}, "stream_cache_gib must be above 0"),
        ({"stream_cache_gib": 1e-6}, "stream_cache_gib must be at least .* the size of 4 chunks"),
    ],
)
def test_settings_that_do_not_fit_a_pack_are_named(options, message, pack):
    with pytest.raises(ValueError, match=message):
        ImageFolder(str(pack), **{"image_size": SIZE, "stream": True, "stream_window": 3, **options}).split(
            "train"
        )


def test_what_is_not_packed_cannot_be_streamed_and_the_command_is_named(images):
    with pytest.raises(BadSource, match=f"genlab data pack {images} -o FOLDER --image_size 8 --channels 3"):
        streamed(images).split("train")


def test_packing_refuses_what_is_there_and_leaves_nothing_of_bad_images(
    images, pack, tmp_path, genlab_command
):
    code, _, error = genlab_command("data", "pack", images, "-o", pack)
    assert code == 3 and "exists; name another folder" in error
    (tmp_path / "bad").mkdir()
    for number in range(20):
        (tmp_path / "bad" / f"{number}.png").write_bytes(picture(number)[: 40 if number in (3, 11) else None])
    code, _, error = genlab_command("data", "pack", tmp_path / "bad", "-o", tmp_path / "out")
    assert code == 3 and "2 of 20 images" in error and "3.png" in error and "11.png" in error
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name and path.name != "outputs"] == []
    code, _, error = genlab_command("data", "pack", images, "-o", tmp_path / "out", "--chunk_mib", "0.001")
    assert code == 2 and "--chunk_mib must be at least 0.0117" in error


def test_without_litdata_the_extra_is_named(images, tmp_path, monkeypatch, genlab_command):
    monkeypatch.setitem(sys.modules, "litdata", None)
    code, _, error = genlab_command("data", "pack", images, "-o", tmp_path / "out")
    assert code == 2 and "pip install 'genlab[stream]'" in error
    with pytest.raises(ValueError, match=r"genlab\[stream\]"):
        open_source("s3://bucket/faces")


# --- far away -----------------------------------------------------------------------------------------------


def copies_of(data):
    return sorted(file.name for file in data.source.chunks.folder.glob("chunk-*.bin"))


def test_remote_chunks_are_copied_as_they_are_needed_and_make_room_for_others(images, pack, tmp_path):
    remote = streamed(f"local:{pack}")
    remote.split("train")
    assert copies_of(remote) == []  # splits, labels and equal images are known without them
    assert_equal_items(array_of(images), remote)
    assert len(copies_of(remote)) == 9
    limit = 4.5 * (pack / "chunk-000000.bin").stat().st_size / 2**30
    bounded = streamed(f"local:{pack}", stream_cache_gib=limit)
    for chunk in bounded.source.chunks.folder.glob("chunk-*"):
        chunk.unlink()
    held = []
    for batch in bounded.train_dataloader():
        held.append(len(copies_of(bounded)))
        whole = bounded.source.chunks
        assert len(whole._open) <= 4 and batch["image"].shape == (10, 3, SIZE, SIZE)
    assert max(held) == 4
    assert_equal_items(array_of(images), bounded)


def test_copies_of_another_pack_of_the_same_name_are_not_read(images, pack, tmp_path):
    (tmp_path / "there").symlink_to(pack)
    old = streamed(f"local:{tmp_path}/there")
    before = old.source.chunks.read(np.arange(NUM))
    (tmp_path / "there").unlink()
    for file in folder_of(tmp_path / "faces2").glob("*/*.png"):
        file.write_bytes(picture(1000 + int(file.stem)))
    pack_of(tmp_path / "faces2", tmp_path / "there")
    after = streamed(f"local:{tmp_path}/there").source.chunks.read(np.arange(NUM))
    assert not np.array_equal(before, after)
    assert np.array_equal(after, Chunks(tmp_path / "there").read(np.arange(NUM)))


def test_a_chunk_that_was_damaged_on_its_way_is_named_and_not_kept(own_pack):
    chunk = own_pack / "chunk-000003.bin"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    remote = streamed(f"local:{own_pack}")
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"chunk-000003\.bin .* is damaged: image 27 is not what was packed"
        ):
            np.asarray(remote.source.chunks.read(np.arange(NUM)))
    assert "chunk-000003.bin" not in copies_of(remote)


def test_a_remote_place_without_a_pack_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"local:{tmp_path}/nothing: pack.json"):
        streamed(f"local:{tmp_path}/nothing").split("train")


# --- shards -------------------------------------------------------------------------------------------------


def shard(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(first, num, beside):
    """Files of a shard: an image each, and what `beside` makes of its number."""
    files = {}
    for number in range(first, first + num):
        files[f"{number:04}.png"] = picture(number)
        files |= {f"{number:04}.{ending}": text.encode() for ending, text in beside(number).items()}
    return files


BESIDE = {
    "txt and cls": lambda n: {"txt": f"picture {n}\n", "cls": str(3 + n % 2 * 4)},
    "json": lambda n: {"json": json.dumps({"caption": [f"picture {n}", "x"], "label": 3 + n % 2 * 4})},
    "captions alone": lambda n: {"txt": f"picture {n}"},
    "nothing": lambda n: {},
}


@pytest.mark.parametrize("kind", BESIDE)
@pytest.mark.parametrize("how", ["folder", "braces"])
def test_shards_are_packed_with_captions_and_labels(kind, how, tmp_path, genlab_command):
    for number in range(3):
        shard(tmp_path / "tars" / f"s-{number:03}.tar", samples(20 * number, 20, BESIDE[kind]))
    place = tmp_path / "tars" if how == "folder" else f"{tmp_path}/tars/s-{{000..002}}.tar"
    options = ("--image_size", SIZE, "--chunk_mib", CHUNK_MIB)
    code, out, error = genlab_command("data", "pack", place, "-o", tmp_path / "pack", *options)
    assert code == 0, error
    assert "60 images in 9 chunks" in out and ("2 classes" in out) == (kind in ("txt and cls", "json"))
    source = open_source(tmp_path / "pack")
    for number in (0, 19, 20, 59):
        pixels = decode(picture(number), "x", Policy(SIZE)).pixels
        assert np.array_equal(source.chunks.read(np.array([number]))[0], pixels)
        assert source.names[number] == f"s-{number // 20:03}/{number:04}.png"
    if kind in ("txt and cls", "json"):
        assert source.classes == ["3", "7"] and source.labels == [n % 2 for n in range(60)]
    else:
        assert source.labels is None and source.classes == []
    more = ["x"] if kind == "json" else []
    captions = None if kind == "nothing" else [[f"picture {n}", *more] for n in range(60)]
    assert source.captions == captions


SPOILT = {
    "no caption": ({"0005.txt": None}, "sample '0005' has no caption"),
    "no image": ({"0005.png": None}, r"sample '0005' has 0 images and must have one; it holds \.txt, \.cls"),
    "two images": ({"0005.jpg": b"x"}, "sample '0005' has 2 images"),
    "no label": ({"0005.cls": b"cat"}, "sample '0005' has the label 'cat'"),
    "without a label": ({"0005.cls": None}, "sample '0005' has no label"),
    "no text": ({"0005.txt": b"\xff\xfe"}, "sample '0005' has 0005.txt, which is not UTF-8 at byte 0"),
    "empty": ({"0005.txt": b" \n"}, "sample '0005' has an empty caption"),
    "json": ({"0005.json": b"[1"}, "sample '0005' has a .json that is no JSON object"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_malformed_sample_is_named_with_its_shard(kind, tmp_path, genlab_command):
    changes, message = SPOILT[kind]
    files = samples(0, 10, BESIDE["txt and cls"]) | changes
    shard(tmp_path / "a-0.tar", samples(20, 10, BESIDE["txt and cls"]))
    shard(tmp_path / "a-1.tar", {name: content for name, content in files.items() if content is not None})
    arguments = ("data", "pack", f"{tmp_path}/a-{{0..1}}.tar", "-o", tmp_path / "pack")
    code, _, error = genlab_command(*arguments)
    assert code == 3 and error.count("\n") == 1
    with pytest.raises(BadSource, match=rf"a-1\.tar: {message}"):
        open_images([f"{tmp_path}/a-{{0..1}}.tar"])


@pytest.mark.parametrize("kind", ["cut off", "compressed", "absent", "no tar"])
def test_a_damaged_shard_is_named(kind, tmp_path):
    first = shard(tmp_path / "a-0.tar", samples(0, 5, BESIDE["json"]))
    second = tmp_path / "a-1.tar"
    if kind == "cut off":
        second.write_bytes(first.read_bytes()[:-12_000])
    if kind == "compressed":
        second.write_bytes(gzip.compress(first.read_bytes()))
    if kind == "no tar":
        second.write_bytes(b"nothing")
    with pytest.raises(BadSource, match=r"a-1\.tar (is no whole tar|does not exist)"):
        open_images([str(first), str(second)])


def test_a_name_in_braces_stands_for_all_of_them_with_their_digits():
    assert expanded("a-{008..011}.tar") == [f"a-{n:03}.tar" for n in range(8, 12)]
    assert expanded("{1..2}/{0..1}") == ["1/0", "1/1", "2/0", "2/1"] and expanded("{a..b}") == ["{a..b}"]


def test_a_tar_of_images_alone_is_that_of_class_folders(tmp_path):
    files = {f"{'ab'[n % 2]}/{n}.png": picture(n) for n in range(6)}
    source = open_images([str(shard(tmp_path / "x.tar", files))])
    assert source.classes == ["a", "b"]


# --- training -----------------------------------------------------------------------------------------------


def training(path, extractor):
    return (
        *("--config", "experiments/dcgan_digits.yaml", "--extractor", extractor, *MLP),
        *("--evaluate.num_samples", "8", "--samples.num", "4", "--trainer.accelerator", "cpu"),
        *("--data", "ImageFolder", "--data.path", path, "--data.image_size", SIZE, "--data.batch_size", "8"),
        *(
            "--data.channels",
            "3",
            "--data.stream",
            "true",
            "--data.stream_window",
            "3",
            "--data.num_test",
            "8",
        ),
        *("--budget.evaluate_every", "96", "--trainer.limit_val_batches", "1", "--data.flip", "true"),
    )


def test_a_stopped_and_resumed_training_from_chunks_has_no_differing_bit(
    pack, tiny_extractor, genlab_command, tmp_path, monkeypatch
):
    """Stopped in an epoch with one reading process, gone on without."""
    options = (*training(pack, tiny_extractor(3)), "--budget.examples", "240")
    for name, at, more in (("whole", None, ()), ("parts", 136, ("--data.num_workers", "1"))):
        monkeypatch.setenv("GENLAB_OUTPUTS", str(tmp_path / name))
        with signals(at, signal.SIGTERM):
            code, _, error = genlab_command("fit", *options, *more)
        assert code == (143 if at else 0), error
    parts, whole = only_run(tmp_path / "parts"), only_run(tmp_path / "whole")
    code, _, error = genlab_command("resume", parts, "--data.num_workers", "0")
    assert code == 0, error
    a, b = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (whole, parts))
    settings = [found.pop("trained_with")["settings"] for found in (a, b)]
    assert a["examples_seen"] == b["examples_seen"] == 240 and differences(a, b) == []
    assert settings[0] == settings[1] and settings[0]["data.stream"] is True
    assert json.loads((whole / "run.json").read_text())["data"]["order"] == "3 chunks at a time"


@pytest.mark.slow
def test_two_processes_train_from_chunks_as_one_on_the_joined_batch(
    tmp_path, pack, tiny_extractor, monkeypatch
):
    def arguments(*options):
        plain = (
            "--model.generator_optimizer",
            "torch.optim.SGD",
            "--model.discriminator_optimizer",
            "torch.optim.SGD",
        )
        data = training(pack, tiny_extractor(3))[2:]
        return [
            str(part) for part in fit_arguments("dcgan_digits", tiny_extractor(3), *data, *plain, *options)
        ]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for name, options in (("one", ("--data.batch_size", "16")), ("two", ("--trainer.devices", "2"))):
        folders = {"GENLAB_OUTPUTS": str(tmp_path / name), "GENLAB_TEST_FOLDER": str(tmp_path / name)}
        in_processes(["-m", "genlab", *arguments(*options)], **folders)
    one, *ranks = (torch.load(tmp_path / file) for file in ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt"))
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in one)
    assert max(float((one[name] - ranks[0][name]).abs().max()) for name in one) < 1e-5


MEMORY = """
import resource, sys
import numpy as np
from genlab.data.folder import ImageFolder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

data = ImageFolder(sys.argv[1], 64, stream=True, stream_window=2, batch_size=64)
loader = data.train_dataloader()
before, seen = peak(), 0
data.fingerprint("train")
for batch in loader:
    seen += len(batch["image"])
for batch in data.loader("train"):
    seen += len(batch["image"])
print(seen, before, peak())
"""


@pytest.mark.slow
def test_memory_holds_a_few_chunks_of_a_set_that_is_much_larger(tmp_path):
    """288 MiB in chunks of 8 MiB, of which three are open at a time."""
    chunk = 8 * 2**20 // (3 * 64**2)
    rng = np.random.default_rng(0)
    (tmp_path / "im").mkdir()
    for number in range(200):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"im/{number}.bmp")
    source = open_source(tmp_path / "im")
    source.names = [source.names[n % 200] for n in range(36 * chunk)]
    write(source, Policy(64), tmp_path / "pack", chunk_mib=8)
    digests = np.load(tmp_path / "pack" / "digests.npy")
    digests[:, :8] = np.arange(len(digests))[:, None].view(np.uint8)  # or all would be copies
    np.save(tmp_path / "pack" / "digests.npy", digests)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "pack")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    assert done.returncode == 0, done.stderr
    seen, before, after = map(float, done.stdout.split())
    assert seen > 1.9 * 0.8 * 36 * chunk
    assert after - before < 3 * 8 + 40, (before, after)
