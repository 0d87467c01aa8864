"""The number format that losses are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x in 32 bits, or in 64 if it has them: half precision overflows in squares and loses tails."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
