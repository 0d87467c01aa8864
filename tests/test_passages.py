"""What of a model's texts stands in the training text, against plain search."""

import numpy as np
import pytest
import torch

from genlab.data.text import TextFile
from genlab.evaluation import passages
from genlab.evaluation.passages import LENGTH, drawn_texts, find_passages, hashes

WORDS = ["to", "be", "or", "not", "that", "is", "the", "question", "whether", "nobler", "über", "日本", "🙂"]


def text(num, seed):
    return " ".join(np.random.default_rng(seed).choice(WORDS, num))


def windows(some):
    return [some[place : place + LENGTH] for place in range(len(some) - LENGTH + 1)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 40])
def test_pieces_have_equal_hashes_exactly_where_they_are_equal(length):
    some = text(300, 0)
    pieces = [some[place : place + length] for place in range(len(some) - length + 1)]
    found = hashes(some, length)
    assert len(found) == len(pieces)
    number = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    _, by_hash = np.unique(found, return_inverse=True)
    assert (
        len({(number[p], h) for p, h in zip(pieces, by_hash, strict=True)})
        == len(number)
        == by_hash.max() + 1
    )
    assert len(hashes("abc", 4)) == len(hashes("", 4)) == 0


@pytest.mark.parametrize("piece", [7, 64, 2**20])
def test_the_share_of_copies_is_that_of_plain_search(piece, monkeypatch):
    monkeypatch.setattr(passages, "_PIECE", piece)
    train, test = text(400, 1), text(60, 2) + text(400, 1)[1000:1100]
    samples = [train[5:105], text(20, 3), "short", train[300:390] + "!" + train[40:90], train[-LENGTH:]]
    found = find_passages(samples, train, test)
    pieces = [window for sample in samples for window in windows(sample)]
    assert found.num_pieces == len(pieces) and found.num == 5 and found.num_train == len(train)
    assert found.share == pytest.approx(np.mean([window in train for window in pieces]))
    assert found.test_share == pytest.approx(np.mean([window in train for window in windows(test)]))
    assert 0 < found.test_share < 1 and found.num_test == len(windows(test))
    assert found.longest == [train[5:105], train[300:390], train[40:90], train[-LENGTH:]]
    assert str(found).startswith(f"100 characters:\n{train[5:105]}\n\n90 characters:")


def test_copies_of_the_training_text_are_all_copied_and_new_text_as_much_as_unseen_text():
    train = text(3000, 1)
    assert find_passages([train], train, text(400, 2)).share == 1.0
    found = find_passages([text(400, 3)], train, text(400, 3))
    assert found.share == found.test_share < 0.1
    nothing = find_passages(["short"], train, text(400, 2))
    assert "share" not in nothing.summary() and nothing.summary()["test_share"] < 0.1
    assert str(nothing) == "No 40 characters of the samples stand in the training text.\n"


class Repeats:
    """Writes the training text on, token by token, from a place that the sample's number gives."""

    device, start = torch.device("cpu"), 0

    def __init__(self, data):
        self.spec, self.tokens = data.spec, data.stretches["train"][1:].astype(np.int64)

    def complete(self, start, num_tokens, index, seed):
        places = index[:, None] * 3 + torch.arange(num_tokens)
        yield from torch.from_numpy(self.tokens)[places].unbind(1)


@pytest.mark.parametrize(
    ("kind", "context"), [("characters", 8), ("characters", 64), ("bytes", 8), ("bpe", 8)]
)
def test_samples_are_compared_as_characters_whatever_their_tokens(tmp_path, kind, context):
    (tmp_path / "a.txt").write_text(text(900, 4), encoding="utf-8")
    data = TextFile(str(tmp_path / "a.txt"), tokenizer=kind, context=context, vocabulary_size=300)
    drawn = drawn_texts(Repeats(data), data, 9, batch_size=4)
    assert len(drawn) == 9 and all(len(one) >= LENGTH for one in drawn)
    if kind != "bytes":  # whose samples may begin within a character
        found = find_passages(drawn, data.parts["train"], data.parts["test"])
        assert found.share == 1.0 and found.longest[0] == max(drawn, key=len)
