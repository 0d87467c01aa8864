"""MaskGIT: a prior over maps of codes that draws many of them at once, in a few steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy

from genlab.families.base import NetworkFactory, hidden, indices
from genlab.families.optimizers import decay_groups
from genlab.families.units import EqualUnits
from genlab.families.weights import evaluating
from genlab.samplers.masked import MaskedSampler, Score
from genlab.shapes import IGNORED, Batch, DataSpec


@dataclass(frozen=True)
class CodeGuidance:
    """How samples are steered towards what the model is told.

        logits = free + w (given - free)

    Ho and Salimans 2022 (arXiv:2207.12598), for logits as in Muse (arXiv:2301.00704), section 2.7, whose w
    grows along the walk, so that the first codes, which decide what is drawn, keep their variety.

    Attributes:
        scale: w of the last step: 1 is the conditional model, 0 the unconditional one, higher fits better
            and varies less.
        dropout: Share of items whose conditions are hidden in training, without which nothing can be guided.
        grows: Whether w grows evenly from 1 in the first step, or is the same in all.
    """

    scale: float = 1.0
    dropout: float = 0.0
    grows: bool = True

    def at(self, share: float) -> float:
        """Returns w where such a share of the walk is done."""
        return 1.0 + (self.scale - 1.0) * share if self.grows else self.scale


class MaskGIT(EqualUnits):
    """Learns what stands at the masked places of a map, given the others, and draws all in a few steps.

        L = E[-log p(x_i | x outside of M, given), i in M],   |M| = ceil(cos(pi u / 2) N) of N places

    with u uniform in (0, 1) and M any such set, of each item its own: a mean over masked codes. Chang et al.
    2022 (arXiv:2202.04200). A drawn map has no probability that could be computed, since the codes of one
    step are drawn as if they were independent; so there is no likelihood, and losses compare with those of
    other MaskGITs alone.

    Args:
        spec: The data: maps of codes.
        network: Scores the codes of every place, such as MaskedTransformer; number `levels` hides a code.
        optimizer: Built from the matrices, and from vectors such as norms and biases, whose weight decay is
            0.
        sampler: How places are uncovered.
        guidance: Of samples, by what the model is told.
        label_smoothing: In training, targets are (1 - e) of the right code and e of all evenly; 0.1 in the
            paper.
        model: Arguments of every model; the average is the network's.

    Shapes:
        x: (batch, height, width), int64.

    Raises:
        ValueError: The data are no maps of codes, an argument is out of its range, or guidance has nothing
            to go by.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        optimizer: OptimizerCallable,
        sampler: MaskedSampler | None = None,
        guidance: CodeGuidance = CodeGuidance(),
        label_smoothing: float = 0.0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if spec.kind != "tokens" or len(spec.shape) != 2:
            raise ValueError(
                f"MaskGIT models maps of codes, (height, width), and {spec.name} holds {spec.kind}s of shape "
                f"{spec.shape}."
            )
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        if not 0.0 <= guidance.dropout < 1.0:
            raise ValueError(f"guidance.dropout must be in [0, 1), got {guidance.dropout}.")
        if guidance.scale != 1.0 and not (self.given and guidance.dropout):
            raise ValueError(
                f"guidance.scale {guidance.scale} needs given [label] or [source] and guidance.dropout above "
                f"0, as 0.1."
            )
        self.network = network(self.seen_spec)
        self.keep_average(self.network)
        self.optimizer_factory = optimizer
        self.sampler, self.guidance = sampler or MaskedSampler(), guidance
        self.label_smoothing = label_smoothing

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer_factory(decay_groups(self.network.parameters())))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy of a masked code in nats."""
        codes, given, network, smoothing = batch["tokens"], self.given_of(batch), self.sampling_network, 0.0
        if self.training:
            given, network, smoothing = self._hidden(given), self.network, self.label_smoothing
        masked = self.masked(codes)
        logits = self._logits(network, codes, masked, given)
        target = codes.masked_fill(~masked, IGNORED)
        return {
            "loss": cross_entropy(
                logits.flatten(0, 2), target.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
            )
        }

    def units(self, batch: Batch) -> Tensor:
        return self.masked(batch["tokens"]).sum()

    def most_units(self, batch: Batch) -> int:
        return batch["tokens"].numel()

    def masked(self, codes: Tensor) -> Tensor:
        """Returns which places this step hides, (batch, height, width); the same each time it is asked."""
        num_places = math.prod(self.spec.shape)
        # At least one place, even where the cosine is rounded to nothing.
        share = torch.cos(math.pi / 2 * self.draw_uniform("mask share", len(codes))).clamp_min(1e-6)
        ranks = self.draw_uniform("mask places", len(codes), (num_places,)).argsort(dim=1).argsort(dim=1)
        return (ranks < share[:, None] * num_places).view_as(codes)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index, (batch, height, width)."""
        index = indices(index, self.device)
        codes = torch.zeros(len(index), *self.spec.shape, dtype=torch.int64, device=self.device)
        return self.fill(codes, torch.zeros_like(codes, dtype=torch.bool), index, seed, **given)

    def fill(
        self,
        codes: Tensor,
        known: Tensor,
        index: int | Tensor,
        seed: int = 0,
        sampler: MaskedSampler | None = None,
        **given: Any,
    ) -> Tensor:
        """Returns maps that keep their known codes and whose others are drawn.

        Args:
            codes: (batch, height, width), of which the known ones are looked at.
            known: Where they are, (batch, height, width) or (height, width), bool.
            index: Numbers of the samples.
            seed: Of the samples.
            sampler: Another one than the model's own.
            given: What the model is told.
        """
        score = self._score(self.told(given))
        with evaluating(self.sampling_network):
            return (sampler or self.sampler)(
                score, codes, ~known.expand_as(codes), seed, indices(index, self.device)
            )

    @property
    def passes(self) -> int:  # type: ignore[override]
        asked_at_once = 1 if self.guidance.scale == 1.0 else 2
        return asked_at_once * self.sampler.steps(math.prod(self.spec.shape))

    @property
    def sampling_network(self) -> Any:
        """The network that samples and scores come from."""
        return self.network if self.average is None else self.average.module

    def _logits(self, network: Any, codes: Tensor, masked: Tensor, given: dict[str, Any]) -> Tensor:
        return network(codes.masked_fill(masked, self.spec.levels), **given).float()

    def _score(self, given: dict[str, Any]) -> Score:
        """Returns what a sampler asks: the network's logits, guided."""
        network = self.sampling_network
        if self.guidance.scale == 1.0:
            return lambda codes, masked, share: self._logits(network, codes, masked, given)
        free = self._without(given)
        told = {name: torch.cat([value, free[name]]) for name, value in given.items()}

        def guided(codes: Tensor, masked: Tensor, share: float) -> Tensor:
            # One pass of twice the rows fills a device better than two passes.
            twice = (codes.repeat(2, 1, 1), masked.repeat(2, 1, 1))
            of_given, of_free = self._logits(network, *twice, told).chunk(2)
            return of_free + self.guidance.at(share) * (of_given - of_free)

        return guided

    def _hidden(self, given: dict[str, Any]) -> dict[str, Any]:
        """Returns what the network is told in training, where all is hidden of some items."""
        if not (given and self.guidance.dropout):
            return given
        num = len(next(iter(given.values())))
        rows = self.draw_uniform("hide conditions", num) < self.guidance.dropout
        return hidden(given, rows, self._nothing)

    def _without(self, given: dict[str, Any]) -> dict[str, Any]:
        """Returns what stands for "anything" in place of what the network is told."""
        return {name: torch.full_like(value, self._nothing[name]) for name, value in given.items()}

    @property
    def _nothing(self) -> dict[str, int]:
        return {"label": self.spec.num_classes, "source": IGNORED}
