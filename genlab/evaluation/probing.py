"""What the code of a text knows of the order of its words, asked without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab import randomness
from genlab.data.base import DataModule
from genlab.evaluation.latent_space import NUM_CODES, linear_probe
from genlab.shapes import IGNORED


def bigram_shift(model: Any, data: DataModule, batch_size: int = 100) -> dict[str, Any]:
    """Returns the share of unseen texts of which a linear map of the code tells whether words were swapped.

    In half of the texts, drawn by their numbers, two neighbouring tokens have changed places: the task
    "bigram shift" of Conneau et al. 2018 (arXiv:1805.01070), with the house's `linear_probe`. One half is
    chance.

    Args:
        model: Has the capability `Encodes`, of tokens.
        data: Texts; the map is learned on the training split and asked of the test split.
        batch_size: Texts at a time.
    """
    train, test = (_codes(model, data, split, batch_size) for split in ("train", "test"))
    found = {"type": model.latent_type, "dim": train[0].shape[1], "num_codes": [len(train[0]), len(test[0])]}
    return {**found, "linear_probe": linear_probe(*train, *test), "probe": "bigram shift"}


@torch.no_grad()
def _codes(model: Any, data: DataModule, split: str, batch_size: int) -> tuple[Tensor, Tensor]:
    """Returns the codes of a split's texts, and which of them were changed."""
    codes, changed = [], []
    for batch in data.loader(split, batch_size=batch_size, at_most=NUM_CODES):
        tokens, was_changed = swapped(batch["tokens"], batch["index"])
        codes.append(model.encode(tokens.to(model.device)).cpu())
        changed.append(was_changed)
    return torch.cat(codes), torch.cat(changed).long()


def swapped(tokens: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Returns texts, half of them with two neighbours exchanged, and which, by their numbers alone.

    Pairs of equal tokens are left, and texts that have no others.

    Shapes:
        tokens: (batch, length + 1), of which the first column stays; index: (batch,). Returns the same, and
        (batch,), bool.
    """
    is_pair = (tokens[:, 1:-1] != tokens[:, 2:]) & (tokens[:, 2:] != IGNORED)
    draws = randomness.uniform(randomness.key("bigram shift"), index, 1 + is_pair.shape[1])
    is_changed = (draws[:, 0] < 0.5) & is_pair.any(dim=1)
    left = 1 + draws[:, 1:].masked_fill(~is_pair, -1.0).argmax(dim=1, keepdim=True)
    pair = torch.cat([left, left + 1], dim=1)
    changed = tokens.scatter(1, pair, tokens.gather(1, pair).flip(1))
    return torch.where(is_changed[:, None], changed, tokens), is_changed
