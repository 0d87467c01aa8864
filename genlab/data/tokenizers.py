"""From text to numbers and back: characters, bytes, byte pairs, known words. Imports no torch."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

TokenizerKind = Literal["characters", "bytes", "bpe"]
"""What can be learnt from any text; the list of `Words` is given."""

PAD, BEGIN, END = 0, 1, 2
"""Numbers of the marks of a vocabulary with `marks`; text comes after them."""

NUM_MARKS = 3
_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()
_WORD = r" ?\p{L}{1,64}| ?\p{N}{1,64}| ?[^\s\p{L}\p{N}]{1,64}|\s{1,64}(?!\S)|\s{1,64}"
"""What pairs may not reach beyond: words with the space before them, as GPT-2 has them, but not endless ones,
on which the library's time is quadratic."""

_PIECE = 2**18  # characters that are encoded at a time: for byte pairs the library keeps some 500 bytes each


class Tokenizer(ABC):
    """A vocabulary: every token stands for some bytes, and a text is a row of tokens.

    Its JSON is a `DataSpec.vocabulary`. A model that may not import this room reads there "start", the token
    that is given before the first one where nothing else is known, and with marks "pad" and "end" as well.

    Args:
        pieces: The bytes that each token stands for, without the marks'.
        marks: Begin the vocabulary with tokens for padding, begin and end, which stand for no bytes.
    """

    kind: ClassVar[str]
    between: ClassVar[bytes] = b""
    """What lies between the bytes of two tokens in a text."""

    def __init__(self, pieces: Sequence[bytes], marks: bool) -> None:
        self.pieces = [b""] * (NUM_MARKS if marks else 0) + list(pieces)
        self.marks = marks

    @property
    def size(self) -> int:
        """The number of different tokens."""
        return len(self.pieces)

    @property
    def start(self) -> int:
        """The token before the first one of a text: the begin mark, else the end of a line, else number 0."""
        if self.marks:
            return BEGIN
        return self.pieces.index(b"\n") if b"\n" in self.pieces else 0

    @property
    def dtype(self) -> type[np.signedinteger[Any]]:
        """The smallest type that holds every token and -1."""
        return np.int16 if self.size <= 2**15 else np.int32

    def encode(self, text: str, before: Sequence[int] = ()) -> np.ndarray:
        """Returns a text's tokens without marks, (tokens,), of `dtype`, behind some that are given.

        A long text is encoded in portions, so that little more is needed than for its tokens.
        """
        portions = [self._encoded(part).astype(self.dtype) for part in _portions(text)]
        return np.concatenate([np.asarray(before, self.dtype), *portions])

    def unknown_in(self, text: str) -> list[str]:
        """Returns the characters of a text that the vocabulary does not know, each once, in order."""
        return [letter for letter in sorted(set(text)) if self.num_unknown(self.encode(letter))]

    @abstractmethod
    def _encoded(self, text: str) -> np.ndarray:
        """Returns the tokens of one portion, (tokens,)."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Returns what `tokenizer_of` needs beside the kind."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of some tokens up to their end mark; marks and padding (below 0) say nothing.

        What ends in the middle of a character, as a part of a text may, ends in U+FFFD.
        """
        return self.bytes_of(tokens).decode("utf-8", errors="replace")

    def bytes_of(self, tokens: Iterable[int]) -> bytes:
        """Returns the bytes that some tokens stand for, up to their end mark where there is one."""
        numbers = np.asarray(tokens).tolist()
        if self.marks and END in numbers:
            numbers = numbers[: numbers.index(END)]
        return self.between.join(filter(None, (self.pieces[number] for number in numbers if number >= 0)))

    def num_unknown(self, tokens: np.ndarray) -> int:
        """Returns how many tokens stand for something that the vocabulary does not know."""
        return 0

    def to_json(self) -> str:
        """Returns the vocabulary as text that `tokenizer_of` reads."""
        marks = {"pad": PAD, "end": END} if self.marks else {}
        settings = {"kind": self.kind, "start": self.start, **marks, **self._settings()}
        return json.dumps(settings, ensure_ascii=False, separators=(",", ":"))

    @property
    def _first(self) -> int:
        return NUM_MARKS if self.marks else 0


