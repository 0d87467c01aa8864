"""Autoregressive models: one token or pixel after the other, each told all before it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from genlab.families.base import Model, NetworkFactory, indices
from genlab.families.weights import evaluating
from genlab.losses.likelihoods import LikelihoodFactory, Softmax
from genlab.samplers.pixels import walk as walk_pixels
from genlab.samplers.tokens import Categorical, TokenSampler, walk
from genlab.shapes import IGNORED, Batch, DataSpec


class ChainRule(Model):
    """A model whose likelihood is a product of what each part is given those before it.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)

    Exact: no bound and no sampling in it. Its network is one whose outputs see earlier parts alone.
    """

    network: Any
    optimizer_factory: OptimizerCallable

    likelihood_kind = "exact"
    likelihood_estimator = "chain rule"

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        matrices = {"params": [p for p in parameters if p.dim() > 1]}
        vectors = {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0}
        return self.scheduled(
            self.optimizer_factory([group for group in (matrices, vectors) if group["params"]])
        )

    @property
    def sampling_network(self) -> Any:
        """The network that samples and scores come from."""
        return self.network if self.average is None else self.average.module


class Autoregressive(ChainRule):
    """Learns the probability of each token given those before it, and samples token by token.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)

    The loss is its negative in nats, a mean over tokens; validation also gives perplexity, exp(loss), and
    bits per byte, which compares models of different vocabularies: all nats of a split / ln 2 / the bytes
    that its tokens stand for.

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
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if units == data.num_tokens(stage):  # a part of the split has bytes that nobody counted
            found["bits_per_byte"] = nats * units / math.log(2) / data.num_bytes(stage)
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

    def _nats(self, network: Any, tokens: Tensor, given: dict[str, Any]) -> Tensor:
        """Returns -log p of every token after the first, (batch, length); 0 where there is none."""
        logits = network(tokens[:, :-1].clamp_min(0), **given).float()
        return cross_entropy(logits.mT, tokens[:, 1:], ignore_index=IGNORED, reduction="none")


PATIENCE = 2.0
"""Seconds of a drawing before a bar shows how far it is."""

PixelNetworkFactory = Callable[[DataSpec, int], nn.Module]
"""What a YAML file gives for a network over pixels: the data, and the numbers to say for each pixel."""


class AutoregressiveImages(ChainRule):
    """Learns the probability of each pixel given those before it, and draws images pixel by pixel.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)        rows from the top, each from the left

    Inside of a pixel red comes first, then green, then blue: by the network's masks (PixelCNN), or by a
    likelihood that couples them. An image is made in this order, too: the first pixel is drawn from what is
    known of it, the network is asked for the second one given the first, and so on; whatever comes first in
    the order may be given instead, and the rest is drawn (`complete`).

    The loss is in bits per dimension, the mean of -log2 p over pixels and channels.

    Args:
        spec: The images.
        network: Says what is known of each pixel, such as GatedPixelCNN.
        optimizer: Built from the matrices, and from vectors such as biases, whose weight decay is 0.
        likelihood: What it says: a probability for every level without it.
        temperature: Of samples: 1 draws what was learned, near 0 the likeliest.
        model: Arguments of every model; the average is the network's.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: The data are no images with levels, or a likelihood that couples the channels is given to
            a network whose masks do.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: PixelNetworkFactory,
        optimizer: OptimizerCallable,
        likelihood: LikelihoodFactory = Softmax,
        temperature: float = 1.0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if spec.kind != "image":
            raise ValueError(f"AutoregressiveImages models images, and {spec.name} holds {spec.kind}s.")
        if not temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.likelihood = likelihood(spec)
        self.network = network(self.seen_spec, self.likelihood.parameter_shape[0])
        if self.likelihood.couples_channels and self.network.sees_channels:
            raise ValueError(
                f"{type(self.likelihood).__name__} couples the channels of a pixel, and so do the masks of "
                f"{type(self.network).__name__}: take Softmax with it."
            )
        self.keep_average(self.network)
        self.optimizer_factory = optimizer
        self.temperature = temperature
        self.passes = math.prod(spec.shape[1:]) * (spec.shape[0] if self.network.sees_channels else 1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood of a pixel and channel in bits."""
        network = self.network if self.training else self.sampling_network
        log_prob = self.likelihood(network(batch["image"], **self.given_of(batch)), batch["image"])
        return {"loss": -log_prob.mean() / (math.prod(self.spec.shape) * math.log(2))}

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p of each image's levels in nats, (batch,)."""
        with evaluating(self.sampling_network):
            return self.likelihood(self.sampling_network(x, **self.told(given)), x)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index, (batch, channels, height, width)."""
        index = indices(index, self.device)
        nothing = torch.zeros(len(index), *self.spec.shape, dtype=self.dtype, device=self.device)  # type: ignore[arg-type]
        return self.complete(nothing, 0, index, seed, **given)

    def complete(
        self,
        start: Tensor,
        num_known: int,
        index: int | Tensor,
        seed: int = 0,
        temperature: float | None = None,
        **given: Any,
    ) -> Tensor:
        """Returns images whose first pixels are given and whose others are drawn.

        Args:
            start: (batch, channels, height, width), of which the first pixels are looked at.
            num_known: How many, in the order of reading.
            index: Numbers of the samples.
            seed: Of the samples.
            temperature: Another one than the model's own.
            given: What the model is told.
        """
        index, images = indices(index, self.device), start.clone()
        told, heat = self.told(given), self.temperature if temperature is None else temperature
        network = self.sampling_network
        with evaluating(network):
            rows = walk_pixels(network, self.likelihood, images, num_known, seed, index, heat, **told)
            for _ in self._shown(rows, len(images)):
                pass
        return images

    def _shown(self, rows: Iterator[int], num_images: int) -> Iterable[int]:
        """Shows on a terminal how far a drawing is, once it has taken a while."""
        return tqdm(
            rows,
            f"drawing {num_images} image{'s' * (num_images > 1)}",
            self.spec.shape[1],
            unit="row",
            delay=PATIENCE,
            leave=False,
            disable=True if self.global_rank else None,  # None: but on a terminal
        )
