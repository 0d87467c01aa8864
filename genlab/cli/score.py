"""`genlab score`: how images made anywhere compare with real ones."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab import files
from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import chosen_device, data_of, import_room, loaded, require_samples
from genlab.errors import DataError
from genlab.report.results import Score
from genlab.runs.folder import Run, folder_name, open_run, outputs_root, shown_path

NUM_SAMPLES = 10_000
"""Samples drawn of a run, unless told otherwise."""

ARRAYS = (".npz", ".npy")


def score(arguments: list[str]) -> int:
    """Prints the scores of images with their protocol, and writes both as JSON."""
    options = parser().parse_args(arguments)
    target = options.output or default_target(options.images)
    target = read.require(read.output_file(".json"), target, "--output")
    asked = Asked(
        options.extractor,
        wanted(options.metrics),
        options.num,
        options.seed,
        options.batch_size,
        options.device,
    )
    found, entry = asked.score(options.images, options.reference, options.training)
    for table in found.tables:
        table.show()
    print("\n" + "\n".join(found.sentences))
    files.write_json(target, entry)
    print(f"Written to {shown_path(target)}", file=sys.stderr)
    return 0


@dataclass(frozen=True)
class Asked:
    """How images are to be scored.

    Args:
        extractor: The ruler, by name, file or run; None for Inception.
        metrics: Names of scores, or metrics; None for all.
        num: Samples drawn where a run is scored; None for `NUM_SAMPLES`.
        seed: Theirs.
        batch_size: Images at a time.
        device: Where features are computed; None for CUDA where there is one.
    """

    extractor: str | None = None
    metrics: list[Any] | None = None
    num: int | None = None
    seed: int = 0
    batch_size: int = 100
    device: str | None = None

    def score(self, images: Any, reference: Any, training: Any = None) -> tuple[Score, dict[str, Any]]:
        """Returns the scores of images against others, for people and as JSON takes them.

        Each is an array or a tensor, a folder, zip, tar, .npz or .npy of images, or a run: scored are its
        samples; the reference is the test split that it has not seen, and where all scores are wanted, copies
        of its training images are counted.
        """
        from genlab.evaluation.image_scores import metrics_named, score_images
        from genlab.metrics.extractors import load_extractor

        device, extractor = chosen_device(self.device), load_extractor(self.extractor)
        names = None if self.metrics is None else [m for m in self.metrics if isinstance(m, str)]
        own = [m for m in self.metrics or () if not isinstance(m, str)]
        metrics = [*metrics_named(names, extractor), *own]
        if training is None and self.metrics is None and run_at(reference) is not None:
            training = reference
        real = real_images(reference, "test")
        learned = None if training is None else real_images(training, "train")
        scored = self._scored(images, device)
        entry = score_images(scored, real, extractor, metrics, learned, self.batch_size, device)
        return Score.of(entry), entry

    def _scored(self, images: Any, device: str) -> Any:
        path = place_of(images)
        if run_at(images) is None and (path is None or path.suffix != ".safetensors"):
            if self.num is not None:
                raise ValueError("--num says how many samples of a run are drawn; of images all are scored.")
            return image_set(images)
        from genlab.evaluation.image_sets import ModelSamples

        assert path is not None
        model, run = loaded(path, None, device)
        require_samples(model, run)
        if model.spec.kind != "image":
            raise ValueError(f"{run.path} draws no images: genlab test scores it.")
        name = f"{run.experiment}/{run.name}"
        return ModelSamples(model, self.num or NUM_SAMPLES, self.seed, data_of(model, run), name)


def real_images(place: Any, split: str) -> Any:
    """Returns the images of a place; of a run, a split of its data."""
    run = run_at(place)
    if run is None:
        return image_set(place)
    from genlab.evaluation.image_sets import SplitImages
    from genlab.evaluation.load import load_data

    import_room("data")
    data = load_data(run)
    if data.spec.kind != "image":
        raise ValueError(f"{run.path} has learned {data.spec.name}, which are no images.")
    return SplitImages(data, split)


def image_set(images: Any) -> Any:
    """Returns images as a score takes them."""
    from genlab.data.sources import pictures_at
    from genlab.evaluation.image_sets import ArrayFile, Arrays, ImageSet, Pictures

    path = place_of(images)
    if path is None:
        return images if isinstance(images, ImageSet) else Arrays(images)
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist; give a folder, a zip, a tar, an .npz or a run.")
    return ArrayFile(path) if path.suffix in ARRAYS else Pictures(pictures_at(path))


def place_of(images: Any) -> Path | None:
    """Returns where images lie; None for those in memory."""
    if isinstance(images, Run):
        return images.path
    return Path(os.path.expanduser(images)) if isinstance(images, str | Path) else None


def run_at(images: Any) -> Run | None:
    """Returns the run of a run's own folder; None for images, those inside of a run's folder too."""
    path = place_of(images)
    return open_run(path) if path is not None and os.path.isfile(path / "run.json") else None


def wanted(names: str | None) -> list[str] | None:
    """Returns the names of an option; None where none was given."""
    return None if names is None else names.replace(" ", "").split(",")


def default_target(images: Path) -> Path:
    """Returns where scores are written unless told otherwise."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{folder_name(images.name or 'images')}.json"
    return outputs_root() / "scores" / name


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab score",
        description="Score images that were made anywhere: folders, zips, tars, .npz (arr_0, uint8, NHWC), "
        "and runs. What is scored of a run are samples; what others are compared with is its test split.",
    )
    parser.add_argument("images", type=read.existing, help="what is scored")
    parser.add_argument("reference", type=read.existing, help="real images that were not learned from")
    parser.add_argument("--training", type=read.existing, help="images learned from: counts copies of them")
    parser.add_argument(
        "--extractor", type=read.words, help="features: inception, digits, or a classifier's run (inception)"
    )
    parser.add_argument(
        "--metrics", type=read.words, help="only these: fid,kid,is,precision,recall,duplicates (all)"
    )
    parser.add_argument("-n", "--num", type=read.count(2), help=f"samples of a run to draw ({NUM_SAMPLES:,})")
    parser.add_argument("--seed", type=read.seed, default=0, help="of these samples (0)")
    parser.add_argument("--batch_size", type=read.count(), default=100, help="images at a time (100)")
    parser.add_argument("--output", type=read.path, help="the .json file ($GENLAB_OUTPUTS/scores/...)")
    parser.add_argument("--device", type=read.device, help="cpu or cuda (cuda where there is one)")
    return parser
