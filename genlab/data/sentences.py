"""Sentences with what they are to be made from: pairs of two languages, or of a name and its meaning."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genlab.data.base import DataModule
from genlab.data.loading import Items, LengthOrder
from genlab.data.packed import Packed
from genlab.data.sources import BadSource, require_path, siblings
from genlab.data.splits import FIXED, as_test, drawn, others, require_share, share_of, together
from genlab.data.tokenizers import BEGIN, END, PAD, Tokenizer, TokenizerKind, trained
from genlab.data.utf8 import read_lines
from genlab.shapes import IGNORED, Batch, DataSpec


class Pairs(NamedTuple):
    """Sentences to start from and the sentences to arrive at, as many of both."""

    sources: list[str]
    targets: list[str]


class PairData(DataModule):
    """Pairs of sentences: batch["tokens"] is to be made from batch["source"].

    Both sides share one vocabulary, learnt from both sides of the training part, which begins with the marks
    of `tokenizers` (PAD 0, BEGIN 1, END 2). A row of tokens is BEGIN, the sentence, END, then `IGNORED` (-1),
    which is no target; a row of source is the sentence, END, then PAD. Sentences that are too long are cut
    and lose their END; `preprocessing` says how many.

    Args:
        tokenizer: "characters", "bytes" or "bpe".
        vocabulary_size: Number of tokens of "bpe", at least 259; the others follow from the text.
        length: Tokens of a sentence with its END; longer ones are cut.
        reverse: Go the other way, from the targets to the sources.
        pool: Training batches whose pairs are sorted by length together, so that batches hold little filling
            (see `LengthOrder`); 1 leaves every batch random.
        base: Arguments that every data set has.

    Shapes:
        batch["tokens"]: (batch, at most length + 1), int64: as long as the longest of the batch.
        batch["source"]: (batch, at most length), int64, likewise.
    """

    things = "pairs"

    def __init__(
        self,
        tokenizer: TokenizerKind = "characters",
        vocabulary_size: int = 4096,
        length: int = 64,
        reverse: bool = False,
        pool: int = 20,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}.")
        if pool < 1:
            raise ValueError(f"pool must be at least 1 batch, got {pool}.")
        self.kind, self.vocabulary_size = tokenizer, vocabulary_size
        self.length, self.reverse, self.pool = length, reverse, pool

    @abstractmethod
    def pairs(self) -> dict[str, Pairs]:
        """Returns the pairs of "train", "test" and, where the data bring it, "val"."""

    @property
    @abstractmethod
    def data_name(self) -> str:
        """The pairs' name."""

    @property
    def spec(self) -> DataSpec:
        source = sentence_spec(f"{self.data_name} source", self.tokenizer, self.length)
        return DataSpec(self.data_name, (self.length,), 0, source.levels, source, source.vocabulary)

    @cached_property
    def directed(self) -> dict[str, Pairs]:
        """The pairs of each split in the direction that is asked for."""
        pairs = self.pairs()
        if "val" not in pairs and self.val_fraction > 0.0:
            num = share_of(len(pairs["train"].targets), self.val_fraction, self.things, "validation")
            pairs = {**pairs, **_parted(pairs["train"], num, FIXED, "val")}
        return {name: Pairs(*part[::-1]) for name, part in pairs.items()} if self.reverse else pairs

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary of both sides."""
        train = self.directed["train"] if self.kind != "bytes" else Pairs([], [])
        return trained(self.kind, "\n".join([*train.sources, *train.targets]), self.vocabulary_size, True)

    @cached_property
    def encoded(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """The tokens of each split's sources and targets, without marks, uncut."""
        encode = self.tokenizer.encode
        return {
            name: ([encode(text) for text in part.sources], [encode(text) for text in part.targets])
            for name, part in self.directed.items()
        }

    def load(self) -> dict[str, Packed]:
        return {
            name: Packed({"tokens": targets(pairs[1], self.length), "source": sources(pairs[0], self.length)})
            for name, pairs in self.encoded.items()
        }

    def items(self, split: str) -> Items:
        return Sentences(self.split(split))

    def training_items(self, epoch: int) -> Items:
        return Sentences(self.split("train"))

    def order(self, num_items: int, joined: int) -> LengthOrder:
        train = self.split("train")
        target = (np.asarray(train["tokens"]) != IGNORED).sum(axis=1)
        source = (np.asarray(train["source"]) != PAD).sum(axis=1)
        # By the longer of the two, then by both: the least filling of the four orders tried on Multi30k.
        lengths = np.maximum(target, source) * 2 * (self.length + 1) + target + source
        return LengthOrder(num_items, joined, self.drawing_seed, torch.from_numpy(lengths), self.pool)

    def preprocessing(self) -> dict[str, Any]:
        cut = {
            name: {"source": _num_longer(pairs[0], self.length), "tokens": _num_longer(pairs[1], self.length)}
            for name, pairs in self.encoded.items()
        }
        unknown = {
            name: sum(self.tokenizer.num_unknown(row) for side in pairs for row in side)
            for name, pairs in self.encoded.items()
        }
        return {"tokenizer": self.kind, "length": self.length, "cut": cut, "unknown": unknown}


