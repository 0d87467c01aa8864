"""From a trained network to the denoiser that samplers and likelihoods walk with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from genlab.processes.base import Denoiser, Level, Process
from genlab.processes.prediction import Prediction

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Guide:
    """A weaker view of x, which estimates are led away from.

        E = E_guide + scale (E_network - E_guide)

    Without a network of its own it is the same one told something else, nothing as a rule: classifier-free
    guidance (Ho and Salimans 2022, arXiv:2207.12598, equation 6, whose w is scale - 1). With one, such as an
    earlier state of the network, it is autoguidance (Karras et al. 2024, arXiv:2406.02507, equation 3).

    Attributes:
        scale: 1 is the network's own view, 0 the guide's.
        given: What the guide is told, by name; it has the network's names.
        network: The guide's own; None for the network that it guides.
        interval: Where it acts: low < sigma / alpha <= high; elsewhere the network's view is taken as it is
            (Kynkäänniemi et al. 2024, arXiv:2404.07724).
    """

    scale: float
    given: Mapping[str, Tensor] = field(default_factory=dict)
    network: Network | None = None
    interval: tuple[float, float] = (0.0, math.inf)

    def acts_at(self, level: Level) -> bool:
        """Returns whether it changes anything at a level."""
        ratio = level.sigma / level.alpha if level.alpha > 0.0 else math.inf
        return self.scale != 1.0 and self.interval[0] < ratio <= self.interval[1]


class NetworkDenoiser(Denoiser):
    """A network's view of x, led away from a guide's where there is one.

    Guiding x, the noise or the network's output is the same, since x_t ties them linearly. A learned variance
    is the network's own.

    Args:
        network: Called with (c_in x_t, time) and, by name, what it is told.
        process, prediction: What the network, and the guide's, was trained for.
        given: What it is told of each row, such as its label.
        guide: What it is led away from.
        clip: Keep the estimate in [-1, 1], where images lie.
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        prediction: Prediction,
        given: Mapping[str, Tensor] | None = None,
        guide: Guide | None = None,
        clip: bool = False,
    ) -> None:
        self.network, self.process, self.prediction = network, process, prediction
        self.given, self.guide, self.clip = dict(given or {}), guide, clip

    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        return self.with_variance(x_t, level)[0]

    def with_variance(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in (level.alpha, level.sigma))
        c_skip, c_out = (scale.item() for scale in self.prediction.scales(alpha, sigma))
        c_in = self.prediction.input_scale(alpha, sigma).item()
        output, v = self._outputs((c_in * x_t).float(), level)
        x = c_skip * x_t + c_out * output
        return (x.clamp(-1.0, 1.0) if self.clip else x), v

    def _outputs(self, scaled: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        time = self.process.network_time(torch.full((len(scaled),), level.t, dtype=torch.float64))
        time, channels = time.float().to(scaled.device), scaled.shape[1]
        if self.guide is None or not self.guide.acts_at(level):
            return split_variance(self.network(scaled, time, **self.given), channels)
        own, guides = self._both(self.guide, scaled, time)
        (output, v), (weaker, _) = split_variance(own, channels), split_variance(guides, channels)
        return weaker + self.guide.scale * (output - weaker), v

    def _both(self, guide: Guide, scaled: Tensor, time: Tensor) -> tuple[Tensor, ...]:
        if guide.network is not None:
            return self.network(scaled, time, **self.given), guide.network(scaled, time, **guide.given)
        told = {name: torch.cat([value, guide.given[name]]) for name, value in self.given.items()}
        # One pass of twice the rows fills a device better than two passes.
        return self.network(torch.cat([scaled, scaled]), torch.cat([time, time]), **told).chunk(2)


class CountedPasses(Denoiser):
    """Counts how often networks are asked in a walk, without asking them: standard normal data stand in.

    Args:
        guide: What would guide the network; it doubles the passes where it acts.

    Attributes:
        passes: The number so far.
    """

    def __init__(self, guide: Guide | None) -> None:
        self.guide, self.passes = guide, 0

    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        self.passes += 2 if self.guide is not None and self.guide.acts_at(level) else 1
        return level.alpha / (level.alpha**2 + level.sigma**2) * x_t


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Returns the mean's part of an output, and v in [0, 1] where the network has twice the channels."""
    if output.shape[1] == channels:
        return output, None
    return output[:, :channels], (output[:, channels:] + 1.0) / 2.0
