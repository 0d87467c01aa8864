"""Where a training command's numbers go beside the run's own files, and how a later command finds that."""

from __future__ import annotations

import importlib.util
import os
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger

from genlab import files
from genlab.callbacks.loggers import keep_files
from genlab.callbacks.record import leave_out, others_of, pass_on
from genlab.callbacks.run_logger import RunLogger
from genlab.errors import exit_code
from genlab.runs.folder import Run
from genlab.runs.tests import own_first_stage

Name = Literal["wandb", "tensorboard"]
Artifact = Literal["checkpoints", "report"]

_INSTALL = {"wandb": "pip install wandb", "tensorboard": "pip install 'genlab[tensorboard]'"}


def check_loggers(log_to: Sequence[str], artifacts: Sequence[str], configured: Any) -> None:
    """Refuses loggers that cannot be had, before a run has a folder.

    Args:
        log_to: Those of `--log_to`.
        artifacts: Those of `--log_artifacts`.
        configured: The trainer's setting `logger`, not built yet.

    Raises:
        ValueError: With what to install or to leave out.
    """
    for name in log_to:
        if not importlib.util.find_spec(name):
            raise ValueError(
                f"--log_to [{name}] needs the package {name}, which is not installed: {_INSTALL[name]}."
            )
    settings = configured if isinstance(configured, list) else [configured]
    paths = [str(each.get("class_path", "")) for each in settings if hasattr(each, "get")]
    has_own = any(path.endswith("WandbLogger") for path in paths)
    if has_own and "wandb" in log_to:
        raise ValueError(
            "trainer.logger has a WandbLogger already, and wandb keeps one run at a time: leave it out, or "
            "--log_to [wandb]."
        )
    if artifacts and not (has_own or "wandb" in log_to):
        raise ValueError(
            "--log_artifacts keeps files as artifacts of wandb: add --log_to [wandb], or leave it out."
        )


def kept_loggers(record: Mapping[str, Any]) -> list[str]:
    """Returns the loggers that a run has had by its record; one that is not installed here is left out."""
    had = [name for name in record.get("loggers") or {} if name in _INSTALL]
    missing = [name for name in had if not importlib.util.find_spec(name)]
    for name in missing:
        warnings.warn(f"This run also logs to {name}, which is not installed here: {_INSTALL[name]}.")
    return [name for name in had if name not in missing]


def loggers_of(
    run: Run | None,
    note: Callable[[dict[str, float]], None] | None,
    configured: Sequence[Logger],
    log_to: Sequence[str],
    examples_seen: int = 0,
) -> list[Logger]:
    """Returns the run's own logger, those of the configuration and those of `--log_to`.

    Args:
        run: Where the numbers are of; None where nothing is to be left behind, and then `log_to` is nothing,
            too.
        note: Takes what Lightning's callbacks log for the run's own files; None where these stay as they are.
        configured: Those that the configuration builds.
        log_to: "wandb", "tensorboard".
        examples_seen: How far a training that goes on had come; what was logged beyond is learned again.
    """
    own = RunLogger(None if note is None or run is None else run.path, note)
    others = [] if run is None else [_logger(name, run, examples_seen) for name in dict.fromkeys(log_to)]
    return [own, *configured, *others]


def _logger(name: str, run: Run, examples_seen: int) -> Logger:
    if name == "tensorboard":
        # From a purge on, TensorBoard shows what comes anew in place of what was there.
        again: dict[str, Any] = {"purge_step": examples_seen + 1} if examples_seen else {}
        folder = run.output(name)
        return TensorBoardLogger(folder.parent, name="", version=name, default_hp_metric=False, **again)
    import wandb

    kept = (run.read().get("loggers") or {}).get(name) or {}
    project = kept.get("project") or os.environ.get("WANDB_PROJECT") or "genlab"
    # A sweep's agent says by the environment which run this is.
    own_id = kept.get("id") or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    # Without a server there is nothing to go on from: a further folder of the same id, joined when synced.
    resume: dict[str, Any] = (
        {} if wandb.setup().settings.mode in (None, "online", "shared") else {"resume": None}
    )
    return WandbLogger(
        name=os.environ.get("WANDB_NAME") or f"{run.experiment}/{run.name}",
        save_dir=run.path,
        version=own_id,
        project=project,
        group=os.environ.get("WANDB_RUN_GROUP") or run.experiment,
        settings=private_wandb(),
        **resume,
    )