class Sentences(Items):
    """Pairs of sentences whose batches are no longer than their longest ones; see `Items`."""

    def __getitems__(self, rows: Tensor) -> Batch:
        batch = super().__getitems__(rows)
        for name, filling in (("tokens", IGNORED), ("source", PAD)):
            column: Any = batch[name]  # type: ignore[literal-required]
            num = int((column != filling).any(dim=0).sum())
            batch[name] = column[:, :num]  # type: ignore[literal-required]
        return batch


def sentence_spec(name: str, tokenizer: Tokenizer, length: int) -> DataSpec:
    """Returns the spec of sentences that something else is made from, as rows of `sources`."""
    return DataSpec(name, (length,), levels=tokenizer.size, vocabulary=tokenizer.to_json())


def sources(sentences: list[np.ndarray], length: int) -> np.ndarray:
    """Returns sentences with END, cut at or filled with PAD to a length, (sentences, length), int32."""
    rows = np.full((len(sentences), length), PAD, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        marked = np.append(sentence, END)[:length]
        row[: len(marked)] = marked
    return rows


def targets(sentences: list[np.ndarray], length: int) -> np.ndarray:
    """Returns sentences between BEGIN and END, cut or filled with IGNORED, (sentences, length + 1), int32."""
    rows = np.full((len(sentences), length + 1), IGNORED, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        marked = np.concatenate([[BEGIN], sentence, [END]])[: length + 1]
        row[: len(marked)] = marked
    return rows


def _num_longer(sentences: list[np.ndarray], length: int) -> int:
    return sum(len(sentence) >= length for sentence in sentences)


class SentencePairs(PairData):
    """Pairs from a file of lines "source<TAB>target", or from two files whose lines belong together.

    A file called train.* is the training split, and val.* and test.* beside it are the others; a val without
    a test is the test split. Else the test split is drawn by `seed`, and equal pairs stay on one side.

    Args:
        path: The file of pairs, or of the sentences to arrive at.
        source_path: The file of the sentences to start from, where there are two.
        test_fraction: Share that is held out where no file is.
        base: Arguments of all sentence pairs and of every data set.
    """

    def __init__(
        self, path: str = "", source_path: str | None = None, test_fraction: float = 0.1, **base: Any
    ) -> None:
        super().__init__(**base)
        require_path(path, "a file of sentences")
        require_share(test_fraction)
        self.path, self.source_path, self.test_fraction = path, source_path, test_fraction

    @property
    def data_name(self) -> str:
        path = Path(self.path).expanduser()
        return path.absolute().parent.name if path.stem == "train" else path.stem

    @cached_property
    def _files(self) -> dict[str, tuple[Path, Path | None]]:
        """Each split's file or files."""
        path = Path(self.path).expanduser()
        if self.source_path is None:
            return {name: (file, None) for name, file in {"train": path, **siblings(path)}.items()}
        source_path = Path(self.source_path).expanduser()
        beside = {"train": source_path, **siblings(source_path)}
        files = {"train": path, **siblings(path)}
        return {name: (files[name], beside[name]) for name in files if name in beside}

    def pairs(self) -> dict[str, Pairs]:
        found = as_test({name: _read(*files) for name, files in self._files.items()})
        if len(found) > 1:
            return found
        num = share_of(len(found["train"].targets), self.test_fraction, self.things, "test")
        return _parted(found["train"], num, self.seed, "test")


def _parted(pairs: Pairs, num: int, seed: int, name: str) -> dict[str, Pairs]:
    """Returns pairs as a training split and another of `num` drawn pairs; equal ones stay together."""
    seen: dict[tuple[str, str], int] = {}
    both = zip(*pairs, strict=True)
    first = np.array([seen.setdefault(pair, row) for row, pair in enumerate(both)])
    rows = together(drawn(None, len(first), seed), first, num, name)
    return {"train": _taken(pairs, others(rows, len(first))), name: _taken(pairs, rows)}


def _taken(pairs: Pairs, rows: np.ndarray) -> Pairs:
    return Pairs([pairs.sources[row] for row in rows], [pairs.targets[row] for row in rows])


def _read(path: Path, source_path: Path | None) -> Pairs:
    if source_path is None:
        return _from_table(path)
    sources, targets = _lines(source_path), _lines(path)
    if len(sources) != len(targets):
        raise BadSource(
            f"{source_path} has {len(sources)} lines but {path} has {len(targets)}; line i of one must be"
            " a pair with line i of the other"
        )
    return Pairs(sources, targets)


def _from_table(path: Path) -> Pairs:
    rows = [line.split("\t") for line in _lines(path)]
    wrong = [number for number, row in enumerate(rows, start=1) if len(row) != 2]
    if wrong:
        raise BadSource(
            f"{path} has {len(wrong)} lines without exactly one tab, the first is line {wrong[0]}; give "
            "source<TAB>target, or the other file with --data.source_path"
        )
    return Pairs([row[0] for row in rows], [row[1] for row in rows])


def _lines(path: Path) -> list[str]:
    """Returns the lines of a file of sentences."""
    lines = read_lines(path)
    if not lines:
        raise BadSource(f"{path} holds no lines; give a file of sentences")
    return lines
