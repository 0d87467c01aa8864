"""`genlab sample`: pictures from a run folder, which knows everything else."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.runs.folder import Run, open_run, shown_path

if TYPE_CHECKING:
    from genlab.families.base import Model


def sample(arguments: list[str]) -> int:
    """Draws numbered samples of a run: one grid and single files."""
    options = parser().parse_args(arguments)
    if options.num < 1:
        raise ValueError(f"-n must be at least 1, got {options.num}.")
    if options.film:
        return film(options)
    model, run = load(options)
    if options.image:
        require_walk(model, run)
    import torch
    from PIL import Image

    from genlab.callbacks.samples import write_samples
    from genlab.evaluation.pictures import grid
    from genlab.families.capabilities import Samples

    if not isinstance(model, Samples):
        because = f": {model.cannot_sample}" if model.cannot_sample else ""
        raise ValueError(f"{run.path} is a {type(model).__name__}, which cannot be sampled{because}.")
    folder = options.output or run.path / "samples" / f"seed{options.seed}"
    start = time.monotonic()
    batches = torch.arange(options.num).split(options.batch_size)
    drawn = [draw(model, index, options) for index in batches]
    seconds = time.monotonic() - start
    for index, x in zip(batches, drawn, strict=True):
        write_samples(folder, index.tolist(), x, model.spec.levels)
    if model.spec.kind == "image":
        Image.fromarray(grid(torch.cat(drawn), model.spec.levels)).save(folder / "grid.png")
    print(
        f"{options.num} samples in {seconds:.2f} s ({options.num / seconds:,.0f} images/s on {model.device})",
        file=sys.stderr,
    )
    print(shown_path(folder / "grid.png" if model.spec.kind == "image" else folder))
    return 0


def film(options: argparse.Namespace) -> int:
    """Writes the run's training as an animated GIF, from the grids that it left."""
    from genlab.report.film import film_of

    target = options.output
    if target is not None and target.suffix != ".gif":
        target = target / "training.gif"
    path, num = film_of(open_run(options.run), target)
    print(f"{num} frames", file=sys.stderr)
    print(shown_path(path))
    return 0


def draw(model: Any, index: Any, options: argparse.Namespace) -> Any:
    """Returns one batch of samples on the CPU."""
    given = given_on_the_command_line(model, index, options.label)
    if options.image is None:
        return model.sample(index, seed=options.seed, **given).cpu()
    from genlab.evaluation.latents import read_images
    from genlab.samplers.conditioning import FromImage

    x = read_images([options.image], model.spec).to(model.device)
    sampler = FromImage(x, model.sampler, options.strength)
    return model.sample_with(sampler, index, options.seed, **given).cpu()


def load(options: argparse.Namespace, path: Path | None = None) -> tuple[Model, Run]:
    """Returns the model of a run, and the run: the one that the options name if no path is given."""
    import torch

    from genlab.cli.training import MODEL_ROOMS, import_room, resolve_checkpoint
    from genlab.evaluation.load import load_run

    for room in MODEL_ROOMS:
        import_room(room)
    run = open_run(path or options.run)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_run(run, resolve_checkpoint(options.checkpoint), device), run


def load_walking(options: argparse.Namespace) -> tuple[Any, Run]:
    """Returns the model and the run that the options name, where it walks from noise to images."""
    model, run = load(options)
    require_walk(model, run)
    return model, run


def require_walk(model: Any, run: Run) -> None:
    """Refuses a model that does not walk from noise to images."""
    from genlab.families.capabilities import Denoises

    if not isinstance(model, Denoises) or model.spec.kind != "image":  # type: ignore[attr-defined]
        raise ValueError(
            f"{run.path} is a {type(model).__name__} of {model.spec.name}: this needs a diffusion model of "
            "images, such as experiments/ddpm_mnist.yaml trains."
        )


def given_on_the_command_line(
    model: Any, index: Any, label: int | None, required: bool = False
) -> dict[str, Any]:
    """Returns what each item is told: the label of a command line, or what `given_for` invents.

    Raises:
        ValueError: For a label that the model does not have, or a missing one that it requires.
    """
    import torch

    from genlab.evaluation.given import given_for

    if label is None and not (required and model.uses_labels):
        return given_for(model, index)
    if label is None or not model.uses_labels or not 0 <= label < model.spec.num_classes:
        last = model.spec.num_classes - 1
        classes = f"0 to {last}" if model.uses_labels else "none: it was trained without labels"
        asked = "--label is missing" if label is None else f"--label {label}"
        raise ValueError(f"{asked}: this run has labels {classes}.")
    return {"label": torch.full((len(index),), label, device=model.device)}


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = argparse.ArgumentParser(prog="genlab sample", description="Draw samples of a run.")
    add_run_options(parser)
    parser.add_argument("-n", "--num", type=int, default=64, help="number of samples (64)")
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed is the same in any batch (0)")
    parser.add_argument("--label", type=int, help="class to draw, for models trained with labels")
    parser.add_argument("--output", type=Path, help="folder of the files (<run>/samples/seed<seed>)")
    parser.add_argument(
        "--film",
        action="store_true",
        help="draw nothing; the training's grids as a GIF (samples/training.gif)",
    )
    parser.add_argument("--batch_size", type=int, default=100, help="samples drawn at a time (100)")
    parser.add_argument("--image", type=Path, help="begin with this image, noised (diffusion models)")
    parser.add_argument(
        "--strength", type=float, default=0.5, help="with --image: near 0 keeps it, 1 forgets it (0.5)"
    )
    return parser


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds what every command needs that works on a trained model."""
    parser.add_argument("run", type=Path, help="the run's folder")
    add_device_options(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Adds which weights of a run are loaded, and where to."""
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint than the last one")
    parser.add_argument("--device", help="cpu or cuda (cuda where there is one)")
