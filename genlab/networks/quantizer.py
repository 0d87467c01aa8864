"""Quantisers: vectors to the number of one of finitely many codes, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from genlab import randomness
from genlab.distributed import joined_counts, joined_sum, place


class Quantizer(nn.Module, ABC):
    """Finitely many vectors, the codes, one of which stands for each vector that comes in.

    Args:
        code_dim: Length of the vectors.
        num_codes: Number of codes; a place then holds log2(num_codes) bits.

    Shapes:
        z, codes: (..., code_dim).
        index: (...,), int64.
    """

    def __init__(self, code_dim: int, num_codes: int) -> None:
        super().__init__()
        if num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, got {num_codes}.")
        self.code_dim, self.num_codes = code_dim, num_codes

    @abstractmethod
    def forward(self, z: Tensor) -> Tensor:
        """Returns the number of the code that stands for each vector."""

    @abstractmethod
    def look_up(self, index: Tensor) -> Tensor:
        """Returns the vectors of code numbers."""

    def nearest(self, codes: Tensor) -> Tensor:
        """Returns the number of the code next to each vector: the way back of `look_up`, and around it."""
        return self(codes)

    def rounded(self, z: Tensor) -> Tensor:
        """Returns the codes next to vectors, with the gradient of the vectors."""
        return straight_through(z, self.look_up(self.nearest(z)))

    def passed(self, z: Tensor, codes: Tensor) -> Tensor:
        """Returns the codes of z as a decoder takes them, whose gradient goes on to z."""
        return straight_through(z, codes)

    def losses(self, z: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Returns what z and its codes add to a loss under "loss", and named parts of it."""
        return {"loss": torch.zeros((), device=z.device)}

    def update(self, z: Tensor, index: Tensor) -> Tensor:
        """Moves the codes after a training batch, where no gradient does; returns the batch's `counts`.

        Args:
            z: (batch, places, code_dim).
            index: (batch, places).
        """
        return self.counts(index)

    def counts(self, index: Tensor) -> Tensor:
        """Returns how often each code was used, over all devices, (num_codes,)."""
        return joined_counts(index, self.num_codes)


