"""DALL-E's second stage: captions and maps of codes as one text, written by one Transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from genlab.distributed import joined_mean
from genlab.families.base import NetworkFactory, indices
from genlab.families.chain_rule import ChainRule
from genlab.families.weights import evaluating
from genlab.samplers.tokens import Categorical, GuidedText, TextSampler
from genlab.shapes import IGNORED, Batch, DataSpec


class DALLE(ChainRule):
    """Learns the probability of a caption and of the codes of its image, and draws codes given a caption.

        log p(caption, x) = sum_i log p(caption_i | caption_<i) + sum_j log p(x_j | caption, x_<j)
        loss = -w log p(caption) / its tokens - (1 - w) log p(x | caption) / its codes

    Ramesh et al. 2021 (arXiv:2102.12092), section 2.2: the network reads a start, the caption and the codes
    as one text. Its vocabulary holds the codes first, then the caption's tokens, then the start. At places of
    the caption only its tokens are scored, at places of the image only codes. `text_nats` and `image_nats`
    are means over an item's tokens and then over items, so that a caption counts the same in any batch (the
    paper's are over all tokens of a batch).

    Where a caption has ended, the start is read again and nothing is scored. Every code so has a place of its
    own, and with learned positions the filling is another vector at each place, as the paper's is; to predict
    it would teach nothing.

    With guidance, codes are drawn from logits_0 + scale (logits - logits_0), where logits_0 are those of an
    empty caption, which `text_dropout` teaches (Gafni et al. 2022, arXiv:2203.13131).

    Args:
        spec: Maps of codes, with captions as their source.
        network: Scores the successor of each token, seeing no later one, such as CausalTransformer.
        optimizer: Built from the matrices, and from vectors such as norms and biases, whose weight decay is
            0.
        matrix_optimizer: Another one for the matrices between vectors, such as Float32Muon; embeddings and
            the output's matrix stay with the first one.
        sampler: How codes are drawn; each by its probability without it.
        text_weight: w above: the paper's 1/8; 0 learns no captions.
        text_dropout: Share of captions that are left empty in training, each on its own.
        guidance: Scale of the guidance of samples: 1 has none, higher fits captions better and varies less.
        model: Arguments of every model; `given` must be [source], and the average is the network's.

    Shapes:
        x: (batch, height, width), int64; source: (batch, at most `spec.source.shape[0]`), int64.

    Raises:
        ValueError: The data are no maps of codes with captions, or an argument is out of range.
    """

    conditions = ("source",)

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        optimizer: OptimizerCallable,
        matrix_optimizer: OptimizerCallable | None = None,
        sampler: TextSampler | None = None,
        text_weight: float = 0.125,
        text_dropout: float = 0.0,
        guidance: float = 1.0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        source = _captions(spec, self.given)
        if not 0.0 <= text_weight < 1.0:
            raise ValueError(f"text_weight must be in [0, 1), got {text_weight}.")
        if not 0.0 <= text_dropout < 1.0:
            raise ValueError(f"text_dropout must be in [0, 1), got {text_dropout}.")
        if guidance != 1.0 and not text_dropout:
            raise ValueError(f"guidance {guidance} needs text_dropout above 0, as 0.1.")
        self.pad = source.padding
        self.num_codes, self.num_words, self.length = spec.levels, source.levels, source.shape[0]
        self.start = self.num_codes + self.num_words
        num_read = self.length + math.prod(spec.shape)  # the last code is predicted alone
        self.network = network(DataSpec(spec.name, (num_read,), levels=self.start + 1))
        self.keep_average(self.network)
        self.optimizer_factory, self.matrix_optimizer_factory = optimizer, matrix_optimizer
        self.sampler = sampler or Categorical()
        self.text_weight, self.text_dropout, self.guidance = text_weight, text_dropout, guidance
        self.passes = math.prod(spec.shape) * (1 if guidance == 1.0 else 2)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the weighted loss and its parts, in nats a token of a caption and nats a code."""
        network = self.network if self.training else self.sampling_network
        caption = self._numbers(batch["source"])
        if self.training and self.text_dropout:
            is_hidden = self.draw_uniform("hide text", len(caption)) < self.text_dropout
            caption = caption.masked_fill(is_hidden[:, None], self.start)
        text, image = self._nats(network, caption, batch["tokens"])
        length = (caption != self.start).sum(dim=1)
        # An empty caption has no mean. Each of several processes counts as many captions as all have on
        # average: the mean of their gradients is then that of all captions together.
        told = (length > 0).sum().float()
        told = (joined_mean(told) if self.training else told).clamp_min(torch.finfo(told.dtype).tiny)
        text_nats = (text.sum(dim=1) / length.clamp_min(1)).sum() / told
        image_nats = image.mean()
        loss = self.text_weight * text_nats + (1.0 - self.text_weight) * image_nats
        return {"loss": loss, "text_nats": text_nats, "image_nats": image_nats}

    def derived(self, means: dict[str, float], units: float, stage: str) -> dict[str, float]:
        return {"perplexity": math.exp(min(means["image_nats"], 700.0))}

    def predict(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the logits of each code given its caption, (batch, height, width, codes)."""
        caption = self._numbers(self.told(given)["source"])
        return self._logits(self.sampling_network, caption, x)[1].unflatten(1, self.spec.shape)

    @torch.no_grad()
    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p of each map of codes given its caption in nats, (batch,)."""
        caption = self._numbers(self.told(given)["source"])
        with evaluating(self.sampling_network):
            return -self._nats(self.sampling_network, caption, x)[1].sum(dim=1)

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index, (batch, height, width)."""
        index, network = indices(index, self.device), self.sampling_network
        start = self._behind_start(self._numbers(self.told(given)["source"]))
        guided = network if self.guidance == 1.0 else GuidedText(network, self.guidance, self._emptied)
        num_tokens = math.prod(self.spec.shape)
        with evaluating(network):
            drawn = self.sampler.write(guided, start, num_tokens, seed, index, choices=self.num_codes)
            return torch.stack(list(drawn), dim=1).unflatten(1, self.spec.shape)

    def _nats(self, network: Any, caption: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns -log p of each token of captions, 0 where there is none, and of each code."""
        of_words, of_codes = self._logits(network, caption, x)
        words = (caption - self.num_codes).masked_fill(caption == self.start, IGNORED)
        text = cross_entropy(of_words.mT, words, reduction="none", ignore_index=IGNORED)
        return text, cross_entropy(of_codes.mT, x.flatten(1), reduction="none")

    def _logits(self, network: Any, caption: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the network says of each token of captions, and of each code."""
        logits = network(torch.cat([self._behind_start(caption), x.flatten(1)[:, :-1]], dim=1)).float()
        words = logits[:, : self.length, self.num_codes : self.start]
        return words, logits[:, self.length :, : self.num_codes]

    def _numbers(self, source: Tensor) -> Tensor:
        """Returns captions in the numbers of the joint vocabulary, filled up to one length with the start."""
        numbers = (source + self.num_codes).masked_fill(source == self.pad, self.start)
        return pad(numbers, (0, self.length - source.shape[1]), value=self.start)

    def _behind_start(self, caption: Tensor) -> Tensor:
        return pad(caption, (1, 0), value=self.start)

    def _emptied(self, tokens: Tensor) -> Tensor:
        """Returns what is read with its captions left empty."""
        return tokens.masked_fill(tokens >= self.num_codes, self.start)


def _captions(spec: DataSpec, given: Sequence[str]) -> DataSpec:
    """Returns the form of the captions that a model is told, where the data are maps of codes with some."""
    source = spec.source
    if "source" not in given or source is None:
        raise ValueError("DALLE makes codes of captions: set given to [source].")
    if spec.kind != "tokens" or len(spec.shape) != 2 or source.kind != "tokens":
        raise ValueError(
            f"DALLE models maps of codes with captions, and {spec.name} holds {spec.kind}s of shape "
            f"{spec.shape} with {source.kind}s."
        )
    return source
