"""Every family trained by two processes, and by one on the joined batch; run as a program by a test.

By plain SGD, since Adam makes large differences of rounding errors.
"""

import os
import sys
from functools import partial
from pathlib import Path

import test_families
import torch
from short_training import train
from two_processes import free_port

SGD = partial(torch.optim.SGD, lr=0.01)


def learn(name, folder, devices):
    """Trains for two steps; writes the state that this process holds."""
    family = test_families.FAMILIES[name]
    model = family.model()
    options = {"devices": devices, **({"strategy": "ddp_find_unused_parameters_true"} if devices > 1 else {})}
    train(model, family.data(batch_size=8 // devices), 2, **{**family.trainer, **options})
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.save(model.state_dict(), folder / f"{name} {devices} {rank}.pt")


if __name__ == "__main__":
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(test_families.FAMILIES)
    torch.set_num_threads(1)
    test_families.ADAM = SGD
    for name in names:
        learn(name, folder, 1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    child = os.fork()
    os.environ["LOCAL_RANK"] = str(int(child == 0))
    for name in names:
        learn(name, folder, 2)
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
