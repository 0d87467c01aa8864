"""`genlab export`: a run's model in files that other programs, and other people, read."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, load, resolve_checkpoint
from genlab.files import require_new
from genlab.runs.folder import Run, shown_path

ENDINGS = {"onnx": ".onnx", "safetensors": ".safetensors"}
"""Of the forms that are files; the others are folders."""

FOLDERS = ("diffusers", "hub")


def export(arguments: list[str]) -> int:
    """Writes a model and says how far what was written is from the model's own functions."""
    options = parser().parse_args(arguments)
    ending = ENDINGS.get(options.to, "")
    if options.output is not None:
        place = read.output_file(ending) if ending else read.output_folder
        options.output = read.require(place, options.output, "--output")
        if not ending:
            require_new(options.output)
    licences = (options.licence or "", options.data_licence or "")
    if any(licences) and options.to != "hub":
        raise ValueError("--licence and --data_licence are for the card of --to hub.")
    options.device = "cpu"
    model, run = load(options)
    name = f"{run.experiment}{ending}" if ending else f"{run.experiment}-{options.to}"
    target = options.output or run.output("exported", name)
    writers: dict[str, Callable[..., list[Path]]] = {
        "onnx": write_onnx,
        "safetensors": write_weights,
        "diffusers": write_diffusers,
        "hub": partial(write_hub, checkpoint=options.checkpoint, licences=licences),
    }
    for path in writers[options.to](model, run, target):
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


def write_diffusers(model: Any, run: Run, target: Path) -> list[Path]:
    """Writes the folder of a DDPMPipeline, which draws by all steps of the chain, whatever the run does."""
    from genlab.evaluation.diffusers import export_pipeline, require_diffusers
    from genlab.networks.unet2d import as_unet2d

    require_diffusers()
    tell("denoiser", export_pipeline(model, as_unet2d, target))
    return [target]


def write_hub(
    model: Any, run: Run, target: Path, checkpoint: Path | None, licences: tuple[str, str]
) -> list[Path]:
    """Writes a folder for a model hub; to send it there is the hub's own tool's."""
    from genlab.cli.hub import write_folder

    if not run.record.is_file():
        raise ValueError(f"{run.path} is weights alone: a model card is made of a run, so name its folder.")
    checkpoint = resolve_checkpoint(checkpoint, run) or run.checkpoint()
    for name, worst in write_folder(model, run, checkpoint, target, *licences).items():
        tell(name, worst)
    print(f"Read its README.md, then: hf upload NAME {shlex.quote(shown_path(target))}", file=sys.stderr)
    return [target]


def tell(function: str, worst: float) -> None:
    """Says how near a function that was written is to the model's, where it is in nobody's way."""
    from genlab.evaluation.functions import NUM_COMPARED

    print(f"{function}: differs by at most {worst:.2g} over {NUM_COMPARED} inputs", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab export",
        description="Write a model for other programs, once what was written is proven to be the model.",
    )
    add_run_options(parser, device=False)
    parser.add_argument(
        "--to",
        choices=sorted([*ENDINGS, *FOLDERS]),
        required=True,
        help="onnx: graphs of any batch size; safetensors: weights, configuration and a test of them; hub: a "
        "folder of the same with a model card; diffusers: the folder of a DDPMPipeline",
    )
    parser.add_argument(
        "-o", "--output", type=read.path, help="file or new folder (<run>/exported/<experiment>...)"
    )
    parser.add_argument(
        "--licence",
        type=read.name,
        metavar="ID",
        help="of the weights, for the card of --to hub: a hub's identifier, such as apache-2.0",
    )
    parser.add_argument(
        "--data_licence",
        type=read.words,
        metavar="TEXT",
        help="what the data may be used for, for the card (what the data say of themselves)",
    )
    return parser
