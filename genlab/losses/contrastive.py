"""What tells a feature's partner from the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from genlab.distributed import joined_rows
from genlab.losses.precision import at_least_float32


class PatchNCE:
    """The loss of finding each patch of a picture again among the other patches of the same picture.

        -1/N  sum_i log( e^(q_i k_i / t) / sum_j e^(q_i k_j / t) )

    Park et al. 2020 (arXiv:2007.15651), equation 3, with the N - 1 negatives from within the image. Keys are
    taken as they are: gradients reach the queries alone. Orthonormal features with q = k give
    log(1 + (N - 1) e^(-1/t)), features that are all equal give log N.

    Args:
        temperature: t; small values look at the nearest negatives alone.

    Shapes:
        queries, keys: (batch, N, width), rows of length 1. Returns the mean over the batch, a scalar.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        queries, keys = at_least_float32(queries) / self.temperature, at_least_float32(keys.detach())
        similarity = torch.bmm(queries, keys.transpose(1, 2))
        partner = torch.arange(similarity.shape[1], device=similarity.device).expand(len(similarity), -1)
        return cross_entropy(similarity.flatten(0, 1), partner.flatten())


class Pairs(NamedTuple):
    """Images and their captions as vectors, with the captions themselves, of which some may be equal.

    Shapes:
        images, captions: (..., pairs, width), rows of length 1.
        source: (..., pairs, length), int64.
    """

    images: Tensor
    captions: Tensor
    source: Tensor

    def joined(self) -> Pairs:
        """Returns the pairs of all devices, as many of each, through which gradients pass."""
        return Pairs(*map(joined_rows, self))


_NEVER = -1e4
"""A logit that no candidate is chosen by; finite, since its log share is multiplied by 0."""


class Near(NamedTuple):
    """For each image, captions that are almost its own and wrong.

    Shapes:
        captions: (pairs, captions of each, width), rows of length 1.
        is_other: (pairs, captions of each), False for one that has come out as the image's own.
    """

    captions: Tensor
    is_other: Tensor


def matched(pairs: Pairs, candidates: Pairs, scale: Tensor, near: Near | None = None) -> dict[str, Tensor]:
    """Returns how well images and captions find each other: the loss, and how often the nearest is right.

        loss = 1/2 (info_nce(s I C'^T, same) + info_nce(s C I'^T, same)),    same_ij = [caption i = caption j]

    Radford et al. 2021 (arXiv:2103.00020), figure 3, where all captions are taken for different. Here a
    caption that several images have belongs to each of them: what is right cannot be counted as wrong.

    Args:
        pairs: The vectors I and C that look for their partners.
        candidates: I' and C', among which they look; all of `pairs` are among them.
        scale: s, the inverse of the temperature.
        near: Further captions among which each image alone looks for its own (NegCLIP, Yuksekgonul et al.
            2023, arXiv:2210.01936, section 5).

    Returns:
        "loss"; "image_to_text" and "text_to_image", the shares of images whose nearest caption is theirs, and
        of captions whose nearest image has them.
    """
    same = (pairs.source[..., :, None, :] == candidates.source[..., None, :, :]).all(dim=-1)
    with torch.autocast(pairs.images.device.type, enabled=False):  # in bfloat16 s I C^T is off by half a nat
        to_text = scale * at_least_float32(pairs.images) @ at_least_float32(candidates.captions).mT
        to_image = scale * at_least_float32(pairs.captions) @ at_least_float32(candidates.images).mT
        if near is not None:
            beside = scale * at_least_float32(near.captions) @ at_least_float32(pairs.images)[:, :, None]
            beside = beside.squeeze(-1).masked_fill(~near.is_other, _NEVER)
            to_text = torch.cat([to_text, beside], dim=1)
    own = same if near is None else pad(same, (0, near.is_other.shape[1]))
    return {
        "loss": (info_nce(to_text, own) + info_nce(to_image, same)) / 2,
        "image_to_text": _hits(to_text, own),
        "text_to_image": _hits(to_image, same),
    }


def info_nce(logits: Tensor, partners: Tensor) -> Tensor:
    """Returns the cross-entropy of finding one's partners, all of which are equally right.

        -1/n  sum_i 1/|P_i| sum_{j in P_i} log softmax(logits_i)_j

    Van den Oord et al. 2018 (arXiv:1807.03748), equation 4, for one partner each. Equal logits of m
    candidates give log m; the least that can be reached is the mean of log |P_i|.

    Shapes:
        logits: (..., n, m); partners: (..., n, m), bool, at least one in each row. Returns a scalar.
    """
    shares = partners / partners.sum(dim=-1, keepdim=True)
    return -(shares * at_least_float32(logits).log_softmax(dim=-1)).sum(dim=-1).mean()


def near_captions(source: Tensor, u: Tensor, padding: int, words: Tensor) -> Tensor:
    """Returns captions that differ from each caption in one place or two.

    In every other one, two tokens are exchanged (whose colour is whose, what is left of what); in the rest
    one is replaced by what a caption of the same length has there, which is mostly a word of the same kind
    (another colour, another relation). Many are no sentences and soon told apart; what then remains to be
    learned are the others.

    Args:
        source: The captions.
        u: What is drawn, uniform in [0, 1).
        padding: The token that fills up a caption.
        words: The captions that tokens are taken from, in which all of source are.

    Shapes:
        source: (batch, length), int64; u: (batch, near, 3); words: (captions, length). Returns (batch, near,
        length).
    """
    near = source[:, None].expand(-1, u.shape[1], -1).clone()
    lengths = (source != padding).sum(dim=1).clamp_min(1)[:, None]
    first, second = ((u[..., i] * lengths).long()[..., None] for i in (0, 1))
    alike = ((words != padding).sum(dim=1) == (source != padding).sum(dim=1)[:, None]).cumsum(dim=1)
    chosen = torch.searchsorted(alike, (u[..., 2] * alike[:, -1:]).long(), right=True)
    drawn = words[chosen].gather(2, first)
    is_exchange = (torch.arange(u.shape[1], device=u.device) % 2 == 0)[:, None]
    there = torch.where(is_exchange, near.gather(2, second), drawn)
    back = torch.where(is_exchange, near.gather(2, first), near.gather(2, second))
    return near.scatter(2, second, back).scatter(2, first, there)


def _hits(logits: Tensor, partners: Tensor) -> Tensor:
    """Returns how often the likeliest candidate is a partner."""
    return partners.gather(-1, logits.argmax(dim=-1, keepdim=True)).float().mean()