class Codebook(Quantizer):
    """A table of vectors, the nearest of which stands for a vector.

    Args:
        code_dim: Length of the vectors.
        num_codes: Number of vectors.
        commitment: beta of `losses`: how hard the encoder is held to its codes; the paper uses 0.25.
    """

    codes: Tensor

    def __init__(self, code_dim: int, num_codes: int, commitment: float = 0.25) -> None:
        super().__init__(code_dim, num_codes)
        if commitment < 0:
            raise ValueError(f"commitment must not be negative, got {commitment}.")
        self.commitment = commitment

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
        return embedding(index, self.codes)

    def losses(self, z: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Returns beta |z - sg[e]|^2, a mean over its numbers, with "commitment" not yet weighted."""
        distance = (z.float() - codes.detach()).square().mean()
        return {"loss": self.commitment * distance, "commitment": distance}


class LearnedCodebook(Codebook):
    """A codebook whose vectors are parameters: the codebook loss |sg[z] - e|^2 pulls them to the encoder.

    Van den Oord et al. 2017 (arXiv:1711.00937), equation 3.

    Args:
        code_dim: Length of the vectors.
        num_codes: Number of vectors.
        commitment: As in `Codebook`.
    """

    def __init__(self, code_dim: int, num_codes: int = 512, commitment: float = 0.25) -> None:
        super().__init__(code_dim, num_codes, commitment)
        self.codes = nn.Parameter(first_codes(num_codes, code_dim))

    def losses(self, z: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Returns the commitment, and where the codes learn |sg[z] - e|^2 beside it."""
        losses = super().losses(z, codes)
        if codes.requires_grad:
            losses["loss"] = losses["loss"] + (z.detach().float() - codes).square().mean()
        return losses


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
        commitment: As in `Codebook`.
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
        commitment: float = 0.25,
    ) -> None:
        super().__init__(code_dim, num_codes, commitment)
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
        rank, world_size = place()
        batch, places = z.shape[:2]
        numbers = torch.arange(self.num_codes, device=z.device) + self.num_codes * self.num_updates
        draw = randomness.uniform(randomness.key("codebook"), numbers, 1)[:, 0]
        chosen = (draw * (batch * world_size * places)).long()
        item, at = chosen // places, chosen % places
        mine = z[item // world_size, at] * (item % world_size == rank)[:, None]
        return joined_sum(mine)


class FSQ(Quantizer):
    """Finite scalar quantisation: every number of a vector is bounded and rounded by itself.

        f(z) = (L - 1)/2 tanh(z + s) - o,    q = round(f(z)),    code = q / floor(L/2)

    with o = 1/2 and s = artanh(2 o / (L - 1)) for an even L, so that f(0) = 0, and o = s = 0 for an odd one.
    Mentzer et al. 2023 (arXiv:2309.15505), section 3.1 and appendix A.1. The gradient passes the rounding
    unchanged, and then f. The codes are all the points of a grid in [-1, 1]: nothing is learned of them, no
    term holds the encoder to them and none can fall out of use for good.

    Code k has the digits k = q'_1 + L_1 q'_2 + L_1 L_2 q'_3 ..., where q' = q + floor(L/2) in 0 ... L - 1.

    Args:
        code_dim: Length of the vectors: that of levels. The networks around are what projects.
        levels: L of each number; the paper's sizes are [8, 6, 5] for 240 codes, [8, 5, 5, 5] for 1,000 and
            [7, 5, 5, 5, 5] for 4,375.

    Raises:
        ValueError: For fewer than 3 levels, or a vector of another length.
    """

    middle: Tensor
    sizes: Tensor
    strides: Tensor

    def __init__(self, code_dim: int, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        if code_dim != len(levels):
            raise ValueError(
                f"FSQ of levels {list(levels)} rounds vectors of {len(levels)} numbers, got {code_dim}: set "
                f"the model's code_dim to {len(levels)}."
            )
        if not levels or min(levels) < 3:
            raise ValueError(f"levels must each be at least 3, got {list(levels)}.")
        super().__init__(code_dim, math.prod(levels))
        sizes = torch.tensor(levels)
        tables = {"sizes": sizes, "middle": sizes // 2, "strides": sizes.cumprod(0) // sizes}
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Returns the number of the point that each bounded vector is rounded to."""
        return ((self._bounded(z.detach()).round().long() + self.middle) * self.strides).sum(dim=-1)

    def look_up(self, index: Tensor) -> Tensor:
        digits = index[..., None] // self.strides % self.sizes
        return (digits - self.middle) / self.middle

    def nearest(self, codes: Tensor) -> Tensor:
        # Not `forward`, which takes what is not yet bounded.
        digits = (codes.detach().float() * self.middle).round().long() + self.middle
        return (digits.clamp_min(0).minimum(self.sizes - 1) * self.strides).sum(dim=-1)

    def passed(self, z: Tensor, codes: Tensor) -> Tensor:
        return straight_through(self._bounded(z) / self.middle, codes)

    def _bounded(self, z: Tensor) -> Tensor:
        """Returns f(z), in 32 bits at any precision: bfloat16 would round to other codes."""
        reach = (self.sizes - 1) / 2
        offset = 0.5 * (self.sizes % 2 == 0)
        return reach * torch.tanh(z.float() + torch.atanh(offset / reach)) - offset


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """Returns the codes, with the gradient of z: what arrives here goes to the encoder unchanged."""
    return codes.detach() + (z - z.detach())


def first_codes(num_codes: int, code_dim: int) -> Tensor:
    """Returns small random vectors, uniform in (-1/K, 1/K) as in the paper's own code."""
    return torch.empty(num_codes, code_dim).uniform_(-1.0 / num_codes, 1.0 / num_codes)
