"""Samplers of maps of codes: all places are hidden at first, and uncovered several at a time."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from genlab import randomness

Score = Callable[[Tensor, Tensor, float], Tensor]
"""From codes, where they are hidden, and the share of the walk that is done (0 in the first step, 1 in the
last) to logits: (batch, height, width) twice to (batch, height, width, levels)."""


@dataclass(frozen=True)
class Step:
    """One step of a walk, and the random numbers that belong to it.

    Attributes:
        number: Of the step, from 1.
        num_steps: Of the walk.
        shape: Height and width of the maps.
        seed: Of the samples.
        index: Sample numbers, (batch,).
    """

    number: int
    num_steps: int
    shape: tuple[int, ...]
    seed: int
    index: Tensor

    @property
    def share_before(self) -> float:
        """The share of the walk before this step, 0 in the first and 1 in the last; 1 where it is alone."""
        return (self.number - 1) / (self.num_steps - 1) if self.num_steps > 1 else 1.0

    def uniform(self, *name: int | str) -> Tensor:
        """Returns numbers in (0, 1), (batch, places), which depend on seed, sample number and name alone."""
        return randomness.uniform(randomness.key(self.seed, *name), self.index, math.prod(self.shape))


class Order(ABC):
    """Says which of the hidden places are uncovered next."""

    @abstractmethod
    def priority(self, log_prob: Tensor, step: Step) -> Tensor:
        """Returns a number for each place, (batch, places), of which the highest are uncovered.

        Args:
            log_prob: Of the code that was drawn at each place, (batch, places).
            step: What random numbers are taken from.
        """


class ConfidenceOrder(Order):
    """Codes of high probability first, disturbed by noise that fades out.

        log p(code) + temperature (1 - i / n) g,    g of the standard Gumbel distribution, step i = 1 ... n

    Chang et al. 2022 (arXiv:2202.04200), section 3.3, and their program. Likely codes are preferred whatever
    the number of steps, so that even with one place a step the samples are not of the model's distribution.

    Args:
        temperature: Near 0, samples are smooth and alike; far above, the order is that of `RandomOrder`.
    """

    def __init__(self, temperature: float = 4.5) -> None:
        if not temperature >= 0.0:
            raise ValueError(f"temperature of an order must be at least 0, got {temperature}.")
        self.temperature = temperature

    def priority(self, log_prob: Tensor, step: Step) -> Tensor:
        gumbel = -torch.log(-torch.log(step.uniform("order", step.number)))
        return log_prob + self.temperature * (1.0 - step.number / step.num_steps) * gumbel


class RandomOrder(Order):
    """Any order as likely as any other, of each sample its own.

    With one place a step, samples are of the mean over all orders of the product of the conditional
    probabilities: what the network has been taught.
    """

    def priority(self, log_prob: Tensor, step: Step) -> Tensor:
        return step.uniform("order")


class HaltonOrder(Order):
    """One order for all samples, in which any few places that follow each other lie far apart.

    That of the Halton sequence of bases 2 and 3 over the map, without repeats: Besnier et al. 2025
    (arXiv:2503.17076). Codes that are drawn at once know nothing of each other, and far apart they need not.
    """

    def priority(self, log_prob: Tensor, step: Step) -> Tensor:
        height, width = step.shape
        return -halton_ranks(height, width, log_prob.device).to(log_prob.dtype).expand_as(log_prob)


class MaskedSampler:
    """Uncovers maps of codes in a few steps.

        step i = 1 ... n:   draw a code at each hidden place;
                            keep the first of them in the order, so that floor(M gamma(i / n)) stay hidden

    of M places to be drawn; gamma(r) = cos(pi r / 2), so that few are uncovered at first, while little is
    known, and many in the end. At least one is in each step. Chang et al. 2022 (arXiv:2202.04200), section
    3.3.

    Args:
        num_steps: n; as many as there are places, if it exceeds them.
        order: Which places are uncovered first; by confidence without it.
        schedule: gamma: "cosine", or "linear", 1 - r.
        temperature: Of codes: 1 draws what was learned, near 0 the likeliest.

    Raises:
        ValueError: If num_steps is below 1, the temperature 0 or less, or the schedule is unknown.
    """

    def __init__(
        self,
        num_steps: int = 8,
        order: Order | None = None,
        schedule: Literal["cosine", "linear"] = "cosine",
        temperature: float = 1.0,
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        if schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule must be cosine or linear, got {schedule}.")
        self.num_steps, self.order = num_steps, order or ConfidenceOrder()
        self.schedule, self.temperature = schedule, temperature

    def steps(self, num_places: int) -> int:
        """Returns the steps of a walk over so many places: never more than places."""
        return min(self.num_steps, num_places)

    @torch.no_grad()
    def __call__(self, score: Score, codes: Tensor, hidden: Tensor, seed: int, index: Tensor) -> Tensor:
        """Returns the maps with a code drawn at each hidden place, and all others as they are.

        Args:
            score: Asks the network, in eval mode.
            codes: (batch, height, width); what stands at hidden places is not looked at.
            hidden: Where to draw, (batch, height, width), bool.
            seed: Of the samples.
            index: Sample numbers, (batch,).
        """
        shape, codes, hidden = tuple(codes.shape[1:]), codes.flatten(1), hidden.flatten(1)
        to_draw, num_steps = hidden.sum(dim=1, keepdim=True), self.steps(codes.shape[1])
        for number in range(1, num_steps + 1):
            step = Step(number, num_steps, shape, seed, index)
            logits = score(codes.unflatten(1, shape), hidden.unflatten(1, shape), step.share_before)
            drawn, log_prob = self._drawn(logits.flatten(1, 2), step.uniform("code", number))
            priority = self.order.priority(log_prob, step).masked_fill(~hidden, -torch.inf)
            num_shown = hidden.sum(dim=1, keepdim=True) - self.still_hidden(
                to_draw, number / num_steps, number
            )
            shown = _ranks(-priority) < num_shown
            codes, hidden = torch.where(shown, drawn, codes), hidden & ~shown
        return codes.unflatten(1, shape)

    def still_hidden(self, num: Tensor, done: float, number: int) -> Tensor:
        """Returns how many of num places stay hidden after a step, given the share of steps that are done."""
        gamma = math.cos(math.pi / 2 * done) if self.schedule == "cosine" else 1.0 - done
        # Both schedules lie above the line of one place a step until they cross it and then fall faster. The
        # small number undoes rounding below a whole one.
        allowed = (num.double() * gamma + 1e-6).floor().to(num.dtype)
        return torch.minimum(allowed, num - number).clamp_min(0)

    def _drawn(self, logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a code for each place and the log of its probability, (batch, places)."""
        probs = (logits.double() / self.temperature).softmax(dim=2)
        mass = probs.cumsum(dim=2)
        drawn = torch.searchsorted(mass, u[..., None] * mass[..., -1:])
        return drawn[..., 0], probs.gather(2, drawn)[..., 0].log()


def _ranks(values: Tensor) -> Tensor:
    """Returns the place of each value in the ascending order of its row, from 0; equal ones in turn."""
    return values.argsort(dim=1, stable=True).argsort(dim=1)


@functools.cache
def halton_ranks(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Returns when each place of a map is met by the Halton sequence, (height * width,), from 0.

    Point k = 1, 2, ... is at row height phi_2(k) and column width phi_3(k), where phi_b mirrors the digits of
    k in base b at the point; a place that has been met is passed over.
    """
    met: dict[int, int] = {}
    k = 0
    while len(met) < height * width:
        k += 1
        met.setdefault(_cell(k, 2, height) * width + _cell(k, 3, width), len(met))
    return torch.tensor([met[place] for place in range(height * width)], device=device)


def _cell(k: int, base: int, num_cells: int) -> int:
    """Returns in which of equal parts of [0, 1) the radical inverse of k lies, in whole numbers."""
    mirrored, scale = 0, 1
    while k:
        k, digit = divmod(k, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return num_cells * mirrored // scale