class Characters(Tokenizer):
    """One token for each character of the training text, and before these one for all others.

    Args:
        characters: Those that are known, in order.
        marks: See `Tokenizer`.
    """

    kind = "characters"

    def __init__(self, characters: str, marks: bool = False) -> None:
        super().__init__([_UNKNOWN, *(character.encode() for character in characters)], marks)
        self.characters = characters
        self._codes = _code_points(characters)
        if (np.diff(self._codes.astype(np.int64)) <= 0).any():
            raise ValueError("characters must be sorted and different; use Characters.trained_on(text).")

    @classmethod
    def trained_on(cls, text: str, marks: bool = False) -> Characters:
        """Returns the vocabulary of a text."""
        return cls("".join(sorted(set(text))), marks)

    @property
    def unknown(self) -> int:
        """The token of every character that is not known."""
        return self._first

    def _encoded(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        if not len(self._codes):
            return np.full(len(codes), self.unknown, np.int64)
        place = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        return np.where(self._codes[place] == codes, place + 1 + self.unknown, self.unknown)

    def num_unknown(self, tokens: np.ndarray) -> int:
        return int((tokens == self.unknown).sum())

    def _settings(self) -> dict[str, Any]:
        return {"characters": self.characters}


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


class Words(Tokenizer):
    """One token for each word of a list, and before these one for all others: for texts of a known grammar.

    Words are what white space parts, and come back with one space between them.

    Args:
        words: Those that are known.
        marks: See `Tokenizer`.
    """

    kind = "words"
    between = b" "

    def __init__(self, words: Sequence[str], marks: bool = False) -> None:
        super().__init__([_UNKNOWN, *(word.encode() for word in words)], marks)
        self.words = list(words)
        wrong = [word for word in words if word.split() != [word]]
        if wrong or len(set(words)) < len(words):
            raise ValueError(f"words must be different and without white space, got {(wrong or words)[:5]}.")
        self._numbers = {word: number for number, word in enumerate(words, self.unknown + 1)}

    @property
    def unknown(self) -> int:
        """The token of every word that is not known."""
        return self._first

    def unknown_in(self, text: str) -> list[str]:
        """Returns the words of a text that the vocabulary does not know, each once, in order."""
        return sorted({word for word in text.split() if word not in self._numbers})

    def _encoded(self, text: str) -> np.ndarray:
        return np.array([self._numbers.get(word, self.unknown) for word in text.split()], np.int64)

    def num_unknown(self, tokens: np.ndarray) -> int:
        return int((tokens == self.unknown).sum())

    def _settings(self) -> dict[str, Any]:
        return {"words": self.words}


class Bytes(Tokenizer):
    """One token for each of the 256 bytes of UTF-8: nothing is unknown, nothing is learnt.

    Args:
        marks: See `Tokenizer`.
    """

    kind = "bytes"

    def __init__(self, marks: bool = False) -> None:
        super().__init__([bytes([value]) for value in range(256)], marks)

    def _encoded(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(self.dtype) + self.dtype(self._first)

    def _settings(self) -> dict[str, Any]:
        return {}


class BPE(Tokenizer):
    """Byte pair encoding: bytes, and the pairs that were most often side by side, pairs of pairs and so on.

    Sennrich et al. 2016 (arXiv:1508.07909) on the bytes of words; nothing is unknown.

    Args:
        model: The library's own JSON: bytes under printable names, and merges.
        marks: See `Tokenizer`.
    """

    kind = "bpe"

    def __init__(self, model: dict[str, Any], marks: bool = False) -> None:
        from tokenizers import Tokenizer as Library

        self.library = Library.from_str(json.dumps(model))
        numbers = self.library.get_vocab()
        byte_of = {name: value for value, name in enumerate(_byte_names())}
        names = sorted(numbers, key=numbers.__getitem__)
        super().__init__([bytes(byte_of[part] for part in name) for name in names], marks)

    @classmethod
    def trained_on(cls, text: str, size: int, marks: bool = False) -> BPE:
        """Returns the `size` tokens, marks included, that a text teaches; fewer where it has no more pairs.

        Raises:
            ValueError: Where the size has no room for all bytes.
        """
        least = 256 + (NUM_MARKS if marks else 0)
        if size < least:
            raise ValueError(f"vocabulary_size must be at least {least} for byte pairs, got {size}.")
        from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Library

        library = Library(models.BPE())
        words = pre_tokenizers.Split(Regex(_WORD), "isolated")
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        library.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size - least + 256,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        library.train_from_iterator(_portions(text), trainer)
        return cls(json.loads(library.to_str()), marks)

    def _encoded(self, text: str) -> np.ndarray:
        return np.asarray(self.library.encode(text).ids, np.int64) + self._first

    def _settings(self) -> dict[str, Any]:
        return {"model": json.loads(self.library.to_str())}


def _portions(text: str) -> Iterator[str]:
    """Returns a long text in parts, each cut at the end of a line where there is one."""
    start = 0
    while start < len(text):
        end = min(len(text), start + _PIECE)
        line_end = text.rfind("\n", start, end) + 1 if end < len(text) else 0
        yield text[start : line_end or end]
        start = line_end or end


def _byte_names() -> list[str]:
    """Returns the character that the library writes each byte as: itself where it prints, else one more."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return [chr(value if value in printable else 256 + others.index(value)) for value in range(256)]


def trained(kind: TokenizerKind, text: str, size: int, marks: bool = False) -> Tokenizer:
    """Returns a vocabulary learnt from a training text; only byte pairs have a size to choose."""
    if kind == "characters":
        return Characters.trained_on(text, marks)
    return Bytes(marks) if kind == "bytes" else BPE.trained_on(text, size, marks)


def tokenizer_of(vocabulary: str) -> Tokenizer:
    """Returns the tokenizer that a `DataSpec.vocabulary` names.

    Raises:
        ValueError: Where the text is no vocabulary.
    """
    try:
        settings = json.loads(vocabulary)
        kind, marks = settings["kind"], "pad" in settings
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"vocabulary must be a tokenizer's JSON, got {vocabulary[:40]!r}.") from None
    if kind == "characters":
        return Characters(settings["characters"], marks)
    if kind == "words":
        return Words(settings["words"], marks)
    if kind == "bytes":
        return Bytes(marks)
    if kind == "bpe":
        return BPE(settings["model"], marks)
    raise ValueError(f"kind of a vocabulary must be characters, words, bytes or bpe, got {kind!r}.")
