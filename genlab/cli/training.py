"""fit, validate, test and predict: Lightning's command line over every family and data set."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import Logger

import genlab
from genlab.callbacks.budget import Budget
from genlab.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoints, StopCleanly
from genlab.callbacks.evaluate import Evaluate
from genlab.callbacks.health import Health
from genlab.callbacks.progress import ProgressLine
from genlab.callbacks.record import RunRecorder
from genlab.callbacks.samples import SampleGrid, SampleWriter
from genlab.cli.errors import readable
from genlab.cli.testing import TestedRun, check_variants
from genlab.data.base import DataModule
from genlab.evaluation.examine import entry_of
from genlab.evaluation.load import check_weights, read_checkpoint
from genlab.families.base import Model
from genlab.report.test_table import table_of
from genlab.runs.folder import Run, create_run, open_run, shown_path
from genlab.runs.tests import stamp
from genlab.runs.trust import check_class_paths

RUN_VARIABLE = "GENLAB_RUN"
"""Tells the processes that the first one starts which folder the run has."""

MODEL_ROOMS = ("families", "networks", "bijections", "processes", "samplers", "losses")
"""Where the classes of a model's configuration lie."""

GROUPS = {
    "budget": Budget,
    "evaluate": Evaluate,
    "samples": SampleGrid,
    "health": Health,
    "checkpoints": RunCheckpoints,
}
"""Callbacks that every run has, each with a key of its own in the YAML file."""

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


class Parser(LightningArgumentParser):
    """Lightning's parser without its 50 lines of usage before an error."""

    def print_usage(self, file: Any = None) -> None:
        if file is not sys.stderr:
            super().print_usage(file)


