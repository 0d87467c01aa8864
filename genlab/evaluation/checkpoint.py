"""What checkpoints hold, and which of them this version can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import genlab
from genlab.errors import CheckpointError
from genlab.runs.checkpoint_files import damage
from genlab.shapes import DataSpec

OLDEST = (0, 2)
"""The first version whose checkpoints are read."""

PARTS = {"genlab": dict, "state_dict": dict, "examples_seen": int}
"""What every checkpoint holds."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns a checkpoint's contents, tensors and plain values only, all that a model needs among them.

    Raises:
        CheckpointError: It is damaged, of another version, or not of genlab's making.
    """
    reason = damage(path)
    try:
        state = None if reason else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if reason:
        raise CheckpointError(
            f"{path} is no readable checkpoint ({reason}). Choose another file of its folder."
        )
    head = state.get("genlab") if isinstance(state, dict) else None
    if not isinstance(state, dict) or head is None:
        raise CheckpointError(
            f"{path} was not written by genlab, which cannot know what model it belongs to."
        )
    require_known_version(path, head)
    broken = _broken_part(state)
    if broken:
        raise CheckpointError(
            f"{path} is no checkpoint of genlab: {broken}. Choose another file of its folder."
        )
    return state


def require_known_version(path: Path, head: Any) -> None:
    """Refuses the checkpoint of a version whose checkpoints this one does not read.

    Raises:
        CheckpointError: With both versions.
    """
    version = head.get("version") if isinstance(head, dict) else None
    numbers = _numbers(version)
    if numbers is None:
        raise CheckpointError(f"{path} does not say what version of genlab wrote it ({version!r}).")
    if numbers < OLDEST:
        raise CheckpointError(
            f"{path} was written by genlab {version}, whose checkpoints this version "
            "does not read: use that version, or train again."
        )
    if numbers > (_numbers(genlab.__version__) or numbers):
        raise CheckpointError(
            f"{path} was written by genlab {version}, and this is {genlab.__version__}: update genlab."
        )


def _numbers(version: Any) -> tuple[int, ...] | None:
    """Returns the first two numbers of a version, the ones that say what a checkpoint holds."""
    parts = version.split(".")[:2] if isinstance(version, str) else []
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdecimal() for part in parts) else None


def _broken_part(state: dict[str, Any]) -> str:
    """Returns which part of a checkpoint is missing or of another kind, "" where all are right."""
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind) or isinstance(state.get(name), bool):
            return f"its {name} is {_kind(state.get(name))}"
    strange = next((n for n, v in state["state_dict"].items() if not isinstance(v, Tensor)), None)
    if strange is not None:
        return f"the weight {strange} is {_kind(state['state_dict'][strange])}"
    if not isinstance(state["genlab"].get("model"), dict):
        return f"its model is {_kind(state['genlab'].get('model'))}"
    try:
        spec_of(state)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return f"its spec cannot be used ({error})"
    return ""


def spec_of(state: dict[str, Any]) -> DataSpec:
    """Returns the shape of the data that a checkpoint's model was trained on."""
    spec = DataSpec(**state["genlab"]["spec"])
    for name, kind in (("name", str), ("num_classes", int), ("levels", int), ("vocabulary", str)):
        if not isinstance(getattr(spec, name), kind):
            raise TypeError(f"{name} is {_kind(getattr(spec, name))}")
    return spec


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def require_resumable(path: Path, state: dict[str, Any]) -> None:
    """Refuses a checkpoint that holds weights but not the state of a training.

    Raises:
        CheckpointError: With the part that is missing.
    """
    kinds = {"optimizer_states": list, "lr_schedulers": list, "loops": dict, "callbacks": dict}
    for name, kind in {**kinds, "global_step": int, "latest": dict, "averaged_at": int}.items():
        if not isinstance(state.get(name), kind):
            raise CheckpointError(
                f"{path} cannot be resumed: its {name} is {_kind(state.get(name))}. It can still be sampled."
            )


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """Says which file is at fault where its state of a training does not fit what it is restored to.

    Raises:
        CheckpointError: In place of whatever the part of the trainer raised that met it.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"{checkpoint} cannot be restored, its state is not that of such a training ({reason}). "
            f"Choose another file of its folder."
        ) from error
