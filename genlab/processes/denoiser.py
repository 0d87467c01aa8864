"""From a trained network to the denoiser that samplers and likelihoods walk with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from genlab.processes.base import Denoiser, Level, Process
from genlab.processes.prediction import Prediction

Network = Callable[..., Tensor]


class NetworkDenoiser(Denoiser):
    """A network's view of x, with guidance by labels.

        E = E_without + guidance (E_with - E_without)

    Ho and Salimans 2022 (arXiv:2207.12598), equation 6, whose w is guidance - 1: 1 is the conditional model,
    0 the unconditional one. Guiding x or the noise is the same, since x_t ties them linearly.

    Args:
        network: Called with (c_in x_t, time) and, by name, what it is told.
        process, prediction: What the network was trained for.
        given: What it is told of each row, such as its label.
        guidance: Above 1, samples fit what they are told better and vary less.
        free: What stands for "anything" in place of it; None where the network never saw that.
        clip: Keep the estimate in [-1, 1], where images lie.
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        prediction: Prediction,
        given: Mapping[str, Tensor] | None = None,
        guidance: float = 1.0,
        free: Mapping[str, Tensor] | None = None,
        clip: bool = False,
    ) -> None:
        if guidance != 1.0 and (not given or free is None):
            raise ValueError(
                f"guidance {guidance} needs labels and a model trained without some of them; "
                "train with guidance.dropout above 0, or leave guidance.scale at 1."
            )
        self.network, self.process, self.prediction = network, process, prediction
        self.given, self.guidance, self.free, self.clip = dict(given or {}), guidance, free, clip

    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        return self.with_variance(x_t, level)[0]

    def with_variance(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        alpha, sigma = (torch.tensor(value, dtype=torch.float64) for value in (level.alpha, level.sigma))
        c_skip, c_out = (scale.item() for scale in self.prediction.scales(alpha, sigma))
        c_in = self.prediction.input_scale(alpha, sigma).item()
        output, v = split_variance(self._guided((c_in * x_t).float(), level.t), x_t.shape[1])
        x = c_skip * x_t + c_out * output
        return (x.clamp(-1.0, 1.0) if self.clip else x), v

    def _guided(self, scaled: Tensor, t: float) -> Tensor:
        time = self.process.network_time(torch.full((len(scaled),), t, dtype=torch.float64))
        time = time.float().to(scaled.device)
        if self.guidance == 1.0:
            return self.network(scaled, time, **self.given)
        assert self.free is not None
        told = {name: torch.cat([value, self.free[name]]) for name, value in self.given.items()}
        # One pass of twice the rows fills a device better than two passes.
        given, free = self.network(torch.cat([scaled, scaled]), torch.cat([time, time]), **told).chunk(2)
        return free + self.guidance * (given - free)


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """Returns the mean's part of an output, and v in [0, 1] where the network has twice the channels."""
    if output.shape[1] == channels:
        return output, None
    return output[:, :channels], (output[:, channels:] + 1.0) / 2.0
