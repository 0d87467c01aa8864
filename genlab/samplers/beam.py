"""Beam search: the likeliest texts, of which several are kept while they are written."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.samplers.tokens import NextToken, Reader, TextSampler


class Beam(TextSampler):
    """Keeps the best few beginnings of each text, and goes on from all of them token by token.

        score(y) = log p(y | given) / ((5 + |y|) / 6)^length_penalty

    Wu et al. 2016 (arXiv:1609.08144), equation 14, without its coverage term; |y| counts the end mark. A text
    that has ended keeps its place and its score; the search is over when all have, or at the length asked
    for, and the best one is written. A beam of 1 is greedy, one that has room for every text is exact.

    Args:
        width: Beginnings that are kept for each text.
        length_penalty: 0 prefers short texts, whose log p is a sum of fewer terms; 1 nearly compares means.

    Raises:
        ValueError: If width is below 1 or length_penalty below 0.
    """

    def __init__(self, width: int = 4, length_penalty: float = 0.6) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1 text, got {width}.")
        if not length_penalty >= 0.0:
            raise ValueError(f"length_penalty must be at least 0, got {length_penalty}.")
        self.width, self.length_penalty = width, length_penalty

    def written(
        self, reader: Reader, start: Tensor, num_tokens: int, seed: int, index: Tensor
    ) -> Iterator[Tensor]:
        """Yields the tokens of the best texts, once all are found; no seed changes them."""
        yield from self._best(reader, start, num_tokens)[0].unbind(1)

    def search(
        self, network: NextToken, start: Tensor, num_tokens: int, end: int | None = None, **given: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the best texts behind a start, (batch, num_tokens), and their scores, (batch,).

        See `TextSampler.write` for the arguments.
        """
        return self._best(Reader(network, end, given), start, num_tokens)

    @torch.no_grad()
    def _best(self, reader: Reader, start: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
        end, text, batch = reader.end, start, len(start)
        log_prob = torch.zeros(batch, 1, dtype=torch.float64, device=start.device)
        length, has_ended = torch.zeros_like(log_prob), torch.zeros_like(log_prob, dtype=torch.bool)
        first_rows = torch.arange(batch, device=start.device)[:, None]
        for _ in range(num_tokens):
            if bool(has_ended.all()):
                break
            new = reader.logits(text).double().log_softmax(dim=1).unflatten(0, has_ended.shape)
            if end is not None:
                new = _ending(new, has_ended, end)
            total, length = log_prob[..., None] + new, length + ~has_ended
            scores = (total / self._penalty(length)[..., None]).flatten(1)
            best = scores.topk(min(self.width, scores.shape[1]), dim=1).indices
            parent, token = best // new.shape[2], best % new.shape[2]
            rows = (first_rows * new.shape[1] + parent).flatten()
            log_prob, length = total.flatten(1).gather(1, best), length.gather(1, parent)
            has_ended = has_ended.gather(1, parent) | reader.ends(token)
            text = torch.cat([text[rows], token.flatten()[:, None]], dim=1)
            reader.take(rows)
        score, best = (log_prob / self._penalty(length)).max(dim=1)
        found = text.unflatten(0, has_ended.shape)[first_rows[:, 0], best, start.shape[1] :]
        missing = found.new_full((batch, num_tokens - found.shape[1]), 0 if end is None else end)
        return torch.cat([found, missing], dim=1), score

    def _penalty(self, length: Tensor) -> Tensor:
        return ((5.0 + length) / 6.0) ** self.length_penalty


def _ending(log_prob: Tensor, has_ended: Tensor, end: int) -> Tensor:
    """Returns log p of the next tokens, where texts that have ended are sure to go on with their end mark."""
    sure = torch.full_like(log_prob[0, 0], -torch.inf)
    sure[end] = 0.0
    return torch.where(has_ended[..., None], sure, log_prob)
