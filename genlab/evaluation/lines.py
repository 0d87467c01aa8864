"""Lines of text to lines of text, by a model that translates sentences."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genlab.data.sentences import sources
from genlab.data.tokenizers import PAD, tokenizer_of
from genlab.families.base import Model
from genlab.shapes import DataSpec


@torch.no_grad()
def translate_lines(model: Model, lines: Sequence[str], seed: int = 0, batch_size: int = 100) -> list[str]:
    """Returns the translation of each line, by the model's own sampler.

    Line i is sample i of the seed. A line of nothing stays one; lines beyond the length of the model's
    sources are cut, as in training.

    Args:
        model: Given [source], sentences of tokens.
        lines: Without line breaks.
        seed: Of samplers that draw.
        batch_size: Lines at a time; those of like length together, so that little is filled up.

    Raises:
        ValueError: The model translates no sentences.
    """
    source = source_of(model)
    tokenizer, written = tokenizer_of(source.vocabulary), tokenizer_of(model.spec.vocabulary)
    rows = torch.from_numpy(sources([tokenizer.encode(line) for line in lines], source.shape[0])).long()
    num = (rows != PAD).sum(dim=1)
    found, filled = [""] * len(lines), torch.tensor([bool(line.strip()) for line in lines])
    order = num.argsort(stable=True)
    for index in order[filled[order]].split(batch_size) if any(filled) else ():
        told = rows[index, : int(num[index].max())].to(model.device)
        drawn = model.sample(index.to(model.device), seed=seed, source=told)  # type: ignore[operator]
        for number, tokens in zip(index.tolist(), drawn.tolist(), strict=True):
            found[number] = written.decode(tokens)
    return found


def source_of(model: Model) -> DataSpec:
    """Returns the form of the sentences that a model translates.

    Raises:
        ValueError: It translates none.
    """
    source = model.seen_spec.source
    if model.spec.kind != "tokens" or source is None or not source.vocabulary:
        raise ValueError(
            f"This {type(model).__name__} of {model.spec.name} translates no sentences: train one that is "
            "given [source], such as experiments/attention_numbers.yaml."
        )
    return source
