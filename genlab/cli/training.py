"""fit, validate, test and predict: Lightning's command line over every family and data set."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import shutil
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger

import genlab
from genlab.callbacks.budget import spent_limit
from genlab.callbacks.checkpoints import AtomicCheckpointIO
from genlab.callbacks.divergence import DivergenceGuard
from genlab.callbacks.example import ExampleInput
from genlab.callbacks.monitors import Monitors
from genlab.callbacks.progress import ProgressLine
from genlab.callbacks.record import Resumption, RunRecorder, SameData
from genlab.callbacks.run_logger import RunLogger
from genlab.callbacks.samples import SampleWriter
from genlab.cli import peers
from genlab.cli.guests import check_precision, check_trainer
from genlab.cli.parser import GROUPS, Parser, in_order
from genlab.cli.testing import TestedRun, check_variants
from genlab.configuration.messages import readable
from genlab.configuration.trust import ROOMS, check_objects, check_places, lock_imports
from genlab.data.base import DataModule
from genlab.errors import CheckpointError, exit_code
from genlab.evaluation.examine import entry_of
from genlab.evaluation.load import check_weights, read_checkpoint, require_resumable, restoring
from genlab.families.base import Model
from genlab.report.test_table import table_of
from genlab.runs.changes import TrainedWith
from genlab.runs.environment import secret_settings, without_secrets
from genlab.runs.folder import Run, create_run, open_run, shown_path
from genlab.runs.metrics_file import MetricsFile
from genlab.runs.tests import stamp

RUN_VARIABLE = "GENLAB_RUN"
"""Tells the processes that the first one starts which folder the run has."""

REFUSED = (2, 3, 4, 5, 7)
"""Exit codes of what is known before the first step; see `genlab.errors`."""

RESUMABLE = (7, 8, 9)
"""Exit codes of what befalls a training that is sound."""

COMMAND_KEYS = (
    "config",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
    "experiment",
    "run_name",
    "log_to",
)
"""Keys of one command that a run's stored configuration leaves out: another command would refuse them."""


