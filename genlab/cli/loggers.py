"""Where a training command's numbers go beside the run's own files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.loggers import Logger

from genlab.callbacks.record import RunRecorder
from genlab.callbacks.run_logger import RunLogger
from genlab.runs.folder import Run


def loggers_of(
    recorder: RunRecorder | None, configured: Sequence[Logger], log_to: Sequence[str]
) -> list[Logger]:
    """Returns the run's own logger, those of the configuration and those of `--log_to`.

    Args:
        recorder: Of the run; None where nothing is to be left behind, and then `log_to` is nothing, too.
        configured: Those that the configuration builds.
        log_to: "wandb", "tensorboard".
    """
    if recorder is None:
        return [RunLogger(None, None), *configured]
    others = [_logger(name, recorder.run) for name in log_to]
    return [RunLogger(recorder.run.path, recorder.note), *configured, *others]


def _logger(name: str, run: Run) -> Logger:
    if name == "wandb":
        from pytorch_lightning.loggers import WandbLogger

        return WandbLogger(
            name=f"{run.experiment}/{run.name}",
            save_dir=run.path,
            project="genlab",
            settings=private_wandb(),
        )
    from pytorch_lightning.loggers import TensorBoardLogger

    return TensorBoardLogger(run.path, name="", version="tensorboard")


def private_wandb() -> Any:
    """Returns wandb's settings without what it would gather of user, home and machine."""
    import wandb

    switches = ("x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code")
    known: dict[str, Any] = {name: True for name in switches if name in wandb.Settings.model_fields}
    return wandb.Settings(**known, host="machine", username="user")
