"""`genlab interpolate`: the way between two images or two samples through a run's latent space."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from genlab.cli.sample import add_run_options, label_of, load, shown


def interpolate(arguments: list[str]) -> int:
    """Draws one row of images from one end to the other."""
    options = parser().parse_args(arguments)
    if options.num < 2:
        raise ValueError(f"-n counts both ends and must be at least 2, got {options.num}.")
    model, run = load(options)
    from PIL import Image

    from genlab.evaluation.latents import lerp, slerp
    from genlab.evaluation.pictures import grid
    from genlab.families.base import HasLatent

    if not isinstance(model, HasLatent) or not model.spec.is_image:
        raise ValueError(
            f"{run.path} is a {type(model).__name__}, which has no latent space to walk through."
        )
    path = {"lerp": lerp, "slerp": slerp}[options.path]
    ends, name = latents(model, options)
    z = path(ends[0], ends[1], options.num)
    x = model.decode(z, label_of(model, len(z), options.label, required=True))
    file = options.output or run.path / "samples" / f"interpolation_{name}_{options.path}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid(x.cpu(), model.spec.levels, columns=len(x))).save(file)
    print(shown(file))
    return 0


def latents(model: Any, options: argparse.Namespace) -> tuple[Any, str]:
    """Returns the latents of both ends, and a name for the pair."""
    import torch

    from genlab.evaluation.latents import read_images
    from genlab.families.base import Reconstructs

    spec, device = model.spec, model.device
    if options.images is None:
        first = torch.zeros(1, dtype=torch.int64, device=device)
        ends = [model.draw_latent(first, seed) for seed in options.seeds]
        return torch.cat(ends), "seeds{}-{}".format(*options.seeds)
    if not isinstance(model, Reconstructs):
        raise ValueError(f"A {type(model).__name__} cannot encode images: interpolate between --seeds A B.")
    x = read_images(options.images, spec).to(device)
    return model.encode(x, label_of(model, 2, options.label, required=True)), "images"


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = argparse.ArgumentParser(
        prog="genlab interpolate", description="Walk between two samples or two images."
    )
    add_run_options(parser)
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument("--seeds", type=int, nargs=2, default=(0, 1), help="sample 0 of two seeds (0 1)")
    ends.add_argument("--images", type=Path, nargs=2, help="two image files")
    parser.add_argument(
        "-n", "--num", type=int, default=10, help="images in the row, both ends included (10)"
    )
    parser.add_argument(
        "--path", choices=("slerp", "lerp"), default="slerp", help="arc or straight line (slerp)"
    )
    parser.add_argument("--label", type=int, help="class of the images, for models trained with labels")
    parser.add_argument("--output", type=Path, help="the picture's file (in <run>/samples)")
    return parser
