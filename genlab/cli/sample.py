"""`genlab sample`: pictures from a run folder, which knows everything else."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any


def sample(arguments: list[str]) -> int:
    """Draws numbered samples of a run: one grid and single files."""
    options = parser().parse_args(arguments)
    if options.num < 1:
        raise ValueError(f"-n must be at least 1, got {options.num}.")
    import torch
    from PIL import Image

    from genlab.callbacks.samples import write_samples
    from genlab.cli.training import import_room, resolve_checkpoint
    from genlab.evaluation.load import load_run
    from genlab.evaluation.pictures import grid
    from genlab.families.base import Samples
    from genlab.runs.folder import open_run

    for room in ("families", "networks", "losses", "processes", "samplers"):
        import_room(room)
    run = open_run(options.run)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_run(run, resolve_checkpoint(options.checkpoint), device)
    if not isinstance(model, Samples):
        raise ValueError(f"{run.path} is a {type(model).__name__}, which cannot be sampled.")
    folder = options.output or run.path / "samples" / f"seed{options.seed}"
    start = time.monotonic()
    batches = torch.arange(options.num).split(options.batch_size)
    drawn = [draw(model, index, options) for index in batches]
    seconds = time.monotonic() - start
    for index, x in zip(batches, drawn, strict=True):
        write_samples(folder, index.tolist(), x, model.spec.levels)
    if model.spec.is_image:
        Image.fromarray(grid(torch.cat(drawn), model.spec.levels)).save(folder / "grid.png")
    print(
        f"{options.num} samples in {seconds:.2f} s ({options.num / seconds:,.0f} images/s on {device})",
        file=sys.stderr,
    )
    print(shown(folder / "grid.png" if model.spec.is_image else folder))
    return 0


def draw(model: Any, index: Any, options: argparse.Namespace) -> Any:
    """Returns one batch of samples on the CPU."""
    label = None
    if options.label is not None:
        if not model.uses_labels or not 0 <= options.label < model.spec.num_classes:
            classes = (
                f"0 to {model.spec.num_classes - 1}"
                if model.uses_labels
                else "none: it was trained without labels"
            )
            raise ValueError(f"--label {options.label}: this run has labels {classes}.")
        label = index.new_full((len(index),), options.label).to(model.device)
    return model.sample(index, seed=options.seed, label=label).cpu()


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = argparse.ArgumentParser(prog="genlab sample", description="Draw samples of a run.")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("-n", "--num", type=int, default=64, help="number of samples (64)")
    parser.add_argument("--seed", type=int, default=0, help="sample i of a seed is the same in any batch (0)")
    parser.add_argument("--label", type=int, help="class to draw, for models trained with labels")
    parser.add_argument("--checkpoint", type=Path, help="another checkpoint than the last one")
    parser.add_argument("--output", type=Path, help="folder of the files (<run>/samples/seed<seed>)")
    parser.add_argument("--batch_size", type=int, default=100, help="samples drawn at a time (100)")
    parser.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    return parser


def shown(path: Path) -> str:
    """Returns a path as a person would type it from here."""
    return os.path.relpath(path) if path.absolute().is_relative_to(Path.cwd()) else str(path)
