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

from genlab.families.cyclegan import ImagePool

SGD = partial(torch.optim.SGD, lr=0.01)
SMALL_STEPS = partial(torch.optim.SGD, lr=1e-6)


def without_own_draws(model):
    """Returns a model without what each process draws for itself: dropout, and old images out of a pool."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        elif isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.0
    if hasattr(model, "pools"):
        model.pools = ImagePool(0), ImagePool(0)
    return model


def learn(name, folder, devices):
    """Trains for two steps; writes the state that this process holds."""
    family = test_families.FAMILIES[name]
    test_families.ADAM = SMALL_STEPS if name == "cyclegan" else SGD
    model = without_own_draws(family.model())
    torch.save(model.state_dict(), folder / f"{name} 0.pt")
    options = {"devices": devices, **({"strategy": "ddp_find_unused_parameters_true"} if devices > 1 else {})}
    train(model, family.data(batch_size=8 // devices), 2, **{**family.trainer, **options})
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.save(model.state_dict(), folder / f"{name} {devices} {rank}.pt")


if __name__ == "__main__":
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(test_families.FAMILIES)
    torch.set_num_threads(1)
    for name in names:
        learn(name, folder, 1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    child = os.fork()
    os.environ["LOCAL_RANK"] = str(int(child == 0))
    for name in names:
        learn(name, folder, 2)
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
