import json
import re
import tracemalloc
from io import BytesIO

import numpy as np
import pytest
import torch

from genlab.data import tokenizers, utf8
from genlab.data.numbers import NumberNames, NumberText, spelt
from genlab.data.sentences import SentencePairs, sources, targets
from genlab.data.sources import BadSource
from genlab.data.text import TextFile
from genlab.data.tokenizers import BEGIN, END, PAD, tokenizer_of
from genlab.shapes import IGNORED

WORDS = "Über den Fluß 日本 to be or not to be 🙂, that is the question.\n"
KINDS = ["characters", "bytes", "bpe"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("".join(f"{n} {WORDS}" for n in range(60)), encoding="utf-8")
    return path


def text_of(file, **options):
    return TextFile(str(file), **{"context": 16, "vocabulary_size": 300, "batch_size": 4, **options})


def predicted(data, split):
    """All targets of a split, in order."""
    rows = torch.cat([batch["tokens"] for batch in data.loader(split)])
    found = rows[:, 1:].flatten()
    return found[found != IGNORED].tolist()


# --- windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "rest", "val", "test"])
@pytest.mark.parametrize("context", [1, 7, 16, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_scoring_predicts_every_token_of_a_split_exactly_once(file, kind, context, split):
    data = text_of(file, context=context, tokenizer=kind, fraction=0.7)
    tokens = predicted(data, split)
    assert len(tokens) == data.num_tokens(split)
    assert data.tokenizer.decode(tokens) == data.parts[split]
    assert data.num_bytes(split) == len(data.tokenizer.bytes_of(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_follow_each_other_and_the_token_before_is_the_first_input(file, kind):
    data = text_of(file, tokenizer=kind, fraction=0.7)
    text = file.read_text(encoding="utf-8")
    assert "".join(data.parts[name] for name in ("val", "train", "rest", "test")) == text
    assert data.parts["test"] == text[int(len(text) * 0.9) :]
    before = data.tokenizer.start
    for name in ("val", "train", "rest", "test"):
        rows = data.split(name)["tokens"]
        assert rows[0, 0] == before
        assert (rows[1:, 0] == rows[:-1, -1]).all()
        before = predicted(data, name)[-1]
    assert len(data.parts["val"]) == pytest.approx(0.09 * len(text), abs=1)
    assert data.parts["train"] + data.parts["rest"] == text_of(file, val_fraction=0.1).parts["train"]


def test_only_the_last_window_is_filled_up_and_only_at_its_end(file):
    data = text_of(file, context=37)
    rows = data.split("test")["tokens"]
    is_filled = rows == IGNORED
    assert rows.shape[1] == 38 and not is_filled[:-1].any()
    assert is_filled.sum() == -data.num_tokens("test") % 37
    assert (np.diff(is_filled[-1].astype(int)) >= 0).all()


def test_training_windows_begin_at_another_offset_in_each_epoch(file):
    data = text_of(file)
    tokens = torch.from_numpy(data.stretches["train"].astype(np.int64))
    starts = set()
    for epoch in range(60):
        items = data.training_items(epoch)
        assert len(items) == len(data.training_items(0)) >= len(tokens) // 16 - 2
        rows = items.__getitems__(torch.arange(len(items)))["tokens"]
        start = int((tokens.unfold(0, 17, 1) == rows[0]).all(1).nonzero()[0])
        assert start < 16 and torch.equal(tokens[start:].unfold(0, 17, 16)[: len(rows)], rows)
        starts.add(start)
    assert len(starts) == 16
    again, other = text_of(file).training_items(3), text_of(file, seed=1)
    assert torch.equal(
        again.__getitems__(torch.arange(5))["tokens"],
        data.training_items(3).__getitems__(torch.arange(5))["tokens"],
    )
    assert {int(other.training_items(e).packed.x[0, 5]) for e in range(9)} != {
        int(data.training_items(e).packed.x[0, 5]) for e in range(9)
    }


@pytest.mark.parametrize("num", [32, 33, 40, 47, 48, 63])
def test_no_training_window_leaves_the_text_whatever_its_length_and_offset(tmp_path, num):
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(33 + n % 90) for n in range(num)) + "~" * 30)
    data = text_of(path, test_fraction=30 / (num + 30), val_fraction=0, batch_size=1)
    for epoch in range(40):
        rows = np.asarray(data.training_items(epoch).packed.x)
        assert rows.shape == (len(data.training_items(0)), 17) and (rows >= 0).all()
        assert (rows[1:, 0] == rows[:-1, -1]).all()


def test_training_reads_the_text_and_never_what_is_held_out(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a" * 900 + "b" * 100)
    data = text_of(path, fraction=0.5)
    loader = data.train_dataloader()
    letters = {
        data.tokenizer.decode(batch["tokens"].flatten()).strip("\ufffd\n")
        for _ in range(3)
        for batch in loader
    }
    assert {letter for text in letters for letter in text} == {"a"}
    assert data.preprocessing()["unknown"] == {"train": 0, "rest": 0, "val": 0, "test": 100}


def test_a_batch_is_int64_and_its_spec_counts_the_predicted_tokens(file):
    data = text_of(file)
    batch = data.to_device_batch(next(iter(data.train_dataloader())), "cpu")
    assert batch["tokens"].shape == (4, 17) and batch["tokens"].dtype == torch.int64
    spec = data.spec
    assert (spec.kind, spec.unit, spec.units, spec.shape) == ("tokens", "tok", 16, (16,))
    assert tokenizer_of(spec.vocabulary).decode(batch["tokens"][0]) in file.read_text(encoding="utf-8")
    assert spec.levels == data.tokenizer.size


def test_a_resumed_epoch_goes_on_with_the_same_windows(file):
    whole = list(text_of(file).train_dataloader())
    first = text_of(file).train_dataloader()
    part = [batch for _, batch in zip(range(3), first, strict=False)]
    second = text_of(file).train_dataloader()
    second.load_state_dict(first.state_dict())
    rows = [batch["tokens"] for batch in (*part, *second)]
    assert torch.equal(torch.cat(rows), torch.cat([batch["tokens"] for batch in whole]))


def test_a_description_names_tokens_bytes_and_vocabulary(file):
    told = text_of(file, tokenizer="bpe").describe()
    assert json.loads(json.dumps(told)) == told
    assert told["tokens"]["test"] < told["bytes"]["test"] and told["unit"] == "tok"
    assert told["preprocessing"]["tokenizer"] == "bpe" and len(told["spec"]["vocabulary"]) == 16


def test_one_changed_character_changes_the_fingerprint_of_its_split(file):
    before = {name: text_of(file).fingerprint(name) for name in ("train", "test")}
    file.write_text(file.read_text(encoding="utf-8")[:-2] + "!\n", encoding="utf-8")
    after = {name: text_of(file).fingerprint(name) for name in ("train", "test")}
    assert before["train"] == after["train"] and before["test"] != after["test"]


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.fault(47)
def test_a_byte_order_mark_is_dropped_and_every_line_ends_in_a_line_feed(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\nold\rmac\r\r\n" * 20)
    data, plain = text_of(tmp_path / "a.txt"), "one\ntwo\nold\nmac\n\n" * 20
    assert data.text() == plain
    assert data.preprocessing()["carriage_returns"] == 80  # 20 of them alone, after which a line feed stands
    assert sum(data.num_bytes(name) for name in ("train", "val", "test")) == len(plain)
    (tmp_path / "b.txt").write_text(plain)
    assert "carriage_returns" not in text_of(tmp_path / "b.txt").preprocessing()


def test_blocks_and_lines_of_a_file_are_those_of_the_whole(tmp_path, monkeypatch):
    text = "\ufeffüber\r\n\n日本 🙂\r\r\nx\u2028y\rz"
    content = text.encode()
    (tmp_path / "a.txt").write_bytes(content)
    whole, lines = utf8.read_text(tmp_path / "a.txt"), utf8.read_lines(tmp_path / "a.txt")
    assert whole == "über\n\n日本 🙂\n\nx\u2028y\nz" and lines == ["über", "", "日本 🙂\r", "x\u2028y\rz"]
    assert list(utf8.lines_of(BytesIO(content), "a")) == lines
    assert [line[:2] for line in utf8.lines_of(BytesIO(content), "a", 11)] == [line[:2] for line in lines]
    with pytest.raises(BadSource, match="a is not UTF-8: byte 31 is 0xff"):
        list(utf8.lines_of(BytesIO(b"x" * 30 + b"\n\xff\n"), "a", 11))  # behind a line that was cut
    for size in range(1, 12):
        monkeypatch.setattr(utf8, "BLOCK", size)
        blocks = list(utf8.blocks_of(BytesIO(content), "a"))
        assert "".join(map(utf8.with_line_feeds, blocks)).removeprefix(utf8.MARK) == whole
        assert utf8.num_carriage_returns(tmp_path / "a.txt") == 4
        for cut in (1, 4, len(content) - 9):  # within the mark and two characters
            broken = content[:cut] + b"\xff" + content[cut:]
            with pytest.raises(BadSource, match=r"a is not UTF-8: byte \d+ is 0x"):
                list(utf8.blocks_of(BytesIO(broken), "a"))
    wrong = b"ab\ncd\n" + "é".encode()[:1] + b"x\n"
    for read in (utf8.blocks_of, utf8.lines_of):
        with pytest.raises(BadSource, match="a is not UTF-8: byte 6 is 0xc3"):
            list(read(BytesIO(wrong), "a"))


def test_a_folder_is_its_text_files_in_order_each_on_lines_of_its_own(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt").write_text("third\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "notes.md").write_text("no")
    assert text_of(tmp_path).text() == "first\nsecond\nthird\n"


@pytest.mark.fault(47)
def test_one_huge_line_is_read_like_any_other(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 300_000)
    data = text_of(tmp_path / "a.txt", tokenizer="bpe", context=256)
    assert data.tokenizer.decode(predicted(data, "test")) == data.parts["test"]


@pytest.mark.fault(47)
@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_huge_line_takes_a_small_multiple_of_its_size(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(tokenizers, "_PIECE", 2**16)
    (tmp_path / "a.txt").write_text("the cat sat " * 160_000)
    data = text_of(tmp_path / "a.txt", tokenizer=kind)
    tracemalloc.start()
    data.describe()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 7 * (tmp_path / "a.txt").stat().st_size


def bad_texts():
    return {
        "bad": (b"fine \xff\xfe", r"bad\.txt is not UTF-8: byte 5 is 0xff"),
        "cut": ("ü".encode()[:1], r"cut\.txt is not UTF-8: byte 0 is 0xc3"),
        "empty": (b"", "holds no text"),
        "mark": (b"\xef\xbb\xbf", "holds no text"),
        "short": (
            b"abcdefghijklmnopqrstuvwxyz" * 1,
            r"got 16 for 21 tokens of short; use --data\.context 10 or less",
        ),
    }


@pytest.mark.fault(47)
@pytest.mark.parametrize("name", bad_texts())
def test_a_text_that_cannot_be_used_says_why(tmp_path, name):
    content, message = bad_texts()[name]
    (tmp_path / f"{name}.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        text_of(tmp_path / f"{name}.txt").split("train")
    with pytest.raises(BadSource, match=r"cannot be read \(No such file"):
        text_of(tmp_path / "none.txt").split("train")


@pytest.mark.parametrize("option", [{"context": 0}, {"test_fraction": 0.0}, {"test_fraction": 1.0}])
def test_a_bad_argument_of_a_text_is_named(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        TextFile("nowhere", **option)


# --- sentence pairs -----------------------------------------------------------------------------------------

ENGLISH = [
    f"a {size} {animal}" for size in ("big", "small", "red") for animal in ("cat", "dog", "bird", "cow")
]
GERMAN = [
    f"{size} {animal}" for size in ("groß", "klein", "rot") for animal in ("Katze", "Hund", "Vogel", "Kuh")
]


def two_files(folder, stem="train", german=GERMAN, english=ENGLISH):
    (folder / f"{stem}.de").write_text("\n".join(german) + "\n", encoding="utf-8")
    (folder / f"{stem}.en").write_text("\r\n".join(english), encoding="utf-8")
    return str(folder / f"{stem}.de"), str(folder / f"{stem}.en")


def read(data, split):
    """A split's pairs as text, unordered."""
    decode = data.tokenizer.decode
    return [
        (decode(source), decode(tokens))
        for batch in data.loader(split)
        for source, tokens in zip(batch["source"], batch["tokens"], strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_of_two_files_stay_together(tmp_path, kind):
    data = SentencePairs(*two_files(tmp_path), tokenizer=kind, vocabulary_size=270, batch_size=2, seed=1)
    pairs = [pair for name in ("train", "val", "test") for pair in read(data, name)]
    if kind != "characters":
        assert sorted(pairs) == sorted(zip(ENGLISH, GERMAN, strict=True))
    assert [len(read(data, name)) for name in ("train", "val", "test")] == [8, 2, 2]
    assert sorted(read(data, "train")) == sorted(zip(*data.directed["train"], strict=True))
    assert data.spec.unit == "pairs" and data.spec.source.shape == data.spec.shape == (64,)


def test_the_other_way_is_the_same_pairs_turned_round(tmp_path):
    files = two_files(tmp_path)
    there, back = (SentencePairs(*files, tokenizer="bytes", reverse=turned) for turned in (False, True))
    for split in ("train", "test"):
        assert read(back, split) == [pair[::-1] for pair in read(there, split)]


def test_training_batches_hold_little_filling_and_go_on_where_they_stopped():
    def batches(pool, state=None):
        loader = NumberNames(1000, batch_size=16, pool=pool).train_dataloader()
        if state is not None:
            loader.load_state_dict(state)
        return loader, iter(loader)

    def filling(pool):
        rows = list(batches(pool)[1])
        held = sum(int((row["tokens"] >= 0).sum() + (row["source"] != 0).sum()) for row in rows)
        return 1.0 - held / sum(row["tokens"].numel() + row["source"].numel() for row in rows)

    assert filling(20) < 0.4 * filling(1)
    loader, whole = batches(20)
    for _ in range(7):
        next(whole)
    expected, found = next(whole), next(batches(20, {**loader.state_dict(), "position": 7 * 16})[1])
    assert all(torch.equal(expected[name], found[name]) for name in ("tokens", "source", "index"))


def test_a_table_holds_the_same_pairs_as_two_files(tmp_path):
    lines = [f"{source}\t{target}" for source, target in zip(ENGLISH, GERMAN, strict=True)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines), encoding="utf-8")
    table = SentencePairs(str(tmp_path / "pairs.tsv"), tokenizer="bytes")
    assert read(table, "train") == read(SentencePairs(*two_files(tmp_path, "a"), tokenizer="bytes"), "train")


@pytest.mark.parametrize("beside", ["val", "test"])
def test_a_held_out_file_beside_the_training_file_is_the_test_split(tmp_path, beside):
    files = two_files(tmp_path)
    two_files(tmp_path, beside, GERMAN[:3], ENGLISH[:3])
    data = SentencePairs(*files, tokenizer="bytes")
    assert [len(data.split(name)) for name in ("train", "val", "test")] == [10, 2, 3]
    assert read(data, "test") == list(zip(ENGLISH[:3], GERMAN[:3], strict=True))


def test_rows_are_marked_filled_and_cut_to_their_length():
    sentences = [
        np.array([7, 8]),
        np.array([7, 8, 9]),
        np.array([7, 8, 9, 10]),
        np.array([7, 8, 9, 10, 11]),
        np.array([], int),
    ]
    assert sources(sentences, 4).tolist() == [
        [7, 8, END, PAD],
        [7, 8, 9, END],
        [7, 8, 9, 10],
        [7, 8, 9, 10],
        [END, PAD, PAD, PAD],
    ]
    assert targets(sentences, 4).tolist() == [
        [BEGIN, 7, 8, END, IGNORED],
        [BEGIN, 7, 8, 9, END],
        [BEGIN, 7, 8, 9, 10],
        [BEGIN, 7, 8, 9, 10],
        [BEGIN, END, IGNORED, IGNORED, IGNORED],
    ]


def test_cut_sentences_and_unknown_characters_are_counted(tmp_path):
    two_files(tmp_path, "val", ["Katze Z", "Hund"], ["a big cat", "q"])
    two_files(tmp_path, "test", GERMAN[:3], ENGLISH[:3])
    data = SentencePairs(*two_files(tmp_path), length=9)
    told = data.preprocessing()
    longer = sum(len(line) > 8 for line in ENGLISH), sum(len(line) > 8 for line in GERMAN)
    assert told["cut"]["train"] == {"source": longer[0], "tokens": longer[1]} and min(longer) > 0
    assert told["cut"]["val"] == {"source": 1, "tokens": 0}
    assert told["unknown"] == {"train": 0, "val": 2, "test": 0}


@pytest.mark.fault(41)
def test_files_that_do_not_pair_are_named(tmp_path):
    with pytest.raises(BadSource, match=r"train\.en has 12 lines but .*train\.de has 11; line i"):
        SentencePairs(*two_files(tmp_path, german=GERMAN[:-1])).split("train")
    (tmp_path / "a.tsv").write_text("a\tb\nc\nd\te\tf\n")
    with pytest.raises(BadSource, match="2 lines without exactly one tab, the first is line 2"):
        SentencePairs(str(tmp_path / "a.tsv")).split("train")
    (tmp_path / "b.tsv").write_text("a\tb\n")
    with pytest.raises(ValueError, match="1 pairs are too few"):
        SentencePairs(str(tmp_path / "b.tsv")).split("train")
    (tmp_path / "c.tsv").write_text("")
    with pytest.raises(BadSource, match="holds no lines"):
        SentencePairs(str(tmp_path / "c.tsv")).split("train")


def test_a_line_separator_inside_a_sentence_does_not_end_it(tmp_path):
    (tmp_path / "a.tsv").write_text(
        "".join(f"a\u2028b {n}\tc\x0bd\x85e\n" for n in range(10)), encoding="utf-8"
    )
    assert len(SentencePairs(str(tmp_path / "a.tsv"), tokenizer="bytes").split("train")) == 6


# --- numbers ------------------------------------------------------------------------------------------------

VALUES = {
    word: value
    for value, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
} | {
    word: 10 * n
    for n, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], 2
    )
}


def value_of(name):
    """The number that words say: a hundred or thousand takes what stands before it."""
    total = 0
    for word in re.split("[ -]", name.replace(" and ", " ")):
        if word in ("hundred", "thousand"):
            unit = {"hundred": 100, "thousand": 1000}[word]
            total = total - total % 10 + (total % 10) * unit
        else:
            total += VALUES[word]
    return total


def test_every_number_has_the_name_that_says_it():
    assert [value_of(spelt(number)) for number in range(10_000)] == list(range(10_000))
    assert spelt(7042) == "seven thousand and forty-two" and spelt(342) == "three hundred and forty-two"
    assert spelt(1300) == "one thousand three hundred" and spelt(9000) == "nine thousand"


def test_number_names_translate_to_their_digits_and_none_is_in_both_splits():
    data = NumberNames(500, batch_size=50)
    train, val, test = (read(data, name) for name in ("train", "val", "test"))
    assert sorted(int(digits) for _, digits in train + val + test) == list(range(500))
    assert (len(train), len(val), len(test)) == (405, 45, 50)
    assert all(spelt(int(digits)) == name for name, digits in train + val + test)
    assert data.fingerprint("test") == NumberNames(500, seed=4).fingerprint("test")
    told = NumberNames().preprocessing()
    assert not any(told["unknown"].values()) and not any(told["cut"]["train"].values())


def test_number_text_is_lines_of_numbers_and_their_names():
    data = NumberText(300, context=32)
    lines = data.text().splitlines()
    assert sorted(int(line.split()[0]) for line in lines) == list(range(300))
    assert all(spelt(int(line.split()[0])) == line.split(" ", 1)[1] for line in lines)
    assert data.preprocessing()["unknown"] == {"train": 0, "val": 0, "test": 0}
    with pytest.raises(ValueError, match=r"numbers must be in 10 \.\.\. 10000, got 5"):
        NumberText(5).text()
