"""Lines of text to lines of text, by a model that translates sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genlab.data.base import DataModule
from genlab.data.sentences import sources
from genlab.data.tokenizers import PAD, tokenizer_of
from genlab.evaluation.given import given_for, item_batch
from genlab.evaluation.pictures import texts
from genlab.families.base import Model
from genlab.shapes import DataSpec

AHEAD = 10
"""Batches of lines that are read before the first one of them is translated."""


class LineTranslator:
    """Translates lines while they come, by the model's own sampler, and counts what it could not read.

    Line i is sample i of the seed. A line of nothing stays one; lines beyond the length of the model's
    sources are cut, as in training.

    Args:
        model: Given [source], sentences of tokens.
        seed: Of samplers that draw.
        batch_size: Lines at a time; those of like length together, so that little is filled up.
        ahead: Lines that are read before the first translation comes: all that is held in memory.

    Attributes:
        unknown: Characters met so far that the model has never seen.
        num_cut: Lines so far that were too long.

    Raises:
        ValueError: The model translates no sentences.
    """

    def __init__(self, model: Model, seed: int = 0, batch_size: int = 100, ahead: int | None = None) -> None:
        source = source_of(model)
        self.model, self.seed, self.batch_size = model, seed, batch_size
        self.ahead = ahead or AHEAD * batch_size
        self.length, self.vocabulary = source.shape[0], tokenizer_of(source.vocabulary)
        self.written = tokenizer_of(model.spec.vocabulary)
        self.unknown: set[str] = set()
        self.num_cut = 0
        self._known: set[str] = set()

    def __call__(self, lines: Iterable[str]) -> Iterator[str]:
        """Yields the translation of each line, which comes without a line break."""
        coming, first = iter(lines), 0
        while some := list(islice(coming, self.ahead)):
            yield from self._translated(some, first)
            first += len(some)

    @torch.no_grad()
    def _translated(self, lines: list[str], first: int) -> list[str]:
        self._note_unknown(lines)
        encoded = [self.vocabulary.encode(line) for line in lines]
        self.num_cut += sum(len(sentence) >= self.length for sentence in encoded)
        rows = torch.from_numpy(sources(encoded, self.length)).long()
        num = (rows != PAD).sum(dim=1)
        found, filled = [""] * len(lines), torch.tensor([bool(line.strip()) for line in lines])
        order = num.argsort(stable=True)
        for index in order[filled[order]].split(self.batch_size) if any(filled) else ():
            told = rows[index, : int(num[index].max())].to(self.model.device)
            numbers = (first + index).to(self.model.device)
            drawn = self.model.sample(numbers, seed=self.seed, source=told)  # type: ignore[operator]
            for number, tokens in zip(index.tolist(), drawn.tolist(), strict=True):
                found[number] = self.written.decode(tokens)
        return found

    def _note_unknown(self, lines: list[str]) -> None:
        new = set("".join(line for line in lines if line.strip())) - self._known
        self.unknown.update(self.vocabulary.unknown_in("".join(new)))
        self._known |= new


def translate_lines(model: Model, lines: Sequence[str], seed: int = 0, batch_size: int = 100) -> list[str]:
    """Returns the translation of each line; see `LineTranslator`."""
    return list(LineTranslator(model, seed, batch_size, max(1, len(lines)))(lines))


def source_of(model: Model) -> DataSpec:
    """Returns the form of the sentences that a model translates.

    Raises:
        ValueError: It translates none.
    """
    source = model.seen_spec.source
    if source is None or not translates_sentences(model):
        raise ValueError(
            f"This {type(model).__name__} of {model.spec.name} translates no sentences: train one that is "
            "given [source], such as experiments/attention_numbers.yaml."
        )
    return source


def translates_sentences(model: Model) -> bool:
    """Returns whether a model makes sentences of sentences."""
    source = model.seen_spec.source
    return model.spec.kind == "tokens" and source is not None and bool(source.vocabulary)


class Translation(NamedTuple):
    """What a sentence became, beside what it was to become."""

    source: str
    translation: str
    target: str

    def __str__(self) -> str:
        return "\n".join(f"{name:<13}{one_line(text)}".rstrip() for name, text in self._asdict().items())


@torch.no_grad()
def held_out_translations(
    model: Model, data: DataModule, num: int, split: str = "test", seed: int = 0
) -> list[Translation]:
    """Returns the first sentences of a split with their translations, by the model's own sampler."""
    index = torch.arange(min(num, len(data.items(split))))
    given = given_for(model, index, data, split)
    x = model.sample(index.to(model.device), seed=seed, **given)  # type: ignore[operator]
    return translations(model, x, index, given, data, split)


def translations(
    model: Model, x: Tensor, index: Tensor, given: dict[str, Any], data: DataModule, split: str = "test"
) -> list[Translation]:
    """Returns samples beside the sentences that they were made from and those that were to come out.

    Args:
        model: Drew them.
        x: The samples, tokens.
        index: Their numbers.
        given: What they were told.
        data: Holds the targets.
        split: Of the targets.
    """
    target = item_batch(data, split, index, model.device)["tokens"][:, 1:]
    columns = texts(given["source"], source_of(model)), texts(x, model.spec), texts(target, model.spec)
    return [Translation(*row) for row in zip(*columns, strict=True)]


def samples_text(
    model: Model, x: Tensor, index: Tensor, given: dict[str, Any], data: DataModule, split: str = "test"
) -> str:
    """Returns samples as one text; translations stand between their sources and their targets."""
    if translates_sentences(model):
        return "\n\n".join(map(str, translations(model, x, index, given, data, split)))
    return "\n\n".join(texts(x, model.spec))


def one_line(text: str) -> str:
    """Returns a text whose line breaks have become spaces."""
    return " ".join(text.splitlines())
