"""`genlab reconstruct`: what a run's model keeps of given images."""

from __future__ import annotations

import argparse
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, given_on_the_command_line, load
from genlab.runs.folder import shown_path


def reconstruct(arguments: list[str]) -> int:
    """Writes each image beside what the model makes of it, and prints the error."""
    options = parser().parse_args(arguments)
    model, run = load(options)
    import torch
    from PIL import Image

    from genlab.evaluation.latents import read_images, reconstruct
    from genlab.evaluation.pictures import grid, write_samples
    from genlab.families.capabilities import Reconstructs

    if not isinstance(model, Reconstructs):
        raise ValueError(f"{run.path} is a {type(model).__name__}, which cannot encode images.")
    folder = options.output or run.output("reconstructions")
    x = read_images(options.images, model.spec).to(model.device)
    given = given_on_the_command_line(model, torch.arange(len(x)), options.label, required=True)
    x_hat = reconstruct(model, x, given)
    write_samples(folder, list(range(len(x))), x_hat.cpu(), model.spec)
    pairs = torch.stack([x, x_hat], dim=1).flatten(0, 1).cpu()
    columns = min(8, len(x)) * 2
    Image.fromarray(grid(pairs, model.spec.levels, columns)).save(folder / "grid.png")
    for path, error in zip(options.images, errors(x, x_hat), strict=True):
        print(f"{path}  rms error {error:.1f} of 255")
    print(shown_path(folder / "grid.png"))
    return 0


def errors(x: Any, x_hat: Any) -> list[float]:
    """Returns each image's root mean squared error, in bytes."""
    return (127.5 * (x - x_hat).flatten(1).square().mean(dim=1).sqrt()).tolist()


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab reconstruct", description="Encode and decode images: pairs of original and result."
    )
    add_run_options(parser)
    read.add_images(parser)
    parser.add_argument(
        "--label", type=read.label, help="class of the images, for models trained with labels"
    )
    parser.add_argument(
        "--output", type=read.output_folder, help="folder of the files (<run>/reconstructions)"
    )
    return parser
