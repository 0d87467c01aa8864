"""Autoregressive models: one token, pixel or code after the other, each told all before it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from genlab.families.base import NetworkFactory, indices
from genlab.families.chain_rule import ChainRule
from genlab.families.codes import one_hot_map
from genlab.families.streams import Streams
from genlab.families.units import EqualUnits
from genlab.families.weights import evaluating
from genlab.losses.likelihoods import LikelihoodFactory, OneHot, PixelLikelihood, Softmax
from genlab.progress import watched
from genlab.samplers.pixels import walk as walk_pixels
from genlab.samplers.tokens import Categorical, TextSampler
from genlab.shapes import IGNORED, Batch, DataSpec, observed, predicted


class Autoregressive(EqualUnits, ChainRule):
    """Learns the probability of each token given those before it, and samples token by token.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)

    The loss is its negative in nats, a mean over tokens; validation also gives perplexity, exp(loss), and
    bits per byte, which compares models of different vocabularies: all nats of a split / ln 2 / the bytes
    that its tokens stand for.

    A map of codes is read from the top, as a text behind a start token of its own: the second stage of a
    VQ-VAE by a text's network. Codes stand for no bytes.

    Given [source] and a network that reads one, it is a translator. A recurrent network is trained by
    truncated back-propagation through time (Williams and Peng 1990): where a batch goes on in the texts of
    the one before, as those of data.streams do, it begins from the state that was left.

    Args:
        spec: The data: windows of tokens, or maps of codes.
        network: Scores the successor of each token, seeing no later one, such as CausalTransformer.
        optimizer: Built from the matrices, and from vectors such as norms and biases, whose weight decay is
            0.
        matrix_optimizer: Another one for the matrices between vectors, such as torch.optim.Muon; embeddings
            and the output's matrix stay with the first one.
        sampler: How texts are written; each token drawn by its probability without it.
        label_smoothing: In training, targets are (1 - e) of the right token and e of all evenly (Szegedy et
            al. 2016, arXiv:1512.00567, section 7).
        model: Arguments of every model; the average is the network's.

    Shapes:
        x: (batch, length + 1), int64: the first token is only read, the last only predicted; `IGNORED` where
            a window is not filled. (batch, height, width) of codes.
    """

    can_shard = True

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        optimizer: OptimizerCallable,
        matrix_optimizer: OptimizerCallable | None = None,
        sampler: TextSampler | None = None,
        label_smoothing: float = 0.0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if spec.kind != "tokens":
            raise ValueError(f"Autoregressive models tokens, and {spec.name} holds {spec.kind}s.")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        is_map = len(spec.shape) == 2
        self.network = network(_as_text(self.seen_spec) if is_map else self.seen_spec)
        self.keep_average(self.network)
        self.optimizer_factory, self.matrix_optimizer_factory = optimizer, matrix_optimizer
        self.sampler = sampler or Categorical()
        self.label_smoothing = label_smoothing
        vocabulary = json.loads(spec.vocabulary) if spec.vocabulary else {}
        self.start = spec.levels if is_map else int(vocabulary.get("start", 0))
        self.end = vocabulary.get("end")
        self.passes = math.prod(spec.shape)
        # Every map begins anew, whatever its number.
        carries = getattr(self.network, "carries_state", False) and not is_map
        self.streams = Streams(self.network.new_cache()) if carries else None

    def on_fit_start(self) -> None:
        if self.streams is None and getattr(self.trainer.datamodule, "streams", False):  # type: ignore[attr-defined]
            raise ValueError(
                f"data.streams is for networks that carry a state from batch to batch, and "
                f"{type(self.network).__name__} has none: leave it out, or take CausalRNN."
            )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood of a token in nats."""
        network, told, smoothing = self.sampling_network, self.given_of(batch), 0.0
        if self.training:
            network, smoothing = self.network, self.label_smoothing
            if self.streams is not None:
                told["cache"] = self.streams.follow(batch["index"])
        nats = self._nats(network, batch["tokens"], told, smoothing)
        return {"loss": nats.sum() / self.units(batch)}

    def units(self, batch: Batch) -> Tensor:
        return (predicted(batch["tokens"]) != IGNORED).sum()

    def most_units(self, batch: Batch) -> int:
        return predicted(batch["tokens"]).numel()

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        nats = means["loss"]
        found = {"perplexity": math.exp(min(nats, 700.0))}
        if not self.spec.vocabulary:  # codes stand for no bytes
            return found
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if units == data.num_tokens(stage):  # a part of the split has bytes that nobody counted
            found["bits_per_byte"] = nats * units / math.log(2) / data.num_bytes(stage)
        return found

    def predict(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the logits of what follows each token of texts, (batch, length, vocabulary).

        Of maps those of each code, (batch, height, width, codes).
        """
        network, told = self.sampling_network, self.told(given)
        if x.dim() == 2:
            return network(x, **told)
        logits = network(self._behind_start(x)[:, :-1], **told)[..., : self.spec.levels]
        return logits.unflatten(1, self.spec.shape)

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p of each row's tokens in nats, (batch,), given its first one."""
        with evaluating(self.sampling_network):
            return -self._nats(self.sampling_network, x, self.told(given)).sum(dim=1)

    @torch.no_grad()
    def attention(self, x: Tensor, **given: Any) -> Tensor | None:
        """Returns how much each token of texts looks at each of their source, where the network can tell.

        Args:
            x: Texts as `sample` returns them, (batch, length).
            given: The source, (batch, source length).

        Returns:
            Weights, (batch, length, source length), that sum to 1; None of a network without attention on it.
        """
        told, network = self.told(given), self.sampling_network
        if not hasattr(network, "maps"):
            return None
        before = self._behind_start(x)[:, :-1]
        with evaluating(network):
            return network.maps(before, **told)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index, (batch, length) or (batch, height, width)."""
        index = indices(index, self.device)
        start = torch.full((len(index), 1), self.start, device=self.device)
        drawn = self.complete(start, math.prod(self.spec.shape), index, seed, **given)
        return torch.stack(list(drawn), dim=1).unflatten(1, self.spec.shape)

    def complete(
        self,
        start: Tensor,
        num_tokens: int,
        index: int | Tensor,
        seed: int = 0,
        sampler: TextSampler | None = None,
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
            written = (sampler or self.sampler).write(
                network, start, num_tokens, seed, index, end=self.end, choices=self.spec.levels, **told
            )
            yield from written

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.streams is not None:
            world_size = 1 if self._trainer is None else self.trainer.world_size
            checkpoint["streams"] = self.streams.state_dict(world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.streams is not None:
            place = (0, 1) if self._trainer is None else (self.global_rank, self.trainer.world_size)
            self.streams.load_state_dict(checkpoint.get("streams", {}), self.device, *place)

    def _nats(
        self, network: Any, tokens: Tensor, told: dict[str, Any], label_smoothing: float = 0.0
    ) -> Tensor:
        """Returns -log p of every token after the first, (batch, length); 0 where there is none."""
        text = tokens if tokens.dim() == 2 else self._behind_start(tokens)
        logits = network(text[:, :-1].clamp_min(0), **told)[..., : self.spec.levels].float()
        target = {"ignore_index": IGNORED, "label_smoothing": label_smoothing}
        return cross_entropy(logits.mT, text[:, 1:], reduction="none", **target)  # type: ignore[arg-type]

    def _behind_start(self, x: Tensor) -> Tensor:
        """Returns texts, or maps from the top, behind the token that they start from."""
        return torch.cat([x.new_full((len(x), 1), self.start), x.flatten(1)], dim=1)


def _as_text(spec: DataSpec) -> DataSpec:
    """Returns maps of codes as texts of them; the last number of their vocabulary is the start."""
    return DataSpec(spec.name, (math.prod(spec.shape),), spec.num_classes, spec.levels + 1, spec.source)


PATIENCE = 2.0
"""Seconds of a drawing before a bar shows how far it is."""

PixelNetworkFactory = Callable[[DataSpec, int], nn.Module]
"""What a YAML file gives for a network over pixels: the data, and the numbers to say for each pixel."""


class PixelByPixel(ChainRule):
    """A model by a network over pixels, that draws one after the other.

    Args:
        spec: The data.
        pixels: The data as the network and the likelihood see them, (channels, height, width).
        network: Says what is known of each pixel.
        optimizer: Built from the matrices, and from vectors such as biases, whose weight decay is 0.
        likelihood: What it says.
        temperature: Of samples.
        model: Arguments of every model; the average is the network's.
    """

    def __init__(
        self,
        spec: DataSpec,
        pixels: DataSpec,
        network: PixelNetworkFactory,
        optimizer: OptimizerCallable,
        likelihood: PixelLikelihood,
        temperature: float,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if not temperature > 0.0:
            raise ValueError(f"temperature must be above 0, got {temperature}.")
        self.likelihood = likelihood
        self.network = network(pixels.told(self.given), likelihood.parameter_shape[0])
        if likelihood.couples_channels and self.network.sees_channels:
            raise ValueError(
                f"{type(likelihood).__name__} couples the channels of a pixel, and so do the masks of "
                f"{type(self.network).__name__}: take Softmax with it."
            )
        self.keep_average(self.network)
        self.optimizer_factory = optimizer
        self.temperature = temperature
        self.passes = math.prod(pixels.shape[1:]) * (pixels.shape[0] if self.network.sees_channels else 1)

    def predict(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the parameters of each pixel, (batch, parameters, height, width)."""
        return self.sampling_network(self.pixels(x), **self.told(given))

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p of each item in nats, (batch,): of the levels of images."""
        with evaluating(self.sampling_network):
            return self._log_prob(self.sampling_network, x, self.told(given))

    def nats(self, batch: Batch) -> Tensor:
        """Returns the mean of -log p over a batch's items."""
        network = self.network if self.training else self.sampling_network
        return -self._log_prob(network, observed(batch), self.given_of(batch)).mean()

    def pixels(self, x: Tensor) -> Tensor:
        """Returns items as the network sees them."""
        return x

    def _log_prob(self, network: Any, x: Tensor, told: dict[str, Any]) -> Tensor:
        pixels = self.pixels(x)
        return self.likelihood(network(pixels, **told), pixels)

    def _draw(
        self,
        pixels: Tensor,
        num_known: int,
        index: Tensor,
        seed: int,
        temperature: float,
        told: dict[str, Any],
    ) -> Tensor:
        """Returns the pixels after the first num_known, which are given, drawn in place."""
        network = self.sampling_network
        with evaluating(network):
            rows = walk_pixels(network, self.likelihood, pixels, num_known, seed, index, temperature, **told)
            title = f"drawing {len(pixels)} image{'s' * (len(pixels) > 1)}"
            for _ in watched(rows, title, self.network.size[0], "row", lambda row: 1, PATIENCE):
                pass
        return pixels


class AutoregressiveImages(PixelByPixel):
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
        if spec.kind != "image":
            raise ValueError(f"AutoregressiveImages models images, and {spec.name} holds {spec.kind}s.")
        super().__init__(spec, spec, network, optimizer, likelihood(spec), temperature, **model)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood of a pixel and channel in bits."""
        return {"loss": self.nats(batch) / (math.prod(self.spec.shape) * math.log(2))}

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
        heat = self.temperature if temperature is None else temperature
        index, told = indices(index, self.device), self.told(given)
        return self._draw(start.clone(), num_known, index, seed, heat, told)


class AutoregressiveMaps(PixelByPixel):
    """Learns the probability of each code of a map given those before it, by a network over pixels.

        log p(x) = sum_i log p(x_i | x_0 ... x_(i-1), given)        rows from the top, each from the left

    The second stage of a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937, section 3.3). The network sees
    a code as a pixel with a channel for each number, 1 at its own and 0 elsewhere: numbers have no order.

    The loss is in nats a code, and perplexity its exp; `Autoregressive` has the same of a text's network.

    Args:
        spec: The maps of codes.
        network: Says what is known of each code, such as GatedPixelCNN.
        optimizer: Built from the matrices, and from vectors such as biases, whose weight decay is 0.
        temperature: Of samples: 1 draws what was learned, near 0 the likeliest.
        model: Arguments of every model; the average is the network's.

    Shapes:
        x: (batch, height, width), int64.

    Raises:
        ValueError: The data are no maps of codes.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: PixelNetworkFactory,
        optimizer: OptimizerCallable,
        temperature: float = 1.0,
        **model: Any,
    ) -> None:
        if spec.kind != "tokens" or len(spec.shape) != 2:
            raise ValueError(
                f"AutoregressiveMaps models maps of codes, of shape (height, width) and levels, and "
                f"{spec.name} has shape {spec.shape} and levels {spec.levels}."
            )
        pixels = DataSpec(spec.name, (spec.levels, *spec.shape), spec.num_classes, 0, spec.source)
        super().__init__(spec, pixels, network, optimizer, OneHot(pixels), temperature, **model)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the negative log-likelihood of a code in nats."""
        return {"loss": self.nats(batch) / math.prod(self.spec.shape)}

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        return {"perplexity": math.exp(min(means["loss"], 700.0))}

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index, (batch, height, width)."""
        index, told = indices(index, self.device), self.told(given)
        nothing = self.pixels(index.new_zeros(len(index), *self.spec.shape))
        return self._draw(nothing, 0, index, seed, self.temperature, told).argmax(dim=1)

    def pixels(self, x: Tensor) -> Tensor:
        """Returns maps of codes with a channel for each number, (batch, levels, height, width)."""
        return one_hot_map(x, self.spec.levels).to(self.dtype)
