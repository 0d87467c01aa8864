"""Pictures of where a translator looks while it writes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab.data.base import DataModule
from genlab.data.tokenizers import END, Tokenizer, tokenizer_of
from genlab.evaluation.given import given_for
from genlab.evaluation.pictures import new_figure, rendered
from genlab.families.base import Model
from genlab.families.capabilities import Attends
from genlab.text import printable

NUM_SENTENCES = 3


@torch.no_grad()
def of_attention(model: Model, data: DataModule, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns the picture `attention` of the first test sentences, none of a model that looks at no text.

    What was written goes down, the source to the right; the darker, the more weight.
    """
    if not isinstance(model, Attends) or "source" not in model.given or not model.spec.vocabulary:
        return {}
    index = torch.arange(NUM_SENTENCES)
    given = given_for(model, index, data)
    x = model.sample(index.to(model.device), seed=seed, **given)  # type: ignore[operator]
    maps = model.attention(x, **given)
    if maps is None:
        return {}
    figure, axes = new_figure(5.5 * NUM_SENTENCES, 5.5, columns=NUM_SENTENCES)
    source = model.spec.source
    tokenizers = tokenizer_of(source.vocabulary), tokenizer_of(model.spec.vocabulary)  # type: ignore[union-attr]
    for number, axis in enumerate(axes):
        texts = given["source"][number].tolist(), x[number].tolist()
        labels = [pieces(tokenizer, text) for tokenizer, text in zip(tokenizers, texts, strict=True)]
        _draw(axis, maps[number], *labels)
    return {"attention": rendered(figure)}


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """Returns the text of each token of a sentence, and a full stop in a circle for its end."""
    num = tokens.index(END) if END in tokens else len(tokens)
    parts = [tokenizer.bytes_of([token]).decode("utf-8", errors="replace") for token in tokens[:num]]
    return [printable(part).replace(" ", "\N{OPEN BOX}") for part in parts] + ["\N{CIRCLED DOT OPERATOR}"] * (
        num < len(tokens)
    )


def _draw(axis: Any, weights: Tensor, source: list[str], written: list[str]) -> None:
    axis.imshow(weights[: len(written), : len(source)].cpu().numpy(), cmap="Greys", vmin=0.0, vmax=1.0)
    size = 9 if max(len(source), len(written)) < 30 else 6
    upright = all(len(part) <= 2 for part in source)
    axis.set_xticks(range(len(source)), source, fontsize=size, rotation=0 if upright else 90)
    axis.set_yticks(range(len(written)), written, fontsize=size)
    axis.xaxis.tick_top()
