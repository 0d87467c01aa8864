"""Pictures of where a translator looks while it writes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from genlab.data.base import DataModule
from genlab.data.tokenizers import END, Tokenizer, tokenizer_of
from genlab.evaluation.given import given_for
from genlab.evaluation.pictures import joined, new_figure, rendered
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
    source = model.spec.source
    tokenizers = tokenizer_of(source.vocabulary), tokenizer_of(model.spec.vocabulary)  # type: ignore[union-attr]
    drawn = []
    for number in range(NUM_SENTENCES):
        texts = given["source"][number].tolist(), x[number].tolist()
        labels = [pieces(tokenizer, text) for tokenizer, text in zip(tokenizers, texts, strict=True)]
        drawn.append(_drawn(maps[number], *labels))
    return {"attention": joined(drawn, axis=0)}


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """Returns the text of each token of a sentence, and a full stop in a circle for its end."""
    num = tokens.index(END) if END in tokens else len(tokens)
    parts = [tokenizer.bytes_of([token]).decode("utf-8", errors="replace") for token in tokens[:num]]
    return [printable(part).replace(" ", "\N{OPEN BOX}") for part in parts] + ["\N{CIRCLED DOT OPERATOR}"] * (
        num < len(tokens)
    )


def _drawn(weights: Tensor, source: list[str], written: list[str]) -> np.ndarray:
    figure, axis = new_figure(1.0 + 0.2 * len(source), 1.0 + 0.2 * len(written))
    axis.imshow(weights[: len(written), : len(source)].cpu().numpy(), cmap="Greys", vmin=0.0, vmax=1.0)
    upright = all(len(part) <= 2 for part in source)
    axis.set_xticks(range(len(source)), source, fontsize=8, rotation=0 if upright else 90)
    axis.set_yticks(range(len(written)), written, fontsize=8)
    axis.xaxis.tick_top()
    return rendered(figure)