class GenlabCLI(LightningCLI):
    """The training commands: one folder for each run, callbacks that every family needs, one data shape."""

    run: Run | None = None
    is_new = False
    """Whether this process made the run's folder."""
    resumption: Resumption | None = None
    spent = ""
    """The limit that the checkpoint's training has reached, such as `budget.examples`."""

    def __init__(
        self, *args: Any, given: Sequence[str] = (), again: bool = False, accepts: bool = False, **kwargs: Any
    ) -> None:
        # The parent's constructor runs the command.
        self.given, self.again, self.accepts = given, again, accepts
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
            type=list[Literal["wandb", "tensorboard"]],
            default=[],
            help="Loggers beside the run's own files, such as [wandb] (works offline) or [tensorboard].",
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
        self.checkpoint = resolve_checkpoint(self._values().get("ckpt_path"))
        if self.checkpoint is None:
            return
        self._values()["ckpt_path"] = str(self.checkpoint)
        self._values()["weights_only"] = True
        self.state = read_checkpoint(self.checkpoint)
        if self.config["subcommand"] == "fit":
            require_resumable(self.checkpoint, self.state)
        stored = self.state["genlab"]["model"]
        asked = self._values()["model"]["class_path"]
        if stored and stored.get("class_path") != asked:
            raise CheckpointError(
                f"{self.checkpoint} holds a {stored.get('class_path')}, the configuration asks for {asked}: "
                f"give the configuration of the checkpoint's own run (config.yaml beside it)."
            )

    def before_instantiate_classes(self) -> None:
        values = self._values()
        require_sections(values)
        check_objects(values)
        check_places(values["trainer"], self._old_run.path if self._old_run else None)
        refuse_secrets(plain(values["trainer"]))
        choose_precision(values)
        choose_strategy(values)
        if self.checkpoint is not None:
            self.resumption = Resumption.of(self.checkpoint, self.state, self.accepts)
            if self.subcommand == "fit":
                self.spent = self._spent_limit()
        if self.subcommand != "fit":
            self.run = self._old_run

    @cached_property
    def _old_run(self) -> Run | None:
        """The run that the checkpoint lies in."""
        return None if self.checkpoint is None else run_of(self.checkpoint)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            raise ValueError(readable(error)) from error
        if self.checkpoint is not None:
            check_weights(self.model, self.state, self.checkpoint)
            self.state = {}  # as much memory as the model and its optimisers

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        values, trainer = self._values(), self._get(self.config_init, "trainer")
        recorder = None
        if self.subcommand == "fit":
            check_variants(self.model, plain(values["model"]), values["variants"])
            check_trainer(trainer, self.model.alternating)
            evaluate = self._get(self.config_init, "evaluate")
            evaluate.require_unseen_test()
            if is_first_process():
                self.datamodule.require_usable()
            evaluate.prepare(self.model)
            if self.spent:
                self.run = self._old_run
            elif not self.is_trial():  # made now, so that a setting that is refused leaves no folder behind
                self.run = self._run_folder(values)
            if self.run is not None:
                clock = self._get(self.config_init, "budget").clock
                recorder = RunRecorder(self.run, self.config_text(), clock, self.resumption)
        self.model.config = plain(values["model"])
        self.model.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # as Lightning publishes its choice
        theirs = _as_list(trainer.get("callbacks"))
        has_bar = any(isinstance(callback, ProgressBar) for callback in theirs)
        if self.subcommand != "fit" and not sys.stderr.isatty() and not has_bar:
            trainer["enable_progress_bar"] = False
        shows_line = trainer["enable_progress_bar"] is not False and not has_bar
        trainer["plugins"] = [*_as_list(trainer.get("plugins")), AtomicCheckpointIO()]
        trainer["callbacks"] = [*self._callbacks(recorder, shows_line), *theirs]
        loggers = self._loggers(values, trainer.get("logger"), recorder)
        made = super().instantiate_trainer(logger=loggers, default_root_dir=self._root_dir(), **kwargs)
        peers.prepare(made, self.run if self.subcommand == "fit" else None)
        if self.checkpoint is not None:
            blame(made, self.checkpoint)
        return made

    def _callbacks(self, recorder: RunRecorder | None, shows_line: bool) -> list[Callback]:
        """Returns the callbacks that come before those of the configuration."""
        budget, checkpoints = (self._get(self.config_init, name) for name in ("budget", "checkpoints"))
        # The clock comes first, so that what the others do at a pause is not training time.
        callbacks: list[Callback] = [budget.clock]
        if self.subcommand == "fit":
            callbacks += [Monitors(), ExampleInput(), *([ProgressLine(budget)] if shows_line else [])]
            callbacks += [checkpoints.request, DivergenceGuard()]
        if recorder is not None:
            callbacks.append(recorder)
        if self.subcommand in ("validate", "test") and self.resumption is not None:
            callbacks.append(SameData(self.resumption))
        if self.subcommand == "predict":
            callbacks.append(SampleWriter(self._prediction_folder()))
        return callbacks

    def _run_subcommand(self, subcommand: str) -> None:
        trains_here = subcommand == "fit" and self.run is not None and self.trainer.is_global_zero
        with (
            self.run.lock() if self.run is not None and trains_here else nullcontext(),
            peers.together(self.trainer, self.run if subcommand == "fit" else None),
        ):
            if subcommand == "fit" and self.spent:
                self._say_complete()
            elif subcommand == "test" and self._tested.kept is not None:
                self.after_test()  # only variants are missing
            else:
                super()._run_subcommand(subcommand)

    def _say_complete(self) -> None:
        """Says that nothing is left to train; a run that was killed after its last step is finished now."""
        if not self.trainer.is_global_zero:
            return
        assert self.resumption is not None and self.checkpoint is not None
        seen, unit = self.resumption.examples_seen, self.model.spec.unit
        if self.run is not None and self.run.status != "finished":
            MetricsFile(self.run).write_csv()
            self.run.update(status="finished", error=None, examples_seen=seen)
        place = shown_path(self.run.path if self.run is not None else self.checkpoint)
        print(f"{place} is complete after {seen:,} {unit}; extend it with --{self.spent} N")

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
        if self.resumption is not None:
            tested.changes = self.resumption.check(self.datamodule)
        if tested.kept is None:
            tested.measure(self._values_of("test"))
        tested.measure_variants()
        if self.trainer.is_global_zero:
            tested.table().show()
            if self.run is not None:
                print(f"Written to {shown_path(self.run.record)}", file=sys.stderr)

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
        made_of = stamp(run, self.checkpoint, self.given) if run and self.checkpoint else None
        return TestedRun(
            run=run,
            checkpoint=self.checkpoint,
            made_of=made_of,
            model=self.model,
            config=plain(values["model"]),
            variants=values["variants"],
            data=self.datamodule,
            evaluate=self._get(self.config_init, "evaluate"),
            device=self.trainer.strategy.root_device,
            again=self.again,
        )

    def _spent_limit(self) -> str:
        limits = TrainedWith.of(yaml.safe_load(self.config_text()), {}).limits
        assert self.checkpoint is not None and self.resumption is not None
        with restoring(self.checkpoint):
            spent = spent_limit(self.state, limits)
        run = self._old_run
        # A run may also have ended early, by a callback or the time it was given.
        ended = run is not None and run.status == "finished" and limits == self.resumption.trained_with.limits
        return spent or (next((k for k, v in limits.items() if v not in (None, -1)), "") if ended else "")

    def config_text(self) -> str:
        """Returns the resolved configuration, without what belongs to one command only."""
        values = _without_enums(self._values().clone())
        config = yaml.safe_load(
            self._parser(self.subcommand).dump(values, skip_none=False, skip_link_targets=True)
        )
        kept = {name: value for name, value in config.items() if name not in COMMAND_KEYS}
        kept["data"] = with_absolute_paths(kept["data"])
        return f"# genlab {genlab.__version__}\n" + yaml.safe_dump(without_secrets(kept), sort_keys=False)

    def is_trial(self) -> bool:
        """Returns whether this is a fast_dev_run, which leaves nothing behind."""
        return bool(self._values()["trainer"]["fast_dev_run"])

    def _values(self) -> Any:
        return self.config[self.config["subcommand"]]

    def _run_folder(self, values: Any) -> Run:
        inherited = os.environ.get(RUN_VARIABLE)
        if inherited and not is_first_process():
            return open_run(inherited)
        run = self._old_run or create_run(
            values["experiment"] or experiment_name(values), name=values["run_name"]
        )
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
        if self.is_new and code in REFUSED and not self.model.examples_seen:
            shutil.rmtree(self.run.path, ignore_errors=True)
            with suppress(OSError):
                self.run.path.parent.rmdir()  # the experiment's, where this was its only run
        elif code in RESUMABLE and self.run.last_checkpoint is not None:
            error.add_note(f"Continue with `genlab resume {shown_path(self.run.path)}`.")

    def _root_dir(self) -> str:
        return str(self.run.path) if self.run is not None else os.environ.get("TMPDIR", "/tmp")

    def _prediction_folder(self) -> Path:
        return self.run.output("predictions") if self.run is not None else Path("predictions")

    def _loggers(self, values: Any, configured: Any, recorder: RunRecorder | None) -> list[Logger]:
        loggers = [] if configured in (None, True, False) else _as_list(configured)
        if recorder is None:
            return [RunLogger(None, None), *loggers]
        others = [self._logger(name) for name in values["log_to"]]
        return [RunLogger(recorder.run.path, recorder.note), *loggers, *others]

    def _logger(self, name: str) -> Logger:
        assert self.run is not None
        if name == "wandb":
            from pytorch_lightning.loggers import WandbLogger

            return WandbLogger(
                name=f"{self.run.experiment}/{self.run.name}",
                save_dir=self.run.path,
                project="genlab",
                settings=private_wandb(),
            )
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(self.run.path, name="", version="tensorboard")


