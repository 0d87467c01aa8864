"""Whole flows, from the data to a flat latent: layers in the order of their papers."""

from __future__ import annotations

import math

from genlab.bijections.base import Bijection, Chain, ConditionerFactory
from genlab.bijections.coupling import CheckerboardCoupling, Coupling, Split
from genlab.bijections.elementwise import Affine, Elementwise
from genlab.bijections.layers import (
    ActNorm,
    Centre,
    Flatten,
    InvertibleLinear,
    LearnedPrior,
    Logit,
    Squeeze,
)
from genlab.networks.conditioner import LinearConvConditioner
from genlab.shapes import DataSpec


class CouplingFlow(Chain):
    """Couplings of the two halves of a vector in turn; of an image as a vector, of every second pixel.

    NICE (Dinh et al. 2015, arXiv:1410.8516) with `Additive`, RealNVP (arXiv:1605.08803) with `Affine`, neural
    spline flows (Durkan et al. 2019, arXiv:1906.04032) with `Spline`.

    Args:
        spec: The data; with classes, networks and prior are told the label.
        network: Conditioner of a coupling, from vectors to vectors.
        transform: Map of the couplings.
        num_couplings: Each changes one half; three are the least that let every number depend on every other.
        norm: Put an ActNorm before each coupling, which also standardises the data.
        mix: Put an invertible matrix after each ActNorm; for more than two dimensions.
        learned_prior: End with a learned mean and deviation, of each class where there are classes.
        alpha: For images, the margin of a logit before everything else; 0 only centres.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: ConditionerFactory,
        transform: Elementwise | None = None,
        num_couplings: int = 8,
        norm: bool = True,
        mix: bool = False,
        learned_prior: bool = True,
        alpha: float = 0.0,
    ) -> None:
        _require_at_least_one("num_couplings", num_couplings)
        layers: list[Bijection] = []
        if spec.is_grid:
            layers += [*from_pixels(spec, alpha), Flatten(spec.shape, interleave=True)]
        flat = DataSpec(spec.name, (math.prod(spec.shape),), spec.num_classes, spec.levels)
        for number in range(num_couplings):
            layers += [ActNorm(flat.shape[0])] if norm else []
            layers += [InvertibleLinear(flat.shape[0])] if mix else []
            layers.append(Coupling(flat, network, transform or Affine(), swap=bool(number % 2)))
        super().__init__([*layers, LearnedPrior(flat)] if learned_prior else layers)


class RealNVP(Chain):
    """RealNVP for images: checkerboard couplings, squeeze, channel couplings, split; again on what is kept.

    Dinh et al. 2017 (arXiv:1605.08803), section 3.6. ActNorm stands where the paper has batch norm, whose
    statistics of the batch make the likelihood of one image depend on the others.

    Args:
        spec: The images; with classes, networks and priors are told the label.
        network: Conditioner of the couplings, from images to images.
        transform: Map of the couplings.
        num_scales: Each but the last halves the sides; 28 = 7 x 2^2 pixels allow 3 of them.
        num_couplings: Couplings of one kind in each scale, one more of them in the last; 3 in the paper.
        alpha: Margin of the logit before everything else, 0.05 in the paper; 0 only centres.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: ConditionerFactory,
        transform: Elementwise | None = None,
        num_scales: int = 2,
        num_couplings: int = 3,
        alpha: float = 0.05,
    ) -> None:
        _require_at_least_one("num_couplings", num_couplings)
        _require_halvings(spec, "num_scales", num_scales, num_scales - 1)
        transform = transform or Affine()
        super().__init__(
            [*from_pixels(spec, alpha), self._scale(spec, network, transform, num_scales, num_couplings)]
        )

    def _scale(
        self, spec: DataSpec, network: ConditionerFactory, transform: Elementwise, num_scales: int, num: int
    ) -> Bijection:
        if num_scales == 1:
            layers = self._couplings(CheckerboardCoupling, spec, network, transform, num + 1)
            return Chain([*layers, LearnedPrior(spec), Flatten(spec.shape)])
        fields = self._couplings(CheckerboardCoupling, spec, network, transform, num)
        small = squeezed(spec)
        channels = self._couplings(Coupling, small, network, transform, num)
        rest = self._scale(kept_half(small), network, transform, num_scales - 1, num)
        return Chain([*fields, Squeeze(), *channels, Split(small, LinearConvConditioner, Affine(), rest)])

    @staticmethod
    def _couplings(
        kind: type[Coupling] | type[CheckerboardCoupling],
        spec: DataSpec,
        network: ConditionerFactory,
        transform: Elementwise,
        num: int,
    ) -> list[Bijection]:
        layers: list[Bijection] = []
        for number in range(num):
            layers += [ActNorm(spec.shape[0]), kind(spec, network, transform, swap=bool(number % 2))]
        return layers


