"""A codebook that two processes learn together, each from its share of five batches."""

import os
import sys

import torch
import torch.distributed as dist

from genlab.networks.quantizer import EMACodebook


def learn_codes(rank=0, world_size=1):
    """Returns the state of the codebook after the batches."""
    torch.manual_seed(0)
    book = EMACodebook(3, 6, decay=0.8, reset_below=0.3)
    for step in range(5):
        z = torch.randn(8, 4, 3, generator=torch.Generator().manual_seed(step))[rank::world_size]
        book.update(z, book(z))
    return book.state_dict()


if __name__ == "__main__":
    torch.set_num_threads(1)
    child = os.fork()  # one import for both processes
    rank, folder = int(child == 0), sys.argv[1]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(learn_codes(rank, 2), f"{folder}/{rank}.pt")
    dist.barrier()
    if child:
        os.waitpid(child, 0)