class GenlabCLI(LightningCLI):
    """The training commands: one folder for each run, callbacks that every family needs, one data shape."""

    run: Run | None = None

    def __init__(self, *args: Any, given: Sequence[str] = (), again: bool = False, **kwargs: Any) -> None:
        # The parent's constructor runs the command.
        self.given, self.again = given, again
        skipped = self.subcommands()
        # Only this command's: each parser takes a quarter of a second to make.
        self.subcommands = lambda: {kwargs["args"][0]: skipped[kwargs["args"][0]]}  # type: ignore[method-assign]
        super().__init__(*args, **kwargs)

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
        stored = read_checkpoint(self.checkpoint)["genlab"]["model"]
        asked = self._values()["model"]["class_path"]
        if stored and stored["class_path"] != asked:
            raise ValueError(
                f"{self.checkpoint} holds a {stored['class_path']}, the configuration asks for a {asked}: "
                f"give the configuration of the checkpoint's own run (config.yaml beside it)."
            )

    def before_instantiate_classes(self) -> None:
        values = self._values()
        choose_precision(values)
        choose_strategy(values)
        if self.subcommand != "fit" and self.checkpoint is not None:
            self.run = run_of(self.checkpoint)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            raise ValueError(readable(error)) from error
        if self.checkpoint is not None:
            check_weights(self.model, read_checkpoint(self.checkpoint), self.checkpoint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        values = self._values()
        if self.subcommand == "fit":
            check_variants(self.model, plain(values["model"]), values["variants"])
            self._get(self.config_init, "evaluate").require_unseen_test()
            if is_first_process():
                self.datamodule.require_usable()
            if not self.is_trial():  # made now, so that a setting that is refused leaves no folder behind
                self.run = self._run_folder(values)
        budget, checkpoints = (self._get(self.config_init, name) for name in ("budget", "checkpoints"))
        # The clock comes first, so that what the others do at a pause is not training time.
        always = [budget.clock]
        self.stop = StopCleanly(checkpoints)
        if self.subcommand == "fit":
            always += [ProgressLine(budget), self.stop]
        if self.subcommand == "fit" and self.run is not None:
            always.append(RunRecorder(self.run, self.config_text(), budget.clock))
        if self.subcommand == "predict":
            always.append(SampleWriter(self._prediction_folder()))
        trainer = self._get(self.config_init, "trainer")
        self.model.config = plain(values["model"])
        self.model.seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # as Lightning publishes its choice
        trainer["plugins"] = [*_as_list(trainer.get("plugins")), AtomicCheckpointIO()]
        trainer["callbacks"] = [*always, *_as_list(trainer.get("callbacks"))]
        if self.subcommand != "fit" and not sys.stderr.isatty():
            trainer["enable_progress_bar"] = False
        loggers = self._loggers(values, trainer.get("logger"))
        return super().instantiate_trainer(logger=loggers, default_root_dir=self._root_dir(), **kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        trains_here = subcommand == "fit" and self.run is not None and self.trainer.is_global_zero
        with self.run.lock() if self.run is not None and trains_here else nullcontext():
            if subcommand == "test" and self._tested.kept is not None:
                self.after_test()  # only variants are missing
            else:
                super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "verbose": False} if "verbose" in kwargs else kwargs

    def after_validate(self) -> None:
        evaluate = self._get(self.config_init, "evaluate")
        self._show(entry_of(self._values_of("val"), evaluate.last))

    def after_test(self) -> None:
        tested = self._tested
        if self.is_trial():
            self._show(self._trial_entry())
            return
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

    def config_text(self) -> str:
        """Returns the resolved configuration, without what belongs to one command only."""
        config = yaml.safe_load(
            self._parser(self.subcommand).dump(self._values(), skip_none=False, skip_link_targets=True)
        )
        kept = {name: value for name, value in config.items() if name not in COMMAND_KEYS}
        kept["data"] = with_absolute_paths(kept["data"])
        return f"# genlab {genlab.__version__}\n" + yaml.safe_dump(kept, sort_keys=False)

    def is_trial(self) -> bool:
        """Returns whether this is a fast_dev_run, which leaves nothing behind."""
        return bool(self._values()["trainer"]["fast_dev_run"])

    def _values(self) -> Any:
        return self.config[self.config["subcommand"]]

    def _run_folder(self, values: Any) -> Run:
        inherited = os.environ.get(RUN_VARIABLE)
        if inherited and not is_first_process():
            return open_run(inherited)
        resumed = run_of(self.checkpoint) if self.checkpoint is not None else None
        run = resumed or create_run(values["experiment"] or experiment_name(values), name=values["run_name"])
        os.environ[RUN_VARIABLE] = str(run.path.absolute())
        print(f"{'Resuming' if resumed else 'Run'}: {shown_path(run.path)}", file=sys.stderr)
        return run

    def _root_dir(self) -> str:
        return str(self.run.path) if self.run is not None else os.environ.get("TMPDIR", "/tmp")

    def _prediction_folder(self) -> Path:
        return self.run.path / "predictions" if self.run is not None else Path("predictions")

    def _loggers(self, values: Any, configured: Any) -> list[Logger] | bool:
        loggers = [] if configured in (None, True, False) else _as_list(configured)
        if self.subcommand == "fit" and self.run is not None:
            loggers += [self._logger(name) for name in values["log_to"]]
        return loggers or False

    def _logger(self, name: str) -> Logger:
        assert self.run is not None
        if name == "wandb":
            from pytorch_lightning.loggers import WandbLogger

            return WandbLogger(
                name=f"{self.run.experiment}/{self.run.name}", save_dir=self.run.path, project="genlab"
            )
        from pytorch_lightning.loggers import TensorBoardLogger

        return TensorBoardLogger(self.run.path, name="", version="tensorboard")


def main(arguments: Sequence[str], given: Sequence[str] = (), again: bool = False) -> int:
    """Runs one of Lightning's commands; returns the exit code.

    Args:
        arguments: The command and its options.
        given: The options as they were typed, for the record of a test.
        again: Measure what a test has measured before, too.
    """
    for room in (*MODEL_ROOMS, "data", "metrics", "callbacks"):
        import_room(room)
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    check_config_files(arguments)
    # A CPU multiplies numbers below 1e-38 many times slower; importance weights are full of them.
    torch.set_flush_denormal(True)
    cli = GenlabCLI(
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
        args=list(arguments),
        given=given,
        again=again,
    )
    return cli.stop.exit_code


def import_room(name: str) -> None:
    """Imports every file of a room, so that its classes are known by their bare names."""
    room = importlib.import_module(f"genlab.{name}")
    for module in pkgutil.iter_modules(room.__path__, f"genlab.{name}."):
        importlib.import_module(module.name)


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuses class paths outside the trusted packages, in files and arguments, before any import."""
    for number, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config", "-c"):
            path = Path(value or "".join(arguments[number + 1 : number + 2]))
            if path.is_file():
                check_class_paths(yaml.safe_load(path.read_text()))
        else:
            check_class_paths(value or (argument if not argument.startswith("-") else ""))


def resolve_checkpoint(given: Any) -> Path | None:
    """Returns the checkpoint's file: the given one, or the last one of the given run folder."""
    if not given:
        return None
    path = Path(given)
    if path.is_dir():
        found = open_run(path).last_checkpoint
        if found is None:
            raise ValueError(f"{path} has no checkpoint yet.")
        return found
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}; a run keeps its own in <run>/checkpoints/.")
    return path


def run_of(checkpoint: Path) -> Run | None:
    """Returns the run that a checkpoint lies in, None for one that lies elsewhere."""
    try:
        return open_run(checkpoint)
    except ValueError:
        return None


def is_first_process() -> bool:
    """Returns whether this is the process that makes what all processes of a training share."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def choose_precision(values: Any) -> None:
    """Fills in the precision that suits the accelerator: bfloat16 is slower than float32 on most CPUs."""
    if values["trainer"]["precision"] is None:
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


def _unwrapped(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: _unwrapped(part) for name, part in value.items() if name != "spec"}
    if isinstance(value, list | tuple):
        return [_unwrapped(part) for part in value]
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
