import json
import subprocess
import sys

import numpy as np
import pytest

from genlab.data.tokenizers import BEGIN, BPE, END, PAD, Bytes, Characters, Words, tokenizer_of, trained

TEXT = "the cat sat on the mat, the rat sat on that cat.\n" * 20
STRANGE = "naïve 日本 🙂\u200d🙂 \x00\r\n\t <pad> </s> \u2028 e\u0301 é the\ufeff cat" * 3
KINDS = ["characters", "bytes", "bpe"]


def of(kind, text=TEXT, marks=False):
    return trained(kind, text, 300, marks)


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_text_comes_back_from_its_tokens(kind, marks):
    tokenizer = of(kind, marks=marks)
    for text in (TEXT, "", "cat"):
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text and tokenizer.bytes_of(tokens) == text.encode()
        assert tokens.dtype == np.int16 and (tokens >= (3 if marks else 0)).all()
        assert (tokens < tokenizer.size).all()


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_any_text_comes_back_from_bytes_and_their_pairs(kind, marks):
    tokenizer = of(kind, marks=marks)
    assert tokenizer.decode(tokenizer.encode(STRANGE)) == STRANGE
    every = "".join(map(chr, [*range(0x20, 0xD800, 97), *range(0xE000, 0x110000, 9973)]))
    assert tokenizer.decode(tokenizer.encode(every)) == every
    assert tokenizer.num_unknown(tokenizer.encode(every)) == 0


@pytest.mark.parametrize("marks", [False, True])
def test_a_character_that_training_has_not_seen_is_unknown_and_counted(marks):
    tokenizer = of("characters", "abc", marks)
    tokens = tokenizer.encode("a日bZc")
    assert tokenizer.num_unknown(tokens) == 2 and tokenizer.decode(tokens) == "a\ufffdb\ufffdc"
    assert tokens[1] == tokens[3] == tokenizer.unknown and len(set(tokens.tolist())) == 4
    assert tokenizer.size == 4 + 3 * marks


@pytest.mark.parametrize("kind", KINDS)
def test_marks_and_padding_stand_for_nothing(kind):
    tokenizer = of(kind, marks=True)
    row = [BEGIN, *tokenizer.encode("cat").tolist(), END, PAD, -1, -1]
    assert tokenizer.decode(np.array(row)) == tokenizer.decode(row) == "cat"
    assert tokenizer.decode([*row, *tokenizer.encode("sat")]) == "cat"  # what a model goes on with


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_read_back_from_its_json(kind, marks):
    tokenizer = of(kind, TEXT + "🙂", marks)
    again = tokenizer_of(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json() and again.size == tokenizer.size
    assert np.array_equal(again.encode(STRANGE), tokenizer.encode(STRANGE))
    told = json.loads(tokenizer.to_json())
    assert told["start"] == (BEGIN if marks else tokenizer.encode("\n")[0])
    assert ("pad" in told, "end" in told) == (marks, marks)


@pytest.mark.parametrize("marks", [False, True])
def test_known_words_come_back_with_one_space_between_them_and_others_are_named(marks):
    words = Words(["the", "cat", "sat"], marks)
    tokens = words.encode(" the cat\n sat  the")
    assert words.decode(tokens) == "the cat sat the" and words.size == 4 + 3 * marks
    assert words.decode(words.encode("the dog sat")) == "the \ufffd sat"
    assert words.num_unknown(words.encode("the dog sat Cat")) == 2
    assert words.unknown_in("the dog sat Cat dog") == ["Cat", "dog"]
    again = tokenizer_of(words.to_json())
    assert (
        again.to_json() == words.to_json()
        and again.encode("cat the").tolist() == words.encode("cat the").tolist()
    )
    if marks:
        assert words.decode([BEGIN, *tokens.tolist(), END, PAD, *tokens.tolist()]) == "the cat sat the"
        assert words.decode([*tokens.tolist(), PAD, -1]) == "the cat sat the"


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""]])
def test_words_that_no_text_could_tell_apart_are_refused(words):
    with pytest.raises(ValueError, match="different and without white space"):
        Words(words)


def test_the_same_text_teaches_the_same_pairs_whatever_its_process():
    script = (
        "from genlab.data.tokenizers import BPE\n"
        "print(BPE.trained_on('the cat sat on that mat ' * 50, 290).to_json())"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 1000


def test_byte_pairs_are_those_of_the_library_and_shorten_the_text():
    tokenizer = of("bpe")
    assert len(tokenizer.encode(TEXT)) < 0.5 * len(TEXT)
    assert tokenizer.encode(STRANGE).tolist() == tokenizer.library.encode(STRANGE).ids
    assert tokenizer.library.decode(tokenizer.encode(STRANGE).tolist()) == STRANGE
    assert (of("bpe", marks=True).encode("cat") >= 3).all()


def test_a_long_text_is_encoded_in_portions_that_join_to_the_whole(monkeypatch):
    tokenizer, whole = of("bpe"), of("bpe").encode(TEXT)
    monkeypatch.setattr("genlab.data.tokenizers._PIECE", 120)
    assert np.array_equal(tokenizer.encode(TEXT), whole)
    assert tokenizer.decode(tokenizer.encode("x" * 1000)) == "x" * 1000


def test_a_text_of_no_more_pairs_gives_a_smaller_vocabulary():
    assert BPE.trained_on("ab ab", 1000).size == 256 + 2  # "ab" and " ab"
    with pytest.raises(ValueError, match="vocabulary_size must be at least 259 for byte pairs, got 258"):
        BPE.trained_on("ab", 258, marks=True)


@pytest.mark.fault(48)
def test_what_is_no_vocabulary_is_named():
    with pytest.raises(ValueError, match="must be a tokenizer's JSON, got 'abc'"):
        tokenizer_of("abc")
    with pytest.raises(ValueError, match="must be characters, words, bytes or bpe, got 'runes'"):
        tokenizer_of('{"kind": "runes"}')
    with pytest.raises(ValueError, match="sorted and different"):
        Characters("ba")
    assert Bytes().size == 256


def test_tokenizers_are_there_without_torch():
    script = "import sys, genlab.data.tokenizers; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
