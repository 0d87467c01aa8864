"""Codebooks: vectors to the number of the nearest of a few learned ones, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import embedding

from genlab import randomness


class Codebook(nn.Module, ABC):
    """A table of num_codes vectors.

    Args:
        code_dim: Length of the vectors.
        num_codes: Number of vectors; a place then holds log2(num_codes) bits.

    Shapes:
        z: (..., code_dim).
        index: (...,), int64.
    """

    codes: Tensor

    def __init__(self, code_dim: int, num_codes: int) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, got {num_codes}.")
        self.code_dim, self.num_codes = code_dim, num_codes

    def forward(self, z: Tensor) -> Tensor:
        """Returns the number of the nearest code: argmin_k |z - e_k|^2, the first of equals."""
        # In 32 bits at any precision: codes lie closer than bfloat16 can tell apart.
        with torch.autocast(z.device.type, enabled=False):
            z, codes = z.detach().float(), self.codes.detach().float()
            # |z|^2 is the same for every code, which leaves the largest z e_k - |e_k|^2 / 2.
            closeness = (z @ codes.T).sub_(0.5 * codes.square().sum(dim=1))
        # On a CPU, max finds the place four times as fast as argmax.
        return closeness.max(dim=-1).indices

    def look_up(self, index: Tensor) -> Tensor:
        """Returns the vectors of code numbers, (..., code_dim)."""
        return embedding(index, self.codes)

    @abstractmethod
    def update(self, z: Tensor, index: Tensor) -> Tensor:
        """Moves the codes after a training batch, where no gradient does; returns the batch's `counts`.

        Args:
            z: (batch, places, code_dim).
            index: (batch, places).
        """

    def counts(self, index: Tensor) -> Tensor:
        """Returns how often each code was used, over all devices, (num_codes,)."""
        return joined_sum(torch.bincount(index.flatten(), minlength=self.num_codes).float())


class LearnedCodebook(Codebook):
    """A codebook whose vectors are parameters: the codebook loss |sg[z] - e|^2 pulls them to the encoder.

    Van den Oord et al. 2017 (arXiv:1711.00937), equation 3.

    Args:
        code_dim: Length of the vectors.
        num_codes: Number of vectors.
    """

    def __init__(self, code_dim: int, num_codes: int = 512) -> None:
        super().__init__(code_dim, num_codes)
        self.codes = nn.Parameter(first_codes(num_codes, code_dim))

    def update(self, z: Tensor, index: Tensor) -> Tensor:
        """Moves nothing, which the gradient does; returns the counts."""
        return self.counts(index)


class EMACodebook(Codebook):
    """A codebook whose vectors are running means of the encoder's outputs that chose them.

        N_k <- d N_k + (1 - d) n_k,     m_k <- d m_k + (1 - d) sum of z that chose k
        e_k = m_k / N'_k,               N'_k = (N_k + eps) / (N + K eps) N,  N = sum of N_k

    Van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1; the smoothed counts N' are never stored. A code
    that nobody chose stays where it is. One that has been chosen less than `reset_below` times a batch starts
    anew, count and sum too, at a random output of the encoder (Dhariwal et al. 2020, arXiv:2005.00341); so do
    all at the first batch.

    Sums go over all devices and row j on rank r of w is row r + w j of the joined batch, so that w devices
    keep the codebook that one device would have with the whole batch.

    Args:
        code_dim: Length of the vectors.
        num_codes: Number of vectors.
        decay: d above; 0 gives each batch's own means.
        epsilon: Laplace smoothing of the counts.
        reset_below: Running uses a batch below which a code starts anew; 0 for never.
    """

    running_counts: Tensor
    running_sums: Tensor
    num_updates: Tensor

    def __init__(
        self,
        code_dim: int,
        num_codes: int = 512,
        decay: float = 0.99,
        epsilon: float = 1e-5,
        reset_below: float = 0.1,
    ) -> None:
        super().__init__(code_dim, num_codes)
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), got {decay}.")
        if not 0.0 <= reset_below < 1.0:
            raise ValueError(f"reset_below must be in [0, 1), the count of a new code, got {reset_below}.")
        self.decay, self.epsilon, self.reset_below = decay, epsilon, reset_below
        codes = first_codes(num_codes, code_dim)
        self.register_buffer("codes", codes)
        # With a count of 1 and its own vector as sum, a code that is never chosen is its own mean.
        self.register_buffer("running_counts", torch.ones(num_codes))
        self.register_buffer("running_sums", codes.clone())
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, z: Tensor, index: Tensor) -> Tensor:
        z = z.detach().float()
        counts = self.counts(index)
        self._average(counts, self._sums(z, index))
        self._reset(z)
        self.num_updates += 1
        return counts

    def _average(self, counts: Tensor, sums: Tensor) -> None:
        self.running_counts.lerp_(counts, 1.0 - self.decay)
        self.running_sums.lerp_(sums, 1.0 - self.decay)
        total = self.running_counts.sum()
        smoothed = (self.running_counts + self.epsilon) / (total + self.num_codes * self.epsilon) * total
        # Sum and count of an unchosen code fall together: its mean is what it was.
        chosen = (counts > 0)[:, None]
        self.codes.copy_(torch.where(chosen, self.running_sums / smoothed[:, None], self.codes))

    def _reset(self, z: Tensor) -> None:
        # No `if`: asking whether any code is dead would wait for the device in every step.
        dead = (self.running_counts < self.reset_below) | ((self.num_updates == 0) & (self.reset_below > 0))
        fresh = self._random_rows(z)
        self.codes.copy_(torch.where(dead[:, None], fresh, self.codes))
        self.running_sums.copy_(torch.where(dead[:, None], fresh, self.running_sums))
        self.running_counts.masked_fill_(dead, 1.0)

    def _sums(self, z: Tensor, index: Tensor) -> Tensor:
        sums = z.new_zeros(self.num_codes, self.code_dim)
        return joined_sum(sums.index_add_(0, index.flatten(), z.flatten(0, -2)))

    def _random_rows(self, z: Tensor) -> Tensor:
        """Returns one random vector of the joined batch for each code, the same on every device."""
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed() else (0, 1)
        batch, places = z.shape[:2]
        numbers = torch.arange(self.num_codes, device=z.device) + self.num_codes * self.num_updates
        draw = randomness.uniform(randomness.key("codebook"), numbers, 1)[:, 0]
        row = (draw * (batch * world_size * places)).long()
        item, place = row // places, row % places
        mine = z[item // world_size, place] * (item % world_size == rank)[:, None]
        return joined_sum(mine)


def first_codes(num_codes: int, code_dim: int) -> Tensor:
    """Returns small random vectors, uniform in (-1/K, 1/K) as in the paper's own code."""
    return torch.empty(num_codes, code_dim).uniform_(-1.0 / num_codes, 1.0 / num_codes)


def joined_sum(values: Tensor) -> Tensor:
    """Returns the sum over all devices, asking anew each time: models are built before processes meet."""
    if distributed():
        dist.all_reduce(values)
    return values


def distributed() -> bool:
    """Returns whether this process is one of several."""
    return dist.is_available() and dist.is_initialized()
