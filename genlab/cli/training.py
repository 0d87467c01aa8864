"""fit, validate, test and predict: Lightning's command line over every family and data set."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from genlab.callbacks.checkpoints import AtomicCheckpointIO
from genlab.callbacks.codes import CodeCache
from genlab.callbacks.divergence import DivergenceGuard
from genlab.callbacks.example import ExampleInput
from genlab.callbacks.monitors import Monitors
from genlab.callbacks.progress import ProgressLine
from genlab.callbacks.record import RunRecorder, SameData
from genlab.callbacks.samples import SampleWriter
from genlab.callbacks.sharding import NAME as SHARDED
from genlab.callbacks.sharding import WholeWhereLookedAt
from genlab.cli import peers
from genlab.cli.going_on import GoingOn
from genlab.cli.guests import check_trainer
from genlab.cli.loggers import Artifact, check_loggers, keep_artifacts, kept_loggers, loggers_of, logging_to
from genlab.cli.loggers import Name as LoggerName
from genlab.cli.model import import_room, resolve_checkpoint
from genlab.cli.parser import GROUPS, Parser, in_order
from genlab.cli.settings import (
    choose_precision,
    choose_strategy,
    experiment_name,
    keep_first_stage,
    plain,
    refuse_secrets,
    require_sections,
    stored_text,
)
from genlab.cli.testing import TestedRun, check_variants
from genlab.configuration.messages import readable
from genlab.configuration.trust import ROOMS, check_objects, check_places, lock_imports
from genlab.data.base import DataModule
from genlab.errors import EXIT_USAGE, exit_code
from genlab.evaluation.checkpoint import require_resumable
from genlab.evaluation.examine import entry_of
from genlab.families.base import Model
from genlab.families.compiling import require_compiler
from genlab.report.test_table import table_of
from genlab.runs.folder import Run, create_run, open_run, shown_path
from genlab.runs.tests import stamp

RUN_VARIABLE = "GENLAB_RUN"
"""Tells the processes that the first one starts which folder the run has."""

REFUSED = (2, 3, 4, 5, 7)
"""Exit codes of what is known before the first step; see `genlab.errors`."""

RESUMABLE = (7, 8, 9)
"""Exit codes of what befalls a training that is sound."""


class GenlabCLI(LightningCLI):
    """The training commands: one folder for each run, callbacks that every family needs, one data shape."""

    run: Run | None = None
    is_new = False
    """Whether this process made the run's folder."""
    origin: GoingOn | None = None
    """The checkpoint that the command goes on from."""
    spent = ""
    """The limit that the checkpoint's training has reached, such as `budget.examples`."""

    def __init__(
        self,
        *args: Any,
        given: Sequence[str] = (),
        again: bool = False,
        accepts: bool = False,
        callbacks: Sequence[Callback] = (),
        **kwargs: Any,
    ) -> None:
        # The parent's constructor runs the command.
        self.given, self.again, self.accepts, self.callbacks = given, again, accepts, callbacks
        skipped = self.subcommands()
        # Only this command's: each parser takes a quarter of a second to make.
        self.subcommands = lambda: {kwargs["args"][0]: skipped[kwargs["args"][0]]}  # type: ignore[method-assign]
        try:
            super().__init__(*args, **kwargs)
        except Exception as error:
            self._conclude(error)
            raise

    def parse_arguments(self, parser: Any, args: Any) -> None:
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            options = self._subcommand_parsers[args[0]]._option_string_actions
            raise ValueError(readable(error, list(options))) from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for name, callback in GROUPS.items():
            parser.add_lightning_class_args(callback, name)
        parser.add_argument(
            "--experiment",
            type=str | None,
            default=None,
            help="Name of the run's folder; the file's by default.",
        )
        parser.add_argument(
            "--run_name",
            type=str | None,
            default=None,
            help="Name of this run within its experiment; date and time by default.",
        )
        parser.add_argument(
            "--log_to",
            type=list[LoggerName] | None,
            default=None,
            help="Loggers beside the run's own files, such as [wandb] (works offline) or [tensorboard]; "
            "a run that goes on or is tested keeps those that it had.",
        )
        parser.add_argument(
            "--log_artifacts",
            type=list[Artifact] | None,
            default=None,
            help="What wandb keeps as artifacts, after a training and a test: [checkpoints, report].",
        )
        parser.add_argument(
            "--variants",
            type=dict[str, dict[str, Any]],
            default={},
            help="Other ways to sample from the same weights, which `test` scores too: settings by name.",
        )
        parser.link_arguments("data.spec", "model.init_args.spec", apply_on="instantiate")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: skip | {"dataloaders"} for name, skip in LightningCLI.subcommands().items()}

    def _parse_ckpt_path(self) -> None:
        # Lightning would replace the model on the command line by the checkpoint's; here they must agree.
        values = self._values()
        checkpoint = resolve_checkpoint(values.get("ckpt_path"))
        if checkpoint is None:
            return
        values["ckpt_path"] = str(checkpoint)
        values["weights_only"] = True
        self.origin = GoingOn(checkpoint, self.accepts)
        if self.config["subcommand"] == "fit":
            require_resumable(checkpoint, self.origin.state)
        self.origin.require_class(values["model"]["class_path"])

    def before_instantiate_classes(self) -> None:
        values = self._values()
        keep_first_stage(values["model"], self._old_run)
        require_sections(values)
        check_objects(values)
        check_places(values["trainer"], self._old_run.path if self._old_run else None)
        refuse_secrets(plain(values["trainer"]))
        choose_precision(values)
        choose_strategy(values)
        self.log_to, self.artifacts = self._wanted_loggers(values)
        check_loggers(self.log_to, values["log_artifacts"] or (), values["trainer"]["logger"])
        if self.subcommand != "fit":
            self.run = self._old_run
        elif self.origin is not None:
            self.spent = self.origin.spent_limit(self.config_text())

    def _wanted_loggers(self, values: Any) -> tuple[list[str], list[str]]:
        """Returns the loggers and the artifacts that are asked for, or else those that the run has had."""
        if self.subcommand not in ("fit", "test") or self.is_trial():
            return [], []
        record = self._old_run.read() if self._old_run is not None else {}
        loggers, artifacts = values["log_to"], values["log_artifacts"]
        loggers = kept_loggers(record) if loggers is None else list(dict.fromkeys(loggers))
        artifacts = record.get("log_artifacts") if artifacts is None else dict.fromkeys(artifacts)
        if self.subcommand == "test" and loggers and self._old_run is None:
            raise ValueError(
                f"--log_to [{', '.join(loggers)}] logs to what a run has, and this test is of none: give its "
                "folder or a checkpoint in it."
            )
        return loggers, list(artifacts or ())

    @property
    def _old_run(self) -> Run | None:
        """The run that the checkpoint lies in."""
        return None if self.origin is None else self.origin.run

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            raise ValueError(readable(error)) from error
        if self.origin is not None:
            self.origin.require_weights_of(self.model)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        values, trainer = self._values(), self._get(self.config_init, "trainer")
        recorder = self._recorder(values, trainer) if self.subcommand == "fit" else None
        self.model.config = plain(values["model"])
        self.model.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # as Lightning publishes its choice
        self.datamodule.training_seed = self.model.seed
        theirs = _as_list(trainer.get("callbacks"))
        has_bar = any(isinstance(callback, ProgressBar) for callback in theirs)
        if self.subcommand != "fit" and not sys.stderr.isatty() and not has_bar:
            trainer["enable_progress_bar"] = False
        shows_line = trainer["enable_progress_bar"] is not False and not has_bar
        if self.subcommand != "fit" and trainer["strategy"] == SHARDED:
            trainer["strategy"] = "auto"  # what is looked at is whole on each device
        trainer["plugins"] = [*_as_list(trainer.get("plugins")), AtomicCheckpointIO()]
        trainer["callbacks"] = [*self._callbacks(recorder, shows_line), *theirs]
        configured = trainer.get("logger")
        configured = [] if configured in (None, True, False) else _as_list(configured)
        note = None if recorder is None else recorder.note
        seen = 0 if self.origin is None or self.subcommand != "fit" else self.origin.resumption.examples_seen
        loggers = loggers_of(self.run, note, configured, self.log_to, seen)
        made = super().instantiate_trainer(logger=loggers, default_root_dir=self._root_dir(), **kwargs)
        peers.prepare(made, self.run if self.subcommand == "fit" else None)
        if self.origin is not None:
            self.origin.blame(made)
        return made

    def _recorder(self, values: Any, trainer: Any) -> RunRecorder | None:
        """Returns the recorder of a training that may begin, None of a trial."""
        check_variants(self.model, plain(values["model"]), values["variants"])
        check_trainer(trainer, self.model.alternating)
        evaluate = self._get(self.config_init, "evaluate")
        evaluate.require_unseen_test()
        if is_first_process():
            self.datamodule.require_usable()
        evaluate.prepare(self.model)
        if self.model.is_compiled:
            require_compiler()
        if self.spent:
            self.run = self._old_run
        elif not self.is_trial():  # made now, so that a setting that is refused leaves no folder behind
            self.run = self._run_folder(values)
        if self.run is None:
            return None
        clock = self._get(self.config_init, "budget").clock
        resumption = None if self.origin is None else self.origin.resumption
        return RunRecorder(self.run, self.config_text(), clock, resumption)

    def _callbacks(self, recorder: RunRecorder | None, shows_line: bool) -> list[Callback]:
        """Returns the callbacks that come before those of the configuration."""
        budget, checkpoints = (self._get(self.config_init, name) for name in ("budget", "checkpoints"))
        # The clock comes first, so that what the others do at a pause is not training time.
        callbacks: list[Callback] = [budget.clock]
        if self.subcommand == "fit":
            callbacks += [Monitors(), ExampleInput(), *([ProgressLine(budget)] if shows_line else [])]
            callbacks += [checkpoints.request, DivergenceGuard(), WholeWhereLookedAt(), CodeCache()]
        if recorder is not None:
            callbacks.append(recorder)
        if self.subcommand in ("validate", "test") and self.origin is not None:
            callbacks.append(SameData(self.origin.resumption))
        if self.subcommand == "predict":
            callbacks.append(SampleWriter(self._prediction_folder()))
        return [*callbacks, *self.callbacks]

    def _run_subcommand(self, subcommand: str) -> None:
        trains_here = subcommand == "fit" and self.run is not None and self.trainer.is_global_zero
        with (
            self.run.lock() if self.run is not None and trains_here else nullcontext(),
            peers.together(self.trainer, self.run if subcommand == "fit" else None),
        ):
            if self.origin is not None and self.spent:
                if self.trainer.is_global_zero:
                    self.origin.say_complete(self.spent, self.model.spec.unit)
            else:
                must = self._old_run is None or self._values()["log_to"] is not None
                with logging_to(self.trainer, self.run, self.log_to, self.artifacts, must_begin=must):
                    self._run_logged(subcommand)

    def _run_logged(self, subcommand: str) -> None:
        if subcommand == "test" and self._tested.kept is not None:
            self.after_test()  # only variants are missing, or loggers
        else:
            super()._run_subcommand(subcommand)
        if subcommand in ("fit", "test") and self.run is not None and self.trainer.is_global_zero:
            keep_artifacts(self.trainer, self.run, self.artifacts)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "verbose": False} if "verbose" in kwargs else kwargs

    def after_validate(self) -> None:
        evaluate = self._get(self.config_init, "evaluate")
        self._show(entry_of(self._values_of("val"), evaluate.last))

    def after_test(self) -> None:
        if self.is_trial():
            self._show(self._trial_entry())
            return
        tested = self._tested
        if self.origin is not None:
            tested.changes = self.origin.resumption.check(self.datamodule)
        if tested.kept is None:
            tested.measure(self._values_of("test"))
        tested.measure_variants()
        if self.trainer.is_global_zero:
            tested.table().show()
            if self.origin is not None:
                tested.log(self.trainer, self.origin.resumption)
            if self.run is not None:
                of = "" if tested.checkpoint is None else f": scores of {tested.checkpoint.name}"
                print(f"Written to {shown_path(self.run.record)}{of}", file=sys.stderr)

    def _trial_entry(self) -> dict[str, Any]:
        """Returns the values of a few items, none of which mean anything."""
        evaluate = self._get(self.config_init, "evaluate")
        model = self.model.to(self.trainer.strategy.root_device).eval()
        asked = evaluate.examination(self.datamodule, is_trial=True)
        return entry_of(self._values_of("test"), asked.scores(model), asked.likelihood(model))

    def after_predict(self) -> None:
        print(shown_path(self._prediction_folder()))

    def _values_of(self, stage: str) -> dict[str, float]:
        found = {n: float(v) for n, v in self.trainer.callback_metrics.items() if n.startswith(f"{stage}/")}
        return {name.removeprefix(f"{stage}/"): value for name, value in found.items()}

    def _show(self, entry: dict[str, Any]) -> None:
        if self.trainer.is_global_zero:
            table_of(entry, {}).show()

    @cached_property
    def _tested(self) -> TestedRun:
        """What the run's record keeps of this very test, and what is still to be measured."""
        values = self._values()
        run = None if self.is_trial() else self.run
        checkpoint = None if self.origin is None else self.origin.checkpoint
        made_of = stamp(run, checkpoint, self.given) if run and checkpoint else None
        return TestedRun(
            run=run,
            checkpoint=checkpoint,
            made_of=made_of,
            model=self.model,
            config=plain(values["model"]),
            variants=values["variants"],
            data=self.datamodule,
            evaluate=self._get(self.config_init, "evaluate"),
            device=self.trainer.strategy.root_device,
            again=self.again,
        )

    def config_text(self) -> str:
        """Returns the resolved configuration as the run keeps it."""
        return stored_text(self._values(), self._parser(self.subcommand))

    def is_trial(self) -> bool:
        """Returns whether this is a fast_dev_run, which leaves nothing behind."""
        return bool(self._values()["trainer"]["fast_dev_run"])

    def _values(self) -> Any:
        return self.config[self.config["subcommand"]]

    def _run_folder(self, values: Any) -> Run:
        inherited = os.environ.get(RUN_VARIABLE)
        experiment, name = values["experiment"] or experiment_name(values), values["run_name"]
        if not is_first_process():
            return open_run(inherited) if inherited else self._old_run or peers.awaited_run(experiment, name)
        run = self._old_run or create_run(experiment, name=name)
        self.is_new = self._old_run is None
        os.environ[RUN_VARIABLE] = str(run.path.absolute())
        print(f"{'Run' if self.is_new else 'Resuming'}: {shown_path(run.path)}", file=sys.stderr)
        return run

    def _conclude(self, error: Exception) -> None:
        """Takes a folder back in which nothing was trained, since its name may be wanted again.

        Where something was, and it is not the training that failed, says how it goes on.
        """
        code = exit_code(error)
        if self.run is None or self.subcommand != "fit" or code is None:
            return
        was_refused = code == EXIT_USAGE and self.run.last_checkpoint is None  # such as a monitor's name
        if self.is_new and code in REFUSED and (was_refused or not self.model.examples_seen):
            shutil.rmtree(self.run.path, ignore_errors=True)
            with suppress(OSError):
                self.run.path.parent.rmdir()  # the experiment's, where this was its only run
        elif code in RESUMABLE and self.run.last_checkpoint is not None:
            error.add_note(f"Continue with `genlab resume {shown_path(self.run.path)}`.")

    def _root_dir(self) -> str:
        return str(self.run.path) if self.run is not None else os.environ.get("TMPDIR", "/tmp")

    def _prediction_folder(self) -> Path:
        return self.run.output("predictions") if self.run is not None else Path("predictions")


