"""`genlab inpaint`: fills the marked part of a picture, in several ways."""

from __future__ import annotations

import argparse
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, given_with_pictures, load_walking
from genlab.runs.folder import shown_path


def inpaint(arguments: list[str]) -> int:
    """Writes one picture with the holes and what the model fills them with, and single files."""
    options = parser().parse_args(arguments)
    model, run = load_walking(options)
    import torch
    from PIL import Image

    from genlab.evaluation.latents import read_images
    from genlab.evaluation.pictures import grid, write_samples
    from genlab.evaluation.restoration import read_mask

    folder = options.output or run.output("inpainted", options.image.stem)
    x = read_images([options.image], model.spec).to(model.device)
    known = read_mask(options.mask, options.image, model.spec).to(model.device)
    index = torch.arange(options.num)
    filled = model.sample_with(
        sampler(model, x, known, options),
        index,
        options.seed,
        clip=None if options.resamplings else False,
        **given_with_pictures(model, index, options),
    )
    # Guidance keeps the known pixels nearly; what is known stays as it is.
    filled = known * x + (1.0 - known) * filled
    write_samples(folder, list(range(options.num)), filled.cpu(), model.spec)
    rows = torch.cat([x, known * x, filled]).cpu()
    Image.fromarray(grid(rows, model.spec.levels)).save(folder / "grid.png")
    print(shown_path(folder / "grid.png"))
    return 0


def sampler(model: Any, x: Any, known: Any, options: argparse.Namespace) -> Any:
    """Returns RePaint, or guidance by the known pixels where no resamplings are asked for."""
    space = model.space
    from genlab.processes.grids import RatioGrid, UniformGrid
    from genlab.samplers.conditioning import Masking, RePaint, Restoration

    if options.resamplings:
        inside, mask = space.inside(known * x), space.known(known)
        return RePaint(inside, mask, UniformGrid(options.steps), options.resamplings)
    operator, levels = space.measured(Masking(known)), RatioGrid(options.steps, largest=80.0)
    return Restoration(operator, known * x, 0.01, levels, clip=space.spec.kind == "image")


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab inpaint", description="Fill the white part of a mask with what the model finds fitting."
    )
    add_run_options(parser)
    parser.add_argument("image", type=read.image, help="image file")
    parser.add_argument(
        "mask", type=read.image, help="image file of the same size: black is kept, white is filled"
    )
    parser.add_argument("-n", "--num", type=read.count(), default=7, help="different fillings (7)")
    parser.add_argument("--seed", type=read.seed, default=0, help="seed of the fillings (0)")
    parser.add_argument("--steps", type=read.count(), default=50, help="noise levels (50)")
    parser.add_argument(
        "--resamplings",
        type=read.count(0),
        default=10,
        help="RePaint's steps at each level; 0: exact guidance (10)",
    )
    parser.add_argument("--label", type=read.label, help="class to fill in, for models trained with labels")
    parser.add_argument(
        "--prompt", default="", help="what the picture is to show, for models that read texts"
    )
    parser.add_argument(
        "--output", type=read.output_folder, help="folder of the files (<run>/inpainted/<image>)"
    )
    return parser
