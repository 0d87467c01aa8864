"""A callback for tests of several processes: each writes what it holds at the end of training."""

import os
from pathlib import Path

import torch
from pytorch_lightning.callbacks import Callback


class SaveWeights(Callback):
    """Writes every process's weights and the buffers that it scores with."""

    def on_train_end(self, trainer, pl_module):
        path = Path(os.environ["GENLAB_TEST_FOLDER"]) / f"rank{trainer.global_rank}.pt"
        torch.save({name: value.clone() for name, value in pl_module.state_dict().items()}, path)

    def on_validation_epoch_end(self, trainer, pl_module):
        path = Path(os.environ["GENLAB_TEST_FOLDER"]) / f"buffers{trainer.global_rank}.pt"
        torch.save({name: value.clone() for name, value in pl_module.named_buffers()}, path)
