"""`genlab restore`: takes noise, blur or coarseness out of pictures with a trained model."""

from __future__ import annotations

import argparse
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, given_with_pictures, load_walking
from genlab.runs.folder import shown_path

SMALLEST_STD = 0.01
"""Noise, in values of [-1, 1], that an exact measurement is taken to have: about a level of a byte."""
LARGEST = 1_000.0
"""Noise in bytes and width of a blur in pixels: beyond it nothing of a picture is left."""


def restore(arguments: list[str]) -> int:
    """Writes the given pictures beside the restored ones; with --degrade also how much was won."""
    options = parser().parse_args(arguments)
    model, run = load_walking(options)
    import torch
    from PIL import Image

    from genlab.evaluation.pictures import grid, write_samples
    from genlab.evaluation.restoration import signal_to_noise
    from genlab.processes.grids import RatioGrid
    from genlab.samplers.conditioning import Restoration

    folder = options.output or run.output("restored")
    operator, std = operator_of(model, options), options.noise / 127.5
    truth, measured = measurement(model, operator, std, options)
    index = torch.arange(len(measured))
    restored = model.sample_with(
        Restoration(
            model.space.measured(operator),
            measured,
            max(std, SMALLEST_STD),
            RatioGrid(options.steps, largest=80.0),
            clip=model.space.spec.kind == "image",
        ),
        index,
        options.seed,
        clip=False,
        **given_with_pictures(model, index, options),
    )
    write_samples(folder, index.tolist(), restored.cpu(), model.spec)
    seen = torch.nn.functional.interpolate(measured, size=restored.shape[2:], mode="nearest").clamp(-1.0, 1.0)
    columns = [seen, restored] if truth is None else [truth, seen, restored]
    picture = torch.stack(columns, dim=1).flatten(0, 1).cpu()
    Image.fromarray(grid(picture, model.spec.levels, len(columns) * min(4, len(index)))).save(
        folder / "grid.png"
    )
    if truth is not None:
        before, after = signal_to_noise(seen, truth).tolist(), signal_to_noise(restored, truth).tolist()
        for path, a, b in zip(options.images, before, after, strict=True):
            print(f"{path}  {a:.1f} dB -> {b:.1f} dB")
    print(shown_path(folder / "grid.png"))
    return 0


def operator_of(model: Any, options: argparse.Namespace) -> Any:
    """Returns what was done to the images, apart from noise."""
    import torch

    from genlab.samplers.conditioning import Blur, Masking, Shrink

    if options.blur is not None:
        return Blur(options.blur)
    if options.shrink is not None:
        side = model.spec.shape[1]
        if side % options.shrink:
            raise ValueError(f"--shrink must divide the side {side}, got {options.shrink}.")
        return Shrink(options.shrink)
    if options.noise == 0.0:
        raise ValueError("Say what to take out: --noise BYTES, --blur PIXELS or --shrink FACTOR.")
    return Masking(torch.ones(1, device=model.device))


def measurement(model: Any, operator: Any, std: float, options: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the true images where --degrade gave them, and what was measured of them."""
    from genlab.evaluation.latents import read_images
    from genlab.randomness import key, normal
    from genlab.shapes import DataSpec

    spec = model.spec
    if not options.degrade:
        side = spec.shape[1] // (options.shrink or 1)
        small = DataSpec(spec.name, (spec.shape[0], side, side), spec.num_classes, spec.levels)
        return None, read_images(options.images, small).to(model.device)
    import torch

    truth = read_images(options.images, spec).to(model.device)
    clean = operator(truth)
    index = torch.arange(len(truth), device=model.device)
    return truth, clean + std * normal(key(options.seed, "degrade"), index, tuple(clean.shape[1:]))


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab restore",
        description="Draw clean images that the given ones are noisy, blurred or small copies of.",
    )
    add_run_options(parser)
    read.add_images(parser)
    parser.add_argument(
        "--noise",
        type=read.number(0.0, LARGEST),
        default=0.0,
        help="standard deviation of the noise, in bytes",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--blur",
        type=read.number(above=0.0, most=LARGEST),
        help="width of their normal blur in pixels of the model's images",
    )
    what.add_argument(
        "--shrink", type=read.count(2), help="how many times smaller they are than the model's images"
    )
    parser.add_argument(
        "--degrade",
        action="store_true",
        help="the images are clean: spoil them first, then measure",
    )
    parser.add_argument("--steps", type=read.count(), default=50, help="noise levels (50)")
    parser.add_argument("--seed", type=read.seed, default=0, help="seed of the results, and of --degrade (0)")
    parser.add_argument(
        "--label", type=read.label, help="class of the images, for models trained with labels"
    )
    parser.add_argument("--prompt", default="", help="what the images show, for models that read texts")
    parser.add_argument("--output", type=read.output_folder, help="folder of the files (<run>/restored)")
    return parser
