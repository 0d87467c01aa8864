"""A small CLIP: images and captions as vectors, near to each other where they belong together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn.functional import normalize

from genlab.distributed import gathered
from genlab.families.base import CodingFactory, Condition, Model
from genlab.families.optimizers import decay_groups
from genlab.families.weights import evaluating
from genlab.losses.contrastive import Near, Pairs, matched, near_captions
from genlab.shapes import Batch, DataSpec

NUM_CANDIDATES = 100
"""Pairs among which an evaluation looks for partners."""

SentenceFactory = Callable[[DataSpec, int], nn.Module]
"""What a YAML file gives for an encoder of sentences; their form and the vector's length are filled in."""

_LARGEST = math.log(100.0)  # Radford et al. 2021, section 2.5: beyond it, training is not stable


class PairEncoders(nn.Module):
    """An encoder of images, one of captions, and the scale of the cosines between them.

    Shapes:
        x: (batch, *image); source: (batch, length). Returns vectors of length 1, (batch, width) each.
    """

    def __init__(self, image: nn.Module, caption: nn.Module) -> None:
        super().__init__()
        self.image, self.caption = image, caption
        self.log_scale = nn.Parameter(torch.tensor(1.0 / 0.07).log())

    def forward(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        return self.image_vectors(x), self.caption_vectors(source)

    def image_vectors(self, x: Tensor) -> Tensor:
        """Returns the vectors of images."""
        return normalize(self.image(x).float(), dim=1)

    def caption_vectors(self, source: Tensor) -> Tensor:
        """Returns the vectors of captions."""
        return normalize(self.caption(source).float(), dim=1)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, the inverse of the temperature."""
        return self.log_scale.exp()

    @torch.no_grad()
    def clip_scale(self) -> None:
        """Brings a scale above 100 back to it; from there gradients can lower it."""
        self.log_scale.clamp_(max=_LARGEST)


class Contrastive(Model):
    """Learns which caption belongs to which image, of all that a batch holds.

        loss = 1/2 (CE(s I C^T, same) + CE(s C I^T, same)),     s learned, from 1/0.07 up to 100

    CLIP: Radford et al. 2021 (arXiv:2103.00020); see `losses.contrastive.matched`. The rows of I and C are
    vectors of length 1; equal captions are equally right. The batch of all devices is the set of candidates;
    batches that are accumulated are each their own. It draws nothing: it tells of other models' samples which
    fits its caption best.

    An evaluation looks among `NUM_CANDIDATES` pairs evenly spread over the split, whatever the batch size and
    the number of devices: `loss`, `image_to_text@100` and `text_to_image@100`, the shares of images and of
    captions that find their partner, 0.01 by chance. Where the data know captions that combine what is never
    together in training, these are measured among themselves, as `zero_shot_...`.

    Args:
        spec: Images with sentences as their source.
        encoder: From images to vectors, such as ConvEncoder.
        caption_encoder: From sentences to vectors, such as SentenceEncoder.
        optimizer: Built from the matrices of both, and from their vectors, whose weight decay is 0.
        width: Length of the vectors in which images and captions are compared.
        num_near: Captions beside its own, almost like it, that each image is compared with in training; see
            `losses.contrastive.near_captions`. Without any, the captions of a batch differ in so much that
            little is learned of which colour is whose and of what is where.
        model: Arguments of every model.

    Shapes:
        x: (batch, channels, height, width of the image) in [-1, 1].
        source: (batch, length), int64.

    Raises:
        ValueError: The data are not images with sentences.
    """

    conditions: tuple[Condition, ...] = ()
    shown_losses = ("loss", "image_to_text")
    latent_type = "image vector"
    cannot_sample = "it tells which caption fits an image and draws nothing"

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        caption_encoder: SentenceFactory,
        optimizer: OptimizerCallable,
        width: int = 128,
        num_near: int = 0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if num_near < 0:
            raise ValueError(f"num_near must not be negative, got {num_near}.")
        if spec.kind != "image" or spec.source is None or spec.source.kind != "tokens":
            raise ValueError(
                f"Contrastive compares images with captions, and {spec.name} has none: use data such as "
                "Scenes or CaptionedImages."
            )
        captions = caption_encoder(spec.source, width)
        self.network = PairEncoders(encoder(spec.unconditional(), width, 0), captions)
        self.keep_average(self.network)
        self.optimizer = optimizer
        self.num_near = num_near
        self._kept: list[tuple[Tensor, ...]] = []

    @property
    def answering_network(self) -> PairEncoders:
        """The encoders that are asked: the average where there is one."""
        return self.network if self.average is None else self.average.module  # type: ignore[return-value]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(decay_groups(self.network.parameters()))
        optimizer.register_step_post_hook(lambda *_: self.network.clip_scale())
        return self.scheduled(optimizer)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss in nats, both shares of right answers among the batch, and the temperature."""
        network = self.network if self.training else self.answering_network
        images, captions = network(batch["image"], batch["source"])
        pairs = Pairs(images, captions, batch["source"])
        candidates = pairs.joined()
        near = (
            self._near(network, pairs.source, candidates.source) if self.training and self.num_near else None
        )
        found = matched(pairs, candidates, network.scale, near)
        return {**found, "temperature": 1.0 / network.scale}

    def _near(self, network: PairEncoders, source: Tensor, words: Tensor) -> Near:
        u = self.draw_uniform("near captions", len(source), (self.num_near, 3))
        near = near_captions(source, u, self.spec.source.padding, words)  # type: ignore[union-attr]
        vectors = network.caption_vectors(near.flatten(0, 1)).unflatten(0, near.shape[:2])
        return Near(vectors, (near != source[:, None]).any(dim=2))

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the vectors of images, (batch, width), of length 1."""
        self.told(given)
        with evaluating(self):
            return self.answering_network.image_vectors(x)

    @torch.no_grad()
    def similarity(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the cosine of the angle between each image and its caption, (batch,).

        Args:
            x: The images.
            given: Their captions, as `source`.
        """
        if given.keys() != {"source"}:
            got = ", ".join(given) or "nothing"
            raise ValueError(f"A Contrastive compares images with their source, but got {got}.")
        with evaluating(self):
            images, captions = self.answering_network(x, given["source"])
        return (images * captions).sum(dim=1)

    # Evaluation: a loss among the pairs of a batch would depend on its size, so that none is logged.

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._keep(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._keep(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_retrieval("val")

    def on_test_epoch_end(self) -> None:
        self._log_retrieval("test")

    def _keep(self, batch: Batch) -> None:
        vectors = self.answering_network(batch["image"], batch["source"])
        self._kept.append((batch["index"], *vectors, batch["source"]))

    def _log_retrieval(self, stage: str) -> None:
        kept, self._kept = self._kept, []
        if not kept or self.trainer.sanity_checking:
            return
        index, *rows = (gathered(torch.cat(parts)) for parts in zip(*kept, strict=True))
        pairs = Pairs(*(part[index.argsort()] for part in rows))
        scores = {
            f"{stage}/{prefix}{name}": float(value)
            for prefix, part in self._parts(pairs)
            for name, value in retrieval(part, self.answering_network.scale).items()
        }
        self.log_dict(scores, logger=False)

    def _parts(self, pairs: Pairs) -> Iterator[tuple[str, Pairs]]:
        """Yields the pairs that are measured among themselves, each with the beginning of its names."""
        judge = getattr(self.trainer.datamodule, "judge", None)  # type: ignore[attr-defined]
        unseen = torch.zeros(len(pairs.source), dtype=torch.bool, device=pairs.source.device)
        if judge is not None:
            unseen = judge.is_unseen(pairs.source)
        for prefix, rows in (("", ~unseen), ("zero_shot_", unseen)):
            if int(rows.sum()) > 1:
                yield prefix, Pairs(*(part[rows] for part in pairs))


def retrieval(pairs: Pairs, scale: Tensor, num_candidates: int = NUM_CANDIDATES) -> dict[str, Tensor]:
    """Returns what `matched` does, the mean over groups of so many pairs; fewer pairs are one group.

    Group g of G has the pairs g, g + G, g + 2 G, ... of those that fill all groups, evenly spaced, so that
    each stands for the split. Shares have the number of candidates in their names, on which they depend.

    Args:
        pairs: Of a split, in their order.
        scale: As in `matched`.
        num_candidates: Pairs of a group.
    """
    total = len(pairs.source)
    size = min(num_candidates, total)
    num_groups = total // size
    chosen = torch.arange(num_groups * size, device=pairs.source.device) * total // (num_groups * size)
    groups = Pairs(*(part[chosen].unflatten(0, (size, num_groups)).transpose(0, 1) for part in pairs))
    found = matched(groups, groups, scale)
    return {name if name == "loss" else f"{name}@{size}": value for name, value in found.items()}
