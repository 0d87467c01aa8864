"""`genlab complete`: draws the rest of a picture of which the first part is given, in several ways."""

from __future__ import annotations

import argparse
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, given_on_the_command_line, load
from genlab.runs.folder import Run, shown_path


def complete(arguments: list[str]) -> int:
    """Writes one picture with the original, its known part and how the model goes on, and single files."""
    options = parser().parse_args(arguments)
    model, run = load_completing(options)
    import torch
    from PIL import Image

    from genlab.evaluation.latents import read_images
    from genlab.evaluation.pictures import grid, write_samples

    num_known = known_pixels(options, *model.spec.shape[1:])
    folder = options.output or run.output("completed", options.image.stem)
    x = read_images([options.image], model.spec).to(model.device)
    index = torch.arange(options.num)
    drawn = model.complete(
        x.expand(options.num, -1, -1, -1),
        num_known,
        index,
        options.seed,
        options.temperature,
        **given_on_the_command_line(model, index, options.label),
    ).cpu()
    write_samples(folder, list(range(options.num)), drawn, model.spec)
    known = x.cpu().clone()
    known.flatten(2)[:, :, num_known:] = -1.0
    rows = torch.cat([x.cpu(), known, drawn])
    Image.fromarray(grid(rows, model.spec.levels)).save(folder / "grid.png")
    print(shown_path(folder / "grid.png"))
    return 0


def load_completing(options: argparse.Namespace) -> tuple[Any, Run]:
    """Returns the model and the run that the options name, where it draws images pixel by pixel."""
    model, run = load(options)
    from genlab.families.capabilities import CompletesImages

    if not isinstance(model, CompletesImages):
        raise ValueError(
            f"{run.path} is a {type(model).__name__}: this needs a model that draws pixel by pixel, such as "
            f"experiments/pixelcnn_digits.yaml trains; `genlab inpaint` fills pictures in by diffusion."
        )
    return model, run


def known_pixels(options: argparse.Namespace, height: int, width: int) -> int:
    """Returns how many pixels are kept, in the order of reading: half of them where nothing is said."""
    if options.rows is not None and options.pixels is not None:
        raise ValueError("--rows and --pixels both say what is kept: leave one out.")
    if options.pixels is None:
        rows = height // 2 if options.rows is None else options.rows
        name, given, most, num = "--rows", rows, height, rows * width
    else:
        name, given, most, num = "--pixels", options.pixels, height * width, options.pixels
    if not 0 <= given <= most:
        raise ValueError(f"{name} must be between 0 and {most}, got {given}.")
    return num


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab complete", description="Draw the rest of a picture, from the top, pixel by pixel."
    )
    add_run_options(parser)
    parser.add_argument("image", type=read.image, help="image file whose first part is kept")
    parser.add_argument("--rows", type=read.count(0), help="rows to keep (half of them)")
    parser.add_argument(
        "--pixels", type=read.count(0), help="pixels to keep instead, in the order of reading"
    )
    parser.add_argument("-n", "--num", type=read.count(), default=7, help="different completions (7)")
    parser.add_argument("--seed", type=read.seed, default=0, help="seed of the completions (0)")
    parser.add_argument(
        "--temperature", type=read.number(above=0), default=1.0, help="near 0: the likeliest pixels (1)"
    )
    parser.add_argument("--label", type=read.label, help="class to complete, for models told the class")
    parser.add_argument(
        "--output", type=read.output_folder, help="folder of the files (<run>/completed/<image>)"
    )
    return parser
