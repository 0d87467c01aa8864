"""The discrete chain of DDPM."""

from __future__ import annotations

import torch
from torch import Tensor

from genlab.processes.base import Process
from genlab.processes.schedules import LinearSchedule, Schedule


class DiscreteChain(Process):
    """Adds noise in T steps that keep the variance.

        x_t = sqrt(alpha_bar_t) x + sqrt(1 - alpha_bar_t) eps,    alpha_bar_t = prod_{i <= t} (1 - beta_i)

    Ho et al. 2020 (arXiv:2006.11239), equation 4, with the paper's numbers t = 1 ... T: time 0 is the data
    and no level of the table, so that alpha_bar_1 < 1. Between two steps log(sigma / alpha) is interpolated,
    which lets ODE solvers walk over a chain.

    Args:
        num_steps: T.
        schedule: The betas; linear as in the paper where it is left out.

    Shapes:
        t: (batch,), 1 ... T.
    """

    def __init__(self, num_steps: int = 1000, schedule: Schedule | None = None) -> None:
        if num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, got {num_steps}.")
        self.num_steps = num_steps
        self.start, self.end = 1.0, float(num_steps)
        self.betas = (schedule or LinearSchedule()).betas(num_steps)
        if not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise ValueError(f"A schedule of {num_steps} steps has a beta outside (0, 1); take more steps.")
        log_alpha_bar = torch.log1p(-self.betas).cumsum(0)
        self.alpha_bar = log_alpha_bar.exp()
        self._log_ratio = 0.5 * (torch.log(-torch.expm1(log_alpha_bar)) - log_alpha_bar)
        self._copies: dict[torch.device, Tensor] = {}

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-2.0 * self._log_ratio_at(t)).sqrt()

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sigmoid(2.0 * self._log_ratio_at(t)).sqrt()

    def time_of(self, ratio: Tensor) -> Tensor:
        table = self._table(ratio.device)
        wanted = ratio.log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above + (wanted - low) / (high - low)

    def training_time(self, u: Tensor) -> Tensor:
        return (u.double() * self.num_steps).floor().clamp(max=self.num_steps - 1) + 1.0

    def network_time(self, t: Tensor) -> Tensor:
        return (t - 1.0) * (1000.0 / self.num_steps)

    def snapped(self, times: Tensor) -> Tensor:
        return times.round()

    def _log_ratio_at(self, t: Tensor) -> Tensor:
        table = self._table(t.device)
        place = t.double().clamp(1.0, self.end) - 1.0
        below = place.floor().long().clamp(max=len(table) - 2)
        return torch.lerp(table[below], table[below + 1], place - below)

    def _table(self, device: torch.device) -> Tensor:
        # Not a buffer: a model moved to half precision would take the table along.
        if device not in self._copies:
            self._copies[device] = self._log_ratio.to(device)
        return self._copies[device]
