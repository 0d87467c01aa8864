"""`genlab neighbours`: the training images that a run's samples are nearest to."""

from __future__ import annotations

import argparse
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, load
from genlab.runs.folder import shown_path

COLUMNS = ("sample", "distance", "of_threshold", "training_images")


def neighbours(arguments: list[str]) -> int:
    """Draws samples and shows each beside its nearest training images, the nearest sample first."""
    options = parser().parse_args(arguments)
    model, run = load(options)
    import torch
    from PIL import Image

    from genlab.cli.model import import_room
    from genlab.evaluation import gallery
    from genlab.evaluation.copies import find_copies
    from genlab.evaluation.examine import Examination
    from genlab.evaluation.given import given_for
    from genlab.evaluation.load import load_data
    from genlab.evaluation.score import sample_levels
    from genlab.families.capabilities import Samples
    from genlab.metrics.extractors import load_extractor
    from genlab.report.table import metrics_table
    from genlab.runs.tests import read_config

    if not isinstance(model, Samples) or model.spec.kind != "image":
        raise ValueError(f"{run.path} is a {type(model).__name__}, which cannot draw images.")
    file = options.output or run.output("samples", f"neighbours_seed{options.seed}.png")
    import_room("data")
    extractor = load_extractor(options.extractor or read_config(run)["evaluate"]["extractor"]).to(
        model.device
    )
    examination = Examination(load_data(run), extractor, (), batch_size=options.batch_size)
    batches = torch.arange(options.num).split(options.batch_size)
    drawn = []
    for index in batches:
        given = given_for(model, index, examination.data)
        drawn.append(sample_levels(model, index, options.seed, given).cpu())
    levels = torch.cat(drawn)
    parts = [extractor(part.to(model.device), model.spec.levels).pool for part in levels.split(100)]
    features = torch.cat(parts)
    train, test = examination.train_reference(model), examination.reference(model)
    copies = find_copies(features.cpu(), train.features, test.features)
    order = copies.distances[:, 0].argsort()
    numbers = train.index[copies.neighbours]
    images = gallery.train_images(examination.data, numbers[order])
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gallery.neighbours(levels[order], images, model.spec.levels)).save(file)
    metrics_table(rows(order.tolist(), copies, numbers), COLUMNS).show()
    print(
        f"{copies.share:.1%} of {options.num} samples are as near to one of {len(train.index):,} training "
        f"images as only 5 % of {test.num:,} unseen ones (distance {copies.threshold:.4g}, {extractor.name})."
    )
    print(shown_path(file))
    return 0


def rows(order: list[int], copies: Any, numbers: Any) -> list[dict[str, Any]]:
    """Returns one row for each sample: its distance, in that of an honest 5 %, and whom it is near."""
    nearest = copies.distances[:, 0].tolist()
    return [
        {
            "sample": sample,
            "distance": nearest[sample],
            "of_threshold": nearest[sample] / copies.threshold if copies.threshold else None,
            "training_images": ", ".join(map(str, numbers[sample].tolist())),
        }
        for sample in order
    ]


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab neighbours", description="Show samples beside their nearest training images."
    )
    add_run_options(parser)
    parser.add_argument("-n", "--num", type=read.count(), default=12, help="number of samples (12)")
    parser.add_argument("--seed", type=read.seed, default=0, help="of the samples (0)")
    parser.add_argument(
        "--extractor", type=read.words, help="features to compare in (those of the run's scores)"
    )
    parser.add_argument("--batch_size", type=read.count(), default=100, help="images at a time (100)")
    parser.add_argument(
        "--output", type=read.output_file(*read.PICTURES), help="the picture's file (in <run>/samples)"
    )
    return parser
