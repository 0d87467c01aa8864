"""Training with weights spread over devices, the strategy `fsdp2`; whole ones where a model is looked at."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy, StrategyRegistry
from torch.optim import Adam

from genlab.families.sharding import gather, scatter

NAME = "fsdp2"
"""The strategy's name, as `--trainer.strategy` has it."""


class Sharded(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all devices in one data-parallel mesh and one file a checkpoint.

    A checkpoint is that of any other strategy: whole weights, written by the first process.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup_optimizers(self, trainer: Any) -> None:
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if optimizer.defaults.get("fused") and not isinstance(optimizer, Adam):
                name = type(optimizer).__name__
                raise ValueError(
                    f"A fused {name} cannot step weights that are spread: --model.optimizer.fused false."
                )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        kept = torch.load(checkpoint_path, map_location="cpu", mmap=True, weights_only=True)
        # Lightning restores neither an optimiser without a state, such as plain SGD, nor what a module keeps
        # beside parameters and buffers.
        optimizers = list(zip(self.optimizers, kept.get("optimizer_states", []), strict=False))
        self._optimizers = [optimizer for optimizer, state in optimizers if state["state"]]
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        self._optimizers = [optimizer for optimizer, _ in optimizers]
        for optimizer, state in optimizers:
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
                group |= {name: value for name, value in saved.items() if name != "params"}
        assert self.model is not None
        for name, module in self.model.named_modules():
            if f"{name}._extra_state" in kept["state_dict"]:
                module.set_extra_state(kept["state_dict"][f"{name}._extra_state"])
        return checkpoint


if NAME not in StrategyRegistry:
    StrategyRegistry.register(NAME, Sharded, description="weights spread over all devices (FSDP2)")


class WholeWhereLookedAt(Callback):
    """Gathers spread weights before a model is evaluated, and spreads them again before it learns.

    Evaluations call it as often as each process has samples, and some in the first process alone; spread
    weights would wait for the other processes then. To stand before all callbacks that evaluate, and behind
    those that read the model's state.
    """

    def __init__(self) -> None:
        self._gathered = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not pl_module.examples_seen:  # one that goes on is not looked at, and finds its gradients again
            self._gather(pl_module)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._gather(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._gathered:
            for network in pl_module.sharded:
                scatter(network)
            self._gathered = False

    def _gather(self, model: Any) -> None:
        for network in model.sharded:
            gather(network)
        self._gathered = True
