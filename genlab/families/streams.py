"""What a recurrent network knows of each row's text, handed on from one training batch to the next."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Streams:
    """The state of each row of a batch, for the next batch whose rows go on in the same texts.

    Item i + 1 of a text's windows goes on where item i ended. A row keeps its state where its item is the one
    after that of the batch before, and begins without one elsewhere: at the start of an epoch, or where
    windows come in any order.

    Args:
        memory: The network's, empty: `tensors` of (layers, batch, width), `keep` and `clear`.
    """

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.index: Tensor | None = None

    def follow(self, index: Tensor) -> Any:
        """Returns the memory to read the items of these numbers with, (batch,)."""
        if self.index is not None and len(self.index) == len(index):
            self.memory.keep(index == self.index + 1)
        else:
            self.memory.clear()
        self.index = index
        return self.memory

    def state_dict(self, world_size: int = 1) -> dict[str, Any]:
        """Returns the numbers and states of all processes' rows, in the order of the joined batch."""
        if self.index is None:
            return {}
        states = [_joined(x.transpose(0, 1), world_size).cpu() for x in self.memory.tensors]
        return {"index": _joined(self.index, world_size).cpu(), "states": states}

    def load_state_dict(
        self, state: dict[str, Any], device: torch.device, rank: int = 0, world_size: int = 1
    ) -> None:
        """Takes the rows of one process."""
        if state:
            self.index = state["index"][rank::world_size].to(device)
            rows = [x[rank::world_size].transpose(0, 1).contiguous().to(device) for x in state["states"]]
            self.memory.tensors = tuple(rows)


def _joined(rows: Tensor, world_size: int) -> Tensor:
    """Returns the rows of all processes: row j of rank r of w is row r + w j."""
    if world_size == 1:
        return rows.contiguous()
    parts = [torch.empty_like(rows.contiguous()) for _ in range(world_size)]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)