def main(
    arguments: Sequence[str], given: Sequence[str] = (), again: bool = False, accepts: bool = False
) -> int:
    """Runs one of Lightning's commands; returns the exit code.

    Args:
        arguments: The command and its options.
        given: The options as they were typed, for the record of a test.
        again: Measure what a test has measured before, too.
        accepts: Go on although settings or data have changed, and record how.
    """
    for room in ROOMS:
        import_room(room)
    lock_imports()
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("pytorch_lightning.callbacks.model_summary").setLevel(logging.INFO)  # is asked for
    # A CPU multiplies numbers below 1e-38 many times slower; importance weights are full of them.
    torch.set_flush_denormal(True)
    GenlabCLI(
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
    )
    return 0


def import_room(name: str) -> None:
    """Imports every file of a room, so that its classes are known by their bare names."""
    room = importlib.import_module(f"genlab.{name}")
    for module in pkgutil.iter_modules(room.__path__, f"genlab.{name}."):
        importlib.import_module(module.name)


def resolve_checkpoint(given: Any, run: Run | None = None) -> Path | None:
    """Returns the checkpoint's file.

    Args:
        given: A file; a run folder, whose last one it is; or "best" or "last" of the run; None for none.
        run: The run that the command is about, where it is about one.

    Raises:
        CheckpointError: A run has none, or all are damaged.
        ValueError: There is no such file.
    """
    if not given:
        return None
    path = Path(given)
    if str(given) in ("best", "last") and not path.exists():
        if run is None:
            raise ValueError(f"--ckpt_path {given} is one of a run: name the run first, or the file.")
        return run.checkpoint(str(given))
    if path.is_dir():
        return open_run(path).checkpoint()
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}; a run keeps its own in <run>/checkpoints/.")
    return path


