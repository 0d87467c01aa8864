"""Image to image without pairs: two translators, each of which undoes the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genlab import randomness
from genlab.colour import luminance_correlation
from genlab.families.base import NetworkFactory
from genlab.families.players import Adversarial
from genlab.families.weights import evaluating, together, translated
from genlab.shapes import Batch, DataSpec, observed


class CycleGAN(Adversarial):
    """Translates between two sets of images in which nothing belongs together.

        min_G,F max_D,D'  a (V(G, D) + V(F, D'))
                          + c (|F(G(x)) - x| + |G(F(y)) - y|) + i (|G(y) - y| + |F(x) - x|)

    Zhu et al. 2017 (arXiv:1703.10593), equation 3 and section 5.2, with x the source, y the image, V the
    game, distances as means over pixels, and every loss as the mean over both directions. The discriminators
    see images without their sources, and of the generated ones half the time older ones out of a pool, so
    that they do not forget.

    Args:
        spec: Images and sources of one shape; what the data put side by side need not belong together.
        generator: Built twice: for the way there, and for the way back, with the data turned round.
        discriminator: Built twice: for the images and for the sources.
        adversarial_weight: a; 2 undoes the halves of `LeastSquares`, which the paper leaves out.
        cycle_weight: c.
        identity_weight: i: an image of the target's kind is to stay as it is, which keeps colours; 0 saves
            two passes.
        pool_size: Generated images that each pool holds; 0 shows the newest ones alone.
        players: Optimisers, the game and the rest; `given` must hold source.

    Shapes:
        x, source: (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: The model is told no source, its shape is not the image's, or a weight is negative.
    """

    conditions = ("source",)
    shown_losses = ("adversarial", "cycle", "identity", "discriminator")
    memory_format = torch.contiguous_format  # instance norm and transposed convolutions are faster in it
    signs = (*Adversarial.signs, "luminance_correlation")
    has_targets = False
    generator: BothWays
    discriminator: BothWays

    def __init__(
        self,
        spec: DataSpec,
        generator: NetworkFactory,
        discriminator: NetworkFactory,
        adversarial_weight: float = 2.0,
        cycle_weight: float = 10.0,
        identity_weight: float = 5.0,
        pool_size: int = 50,
        **players: Any,
    ) -> None:
        _require_one_shape(spec, players.get("given", ()))
        weights = {"adversarial": adversarial_weight, "cycle": cycle_weight, "identity": identity_weight}
        for name, value in {
            **{f"{name}_weight": w for name, w in weights.items()},
            "pool_size": pool_size,
        }.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        super().__init__(
            spec,
            generator=lambda seen: BothWays(generator(seen), generator(seen.reversed())),
            discriminator=lambda seen: BothWays(
                discriminator(seen.unconditional()), discriminator(seen.reversed().unconditional())
            ),
            **players,
        )
        self.weights = weights
        self.pools = ImagePool(pool_size), ImagePool(pool_size)

    def generate(self, batch: Batch, stream: str) -> Tensor:
        ways = self.generator
        return torch.cat([ways.there(source=batch["source"]), ways.back(source=observed(batch))])

    def real(self, batch: Batch) -> Tensor:
        return torch.cat([observed(batch), batch["source"]])

    def judge(self, x: Tensor, batch: Batch) -> Tensor:
        images, sources = x.chunk(2)
        return torch.cat([self.discriminator.there(images), self.discriminator.back(sources)])

    def judge_both(self, real: Tensor, fake: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        ways = self.discriminator.there, self.discriminator.back
        logits = [together(way, *seen) for way, *seen in zip(ways, real.chunk(2), fake.chunk(2), strict=True)]
        of_real, of_fake = (torch.cat(each) for each in zip(*logits, strict=True))
        return of_real, of_fake

    def shown(self, fake: Tensor) -> Tensor:
        parts = zip(self.pools, ("pool", "pool back"), fake.chunk(2), strict=True)
        return torch.cat([self._exchanged(*part) for part in parts])

    def generator_losses(self, fake: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        image, source = observed(batch), batch["source"]
        fake_image, fake_source = fake.chunk(2)
        kept_too = (lambda x: [x]) if self.weights["identity"] else (lambda x: [])
        image_again, *image_kept = together(
            self.generator.there, fake_source, *kept_too(image), name="source"
        )
        source_again, *source_kept = together(
            self.generator.back, fake_image, *kept_too(source), name="source"
        )
        losses = {
            "adversarial": self.loss.generator(logits),
            "cycle": (_distance(image_again, image) + _distance(source_again, source)) / 2,
        }
        if image_kept:
            losses["identity"] = (_distance(image_kept[0], image) + _distance(source_kept[0], source)) / 2
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return {"generator": total, **losses}

    def noted(self, fake: Tensor, batch: Batch) -> dict[str, Tensor]:
        start = torch.cat([batch["source"], observed(batch)])
        return {"luminance_correlation": luminance_correlation(start, fake).mean()}

    @property
    def sampling_network(self) -> nn.Module:
        return self.sampling_ways.there

    @property
    def sampling_ways(self) -> BothWays:
        """The generators that samples come from, there and back: averages where there are some."""
        return self.generator if self.average is None else self.average.module  # type: ignore[return-value]

    @torch.no_grad()
    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the images of the given sources, one for each i in index and the same for any seed."""
        return translated(self.sampling_ways.there, self.told(given))

    def reversed(self) -> WayBack:
        """Returns the same weights as a model that makes a source of each image."""
        return WayBack(self)

    @torch.no_grad()
    def probability_real(self, x: Tensor, **given: Any) -> Tensor | None:
        self.told(given)
        with evaluating(self.discriminator):
            return self.loss.probability(self.discriminator.there(x))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["pools"] = [pool.state() for pool in self.pools]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for pool, images in zip(self.pools, checkpoint["pools"], strict=True):
            pool.restore(images.to(self.device))

    def _exchanged(self, pool: ImagePool, stream: str, fake: Tensor) -> Tensor:
        """Returns what a pool gives for this process's images, which the pools of all processes take in."""
        rank, world_size = self.step_noise.rank, self.step_noise.world_size
        joined = fake
        if world_size > 1:
            gathered: Any = self.all_gather(fake.contiguous())
            joined = gathered.transpose(0, 1).flatten(0, 1)
        # Drawn where it is read: the device is not waited for.
        address, rows = randomness.key(self.step_noise.address, stream), torch.arange(len(joined))
        return pool.exchange(joined, randomness.uniform(address, rows, 2))[rank::world_size]


class BothWays(nn.Module):
    """The two networks of one player: of the way there and of the way back."""

    def __init__(self, there: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.there, self.back = there, back


class WayBack:
    """A model of two directions, asked for the one back; all else is the model's.

    Args:
        model: Translates there and back.
    """

    def __init__(self, model: CycleGAN) -> None:
        self.model, self.spec = model, model.spec.reversed()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    @property
    def seen_spec(self) -> DataSpec:
        """The data as the network of the way back sees them."""
        return self.spec.told(self.model.given)

    @property
    def sampling_network(self) -> nn.Module:
        """The generator of the way back."""
        return self.model.sampling_ways.back

    @torch.no_grad()
    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the sources that belong to given images, which are this model's sources."""
        return translated(self.sampling_network, self.model.told(given))

    def reversed(self) -> CycleGAN:
        """Returns the model itself."""
        return self.model


class ImagePool:
    """Generated images of earlier steps, for a discriminator that is to remember them.

    Shrivastava et al. 2017 (arXiv:1612.07828), section 2.3, as Zhu et al. 2017 use it: the first `size`
    images are shown and kept; each later one is, by even chance, shown, or kept in the place of one that is.

    Args:
        size: Images that are kept; 0 shows every image as it comes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def exchange(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Returns as many images as come in, new and old ones.

        Shapes:
            x: (batch, channels, height, width); uniform: (batch, 2), numbers in (0, 1) on the CPU.
        """
        shown = x.clone()
        for row, (chance, place) in enumerate(uniform.tolist() if self.size else []):
            if len(self.images) < self.size:
                self.images.append(x[row].clone())
            elif chance < 0.5:
                slot = int(place * self.size)
                shown[row] = self.images[slot]
                self.images[slot] = x[row].clone()
        return shown

    def state(self) -> Tensor:
        """Returns the images that are kept, on the CPU, (kept, channels, height, width)."""
        return torch.stack(self.images).cpu() if self.images else torch.empty(0)

    def restore(self, images: Tensor) -> None:
        """Takes images that `state` returned; of more than there is room for, the last ones."""
        self.images = list(images[-self.size :]) if self.size else []


def _distance(x: Tensor, y: Tensor) -> Tensor:
    return (x.float() - y).abs().mean()


def _require_one_shape(spec: DataSpec, given: Any) -> None:
    if "source" not in given:
        raise ValueError("CycleGAN translates: set given to [source].")
    if spec.source is not None and spec.source.shape != spec.shape:
        raise ValueError(
            f"CycleGAN needs images and sources of one shape, got {spec.shape} and {spec.source.shape}: give "
            "both the same size and channels."
        )