def main(
    arguments: Sequence[str],
    given: Sequence[str] = (),
    again: bool = False,
    accepts: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run | None:
    """Runs one of Lightning's commands; returns the run that it made or was about, None of a trial.

    Args:
        arguments: The command and its options.
        given: The options as they were typed, for the record of a test.
        again: Measure what a test has measured before, too.
        accepts: Go on although settings or data have changed, and record how.
        callbacks: What the caller has to do in this training, beside what every one has.
    """
    for room in ROOMS:
        import_room(room)
    lock_imports()
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.callbacks.model_summary").setLevel(logging.INFO)  # is asked for
    # A CPU multiplies numbers below 1e-38 many times slower; importance weights are full of them.
    torch.set_flush_denormal(True)
    command = GenlabCLI(
        Model,
        DataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=None,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_class=Parser,
        parser_kwargs={"prog": "genlab", "allow_abbrev": False, "exit_on_error": False},
        trainer_defaults={
            "max_epochs": -1,
            "logger": False,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
        },
        args=[arguments[0], *in_order(arguments[1:])],
        given=given,
        again=again,
        accepts=accepts,
        callbacks=callbacks,
    )
    return command.run


def is_first_process() -> bool:
    """Returns whether this is the process that makes what all processes of a training share."""
    ranks = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK")  # the last one is torchrun's of a machine
    return all(int(os.environ.get(rank, "0")) == 0 for rank in ranks)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