class Glow(Chain):
    """Glow: squeeze, steps of (ActNorm, 1x1 convolution, coupling), split; again on what is kept.

    Kingma and Dhariwal 2018 (arXiv:1807.03039), figure 2.

    Args:
        spec: The images; with classes, networks and priors are told the label.
        network: Conditioner of the couplings, from images to images.
        transform: Map of the couplings.
        num_levels: L, each halves the sides; 3 for 32 pixels in the paper.
        num_steps: K in each level; 32 in the paper.
        alpha: Margin of a logit before everything else; 0, as in the paper, only centres.
    """

    def __init__(
        self,
        spec: DataSpec,
        network: ConditionerFactory,
        transform: Elementwise | None = None,
        num_levels: int = 3,
        num_steps: int = 32,
        alpha: float = 0.0,
    ) -> None:
        _require_at_least_one("num_steps", num_steps)
        _require_halvings(spec, "num_levels", num_levels, num_levels)
        transform = transform or Affine()
        super().__init__(
            [*from_pixels(spec, alpha), self._level(spec, network, transform, num_levels, num_steps)]
        )

    def _level(
        self, spec: DataSpec, network: ConditionerFactory, transform: Elementwise, num_levels: int, num: int
    ) -> Bijection:
        small = squeezed(spec)
        layers: list[Bijection] = [Squeeze()]
        for _ in range(num):
            channels = small.shape[0]
            layers += [ActNorm(channels), InvertibleLinear(channels), Coupling(small, network, transform)]
        if num_levels == 1:
            return Chain([*layers, LearnedPrior(small), Flatten(small.shape)])
        rest = self._level(kept_half(small), network, transform, num_levels - 1, num)
        return Chain([*layers, Split(small, LinearConvConditioner, Affine(), rest)])


def from_pixels(spec: DataSpec, alpha: float) -> list[Bijection]:
    """Returns the layer that takes numbers in (0, 1) to the line; none for codes, which have no levels."""
    if not spec.levels:
        return []
    return [Logit(alpha) if alpha else Centre()]


def squeezed(spec: DataSpec) -> DataSpec:
    """Returns the spec of what `Squeeze` makes."""
    channels, height, width = spec.shape
    return DataSpec(spec.name, (4 * channels, height // 2, width // 2), spec.num_classes, spec.levels)


def kept_half(spec: DataSpec) -> DataSpec:
    """Returns the spec of what `Split` keeps."""
    return DataSpec(spec.name, ((spec.shape[0] + 1) // 2, *spec.shape[1:]), spec.num_classes, spec.levels)


def _require_halvings(spec: DataSpec, name: str, value: int, num_halvings: int) -> None:
    if not spec.is_grid:
        raise ValueError(f"This flow needs images, but {spec.name} has shape {spec.shape}; use CouplingFlow.")
    _require_at_least_one(name, value)
    height, width = spec.shape[1:]
    fitting = max(n for n in range(32) if height % 2**n == 0 and width % 2**n == 0)
    if num_halvings > fitting:
        most = value - num_halvings + fitting
        raise ValueError(f"{name} {value} does not fit {height} x {width} pixels: at most {most}.")


def _require_at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
