"""`genlab interpolate`: the way between two images or two samples through the latent spaces of runs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_device_options, given_on_the_command_line, load
from genlab.runs.folder import Run, shown_path

if TYPE_CHECKING:
    from genlab.shapes import DataSpec


def interpolate(arguments: list[str]) -> int:
    """Draws a row of images for each run, from one end to the other."""
    options = parser().parse_args(arguments)
    loaded = [load(options, path) for path in options.runs]
    import torch
    from PIL import Image

    from genlab.evaluation.pictures import grid

    spec = require_one_shape(loaded)
    ends = "images" if options.images else "seeds{}-{}".format(*options.seeds)
    several = f"_of_{len(loaded)}_runs" if len(loaded) > 1 else ""
    name = f"interpolation_{ends}_{options.path}{several}.png"
    file = options.output or loaded[0][1].output("samples", name)
    rows = torch.cat([walk(model, run, options).cpu() for model, run in loaded])
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(rows, spec.levels, columns=options.num)).save(file)
    if len(loaded) > 1:
        print("Rows: " + ", ".join(f"{run.experiment}/{run.name}" for _, run in loaded), file=sys.stderr)
    print(shown_path(file))
    return 0


def require_one_shape(loaded: list[tuple[Any, Run]]) -> DataSpec:
    """Returns what the runs' images have in common, which one picture needs."""
    (first, first_run), *others = loaded
    for model, run in others:
        if (model.spec.shape, model.spec.levels) != (first.spec.shape, first.spec.levels):
            raise ValueError(
                f"{run.path} makes images of shape {model.spec.shape}, {first_run.path} of "
                f"{first.spec.shape}: interpolate runs of one kind of image together."
            )
    return first.spec


def walk(model: Any, run: Run, options: argparse.Namespace) -> Any:
    """Returns the images from one end to the other."""
    from genlab.evaluation.latents import lerp, slerp
    from genlab.families.capabilities import HasLatent

    has_latent = isinstance(model, HasLatent)
    if not has_latent or model.spec.kind != "image":
        raise ValueError(
            f"{run.path} is a {type(model).__name__}, which has no latent space to walk through."
        )
    label = options.label
    if len(options.runs) > 1:  # a label is for those that take one, which have class 0 without it
        label = (label or 0) if model.uses_labels else None
    first, second = latents(model, label, options)
    z = {"lerp": lerp, "slerp": slerp}[options.path](first, second, options.num)
    return model.decode(z, **given_on_the_command_line(model, z, label, required=True))


def latents(model: Any, label: int | None, options: argparse.Namespace) -> Any:
    """Returns the latents of both ends."""
    import torch

    from genlab.evaluation.latents import read_images
    from genlab.families.capabilities import Reconstructs

    spec, device = model.spec, model.device
    if options.images is None:
        first = torch.zeros(1, dtype=torch.int64, device=device)
        return torch.cat([model.draw_latent(first, seed) for seed in options.seeds])
    if not isinstance(model, Reconstructs):
        raise ValueError(f"A {type(model).__name__} cannot encode images: interpolate between --seeds A B.")
    x = read_images(options.images, spec).to(device)
    return model.encode(x, **given_on_the_command_line(model, x, label, required=True))


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab interpolate", description="Walk between two samples or two images, a row for each run."
    )
    parser.add_argument("runs", type=read.path, nargs="+", help="run folders")
    add_device_options(parser)
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument("--seeds", type=read.seed, nargs=2, default=(0, 1), help="sample 0 of two seeds (0 1)")
    ends.add_argument("--images", type=read.image, nargs=2, help="two image files")
    parser.add_argument(
        "-n", "--num", type=read.count(2), default=10, help="images in the row, both ends included (10)"
    )
    parser.add_argument(
        "--path", choices=("slerp", "lerp"), default="slerp", help="arc or straight line (slerp)"
    )
    parser.add_argument(
        "--label",
        type=read.label,
        help="class of the images, for models trained with labels (0 among several runs)",
    )
    parser.add_argument(
        "--output",
        type=read.output_file(*read.PICTURES),
        help="the picture's file (in <run>/samples; of several runs, of the first)",
    )
    return parser
