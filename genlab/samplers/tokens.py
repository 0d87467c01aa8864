"""Samplers of texts: how the next token is drawn, and how one is drawn after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from genlab import randomness


class Memory(Protocol):
    """What a network keeps of the tokens that it has read."""

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another token."""

    def clear(self) -> None:
        """Forgets the tokens."""

    def take(self, rows: Tensor) -> None:
        """Takes rows of these numbers in place of all."""


class NextToken(Protocol):
    """A network that scores each token's successor and reads on with a memory.

    Attributes:
        context: The longest text that it can look at.

    Shapes:
        tokens: (batch, length). Returns logits, (batch, length, vocabulary).
    """

    context: int

    def __call__(self, tokens: Tensor, *, cache: Any, **given: Tensor) -> Tensor:
        """Returns the logits of what follows each token."""

    def new_cache(self) -> Memory:
        """Returns an empty memory."""


class GuidedText:
    """A network whose scores are moved away from those of the same texts read without what guides them.

        logits = logits_0 + scale (logits_told - logits_0)

    Ho and Salimans 2022 (arXiv:2207.12598), for tokens Gafni et al. 2022 (arXiv:2203.13131).

    Args:
        network: Scores the next token.
        scale: 1 is the network itself, 0 the one that is told nothing.
        emptied: Takes what guides out of texts, token by token.
    """

    def __init__(self, network: NextToken, scale: float, emptied: Callable[[Tensor], Tensor]) -> None:
        self.network, self.scale, self.emptied = network, scale, emptied
        self.context = network.context

    def __call__(self, tokens: Tensor, *, cache: Memories, **given: Tensor) -> Tensor:
        told = self.network(tokens, cache=cache.parts[0], **given)
        untold = self.network(self.emptied(tokens), cache=cache.parts[1], **given)
        return torch.lerp(untold, told, self.scale)

    def new_cache(self) -> Memories:
        """Returns an empty memory of both readings."""
        return Memories(self.network.new_cache(), self.network.new_cache())


class Memories:
    """Memories of several readings of the same texts.

    Args:
        parts: Equally full.
    """

    def __init__(self, *parts: Memory) -> None:
        self.parts = parts

    @property
    def is_full(self) -> bool:
        """Whether there is no place for another token."""
        return self.parts[0].is_full

    def clear(self) -> None:
        """Forgets the tokens."""
        for part in self.parts:
            part.clear()

    def take(self, rows: Tensor) -> None:
        """Takes rows of these numbers in place of all."""
        for part in self.parts:
            part.take(rows)


class Reader:
    """A network that reads texts while they grow, each token once.

    Until a text is as long as the context, that is. From there on the last `context` tokens are the network's
    whole text, numbered from 0, which is read again for every token: the price of a token grows about
    `context`-fold.

    Args:
        network: Reads.
        end: The token that ends a text; None where none does.
        given: What the network is told beside, a row each.
        choices: How many tokens may come, the first ones of the vocabulary; None for all.
    """

    def __init__(
        self, network: NextToken, end: int | None, given: dict[str, Tensor], choices: int | None = None
    ) -> None:
        self.network, self.end, self.given, self.choices = network, end, given, choices
        self.memory = network.new_cache()
        self._num_read = 0

    def logits(self, text: Tensor) -> Tensor:
        """Returns what follows texts, (batch, choices), that begin with those of the call before.

        Raises:
            ValueError: If a text has no token.
        """
        if text.shape[1] == 0:
            raise ValueError("start must hold at least one token a row, got none; begin with a line break.")
        if self.memory.is_full or not self._num_read:
            self.memory.clear()
            self._num_read = max(0, text.shape[1] - self.network.context)
        logits = self.network(text[:, self._num_read :], cache=self.memory, **self.given)
        self._num_read = text.shape[1]
        return logits[:, -1, : self.choices]

    def take(self, rows: Tensor) -> None:
        """Takes the texts of these numbers in place of all."""
        self.memory.take(rows)
        self.given = {name: value[rows] for name, value in self.given.items()}

    def ends(self, tokens: Tensor) -> Tensor:
        """Returns which tokens end their text."""
        return torch.zeros_like(tokens, dtype=torch.bool) if self.end is None else tokens == self.end