def private_wandb() -> Any:
    """Returns wandb's settings without what it would gather of user, home and machine."""
    import wandb

    switches = ("x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code")
    known: dict[str, Any] = {name: True for name in switches if name in wandb.Settings.model_fields}
    return wandb.Settings(**known, host="machine", username="user")


@contextmanager
def logging_to(
    trainer: Any, run: Run | None, log_to: Sequence[str], artifacts: Sequence[str], must_begin: bool
) -> Iterator[None]:
    """Begins the trainer's loggers, keeps in the run's record how they are found again, and ends them.

    One that cannot begin, such as without a network, is left out.

    Args:
        trainer: With the loggers.
        run: Whose they are.
        log_to: Their names, as far as they are the run's own.
        artifacts: What is kept of the run.
        must_begin: Whether wandb was asked for now, and so needs an account.

    Raises:
        ValueError: It has none.
    """
    begun = others_of(trainer)
    for logger in begun:
        try:
            getattr(logger, "experiment", None)
        except Exception as error:
            # A run that goes on or is tested elsewhere does not need what it once logged to.
            if must_begin and type(error).__name__ in ("UsageError", "AuthenticationError"):
                raise ValueError(
                    f"wandb cannot begin: {str(error).splitlines()[0]} `wandb login` does once; "
                    "WANDB_MODE=offline keeps everything in the run's folder for `wandb sync`."
                ) from error
            leave_out(trainer, logger, error)
    if run is not None and trainer.is_global_zero and (log_to or artifacts):
        of_wandb = [logger for logger in begun if isinstance(logger, WandbLogger)]
        places = {"id": str(of_wandb[0].version), "project": str(of_wandb[0].name)} if of_wandb else {}
        run.update(
            loggers={name: places if name == "wandb" else {} for name in log_to},
            log_artifacts=list(artifacts),
        )
    status = 1
    try:
        yield
        status = 0
    except BaseException as error:
        status = exit_code(error) or (error.code if isinstance(error, SystemExit) else 1) or 1  # type: ignore[assignment]
        raise
    finally:
        for logger in begun:
            _end(logger, status)


def _end(logger: Logger, status: int) -> None:
    with suppress(Exception):  # the run's own files have everything
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger.experiment.finish(exit_code=status)
        elif isinstance(logger, TensorBoardLogger):
            logger.finalize("success")


def keep_artifacts(trainer: Any, run: Run, artifacts: Sequence[str]) -> None:
    """Keeps a run's checkpoints and its report as artifacts of wandb's.

    That of the checkpoints is a run's folder: downloaded, it is what `genlab sample FOLDER` takes.
    """
    if not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        return
    if "checkpoints" in artifacts:
        pass_on(trainer, lambda logger: keep_files(logger, "checkpoints", checkpoint_files_of(run)))
    if "report" in artifacts:
        with TemporaryDirectory() as folder:
            report = Path(folder) / "report.html"
            files.write_text(report, report_of(run))
            pass_on(trainer, lambda logger: keep_files(logger, "report", {report.name: report}))


def checkpoint_files_of(run: Run) -> dict[str, Path]:
    """Returns the files of a run without which its weights are of no use, by their names in its folder."""
    found = [run.config, run.record, *filter(None, (run.last_checkpoint, run.best_checkpoint))]
    stage = own_first_stage(run)
    found += sorted(path for path in stage.rglob("*") if path.is_file()) if stage is not None else []
    return {path.relative_to(run.path).as_posix(): path for path in found}


def report_of(run: Run) -> str:
    """Returns the report of one run, as `genlab report RUN` writes it."""
    from genlab.report.comparison import compare
    from genlab.report.page import page

    return page(compare([run.path]))
