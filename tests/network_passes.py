"""Counts by hooks how often a model's networks are evaluated, to prove what models declare."""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager

from torch import Tensor
from torch.utils._pytree import tree_leaves


class Evaluations:
    """Counts how often the trained networks are evaluated for each sample, while hooks are on.

    A network is the outermost trained module that is called; what it calls itself is a part of it. Each of
    a model's parts counts with the network in it that is called most: a flow's layers, each with its own
    network called once, are one evaluation, and a denoiser called in every step is as many as there are
    steps. A call with twice the batch's rows, as guidance makes it, counts twice.
    """

    def __init__(self, batch):
        self.batch = batch
        self._calls = defaultdict(float)
        self._depth = 0

    @property
    def per_sample(self):
        """Evaluations for each sample; 0 where no trained module was called."""
        parts = defaultdict(float)
        for (part, _), calls in self._calls.items():
            parts[part] = max(parts[part], calls)
        return sum(parts.values())

    @contextmanager
    def counting(self, model):
        """Counts inside the block."""
        handles = []
        for part, child in model.named_children():
            for name, module in child.named_modules():
                if any(True for _ in module.parameters()):
                    handles.append(
                        module.register_forward_pre_hook(self._enter((part, name)), with_kwargs=True)
                    )
                    handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, place):
        def enter(module, args, kwargs):
            if self._depth == 0:
                leaves = tree_leaves((args, kwargs))
                rows = next((len(x) for x in leaves if isinstance(x, Tensor) and x.dim()), self.batch)
                self._calls[place] += max(1.0, rows / self.batch)
            self._depth += 1

        return enter

    def _leave(self, *_):
        self._depth -= 1
