"""`genlab export`: a run's model as plain functions of tensors, in files that other programs read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, load
from genlab.runs.folder import Run, shown_path

ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors"}


def export(arguments: list[str]) -> int:
    """Writes the functions of a model and says how far they are from the model's own."""
    options = parser().parse_args(arguments)
    if options.output is not None:
        options.output = read.require(read.output_file(ENDINGS[options.to]), options.output, "--output")
    options.device = "cpu"
    model, run = load(options)
    target = options.output or run.output("exported", f"{run.experiment}{ENDINGS[options.to]}")
    write = write_onnx if options.to == "onnx" else write_weights
    for path in write(model, run, target):
        print(shown_path(path))
    return 0


def write_weights(model: Any, run: Run, target: Path) -> list[Path]:
    """Writes one file of weights and configuration, which `load_exported` and most commands take."""
    from genlab.evaluation.export import export_weights
    from genlab.runs.tests import model_config

    for name, worst in export_weights(model, model_config(run), target).items():
        tell(name, worst)
    return [target]


def write_onnx(model: Any, run: Run, target: Path) -> list[Path]:
    """Writes a graph for each function, with its name in the file's where there are several."""
    from genlab.evaluation.functions import functions_of
    from genlab.evaluation.onnx import export_onnx, require_onnx

    require_onnx()
    functions = functions_of(model)
    paths = []
    for function in functions:
        name = target.name if len(functions) == 1 else f"{target.stem}-{function.name}{target.suffix}"
        paths.append(target.with_name(name))
        tell(function.name, export_onnx(function, model, paths[-1]))
    return paths


def tell(function: str, worst: float) -> None:
    """Says how near a function that was written is to the model's, where it is in nobody's way."""
    from genlab.evaluation.functions import NUM_COMPARED

    print(f"{function}: differs by at most {worst:.2g} over {NUM_COMPARED} inputs", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab export",
        description="Write a model's functions for other programs, once they are proven to be the model's.",
    )
    add_run_options(parser, device=False)
    parser.add_argument(
        "--to",
        choices=sorted(ENDINGS),
        required=True,
        help="onnx: graphs of any batch size; safetensors: weights, configuration and a test of them",
    )
    parser.add_argument("-o", "--output", type=read.path, help="file (<run>/exported/<experiment>.<ending>)")
    return parser
