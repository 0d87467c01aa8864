"""What `genlab fit` would take a configuration and its options for, without training."""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout, suppress
from typing import Any

from genlab.configuration.keys import place_of
from genlab.configuration.plain_yaml import parse_yaml
from genlab.runs.ranges import Range


def settled(
    arguments: Sequence[str], ranges: Mapping[str, Range]
) -> tuple[dict[str, Any], dict[tuple[str, ...], Range]]:
    """Returns all settings of a training, and the ranges by the places of their settings.

    Args:
        arguments: Options of `genlab fit`.
        ranges: By keys as they were typed.

    Raises:
        ValueError: A setting is wrong, a key is none, or a range holds a value that its setting may not have.
    """
    config = resolved(arguments)
    places = {}
    for key, found in ranges.items():
        try:
            place = place_of(key, config)
            for value in found.ends:
                resolved([*arguments, f"--{'.'.join(place)}={value}"])
        except ValueError as error:
            raise ValueError(f"--over {key}: {error}") from None
        places[place] = found
    return config, places


def resolved(arguments: Sequence[str]) -> dict[str, Any]:
    """Returns the whole configuration that options of `genlab fit` stand for, defaults included."""
    from genlab.cli.main import quieten
    from genlab.cli.training import main

    quieten()
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        main(["fit", *arguments, "--print_config"])
    return parse_yaml(printed.getvalue(), "the configuration")


def settled_elsewhere(
    arguments: Sequence[str], ranges: Mapping[str, Range]
) -> tuple[dict[str, Any], dict[tuple[str, ...], Range]]:
    """As `settled`, in a process of its own: what it imports would stay in this one as long as a sweep."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(settled, arguments, ranges).result()
