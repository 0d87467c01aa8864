"""What a run's record keeps of its tests, and whether that still holds.

`run.json` holds one entry under `test`, for the model's own way to sample, and one under `variants.<name>`
for each variant of its configuration: the same weights, sampled otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import genlab
from genlab.configuration.plain_yaml import read_yaml
from genlab.files import digest
from genlab.runs.environment import command_line
from genlab.runs.folder import Run

DIGEST_LENGTH = 16

FIRST_STAGE = "first_stage"
"""What a model's configuration calls the run that it stands on, and a run the folder of its copy."""


@dataclass(frozen=True)
class Stamp:
    """What a test was made of: an entry holds as long as all of it is the same.

    Attributes:
        checkpoint: Name of the checkpoint's file.
        checkpoint_digest: Of its bytes.
        config_digest: Of the run's configuration without its variants.
        arguments: Options of the command.
        genlab: Version.
    """

    checkpoint: str
    checkpoint_digest: str
    config_digest: str
    arguments: list[str]
    genlab: str = genlab.__version__

    def to_dict(self) -> dict[str, Any]:
        """Returns the stamp as an entry keeps it."""
        return dict(self.__dict__)

    def fits(self, entry: Any) -> bool:
        """Returns whether an entry was made of the same."""
        return isinstance(entry, dict) and all(entry.get(k) == v for k, v in self.to_dict().items())


def stamp(run: Run, checkpoint: Path, arguments: Sequence[str]) -> Stamp:
    """Returns what a test of this checkpoint with these options is made of."""
    config = {name: part for name, part in read_config(run).items() if name != "variants"}
    text = json.dumps(config, sort_keys=True, default=str)
    return Stamp(
        checkpoint.name,
        digest(checkpoint, DIGEST_LENGTH),
        digest(text, DIGEST_LENGTH),
        command_line(["genlab", *arguments])[1:],
    )


def read_config(run: Run) -> dict[str, Any]:
    """Returns a run's configuration.

    Raises:
        ValueError: It cannot be read.
    """
    config = read_yaml(run.config, "run's configuration")
    sections = config if isinstance(config, dict) else {}
    for name in ("model", "data", "evaluate", "variants"):
        if not isinstance(sections.get(name) or {}, dict):
            raise ValueError(f"{run.config} is no configuration of a run: {name} has no keys; restore it.")
    return sections


def model_config(run: Run) -> dict[str, Any]:
    """Returns the model's part of a run's configuration, with the run's own copy of a first stage.

    The one that the configuration names may be gone, or another one by now.
    """
    model = read_config(run)["model"]
    arguments, own = model.get("init_args") or {}, own_first_stage(run)
    if FIRST_STAGE not in arguments or own is None:
        return model
    return {**model, "init_args": {**arguments, FIRST_STAGE: str(own)}}


def own_first_stage(run: Run) -> Path | None:
    """Returns the folder of a run's copy of the first stage that it stands on, None where it has none."""
    return run.inside(FIRST_STAGE) if run.inside(FIRST_STAGE, "run.json").is_file() else None


def is_without_validation(run: Run) -> bool:
    """Returns whether a run is of before there was a validation split: it learned the whole training split.

    What it took for validation was the test split.
    """
    options = (read_config(run).get("data") or {}).get("init_args") or {}
    return "fraction" in options and "val_fraction" not in options


def variants_of(run: Run) -> dict[str, dict[str, Any]]:
    """Returns the settings of each variant that a run's configuration names."""
    return read_config(run).get("variants") or {}


def kept_test(run: Run, made_of: Stamp) -> dict[str, Any] | None:
    """Returns the stored entry of the model's own way to sample, None where it must be measured."""
    entry = run.read().get("test")
    return entry if made_of.fits(entry) else None


def kept_variants(run: Run, made_of: Stamp, variants: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns the stored entries of variants that still hold, in the configuration's order."""
    stored = run.read().get("variants") or {}
    return {
        name: stored[name]
        for name, settings in variants.items()
        if made_of.fits(stored.get(name)) and stored[name].get("settings") == settings
    }
