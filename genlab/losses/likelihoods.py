"""How probable an image is, given what a decoder says about each of its pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid

from genlab.losses.precision import at_least_float32
from genlab.shapes import DataSpec, to_float, to_levels

LOG_SCALES = (-7.0, 7.0)  # a thousandth is narrower than half a level of 256, a thousand is flat
TAIL = -20.0  # where the expansion of the normal tail is right to single precision


class PixelLikelihood(nn.Module, ABC):
    """A distribution of every pixel, independent of the other pixels given the decoder's output.

        log p(x | z) = sum over pixels of log p(x_i | parameters_i)

    For data with levels this is the probability of the pixels' own levels, so that nats and bits per
    dimension of all models stand on one scale; for continuous data it is a density.

    Args:
        spec: The data.

    Shapes:
        parameters: (batch, *parameter_shape), what the decoder returns.
        x: (batch, *spec.shape), levels as floats in [-1, 1].
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    num_parameters = 1
    """Numbers that the decoder gives for each pixel and channel."""

    couples_channels = False
    """Whether a channel's distribution depends on the earlier channels of its pixel."""

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        """Shape of one item of the decoder's output: as the data, with num_parameters times the channels."""
        channels, *rest = self.spec.shape
        return (channels * self.num_parameters, *rest)

    def forward(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Returns log p(x | z) in nats, (batch,)."""
        by_pixel = self.log_prob(at_least_float32(parameters), at_least_float32(x))
        return by_pixel.flatten(1).sum(dim=1)

    @abstractmethod
    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Returns the log-probability of each pixel, of x's shape."""

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """Returns the expected pixels, in [-1, 1] for images."""

    num_uniforms = 1
    """Uniform numbers that it takes to draw one item's pixel, for each channel."""

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns pixels drawn by their probability, (batch, *spec.shape), levels as floats in [-1, 1].

        Args:
            parameters: What the decoder returned.
            u: Uniform numbers in (0, 1), (batch, num_uniforms, *spec.shape).
            temperature: 1 draws what was learned, near 0 what is likeliest.

        Raises:
            ValueError: The distribution is not drawn from pixel by pixel.
        """
        raise ValueError(f"{type(self).__name__} is not drawn from pixel by pixel; take Softmax.")

    def _split(self, parameters: Tensor) -> Tensor:
        """Returns the parameters as (batch, num_parameters, *spec.shape)."""
        return parameters.unflatten(1, (self.num_parameters, self.spec.shape[0]))

    def _edges(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the lower and upper edge of the levels' bins, and where they are the lowest and highest.

        Level k of K lies at 2 k / (K - 1) - 1; its bin reaches half a step to both sides, and the outermost
        bins to infinity.
        """
        half = 1.0 / (self.spec.levels - 1)
        return x - half, x + half, x < -1.0 + half, x > 1.0 - half


LikelihoodFactory = Callable[[DataSpec], PixelLikelihood]


class Bernoulli(PixelLikelihood):
    """Pixels that are black or white: p(white) = sigmoid(logit).

    For two levels only. A cross-entropy against grey pixels is no likelihood of anything; binarise the data
    instead, as `--data.binarize true` does for MNIST.

    Args:
        spec: The data, of 2 levels.

    Raises:
        ValueError: For any other number of levels.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        if spec.levels != 2:
            raise ValueError(
                f"Bernoulli needs data of 2 levels, but {spec.name} has {spec.levels}; binarise the data "
                f"(--data.binarize true) or take DiscretizedLogistic."
            )

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return logsigmoid(parameters * x.sign())

    def mean(self, parameters: Tensor) -> Tensor:
        return 2.0 * torch.sigmoid(parameters.float()) - 1.0

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        white = u[:, 0] < torch.sigmoid(parameters.double() / temperature)
        return 2.0 * white.to(parameters.dtype) - 1.0


class Softmax(PixelLikelihood):
    """Every level with a probability of its own, whatever its neighbours'.

        p(level k) = softmax(logits)_k          van den Oord et al. 2016 (arXiv:1601.06759), section 3

    Args:
        spec: The data, with levels.

    Raises:
        ValueError: For continuous data.
    """

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        if spec.levels < 2:
            raise ValueError(f"Softmax needs data with levels, but {spec.name} is continuous; take Gaussian.")
        self.num_parameters = spec.levels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        # A cross-entropy and not a log_softmax, which would keep a number for every level of every pixel.
        levels = to_levels(x, self.spec.levels).long()
        return -cross_entropy(self._split(parameters), levels, reduction="none")

    def mean(self, parameters: Tensor) -> Tensor:
        return torch.einsum("bk...,k->b...", self._split(parameters.float()).softmax(dim=1), self._values())

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        return to_float(drawn_class(self._split(parameters), u, temperature), self.spec.levels)

    def _values(self) -> Tensor:
        return to_float(torch.arange(self.spec.levels), self.spec.levels)


class OneHot(PixelLikelihood):
    """Pixels of which one channel is 1 and the others 0, as of a code: p(channel k is 1) = softmax(logits)_k.

    Args:
        spec: The pixels, (classes, height, width).
    """

    couples_channels = True

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Returns the log-probability of each whole pixel, (batch, 1, height, width)."""
        return -cross_entropy(parameters, x.argmax(dim=1), reduction="none")[:, None]

    def mean(self, parameters: Tensor) -> Tensor:
        return parameters.float().softmax(dim=1)

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        drawn = drawn_class(parameters, u[:, 0, :1], temperature)
        return torch.zeros_like(parameters).scatter_(1, drawn[:, None], 1.0)


class Gaussian(PixelLikelihood):
    """Normally distributed pixels whose standard deviation is learned.

        density                 N(x; mean, std^2)                                      continuous data
        probability of a level  Phi((x + h - mean) / std) - Phi((x - h - mean) / std),  h half a level's width

    with the outermost levels taking the tails, so that the levels' probabilities sum to 1. A fixed std of 1
    would weigh reconstruction against the KL by an arbitrary factor (Rybkin et al. 2021, arXiv:2006.13202).

    Args:
        spec: The data.
        per_pixel: Let the decoder give a std for each pixel; otherwise one is learned for all of them.
    """

    def __init__(self, spec: DataSpec, per_pixel: bool = False) -> None:
        super().__init__(spec)
        self.num_parameters = 2 if per_pixel else 1
        self.log_std = None if per_pixel else nn.Parameter(torch.tensor(-1.0))

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        mean, log_std = self._mean_and_log_std(parameters)
        if not self.spec.levels:
            standard = (x - mean) * (-log_std).exp()
            return -0.5 * standard.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        low, high, is_lowest, is_highest = self._edges(x)
        scale = (-log_std).exp()
        return log_normal_interval((low - mean) * scale, (high - mean) * scale, is_lowest, is_highest)

    def mean(self, parameters: Tensor) -> Tensor:
        mean = self._mean_and_log_std(parameters.float())[0]
        return mean.clamp(-1.0, 1.0) if self.spec.kind == "image" else mean

    def _mean_and_log_std(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        split = self._split(parameters)
        log_std = split[:, 1] if self.log_std is None else self.log_std
        return split[:, 0], log_std.clamp(*LOG_SCALES)


class DiscretizedLogistic(PixelLikelihood):
    """A mixture of logistic distributions, integrated over the bin of each level.

        p(x) = sum_k w_k [sigmoid((x + h - m_k) / s_k) - sigmoid((x - h - m_k) / s_k)]

    Salimans et al. 2017 (arXiv:1701.05517), section 2.1, each channel by itself; Kingma et al. 2016 for one
    component. The outermost levels take the tails, so that the levels' probabilities sum to 1.

    Args:
        spec: The data, with levels.
        num_components: Logistic distributions in the mixture; 1 has one peak for each pixel.

    Raises:
        ValueError: For continuous data.
    """

    def __init__(self, spec: DataSpec, num_components: int = 1) -> None:
        super().__init__(spec)
        if spec.levels < 2:
            raise ValueError(
                f"DiscretizedLogistic needs data with levels, but {spec.name} is continuous; take Gaussian."
            )
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}.")
        self.num_components = num_components
        # One component has no weight to choose.
        self.num_parameters = 3 * num_components if num_components > 1 else 2

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        logits, means, log_scales = self._mixture(parameters)
        low, high, is_lowest, is_highest = (edge[:, None] for edge in self._edges(x))
        inverse = (-log_scales).exp()
        by_component = log_logistic_interval(
            (low - means) * inverse, (high - means) * inverse, is_lowest, is_highest
        )
        if logits is None:
            return by_component[:, 0]
        return (logits.log_softmax(dim=1) + by_component).logsumexp(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        logits, means, _ = self._mixture(parameters.float())
        weights = torch.ones_like(means) if logits is None else logits.softmax(dim=1)
        return (weights * means.clamp(-1.0, 1.0)).sum(dim=1)

    @property
    def num_uniforms(self) -> int:  # type: ignore[override]
        return 2 if self.num_components > 1 else 1

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        logits, means, log_scales = self._mixture(parameters)
        if logits is not None:
            mass = (logits.double() / temperature).softmax(dim=1).cumsum(dim=1)
            chosen = (mass[:, :-1] < u[:, 1:] * mass[:, -1:]).sum(dim=1, keepdim=True)
            means, log_scales = means.gather(1, chosen), log_scales.gather(1, chosen)
        value = means[:, 0] + log_scales[:, 0].exp() * temperature * torch.logit(u[:, 0]).to(means.dtype)
        return nearest_level(value, self.spec.levels)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        """Returns the components' logits, where there are several, their means and log scales."""
        *logits, means, log_scales = self._split(parameters).split(self.num_components, dim=1)
        if logits:
            # Apart from the start: components that begin alike have equal gradients and stay alike.
            means = means + torch.linspace(-0.5, 0.5, self.num_components).to(means).reshape(
                1, -1, *[1] * (means.dim() - 2)
            )
        # Shifted, so that a decoder that still says 0 gives a scale of a seventh of the range.
        return logits[0] if logits else None, means, (log_scales - 2.0).clamp(*LOG_SCALES)


class CoupledLogistics(PixelLikelihood):
    """A mixture of logistic distributions of whole pixels, whose later channels follow from earlier ones.

        p(r, g, b) = sum_k w_k L(r; m_kr, s_kr) L(g; m_kg + a_k r, s_kg) L(b; m_kb + b_k r + c_k g, s_kb)

    with L the mass of a level's bin under a logistic. Salimans et al. 2017 (arXiv:1701.05517), section 2.2:
    one choice of a component and a straight line within it stand for what the channels have in common. Of
    one channel it is DiscretizedLogistic.

    Args:
        spec: The data, with levels.
        num_components: Of the mixture; the paper's 10.

    Raises:
        ValueError: For continuous data.
    """

    couples_channels = True
    num_uniforms = 2

    def __init__(self, spec: DataSpec, num_components: int = 10) -> None:
        super().__init__(spec)
        if spec.levels < 2:
            raise ValueError(f"CoupledLogistics needs data with levels; {spec.name} is continuous.")
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, got {num_components}.")
        channels = spec.shape[0]
        self.num_components = num_components
        self.parts = (1, channels, channels, channels * (channels - 1) // 2)

    @property
    def parameter_shape(self) -> tuple[int, ...]:
        return (self.num_components * sum(self.parts), *self.spec.shape[1:])

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Returns the log-probability of each whole pixel, (batch, 1, height, width)."""
        logits, means, log_scales, slopes = self._mixture(parameters)
        means = means + self._from_earlier(slopes, x[:, None].expand_as(means))
        low, high, is_lowest, is_highest = (edge[:, None] for edge in self._edges(x))
        inverse = (-log_scales).exp()
        by_channel = log_logistic_interval(
            (low - means) * inverse, (high - means) * inverse, is_lowest, is_highest
        )
        return (logits.log_softmax(dim=1) + by_channel.sum(dim=2)).logsumexp(dim=1, keepdim=True)

    def mean(self, parameters: Tensor) -> Tensor:
        logits, means, _, slopes = self._mixture(parameters.float())
        return (logits.softmax(dim=1)[:, :, None] * self._in_turn(means, slopes)).sum(dim=1)

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        logits, means, log_scales, slopes = self._mixture(parameters)
        mass = (logits.double() / temperature).softmax(dim=1).cumsum(dim=1)
        chosen = (mass[:, :-1] < u[:, 1, :1] * mass[:, -1:]).sum(dim=1, keepdim=True)[:, :, None]
        means, log_scales, slopes = (
            part.gather(1, chosen.expand(-1, 1, *part.shape[2:])) for part in (means, log_scales, slopes)
        )
        spread = log_scales.exp() * temperature * torch.logit(u[:, :1]).to(means.dtype)
        return self._in_turn(means + spread, slopes)[:, 0]

    def _in_turn(self, own: Tensor, slopes: Tensor) -> Tensor:
        """Returns the channels' levels, (batch, components, channels, ...), each from its part and slopes."""
        found: list[Tensor] = []
        for channel in range(self.parts[1]):
            earlier = torch.stack([*found, *[own[:, :, 0]] * (self.parts[1] - channel)], dim=2)
            value = own[:, :, channel] + self._from_earlier(slopes, earlier)[:, :, channel]
            found.append(nearest_level(value, self.spec.levels))
        return torch.stack(found, dim=2)

    def _from_earlier(self, slopes: Tensor, x: Tensor) -> Tensor:
        """Returns what the earlier channels add to each one's mean, (batch, components, channels, ...)."""
        added, first = [torch.zeros_like(x[:, :, 0])], 0
        for channel in range(1, self.parts[1]):
            added.append((slopes[:, :, first : first + channel] * x[:, :, :channel]).sum(dim=2))
            first += channel
        return torch.stack(added, dim=2)

    def _mixture(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns logits (batch, components, ...), and means, log scales and slopes for the channels."""
        parts = parameters.unflatten(1, (self.num_components, sum(self.parts))).split(self.parts, dim=2)
        logits, means, log_scales, slopes = parts
        # Apart from the start, and of a seventh of the range, as in DiscretizedLogistic.
        centres = (
            torch.linspace(-0.5, 0.5, self.num_components) if self.num_components > 1 else torch.zeros(1)
        )
        means = means + centres.to(means).reshape(1, -1, *[1] * (means.dim() - 2))
        return logits[:, :, 0], means, (log_scales - 2.0).clamp(*LOG_SCALES), slopes.tanh()


def drawn_class(logits: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the class in which a uniform number ends the running sum of softmax(logits / temperature).

    Shapes:
        logits: (batch, classes, ...); u: (batch, 1, ...), in (0, 1). Returns (batch, ...), int64.
    """
    mass = (logits.double() / temperature).softmax(dim=1).cumsum(dim=1)
    return (mass[:, :-1] < u * mass[:, -1:]).sum(dim=1)


def nearest_level(x: Tensor, num_levels: int) -> Tensor:
    """Returns the levels whose bins hold x, as floats in [-1, 1]; the outermost bins reach to infinity."""
    return to_float(to_levels(x, num_levels), num_levels).to(x.dtype)


def log_logistic_interval(low: Tensor, high: Tensor, is_lowest: Tensor, is_highest: Tensor) -> Tensor:
    """Returns log(sigmoid(high) - sigmoid(low)) without cancellation; edges at infinity where marked.

    sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)).
    """
    log_width = torch.log(-torch.expm1((low - high).clamp(max=-1e-6)))
    below, above = logsigmoid(high), logsigmoid(-low)
    return torch.where(is_lowest, below, torch.where(is_highest, above, below + above + log_width))


def log_normal_interval(low: Tensor, high: Tensor, is_lowest: Tensor, is_highest: Tensor) -> Tensor:
    """Returns log(Phi(high) - Phi(low)); edges at infinity where marked.

    Intervals above 0 are mirrored first: there both Phi round to 1, and below 0 neither does.
    """
    mirror = low + high > 0.0
    a, b = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_a, log_b = log_ndtr(a), log_ndtr(b)
    inside = log_b + torch.log(-torch.expm1((log_a - log_b).clamp(max=-1e-6)))
    return torch.where(is_lowest, log_ndtr(high), torch.where(is_highest, log_ndtr(-low), inside))


def log_ndtr(x: Tensor) -> Tensor:
    """Returns log Phi(x), in the far tail by its expansion -x^2/2 - log(-x sqrt(2 pi)) - 1/x^2.

    There torch's own function has a gradient that is wrong by percents below -1,000 and NaN further out.
    """
    far = x.clamp(max=TAIL)
    tail = -0.5 * far.square() - (-far).log() - 0.5 * math.log(2.0 * math.pi) - far.square().reciprocal()
    return torch.where(x < TAIL, tail, torch.special.log_ndtr(x.clamp(min=TAIL)))
