"""ELECTRA: a reader of text that learns to tell which words a small writer has put into it."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, linear

from genlab.families.base import Condition, NetworkFactory
from genlab.families.optimizers import decay_groups
from genlab.families.units import EqualUnits
from genlab.families.weights import evaluating
from genlab.shapes import IGNORED, Batch, DataSpec


class Electra(EqualUnits):
    """A generator fills gaps of a text; a discriminator says of each token whether it was put there.

        L = E[-log p_G(x_i | gapped x), i of a gap] + weight E[-log p_D(is replaced or not), all i]

    Clark et al. 2020 (arXiv:2003.10555). The tokens of the gaps are drawn from p_G; one that happens to be
    the right one counts as original. Drawing passes no gradient, and no weight is shared, so that the
    generator learns from its own loss alone (the paper shares embeddings). The discriminator is what is kept:
    its mean over a text is the text's code.

    Args:
        spec: The data: windows of tokens.
        generator: Reads a text from both sides, such as a small BidirectionalTransformer.
        discriminator: The same, larger.
        optimizer: Built from the matrices of both, and from their vectors, whose weight decay is 0.
        masked: Share of the tokens of a text that become gaps, rounded up.
        discriminator_weight: Of the discriminator's loss, which is small: most tokens are easy.
        model: Arguments of every model.

    Shapes:
        x: (batch, length + 1), int64, whose first token is left out; `IGNORED` where there is no text.

    Raises:
        ValueError: The data are no tokens, or masked is not a share of them.
    """

    conditions: tuple[Condition, ...] = ()
    shown_losses = ("generator", "discriminator")
    latent_type = "mean of token vectors"
    cannot_sample = "it tells written from replaced tokens and writes no text"

    def __init__(
        self,
        spec: DataSpec,
        generator: NetworkFactory,
        discriminator: NetworkFactory,
        optimizer: OptimizerCallable,
        masked: float = 0.15,
        discriminator_weight: float = 50.0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if spec.kind != "tokens":
            raise ValueError(f"Electra models tokens, and {spec.name} holds {spec.kind}s.")
        if not 0.0 < masked < 1.0:
            raise ValueError(f"masked must be in (0, 1), got {masked}.")
        self.gap = spec.levels
        seen = DataSpec(
            spec.name, spec.shape, levels=spec.levels + 1
        )  # one token more, which stands for a gap
        self.generator, self.discriminator = generator(seen), discriminator(seen)
        self.generator_bias = nn.Parameter(torch.zeros(spec.levels))
        self.judge = nn.Linear(self.discriminator.width, 1)  # type: ignore[arg-type]
        nn.init.normal_(self.judge.weight, std=0.02)
        nn.init.zeros_(self.judge.bias)
        self.optimizer_factory = optimizer
        self.masked, self.discriminator_weight = masked, discriminator_weight

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer_factory(decay_groups(self.parameters())))

    def units(self, batch: Batch) -> Tensor:
        return (batch["tokens"][:, 1:] != IGNORED).sum()

    def most_units(self, batch: Batch) -> int:
        return batch["tokens"][:, 1:].numel()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns both losses in nats, their weighted sum, and how well both players do.

        `masked_accuracy` is the share of gaps whose likeliest token is right, `replaced_share` that of tokens
        that were replaced, and `detection` that of tokens of which the discriminator is right.
        """
        tokens = batch["tokens"][:, 1:]
        is_text, tokens = tokens != IGNORED, tokens.clamp_min(0)
        gaps, counts = self._gaps(is_text)
        right = tokens.gather(1, gaps)
        gapped = tokens.scatter(1, gaps, right.masked_fill(counts, self.gap))
        logits = self.filled(gapped, is_text, gaps).float()
        nats = cross_entropy(logits.mT, right, reduction="none")
        replaced = self.corrupted(tokens, logits, gaps, counts)
        is_replaced = replaced != tokens
        scores = self.scores(replaced, is_text).float()
        judged = binary_cross_entropy_with_logits(scores, is_replaced.to(scores.dtype), reduction="none")
        generator, discriminator = _mean(nats, counts), _mean(judged, is_text)
        return {
            "loss": generator + self.discriminator_weight * discriminator,
            "generator": generator,
            "discriminator": discriminator,
            "masked_accuracy": _mean(logits.argmax(dim=2) == right, counts),
            "replaced_share": _mean(is_replaced, is_text),
            "detection": _mean((scores > 0.0) == is_replaced, is_text),
        }

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        share = means["replaced_share"]
        return {"majority": max(share, 1.0 - share)}  # what detection is worth nothing below

    def filled(self, gapped: Tensor, is_text: Tensor, gaps: Tensor) -> Tensor:
        """Returns the generator's logits of what stands in gaps, (batch, gaps, vocabulary)."""
        h = self.generator(gapped, is_text)
        h = h.gather(1, gaps[..., None].expand(-1, -1, h.shape[2]))
        return linear(h, self.generator.token.weight[: self.gap], self.generator_bias)  # type: ignore[union-attr, index]

    def corrupted(self, tokens: Tensor, logits: Tensor, gaps: Tensor, counts: Tensor) -> Tensor:
        """Returns texts whose gaps hold what the generator draws there, without a gradient."""
        mass = logits.detach().double().softmax(dim=2).cumsum(dim=2)
        u = self.draw_uniform("replaced", len(tokens), (gaps.shape[1],)).double()[..., None]
        drawn = torch.searchsorted(mass, u * mass[..., -1:])[..., 0].clamp_max(self.gap - 1)
        return tokens.scatter(1, gaps, torch.where(counts, drawn, tokens.gather(1, gaps)))

    def scores(self, tokens: Tensor, is_text: Tensor) -> Tensor:
        """Returns the discriminator's logit of each token to have been replaced, (batch, length)."""
        return self.judge(self.discriminator(tokens, is_text))[..., 0]

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the mean of the discriminator's vectors of a text, (batch, width)."""
        self.told(given)
        tokens = x[:, 1:]
        is_text = tokens != IGNORED
        with evaluating(self.discriminator):
            h = self.discriminator(tokens.clamp_min(0), is_text)
        shares = is_text / is_text.sum(dim=1, keepdim=True).clamp_min(1)
        return (h * shares[..., None]).sum(dim=1)

    def _gaps(self, is_text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places of gaps, (batch, gaps), as many in each row, and which of them count.

        Those of a row without that much text do not all count, and stay as they are.
        """
        draws = self.draw_uniform("gaps", len(is_text), (is_text.shape[1],))
        most = math.ceil(self.masked * is_text.shape[1])
        places = draws.masked_fill(~is_text, 2.0).topk(most, dim=1, largest=False).indices
        num = (self.masked * is_text.sum(dim=1, keepdim=True)).ceil()
        return places, torch.arange(most, device=is_text.device) < num


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Returns the mean of the values that count."""
    return (values * counts).sum() / counts.sum().clamp_min(1)
