"""`genlab data check` of texts: what is counted, against plain Python; what is wrong is named."""

import random
from collections import Counter

import pytest

from genlab.data import utf8
from genlab.data.check_text import check, check_pairs, is_text


def some_text(num=400, seed=0):
    draw = random.Random(seed)
    return "\ufeff" + "".join(
        draw.choice(["a", "bc", "é", "日本", "🙂", "\n", "\r\n", "\r", " "]) for _ in range(num)
    )


@pytest.mark.parametrize("block", [1, 5, 64, 2**20])
def test_a_text_is_counted_in_blocks_as_a_whole(tmp_path, monkeypatch, block):
    monkeypatch.setattr(utf8, "BLOCK", block)
    text = some_text()
    (tmp_path / "a.txt").write_bytes(text.encode())
    found, plain = check(tmp_path / "a.txt"), utf8.with_line_feeds(text.removeprefix("\ufeff"))
    assert found.num_bytes == len(text.encode()) and found.marks == ["a.txt"]
    assert found.characters == Counter(plain)
    pairs = text.count("\r\n")
    ends = {"LF": text.count("\n") - pairs, "CR LF": pairs, "CR": text.count("\r") - pairs}
    assert found.line_ends == ends and min(ends.values()) > 0
    lines = plain.split("\n")
    longest = max(map(len, lines))
    place = next(number for number, line in enumerate(lines, start=1) if len(line) == longest)
    assert found.longest == (longest, f"line {place} of a.txt") and found.ok


@pytest.mark.fault(47)
def test_a_folder_of_texts_is_the_sum_of_its_files_and_the_first_wrong_byte_of_each_is_named(
    tmp_path, genlab_command
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "sub" / "b.txt").write_bytes(b"a much longer line\r\nsh\xc3\xb6rt")
    code, out, error = genlab_command("data", "check", tmp_path)
    assert code == 0 and not error and out.endswith("\nok\n")
    assert out.splitlines()[0] == f"{tmp_path}: 2 files, 34 bytes, 32 characters"
    assert "line ends: LF 2, CR LF 1\nall of them are read as LF\n" in out
    assert "longest line: 18 characters, line 1 of sub/b.txt" in out and "'ö' 1" in out
    (tmp_path / "sub" / "c.txt").write_bytes(b"fine \xff\xfe")
    code, out, _ = genlab_command("data", "check", tmp_path)
    assert code == 3 and "unusable: 1\n  sub/c.txt: is not UTF-8: byte 5 is 0xff; convert it to UTF-8" in out
    assert out.endswith("not ok: convert to UTF-8, or remove, the 1 unusable files\n")
    (tmp_path / "empty.txt").write_text("")
    code, out, _ = genlab_command("data", "check", tmp_path / "empty.txt")
    assert code == 3 and out.endswith("not ok: there is no text\n")


def test_pairs_are_counted_and_unequal_ones_named(tmp_path, genlab_command):
    sources = ["a", "bb", "", "a", "a", *(["x" * 50] * 95)]
    targets = ["A", "BB", "C", "A", "B", *[f"{n}" for n in range(95)]]
    (tmp_path / "a.de").write_text("\n".join(sources) + "\n")
    (tmp_path / "a.en").write_text("\n".join(targets))
    found = check_pairs(tmp_path / "a.en", tmp_path / "a.de")
    assert (found.num, found.empty, found.num_equal, found.num_equal_sources) == (100, (1, 0), 1, 96)
    assert found.quantiles[0] == [50, 50, 50, 50] and found.quantiles[1] == [2, 2, 2, 2]
    (tmp_path / "n.tsv").write_text("".join(f"{'x' * n}\t{n}\n" for n in range(100)))
    assert check_pairs(tmp_path / "n.tsv").quantiles[0] == [50, 90, 99, 99]
    code, out, _ = genlab_command("data", "check", tmp_path / "a.en", "--source_path", tmp_path / "a.de")
    assert code == 0 and "pairs: 100\ncharacters of sources, at most: 50% 50" in out
    assert "empty: sources 1\nequal to an earlier one: pairs 1, sources 96\nok" in out
    (tmp_path / "a.en").write_text("\n".join(targets[1:]))
    code, out, _ = genlab_command("data", "check", tmp_path / "a.en", "--source_path", tmp_path / "a.de")
    assert code == 3 and f"pairs: 100 lines in {tmp_path}/a.de, but 99 in {tmp_path}/a.en" in out
    (tmp_path / "a.tsv").write_text("a\tb\nc\nd\te\tf\n")
    code, out, _ = genlab_command("data", "check", tmp_path / "a.tsv")
    assert (
        code == 3 and "pairs: 2 lines without exactly one tab, the first is line 2\nnot ok: make them" in out
    )


def test_images_archives_and_other_bytes_are_no_text(tmp_path):
    contents = {
        "a.txt": b"text",
        "b": b"text",
        "u.txt": "text".encode("utf-16"),
        "c.png": b"text",
        "d": b"a\0b",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert [is_text(tmp_path / name) for name in contents] == [True, True, True, False, False]
    assert not is_text(tmp_path)  # there is an image
    (tmp_path / "c.png").unlink()
    assert is_text(tmp_path)
