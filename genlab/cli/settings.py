"""The settings of a training command, once they are parsed: what is refused, filled in and kept."""

from __future__ import annotations

import importlib
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from pytorch_lightning.cli import LightningArgumentParser

import genlab
from genlab.callbacks.sharding import NAME as SHARDED
from genlab.cli.guests import check_precision
from genlab.cli.parser import GROUPS
from genlab.evaluation.load import trained_stage
from genlab.families.base import Model
from genlab.runs.environment import secret_settings, without_secrets
from genlab.runs.folder import Run
from genlab.runs.tests import FIRST_STAGE, own_first_stage

COMMAND_KEYS = (
    "config",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
    "experiment",
    "run_name",
    "log_to",
    "log_artifacts",
)
"""Keys of one command that a run's stored configuration leaves out: another command would refuse them."""

PATHS = ("path", "source_path", "ranker", FIRST_STAGE)
"""Settings that are looked up from the folder where a command is typed."""

_FINDING = {"auto": "ddp", **{name: name for name in ("ddp", "ddp_spawn", "ddp_fork", "ddp_notebook")}}
"""Lightning's strategies that look for weights without a gradient only if told to, by what users write."""


def require_sections(values: Any) -> None:
    """Refuses a section that holds a list or one value in place of keys, which the parser lets pass."""
    for name in ("trainer", *GROUPS):
        if not hasattr(values[name], "as_dict"):
            raise ValueError(f"{name} must hold keys and values, got {values[name]!r}.")


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
    """Has alternating optimisers look for weights without a gradient, which each step of one leaves."""
    trainer = values["trainer"]
    if trainer["strategy"] == SHARDED and not _class(values["model"]["class_path"]).can_shard:
        name = values["model"]["class_path"].rpartition(".")[2]
        raise ValueError(
            f"The weights of a {name} cannot be spread over devices yet: use --trainer.strategy ddp."
        )
    if str(trainer["strategy"]) not in _FINDING or _num_devices(trainer) == 1:
        return
    if _class(values["model"]["class_path"]).alternating:
        trainer["strategy"] = f"{_FINDING[trainer['strategy']]}_find_unused_parameters_true"


def experiment_name(values: Any) -> str:
    """Returns a name for the run: the configuration file's, else the model's and the data's."""
    files = [str(path) for path in values.get("config") or []]
    if files and files[0] and Path(files[0]).stem != "None":
        first = Path(files[0])
        return first.parent.parent.name if first.name == "config.yaml" else first.stem
    return "_".join(values[part]["class_path"].rsplit(".", 1)[-1].lower() for part in ("model", "data"))


def stored_text(values: Any, parser: LightningArgumentParser) -> str:
    """Returns the resolved configuration as a run keeps it, without what belongs to one command only."""
    config = yaml.safe_load(
        parser.dump(_without_enums(values.clone()), skip_none=False, skip_link_targets=True)
    )
    kept = {name: value for name, value in config.items() if name not in COMMAND_KEYS}
    kept |= {part: with_absolute_paths(kept[part]) for part in ("model", "data", "evaluate")}
    return f"# genlab {genlab.__version__}\n" + yaml.safe_dump(without_secrets(kept), sort_keys=False)


def plain(config: Any) -> dict[str, Any]:
    """Returns a parsed configuration as plain dictionaries, lists and values."""
    return yaml.safe_load(yaml.safe_dump(_unwrapped(config)))


def keep_first_stage(model: Any, run: Run | None) -> None:
    """Puts a run's copy of its first stage in the place of what the settings name, where it has one."""
    arguments = model.get("init_args")
    if run is not None and arguments is not None and FIRST_STAGE in arguments:
        own = own_first_stage(run)
        arguments[FIRST_STAGE] = arguments[FIRST_STAGE] if own is None else trained_stage(str(own))


def with_absolute_paths(section: Any) -> Any:
    """Returns a part of a configuration with every path of `PATHS` that exists made absolute."""
    if not isinstance(section, dict):
        return section
    return {name: _absolute(name, with_absolute_paths(value)) for name, value in section.items()}


def _absolute(name: str, value: Any) -> Any:
    exists = name in PATHS and isinstance(value, str) and Path(value).expanduser().exists()
    return str(Path(value).expanduser().absolute()) if exists else value


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
