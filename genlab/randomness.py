"""Random numbers that are a function of a key, never of what was drawn before.

Sample i of a run starts from noise(seed, i), whatever the batch size and the number of devices, and a resumed
training draws in step s what it would have drawn without the interruption. Both follow from the same rule: a
number is the hash of its address (a counter-based generator; Salmon et al. 2011, "Parallel random numbers: as
easy as 1, 2, 3"). The hash is SplitMix64's finaliser (Steele, Lea, Flood 2014), which passes BigCrush.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB


def key(*parts: int | str) -> int:
    """Returns a 63-bit key for an address such as (seed, "latent", step); equal on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def uniform(address: int, index: Tensor, size: int) -> Tensor:
    """Returns (len(index), size) float64 numbers in (0, 1); row r depends on address and index[r] alone."""
    bits = _hash(address, index, size)
    # The 53 high bits, in the middle of their interval, so that neither 0 nor 1 can come out.
    return (_shift(bits, 11).double() + 0.5) * 2.0**-53


def single(u: Tensor) -> Tensor:
    """Returns numbers in (0, 1) in 32 bits, which would round those next to 1 to it: one in 3 * 10^7."""
    return u.float().clamp_max(1.0 - 2.0**-24)


def normal(address: int, index: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns (len(index), *shape) standard normal numbers; row r depends on address and index[r] alone.

    Box-Muller in float64; both halves of each pair are used.
    """
    size = math.prod(shape)
    half = (size + 1) // 2
    u = uniform(address, index, 2 * half)
    radius = u[:, :half].log().mul_(-2.0).sqrt_()
    angle = u[:, half:].mul(2.0 * math.pi)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :size].to(dtype).reshape(len(index), *shape)


class StepNoise:
    """The random numbers of one training step or of one evaluated batch, each a function of its address.

    An object of its own so that a model can lend it to another that learns inside of it: both then draw
    what belongs to one step, by the names of their streams.

    Attributes:
        address: Of the step; numbers of different steps have nothing in common.
        rank, world_size: In training row j on rank r of w is row r + w j of the joined batch, so that w
            devices draw together exactly what one device draws for the whole batch.
    """

    def __init__(self) -> None:
        self.address, self.rank, self.world_size = 0, 0, 1
        self._numbers: Tensor | None = None

    def begin(self, address: int, rank: int = 0, world_size: int = 1) -> None:
        """Moves to another step."""
        self.address, self.rank, self.world_size = address, rank, world_size

    @contextmanager
    def numbered(self, index: Tensor) -> Iterator[None]:
        """Makes noise a function of the items' numbers, so that an evaluation can be repeated anywhere."""
        self.address, self._numbers = key("evaluation"), index
        try:
            yield
        finally:
            self._numbers = None

    def normal(self, stream: str, num: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns standard normal numbers, (num, *shape): one row for each item of the batch."""
        return normal(key(self.address, stream), self._rows(num, device), shape)

    def uniform(self, stream: str, num: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Returns numbers in (0, 1), (num, *shape), numbered as the normal ones."""
        u = uniform(key(self.address, stream), self._rows(num, device), math.prod(shape))
        return single(u).reshape(num, *shape)

    def _rows(self, num: int, device: torch.device) -> Tensor:
        if self._numbers is not None:
            return self._numbers.to(device)
        return torch.arange(num, device=device) * self.world_size + self.rank


def _hash(address: int, index: Tensor, size: int) -> Tensor:
    row = _mix(index.long() * _signed(_GOLDEN) + _signed(address & (2**64 - 1)))
    column = torch.arange(1, size + 1, device=index.device) * _signed(_GOLDEN)
    return _mix(row[:, None] + column[None, :])


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _signed(_MIX_A)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_B)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it the logical shift of an unsigned number.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
