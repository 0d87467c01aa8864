"""Running text as windows of tokens, of which each predicts the next one."""

from __future__ import annotations

import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genlab import randomness
from genlab.data.base import DataModule
from genlab.data.loading import Items, Order, StreamOrder
from genlab.data.packed import Packed
from genlab.data.sources import BadSource, require_path
from genlab.data.splits import require_share
from genlab.data.tokenizers import Tokenizer, TokenizerKind, trained
from genlab.data.utf8 import num_carriage_returns, read_text
from genlab.errors import DataError
from genlab.shapes import IGNORED, DataSpec

SCORED_WINDOWS = 64
"""Windows of a scored row of a text in streams: what is lost at its beginning, with no state, is little."""


class TextData(DataModule):
    """A text in windows of `context` tokens: its beginning validates, what follows is learned, its end tests.

    What is learned so reaches up to the test part, whose names and topics it shares, as where nothing is kept
    for validation. To leave out the last percent of Shakespeare's plays instead costs 0.012 nats a character.

    A row of batch["tokens"] has context + 1 tokens t_0 ... t_context: from t_0 ... t_(i-1) a model predicts
    t_i, for i = 1 ... context. t_0 is the token before the window, the end of a line before the whole text.

    - Scoring: windows side by side, so that every token of the split is predicted exactly once. What the last
      window lacks is `IGNORED` (-1). The summed nats of a split / ln 2 / `num_bytes` are bits per byte, which
      compare models of different vocabularies.
    - Training: in each epoch the windows begin at another offset, drawn from (seed, epoch), so that a token
      is predicted from contexts of every length; what is left over at both ends waits for another epoch.

    With `streams`, for networks that carry a state: in training, row j of a batch goes on where row j of the
    batch before ended, each row in a stretch of the text of its own. Scored are rows of 64 windows, which
    such a network reads from end to end.

    No part depends on `seed`. A `fraction` takes the beginning of the training text, and "rest" is what comes
    after it. The vocabulary is learnt from the training part alone.

    Args:
        context: Tokens that one item predicts, and the most that a prediction looks back on.
        tokenizer: "characters" (those of the training part, others are unknown), "bytes" of UTF-8, or "bpe".
        vocabulary_size: Number of tokens of "bpe", at least 256; the others follow from the text.
        test_fraction: Share of the characters, at the end, that is the test split. Of what comes before it,
            the first `val_fraction` is for validation.
        streams: Whether windows follow each other.
        base: Arguments that every data set has.

    Shapes:
        batch["tokens"]: (batch, context + 1), int64; scored rows of `streams`, (batch, 64 context + 1).
    """

    things = "windows"

    def __init__(
        self,
        context: int = 64,
        tokenizer: TokenizerKind = "characters",
        vocabulary_size: int = 1024,
        test_fraction: float = 0.1,
        streams: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if context < 1:
            raise ValueError(f"context must be at least 1 token, got {context}.")
        require_share(test_fraction)
        self.context, self.kind, self.vocabulary_size = context, tokenizer, vocabulary_size
        self.test_fraction, self.streams = test_fraction, streams

    @abstractmethod
    def text(self) -> str:
        """Returns the whole text."""

    @property
    @abstractmethod
    def data_name(self) -> str:
        """The text's name."""

    @property
    def spec(self) -> DataSpec:
        vocabulary = self.tokenizer.to_json()
        return DataSpec(self.data_name, (self.context,), levels=self.tokenizer.size, vocabulary=vocabulary)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary, learnt from the training part."""
        return trained(self.kind, self.parts["train"] if self.kind != "bytes" else "", self.vocabulary_size)

    @cached_property
    def parts(self) -> dict[str, str]:
        """The text of each split, as they follow each other."""
        text = self.text()
        end = int(len(text) * (1.0 - self.test_fraction))
        first = round(end * self.val_fraction)
        used = first + round(self.fraction * (end - first))
        parts = {"val": text[:first], "train": text[first:used], "rest": text[used:end], "test": text[end:]}
        asked = {"rest": self.fraction < 1.0, "val": self.val_fraction > 0.0}
        parts = {name: part for name, part in parts.items() if asked.get(name, True)}
        empty = [name for name, part in parts.items() if not part]
        if empty:
            raise DataError(
                f"{len(text)} characters of {self.data_name} are too few: nothing is left for {empty[0]}."
            )
        return parts

    @cached_property
    def stretches(self) -> dict[str, np.ndarray]:
        """The tokens of each split after the one before them, of the smallest type that holds them."""
        stretches, before = {}, self.tokenizer.start
        for name, text in self.parts.items():
            stretches[name] = self.tokenizer.encode(text, [before])
            before = int(stretches[name][-1])
        self._require_windows(len(stretches["train"]) - 1)
        return stretches

    def load(self) -> dict[str, Packed]:
        return {name: Packed({"tokens": self._tiled(tokens)}) for name, tokens in self.stretches.items()}

    def shares(self, train: Packed) -> dict[str, Packed]:
        return {}  # the text was cut before it became tokens

    def training_items(self, epoch: int) -> Items:
        offset = int(self.context * randomness.uniform(self._address(epoch), torch.zeros(1), 1))
        tokens = self.stretches["train"]
        num = (len(tokens) - self.context) // self.context  # as many after every offset
        return Items(Packed({"tokens": _windows(tokens[offset:], self.context)[:num]}))

    def order(self, num_items: int, joined: int) -> Order:
        if self.streams:
            return StreamOrder(num_items, joined, self.drawing_seed)
        return super().order(num_items, joined)

    def num_tokens(self, split: str) -> int:
        """Returns how many tokens of a split are predicted."""
        return len(self.stretches[split]) - 1

    def num_bytes(self, split: str) -> int:
        """Returns how many bytes of UTF-8 the predicted tokens of a split stand for."""
        return len(self.parts[split].encode())

    def describe(self) -> dict[str, Any]:
        names = list(self.stretches)
        return {
            **super().describe(),
            "tokens": {name: self.num_tokens(name) for name in names},
            "bytes": {name: self.num_bytes(name) for name in names},
        }

    def preprocessing(self) -> dict[str, Any]:
        unknown = {name: self.tokenizer.num_unknown(row[1:]) for name, row in self.stretches.items()}
        streams = {"streams": True} if self.streams else {}
        return {"tokenizer": self.kind, "context": self.context, "unknown": unknown, **streams}

    def _address(self, epoch: int) -> int:
        return randomness.key(self.drawing_seed, "windows", epoch)

    def _tiled(self, tokens: np.ndarray) -> np.ndarray:
        length = self.context * (SCORED_WINDOWS if self.streams else 1)
        missing = -(len(tokens) - 1) % length
        filled = np.pad(tokens, (0, missing), constant_values=IGNORED)
        return _windows(filled, length)

    def _require_windows(self, num: int) -> None:
        if num < 2 * self.context:
            raise DataError(
                f"context must leave two windows of the training text, got {self.context} for {num} tokens "
                f"of {self.data_name}; use --data.context {max(1, num // 2)} or less."
            )


def _windows(tokens: np.ndarray, context: int) -> np.ndarray:
    """Returns windows of context + 1 tokens, each from the last token of the one before; no copy."""
    return np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[::context]


class TextFile(TextData):
    """A file of UTF-8 text, or all .txt files of a folder, one after the other by their names.

    A byte order mark is dropped, and every line ends in a line feed: CR LF and a CR alone become one (see
    `genlab.data.utf8`). Bits per byte count the bytes of the text that is left; `preprocessing` says how many
    carriage returns the files held.

    Args:
        path: The file or the folder.
        base: Arguments of every text and of every data set.
    """

    def __init__(self, path: str = "", **base: Any) -> None:
        super().__init__(**base)
        require_path(path, "a file of text or a folder of .txt files")
        self.path = path

    @property
    def data_name(self) -> str:
        return Path(self.path).stem

    @property
    def files(self) -> list[Path]:
        """The files in the order of the text."""
        path = Path(self.path).expanduser()
        return sorted(path.rglob("*.txt")) if path.is_dir() else [path]

    def text(self) -> str:
        path = Path(self.path).expanduser()
        root = os.path.realpath(path) if path.is_dir() else None
        texts = [read_text(file, root) for file in self.files]
        text = "".join(map(_ended, texts)) if len(texts) > 1 else "".join(texts)
        if not text:
            raise BadSource(f"{self.path} holds no text; give a file of it, or a folder of .txt files")
        return text

    def preprocessing(self) -> dict[str, Any]:
        num = sum(map(num_carriage_returns, self.files))
        return {**super().preprocessing(), **({"carriage_returns": num} if num else {})}


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else text + "\n"