class TextSampler(ABC):
    """Writes texts by a network that knows what may come next."""

    def write(
        self,
        network: NextToken,
        start: Tensor,
        num_tokens: int,
        seed: int,
        index: Tensor,
        end: int | None = None,
        choices: int | None = None,
        **given: Tensor,
    ) -> Iterator[Tensor]:
        """Returns token after token of the texts that go on from a start, (batch,) each.

        Args:
            network: Scores the next token; in eval mode, or dropout disturbs it.
            start: At least one token a row, equally many in all, (batch, length).
            num_tokens: Tokens to write.
            seed: Of the samples.
            index: Sample numbers, (batch,).
            end: The token that ends a text and is then repeated; None where none does.
            choices: How many tokens may come, the first ones of the vocabulary; None for all.
            **given: What the network is told beside, a row each, such as `label`.

        Raises:
            ValueError: If there is no token to start from.
        """
        return self.written(Reader(network, end, given, choices), start, num_tokens, seed, index)

    @abstractmethod
    def written(
        self, reader: Reader, start: Tensor, num_tokens: int, seed: int, index: Tensor
    ) -> Iterator[Tensor]:
        """Yields what `write` returns, by a reader of the network that has read nothing yet."""


class TokenSampler(TextSampler):
    """Chooses the token that comes next, for each row by itself.

    What is random belongs to a place in the text, so that a text which is cut and given as a start goes on as
    it did.

    Shapes:
        logits: (batch, vocabulary), not normalised; index: (batch,). Returns tokens, (batch,), int64.
    """

    @abstractmethod
    def choose(self, logits: Tensor, seed: int, index: Tensor, position: int) -> Tensor:
        """Returns a token a row; what is random in it depends on seed, sample number and position alone.

        Args:
            logits: Of every token at this position.
            seed: Of the samples.
            index: Sample numbers.
            position: Place of the token in its text, counted from 0.
        """

    @torch.no_grad()
    def written(
        self, reader: Reader, start: Tensor, num_tokens: int, seed: int, index: Tensor
    ) -> Iterator[Tensor]:
        """Yields token after token, each chosen where those before it are known."""
        end, first = reader.end, start.shape[1]
        text = torch.cat([start, start.new_zeros(len(start), num_tokens)], dim=1)
        has_ended = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        for place in range(first, text.shape[1]):
            if end is not None and bool(has_ended.all()):
                text[:, place] = end
            else:
                token = self.choose(reader.logits(text[:, :place]), seed, index, place)
                text[:, place] = token if end is None else token.masked_fill(has_ended, end)
                has_ended |= reader.ends(text[:, place])
            yield text[:, place]


class Greedy(TokenSampler):
    """The likeliest token, the first of equal ones: each text is short-sighted, and the same for any seed."""

    def choose(self, logits: Tensor, seed: int, index: Tensor, position: int) -> Tensor:
        return logits.argmax(dim=1)


class Categorical(TokenSampler):
    """A token by its probability, softmax(logits / temperature), among the likeliest ones.

    One uniform number a token picks the place where the running sum of probabilities passes it. First come
    the top_k likeliest, then of these, by their shares among themselves, the fewest whose mass is top_p:
    nucleus sampling (Holtzman et al. 2020, arXiv:1904.09751, equations 2 and 3).

    Args:
        temperature: 1 draws what was learned; near 0 is greedy; far above 1, all tokens become equal.
        top_k: Tokens that may come next; 1 is greedy, 0 lets all.
        top_p: Mass of the tokens that may come next; near 0 is greedy, 1 lets all.

    Raises:
        ValueError: If temperature or top_p is 0 or less, top_p above 1, or top_k negative.
    """

    def __init__(self, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> None:
        if not temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}; Greedy is its limit at 0.")
        if top_k < 0:
            raise ValueError(f"top_k must be at least 0, got {top_k}; 0 lets every token come.")
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}; 1 lets every token come.")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def choose(self, logits: Tensor, seed: int, index: Tensor, position: int) -> Tensor:
        u = randomness.uniform(randomness.key(seed, "token", position), index, 1)
        # In the vocabulary's order: in that of the logits, a rounding error between two near-equal ones would
        # exchange their places and with them the token.
        mass = self.probabilities(logits).cumsum(dim=1)
        return torch.searchsorted(mass, u * mass[:, -1:])[:, 0]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Returns the chance of each token, float64 (batch, vocabulary), exactly 0 where it may not come."""
        scaled = logits.double() / self.temperature
        if self.top_k or self.top_p < 1.0:
            scaled = scaled.masked_fill(~self._may_come(scaled), -torch.inf)
        return scaled.softmax(dim=1)

    def _may_come(self, scaled: Tensor) -> Tensor:
        ordered, order = scaled.sort(dim=1, descending=True, stable=True)
        if self.top_k:
            ordered[:, self.top_k :] = -torch.inf
        kept = ordered.isfinite()
        if self.top_p < 1.0:
            shares = ordered.softmax(dim=1)
            # A token may come as long as those before it lack mass; the first one always may.
            kept &= shares.cumsum(dim=1) - shares < self.top_p
        return torch.zeros_like(kept).scatter(1, order, kept)
