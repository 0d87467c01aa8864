"""Two processes that run the same commands one after the other, as a cluster's launcher starts them."""

import json
import os
import socket
import sys
import time
from pathlib import Path

import torch

import genlab.cli.training  # noqa: F401  (one import for both processes)
from genlab.cli.main import main


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def run(arguments, folder, name, rank):
    """Runs one command; a training in a folder whose name the second process must know."""
    os.environ |= {"GENLAB_OUTPUTS": folder, "GENLAB_TEST_FOLDER": folder, "GENLAB_RUN": f"{folder}/{name}"}
    while arguments[0] == "fit" and rank and not Path(folder, name, "run.json").exists():
        time.sleep(0.02)
    return main(arguments)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
    child = os.fork()
    rank = int(child == 0)
    os.environ["LOCAL_RANK"] = str(rank)
    code = max(run(*command, rank) for command in json.loads(sys.argv[1]))
    if child:
        code = max(code, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.exit(code)
