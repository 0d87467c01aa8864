"""Networks whose weights are spread over devices, a part of each on every one (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(network: nn.Module, mesh: Any) -> None:
    """Spreads a network's weights over a mesh of devices: each of its blocks as one part, and all the rest.

    A block's weights are together on a device only while it computes (Zhao et al. 2023, arXiv:2304.11277;
    torch's `fully_shard`). Blocks are what the network keeps in lists: those of a transformer, the stages of
    a U-Net.

    Args:
        network: Is called as a whole, and by each device equally often, unless it is gathered.
        mesh: A DeviceMesh of one dimension.
    """
    if isinstance(network, FSDPModule):
        return
    network.to(memory_format=torch.contiguous_format)  # weights are cut along their first side
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    for part in network.children():
        if isinstance(part, nn.ModuleList):
            yield from (block for block in part if any(True for _ in block.parameters()))


def gather(network: nn.Module) -> None:
    """Puts all weights on every device, so that each may call the network as often as it likes.

    To be called by all devices at once.
    """
    for part in _parts(network):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def scatter(network: nn.Module) -> None:
    """Leaves each device its own part again."""
    for part in _parts(network):
        part.set_reshard_after_forward(
            part is not network, recurse=False
        )  # the root's come first in backward
        part.reshard()


def _parts(network: nn.Module) -> list[Any]:
    return [part for part in network.modules() if isinstance(part, FSDPModule)]


def local(tensor: Tensor) -> Tensor:
    """Returns what this device holds of a tensor, in place; a tensor that is not spread is all here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor; of a spread one by a collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Returns a whole tensor as a parameter is held: on its device, and spread where that is."""
    if not isinstance(parameter, DTensor):
        return tensor.to(parameter.device)
    return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
