"""Autoregressive models: one token after the other, each told all before it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy

from genlab.families.base import Model, NetworkFactory, indices
from genlab.families.weights import evaluating
from genlab.samplers.tokens import Categorical, TokenSampler, walk
from genlab.shapes import IGNORED, Batch, DataSpec


class Autoregressive(Model):
    """Learns the probability of each token given those before it, and samples token by token.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)

    The chain rule, exact: no bound and no sampling in the likelihood. The loss is its negative in nats, a
        mean
    over tokens; validation also gives perplexity, exp(loss), and bits per byte, which compares models of
    different vocabularies: all nats of a split / ln 2 / the bytes that its tokens stand for.

    Args:
        spec: The data: windows of tokens.
        network: Scores the successor of each token, seeing no later one, such as CausalTransformer.
        optimizer: Built from the matrices, and from vectors such as norms and biases, whose weight decay is
            0.
        sampler: How the next token is drawn; by its probability without it.
        model: Arguments of every model; the average is the network's.

    Shapes:
        x: (batch, length + 1), int64: the first token is only read, the last only predicted; `IGNORED` where
            a window is not filled.
    """

    likelihood_kind = "exact"
    likelihood_estimator = "chain rule"

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        optimizer: OptimizerCallable,
        sampler: TokenSampler | None = None,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if spec.kind != "tokens":
            raise ValueError(f"Autoregressive models tokens, and {spec.name} holds {spec.kind}s.")
        self.network = network(self.seen_spec)
        self.keep_average(self.network)
        self.optimizer_factory = optimizer
        self.sampler = sampler or Categorical()
        vocabulary = json.loads(spec.vocabulary) if spec.vocabulary else {}
        self.start = int(vocabulary.get("start", 0))
        self.passes = spec.shape[0]

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        matrices = {"params": [p for p in parameters if p.dim() > 1]}
        vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
        return self.scheduled(
            self.optimizer_factory([group for group in (matrices, vectors) if group["params"]])
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood of a token in nats."""
        network = self.network if self.training else self.sampling_network
        nats = self._nats(network, batch["tokens"], self.given_of(batch))
        return {"loss": nats.sum() / self.units(batch)}

    def units(self, batch: Batch) -> Tensor:
        return (batch["tokens"][:, 1:] != IGNORED).sum()

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        nats = means["loss"]
        found = {"perplexity": math.exp(min(nats, 700.0))}
        data, split = self.trainer.datamodule, stage  # type: ignore[attr-defined]
        if hasattr(data, "num_bytes") and units == data.num_tokens(split):
            found["bits_per_byte"] = nats * units / math.log(2) / data.num_bytes(split)
        return found

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p of each row's tokens in nats, (batch,), given its first one."""
        with evaluating(self.sampling_network):
            return -self._nats(self.sampling_network, x, self.told(given)).sum(dim=1)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index, as long as a window: (batch, length)."""
        index = indices(index, self.device)
        start = torch.full((len(index), 1), self.start, device=self.device)
        return torch.stack(list(self.complete(start, self.spec.shape[0], index, seed, **given)), dim=1)

    def complete(
        self,
        start: Tensor,
        num_tokens: int,
        index: int | Tensor,
        seed: int = 0,
        sampler: TokenSampler | None = None,
        **given: Any,
    ) -> Iterator[Tensor]:
        """Yields token after token that goes on from a start, (batch,) each.

        Args:
            start: Tokens to go on from, (batch, at least 1).
            num_tokens: Tokens to draw.
            index: Numbers of the samples.
            seed: Of the samples.
            sampler: Another one than the model's own.
            given: What the model is told.
        """
        index, network = indices(index, self.device), self.sampling_network
        told = self.told(given)
        with evaluating(network):
            yield from walk(network, start, num_tokens, sampler or self.sampler, seed, index, **told)

    @property
    def sampling_network(self) -> Any:
        """The network that samples and scores come from."""
        return self.network if self.average is None else self.average.module

    def _nats(self, network: Any, tokens: Tensor, given: dict[str, Any]) -> Tensor:
        """Returns -log p of every token after the first, (batch, length); 0 where there is none."""
        logits = network(tokens[:, :-1].clamp_min(0), **given).float()
        return cross_entropy(logits.mT, tokens[:, 1:], ignore_index=IGNORED, reduction="none")
