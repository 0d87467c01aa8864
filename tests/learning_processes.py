"""What two processes learn together, each from its share of the same batches."""

import os
import sys

import torch
import torch.distributed as dist

from genlab.distributed import gathered, joined_mean, place
from genlab.losses.contrastive import Pairs, matched
from genlab.networks.quantizer import EMACodebook


def learn_codes(rank=0, world_size=1):
    """Returns the state of a codebook after five batches."""
    torch.manual_seed(0)
    book = EMACodebook(3, 6, decay=0.8, reset_below=0.3)
    for step in range(5):
        z = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(step))[rank::world_size]
        book.update(z, book(z))
    return book.state_dict()


def learn_matches():
    """Returns how images and captions of a batch find each other, and the gradients that follow."""
    (rank, world_size), draw = place(), torch.Generator().manual_seed(0)
    images, captions = (torch.randn(8, 5, generator=draw) for _ in range(2))
    source = torch.tensor([[0, 1], [0, 2], [0, 1], [1, 1], [2, 2], [2, 1], [0, 1], [2, 2]])
    weights = [torch.randn(5, 3, generator=draw).requires_grad_() for _ in range(2)]
    scale, share = torch.tensor(0.3, requires_grad=True), slice(rank, None, world_size)
    vectors = [x[share] @ w for x, w in zip((images, captions), weights, strict=True)]
    pairs = Pairs(*vectors, source[share])
    found = matched(pairs, pairs.joined(), scale)
    found["loss"].backward()
    return {
        **{name: joined_mean(value.detach()) for name, value in found.items()},
        **{f"gradient {n}": joined_mean(x.grad) for n, x in enumerate([*weights, scale])},
        "rows": gathered(torch.arange(7)[share]).sort().values,  # 4 and 3
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    child = os.fork()  # one import for both processes
    rank, folder = int(child == 0), sys.argv[1]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save({"codes": learn_codes(rank, 2), "matches": learn_matches()}, f"{folder}/{rank}.pt")
    dist.barrier()
    if child:
        os.waitpid(child, 0)
