"""`genlab lr`: how the loss answers to growing learning rates, before a training is begun."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.runs.folder import shown_path


def lr(arguments: list[str]) -> int:
    """Draws the curve and prints a suggestion; leaves no run behind."""
    options, settings = parser().parse_known_args(arguments)
    if options.least >= options.most:
        raise ValueError(f"--least must be below --most, got {options.least:g} and {options.most:g}.")
    from genlab.cli.main import quieten, short_options

    quieten()
    from PIL import Image

    from genlab.callbacks.rates import RateSweep
    from genlab.cli.training import main

    sweep = RateSweep(options.batches, options.least, options.most)
    trial = ["--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"]
    main(["fit", "--config", options.experiment, *short_options(settings), *trial], callbacks=[sweep])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sweep.curve()).save(options.output)
    print(sweep.told())
    if len(sweep.rates) > 1:
        print("The curve is the generator's loss, which can rise while both learn.", file=sys.stderr)
    print(shown_path(options.output))
    return 0


def parser() -> ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab lr",
        description="Train some batches with learning rates that grow by one common factor, draw the "
        "loss over it, and name the factor where it falls fastest. Settings of genlab fit can be given, too.",
    )
    parser.add_argument("experiment", type=read.words, help="an experiment's name or file")
    parser.add_argument("--batches", type=read.count(10), default=100, help="of the sweep (100)")
    parser.add_argument("--least", type=read.number(above=0.0), default=1e-3, help="first factor (0.001)")
    parser.add_argument("--most", type=read.number(above=0.0), default=1e3, help="last factor (1000)")
    parser.add_argument(
        *("-o", "--output"),
        type=read.output_file(*read.PICTURES),
        default=Path("rates.png"),
        help="the picture's file (rates.png)",
    )
    return parser
