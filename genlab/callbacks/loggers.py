"""What Lightning's loggers are given, each in its own form; every number lies at the examples seen.

wandb and TensorBoard are known by what they can show. Any other logger gets numbers and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

AXIS = "examples_seen"
"""The axis of every chart: optimiser steps differ between families, examples do not."""

STEP = "trainer/global_step"
"""Optimiser steps, by the name that Lightning gives them in wandb."""

_CALLED = ("log_metrics", "log_hyperparams", "log_graph", "save", "finalize", "after_save_checkpoint")
"""What Lightning and its callbacks call of a logger themselves."""


def adopt(logger: Logger, position: Callable[[], tuple[int, int]], fails: Callable[..., None]) -> None:
    """Gives a logger the axis of examples, whoever logs, and lets its failures be no one else's.

    Lightning's callbacks, such as LearningRateMonitor, count batches of their own, and let an error of a
    logger end the training.

    Args:
        logger: One of the trainer's.
        position: Returns the examples and the optimiser steps so far.
        fails: Is called with the logger and its error.
    """
    log = logger.log_metrics
    if isinstance(logger, WandbLogger):
        _sparing(_set_axis, logger, fails)(logger)

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
        examples, steps = position()
        if isinstance(logger, WandbLogger):
            # Not as wandb's own step, which never goes back, as a resumed run does.
            log({**metrics, AXIS: examples, STEP: steps})
        else:
            log({**metrics, STEP: steps}, step=examples)

    setattr(logger, "log_metrics", log_metrics)  # noqa: B010 - mypy knows methods as constants
    for name in _CALLED:
        setattr(logger, name, _sparing(getattr(logger, name), logger, fails))


def _set_axis(logger: WandbLogger) -> None:
    run = logger.experiment
    run.define_metric(AXIS)
    run.define_metric("*", step_metric=AXIS, step_sync=True, overwrite=True)


def _sparing(method: Callable[..., Any], logger: Logger, fails: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except Exception as error:
            return fails(logger, error)

    return call


def show_config(logger: Logger, config: Mapping[str, Any], examples: int) -> None:
    """Shows a run's resolved configuration."""
    if isinstance(logger, TensorBoardLogger):
        text = yaml.safe_dump(dict(config), sort_keys=False)
        logger.experiment.add_text("config", f"```yaml\n{text}```", examples)
    else:
        logger.log_hyperparams(dict(config))


def show_settings_of(logger: Logger, config: Mapping[str, Any], scores: Sequence[str]) -> None:
    """Lets TensorBoard compare runs by their settings (its tab HPARAMS), once it is known what is scored.

    wandb does so by the configuration.
    """
    if not isinstance(logger, TensorBoardLogger):
        return
    from torch.utils.tensorboard.summary import hparams

    writer = logger.experiment._get_file_writer()
    for summary in hparams(flat(config), dict.fromkeys(scores, 0.0)):  # of the scores, by their names alone
        writer.add_summary(summary, 0)


def show_image(logger: Any, key: str, path: Path, picture: np.ndarray, examples: int) -> None:
    """Shows a picture, which also lies in a file."""
    if hasattr(logger, "log_image"):  # wandb
        logger.log_image(key, [str(path)], step=examples)
    elif hasattr(getattr(logger, "experiment", None), "add_image"):  # TensorBoard
        formats = "HW" if picture.ndim == 2 else "HWC"
        logger.experiment.add_image(key, picture, examples, dataformats=formats)


def show_text(logger: Any, key: str, text: str, examples: int) -> None:
    """Shows a text."""
    if hasattr(logger, "log_text"):  # wandb
        logger.log_text(key, columns=["text"], data=[[text]], step=examples)
    elif hasattr(getattr(logger, "experiment", None), "add_text"):  # TensorBoard
        logger.experiment.add_text(key, text, examples)


def show_table(
    logger: Any,
    key: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    markdown: str,
    examples: int,
) -> None:
    """Shows a table: wandb its values, TensorBoard its text.

    Args:
        logger: Any.
        key: The table's name.
        rows: Its lines.
        columns: Which of their fields, in order.
        markdown: The same for people.
        examples: Its place in the run.
    """
    if hasattr(logger, "log_table"):  # wandb
        cells = [[row[column] for column in columns] for row in rows]
        logger.log_table(key, columns=list(columns), data=cells, step=examples)
    elif hasattr(getattr(logger, "experiment", None), "add_text"):  # TensorBoard
        logger.experiment.add_text(key, markdown, examples)


def keep_files(logger: Logger, kind: str, files: Mapping[str, Path], aliases: Sequence[str] = ()) -> None:
    """Keeps files as an artifact of wandb's, a new version where one has changed; no other logger has any.

    Args:
        logger: Any.
        kind: What they are, such as "report"; the artifact's type, and with the run's id its name.
        files: By their names in it.
        aliases: Further names of this version, beside "latest".
    """
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    run = logger.experiment
    artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
    for name, path in files.items():
        artifact.add_file(str(path), name=name, skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", *aliases])


def flat(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Returns nested settings by their paths, such as model.init_args.half_life, each as text or a number."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = f"{place}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            found |= flat(value, inner)
        elif isinstance(value, list) and any(isinstance(part, Mapping | list) for part in value):
            found |= flat({str(number): part for number, part in enumerate(value)}, inner)
        else:
            found[inner] = value if isinstance(value, bool | int | float | str) else str(value)
    return found
