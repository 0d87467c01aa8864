"""What a text-to-image model is told by hand."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genlab.data.sentences import sources
from genlab.data.tokenizers import tokenizer_of
from genlab.families.base import Model


def reads_prompts(model: Model) -> bool:
    """Returns whether a model makes something of sentences that is no sentence itself."""
    source = model.seen_spec.source
    return model.spec.kind != "tokens" and source is not None and bool(source.vocabulary)


def prompt_sources(model: Model, prompts: Sequence[str]) -> Tensor:
    """Returns sentences as the model is told them, (prompts, source length), on its device.

    Raises:
        ValueError: One is empty, is too long, or holds what the model has never read.
    """
    source = model.seen_spec.source
    assert source is not None
    vocabulary, longest = tokenizer_of(source.vocabulary), source.shape[0] - 1
    for prompt in prompts:
        tokens = vocabulary.encode(prompt)
        if unknown := vocabulary.unknown_in(prompt):
            raise ValueError(
                f"The prompt {prompt!r} holds {', '.join(map(repr, unknown[:5]))}, which this model has "
                "never read."
            )
        if not 0 < len(tokens) <= longest:
            raise ValueError(
                f"The prompt {prompt!r} has {len(tokens)} tokens: this model reads 1 to {longest}."
            )
    rows = sources([vocabulary.encode(prompt) for prompt in prompts], source.shape[0])
    return torch.from_numpy(rows).long().to(model.device)