def blame(trainer: Trainer, checkpoint: Path) -> None:
    """Lets errors of what a trainer restores from a checkpoint name the file."""
    connector = trainer._checkpoint_connector
    for name in ("restore_model", "restore_callbacks", "restore_training_state"):
        setattr(connector, name, restoring(checkpoint)(getattr(connector, name)))


def run_of(checkpoint: Path) -> Run | None:
    """Returns the run that a checkpoint lies in, None for one that lies elsewhere."""
    try:
        return open_run(checkpoint)
    except ValueError:
        return None


def require_sections(values: Any) -> None:
    """Refuses a section that holds a list or one value in place of keys, which the parser lets pass."""
    for name in ("trainer", *GROUPS):
        if not hasattr(values[name], "as_dict"):
            raise ValueError(f"{name} must hold keys and values, got {values[name]!r}.")


def private_wandb() -> Any:
    """Returns wandb's settings without what it would gather of user, home and machine."""
    import wandb

    switches = ("x_disable_meta", "x_disable_machine_info", "disable_git", "disable_code")
    known: dict[str, Any] = {name: True for name in switches if name in wandb.Settings.model_fields}
    return wandb.Settings(**known, host="machine", username="user")


def refuse_secrets(trainer: Any) -> None:
    """Refuses a secret among a trainer's settings: loggers write theirs into files of their own.

    Raises:
        ValueError: With the setting's place and the better way.
    """
    found = list(secret_settings({"trainer": trainer}))
    if found:
        raise ValueError(
            f"{found[0]} is a secret, which the files of the run and of its logger would keep: leave it out "
            "and give it in the environment, such as WANDB_API_KEY."
        )


def is_first_process() -> bool:
    """Returns whether this is the process that makes what all processes of a training share."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def choose_precision(values: Any) -> None:
    """Fills in the precision that suits the accelerator: bfloat16 is slower than float32 on most CPUs."""
    if values["trainer"]["precision"] is not None:
        values["trainer"]["precision"] = check_precision(values["trainer"]["precision"])
    else:
        on_gpu = torch.cuda.is_available() and values["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
        values["trainer"]["precision"] = (
            "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
        )


def choose_strategy(values: Any) -> None:
    """Fills in the strategy that alternating optimisers need on several devices."""
    trainer = values["trainer"]
    if trainer["strategy"] != "auto" or _num_devices(trainer) == 1:
        return
    if _class(values["model"]["class_path"]).alternating:
        trainer["strategy"] = "ddp_find_unused_parameters_true"


def with_absolute_paths(section: Any) -> Any:
    """Returns a part of a configuration with every `path` and `source_path` that exists made absolute."""
    if not isinstance(section, dict):
        return section
    return {name: _absolute(name, with_absolute_paths(value)) for name, value in section.items()}


def _absolute(name: str, value: Any) -> Any:
    is_path = name in ("path", "source_path")
    exists = is_path and isinstance(value, str) and Path(value).expanduser().exists()
    return str(Path(value).expanduser().absolute()) if exists else value


def experiment_name(values: Any) -> str:
    """Returns a name for the run: the configuration file's, else the model's and the data's."""
    files = [str(path) for path in values.get("config") or []]
    if files and files[0] and Path(files[0]).stem != "None":
        first = Path(files[0])
        return first.parent.parent.name if first.name == "config.yaml" else first.stem
    return "_".join(values[part]["class_path"].rsplit(".", 1)[-1].lower() for part in ("model", "data"))


def plain(config: Any) -> dict[str, Any]:
    """Returns a parsed configuration as plain dictionaries, lists and values."""
    return yaml.safe_load(yaml.safe_dump(_unwrapped(config)))


def _without_enums(value: Any) -> Any:
    """Returns a parsed configuration with the values of enumerations, as a file gives them."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list):
        return [_without_enums(part) for part in value]
    for name, part in vars(value).items() if hasattr(value, "as_dict") else ():
        setattr(value, name, _without_enums(part))
    return value


def _unwrapped(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _unwrapped(part) for name, part in value.items() if name != "spec"}
    if isinstance(value, list | tuple):
        return [_unwrapped(part) for part in value]
    value = value.value if isinstance(value, Enum) else value
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _class(path: str) -> type[Model]:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _num_devices(trainer: Any) -> int:
    devices, nodes = trainer["devices"], int(trainer["num_nodes"])
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) * nodes
    if isinstance(devices, list):
        return len(devices) * nodes
    return (int(devices) if str(devices).isdigit() else len(str(devices).split(","))) * nodes


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
