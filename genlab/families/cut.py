"""Image to image without pairs and one way only: a patch of the output must be found again in its source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genlab.colour import luminance_correlation
from genlab.families.base import NetworkFactory
from genlab.families.players import Adversarial
from genlab.families.weights import evaluating, mixes_rows, translated
from genlab.losses.contrastive import PatchNCE
from genlab.shapes import Batch, DataSpec, observed

_STREAMS = "patches", "kept patches"
HeadsFactory = Callable[[Sequence[int]], nn.Module]
"""What a YAML file gives for the heads: their class and sizes; the maps' channels are the generator's."""


class CUT(Adversarial):
    """Translates between two sets of images in which nothing belongs together, by one generator.

        min_G,H max_D  a V(G, D) + w (NCE(x, G(x)) + NCE(y, G(y))) / 2

    Park et al. 2020 (arXiv:2007.15651), equation 4 with both weights 1, x the source and y the image. NCE is
    the mean of `PatchNCE` over maps of the generator's own encoder: patches of what was made, as queries,
    against those of what it was made of, at the same drawn places. Its second term keeps images of the
    target's kind as they are. Without a way back, a step takes less memory than CycleGAN's.

    Args:
        spec: Images and sources; what the data put side by side need not belong together.
        generator: Network with `encode` and `feature_channels`: `ResNetGenerator`, `UNetGenerator`.
        discriminator: Judges the images alone.
        heads: Network H between the encoder's features and the loss.
        contrast: Loss of the features; `PatchNCE` with its defaults where left out.
        num_patches: Places of a map that are compared, or all where there are fewer.
        adversarial_weight: a; 2 undoes the halves of `LeastSquares`, which the paper leaves out.
        nce_weight: w.
        keeps_identity: Whether there is the second term; without it, the first counts in full.
        players: Optimisers, the game and the rest; `given` must hold source.

    Shapes:
        x, source: (batch, channels, height, width) in [-1, 1], of the same sides.

    Raises:
        ValueError: The model is told no source, the generator has no encoder, or a number is out of range.
    """

    conditions = ("source",)
    shown_losses = ("adversarial", "nce", "identity", "discriminator")
    memory_format = torch.contiguous_format  # instance norm and transposed convolutions are faster in it
    signs = (*Adversarial.signs, "luminance_correlation")
    has_targets = False
    generator: Contrasted

    def __init__(
        self,
        spec: DataSpec,
        generator: NetworkFactory,
        discriminator: NetworkFactory,
        heads: HeadsFactory,
        contrast: PatchNCE | None = None,
        num_patches: int = 256,
        adversarial_weight: float = 2.0,
        nce_weight: float = 1.0,
        keeps_identity: bool = True,
        **players: Any,
    ) -> None:
        if "source" not in players.get("given", ()):
            raise ValueError("CUT translates: set given to [source].")
        if keeps_identity and spec.source is not None and spec.source.shape != spec.shape:
            raise ValueError(
                f"keeps_identity needs images and sources of one shape, got {spec.shape} and "
                f"{spec.source.shape}: set it to false."
            )
        if num_patches < 2:
            raise ValueError(f"num_patches must be at least 2, one of them a negative, got {num_patches}.")
        for name, value in (("adversarial_weight", adversarial_weight), ("nce_weight", nce_weight)):
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        super().__init__(
            spec,
            generator=lambda seen: Contrasted(_with_encoder(generator(seen)), heads),
            discriminator=lambda seen: discriminator(seen.unconditional()),
            **players,
        )
        self.contrast = contrast or PatchNCE()
        self.num_patches, self.keeps_identity = num_patches, keeps_identity
        self.adversarial_weight, self.nce_weight = adversarial_weight, nce_weight

    def generate(self, batch: Batch, stream: str) -> Tensor:
        return self.generator.translator(**self.given_of(batch))

    def judge(self, x: Tensor, batch: Batch) -> Tensor:
        return self.discriminator(x)

    def generator_losses(self, fake: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        losses = {"adversarial": self.loss.generator(logits)}
        if self.keeps_identity:
            image = observed(batch)
            kept = self.generator.translator(source=image)
            losses["nce"], losses["identity"] = self._nce([fake, kept], [batch["source"], image])
            contrast = (losses["nce"] + losses["identity"]) / 2
        else:
            (contrast,) = (losses["nce"],) = self._nce([fake], [batch["source"]])
        total = self.adversarial_weight * losses["adversarial"] + self.nce_weight * contrast
        return {"generator": total, **losses}

    def noted(self, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"luminance_correlation": luminance_correlation(batch["source"], fake).mean()}

    @property
    def sampling_network(self) -> nn.Module:
        player: Any = self.generator if self.average is None else self.average.module
        return player.translator

    @torch.no_grad()
    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the images of the given sources, one for each i in index and the same for any seed."""
        return translated(self.sampling_network, self.told(given))

    @torch.no_grad()
    def probability_real(self, x: Tensor, **given: Any) -> Tensor | None:
        self.told(given)
        with evaluating(self.discriminator):
            return self.loss.probability(self.discriminator(x))

    def _nce(self, made: list[Tensor], starts: list[Tensor]) -> list[Tensor]:
        """Returns how hard patches of each batch's starts are to find by those of what was made of them."""
        with torch.no_grad():
            kept = self._encoded(starts)
            places = [
                [self._places(h, f"{stream} {number}") for number, h in enumerate(maps)]
                for stream, maps in zip(_STREAMS, kept, strict=False)
            ]
            keys = self._directions(kept, places)
        queries = self._directions(self._encoded(made), places)
        return [
            torch.stack([self.contrast(*pair) for pair in zip(*sides, strict=True)]).mean()
            for sides in zip(queries, keys, strict=True)
        ]

    def _encoded(self, batches: list[Tensor]) -> list[list[Tensor]]:
        """Returns the encoder's maps of several batches, in one pass where their rows do not mix."""
        if mixes_rows(self.generator.translator):
            return [self.generator.translator.encode(x) for x in batches]
        maps = self.generator.translator.encode(torch.cat(batches))
        parts = (h.split([len(x) for x in batches]) for h in maps)
        return [list(each) for each in zip(*parts, strict=True)]

    def _directions(self, maps: list[list[Tensor]], places: list[list[Tensor]]) -> list[list[Tensor]]:
        """Returns what the heads make of each batch's features at its places."""
        return [
            self.generator.heads([_patches(h, p) for h, p in zip(*sides, strict=True)])
            for sides in zip(maps, places, strict=True)
        ]

    def _places(self, h: Tensor, stream: str) -> Tensor:
        """Returns the places of each map that are compared, (batch, places), each at most once."""
        num = h.shape[2] * h.shape[3]
        if num <= self.num_patches:
            return torch.arange(num, device=h.device).expand(len(h), -1)
        return self.draw_uniform(stream, len(h), (num,)).topk(self.num_patches, dim=1).indices


class Contrasted(nn.Module):
    """The generator as a player of CUT: what translates, and the heads that learn with it.

    Args:
        translator: Network with an encoder.
        heads: Makes the heads of its maps' channels.
    """

    def __init__(self, translator: Any, heads: HeadsFactory) -> None:
        super().__init__()
        self.translator: Any = translator
        self.heads = heads(translator.feature_channels)


def _patches(h: Tensor, places: Tensor) -> Tensor:
    """Returns the features at some places of maps, (batch, places, channels)."""
    return h.flatten(2).gather(2, places[:, None].expand(-1, h.shape[1], -1)).transpose(1, 2)


def _with_encoder(network: nn.Module) -> nn.Module:
    if not hasattr(network, "encode") or not hasattr(network, "feature_channels"):
        raise ValueError(
            f"CUT compares the features of an encoder, and {type(network).__name__} has none: use "
            "ResNetGenerator or UNetGenerator."
        )
    return network
