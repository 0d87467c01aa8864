"""`genlab translate`: pictures of any size, or lines of text, through a model that is told a source."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.lines import INPUT, lines_from, tell_of, text_sampler, written_to
from genlab.cli.model import add_run_options, load
from genlab.errors import DataError, is_of_memory
from genlab.runs.folder import Run, shown_path
from genlab.text import printable

ENDING = ".png"
"""Of what is written: no picture loses by being kept."""

OF_PICTURES = ("reverse", "tile", "degrade")
OF_LINES = ("beams", "length_penalty")


def translate(arguments: list[str]) -> int:
    """Writes what a run's model makes of each input; of which kind they are is the model's to say."""
    options = parser().parse_args(arguments)
    model, run = load(options)
    source = model.seen_spec.source
    if model.spec.kind == "tokens":
        return translate_text(model, run, options)
    if options.output is not None:
        read.require(read.output_folder, options.output, "--output")
    if source is None or source.kind != "image":
        told = "told no source" if source is None else "told sentences"
        raise ValueError(
            f"{run.path} is a {type(model).__name__} and {told}: translation takes a model that makes images "
            "of images, such as experiments/pix2pix_facades.yaml trains, or sentences of sentences."
        )
    refuse(options, OF_LINES, f"is for text, and {run.path} translates pictures")
    return translate_pictures(turned_round(model, run) if options.reverse else model, run, options)


def refuse(options: argparse.Namespace, names: Sequence[str], because: str) -> None:
    """Refuses options that were given and mean nothing here."""
    values = vars(options)
    given = next((name for name in names if values[name] is not None and values[name] is not False), None)
    if given is not None:
        raise ValueError(f"--{given} {because}: leave it out.")


def translate_text(model: Any, run: Run, options: argparse.Namespace) -> int:
    """Writes a line for each line, as soon as some have come."""
    from tqdm import tqdm

    from genlab.evaluation.lines import LineTranslator, one_line

    if options.output is not None:
        read.require(read.output_file(), options.output, "--output")
        require_new([options.output], options.overwrite)
    refuse(options, OF_PICTURES, f"is for pictures, and {run.path} translates text")
    inputs = [read.require(read.file_or_input, str(path), "inputs") for path in options.inputs] or [INPUT]
    at_terminal = INPUT in inputs and sys.stdin is not None and sys.stdin.isatty()
    translator = LineTranslator(model, ahead=1 if at_terminal else None)
    model.sampler = text_sampler(options, model.sampler)
    on_screen = options.output is None and sys.stdout.isatty()
    with written_to(options.output) as out, tqdm(unit="line", disable=on_screen or None) as progress:
        for line in translator(lines_from(inputs)):
            text = one_line(line)
            print(printable(text) if on_screen else text, file=out, flush=True)
            progress.update()
    tell_of(translator)
    if options.output is not None:
        print(shown_path(options.output))
    return 0


def turned_round(model: Any, run: Run) -> Any:
    """Returns the model of the other direction."""
    from genlab.families.capabilities import TranslatesBack

    if not isinstance(model, TranslatesBack):
        raise ValueError(
            f"--reverse: {run.path} is a {type(model).__name__}, which translates in one direction only; a "
            "CycleGAN knows both."
        )
    return model.reversed()


def translate_pictures(model: Any, run: Run, options: argparse.Namespace) -> int:
    """Translates pictures one by one, and goes on where one cannot be."""
    from tqdm import tqdm

    from genlab.evaluation.tiles import Translator

    if not options.inputs or INPUT in options.inputs:
        raise ValueError("Name the pictures to translate: files; folders, zips and tars of them.")
    translator = Translator(model, options.tile)
    folder = options.output or run.output("translated")
    pictures = pictures_of(options.inputs, folder)
    require_new([picture.target for picture in pictures], options.overwrite)
    work = Degraded(translator, run) if options.degrade else Given(translator)
    problems: list[str] = []
    with tqdm(pictures, unit="img", disable=None) as progress:
        for number, picture in enumerate(progress):
            try:
                work.do(picture, number, lambda done, all: progress.set_postfix_str(f"tile {done}/{all}"))
            except Exception as error:
                problems.append(what_is_wrong(picture, error))
                progress.write(f"! {problems[-1]}", file=sys.stderr)
    work.finish()
    if problems:
        done = len(pictures) - len(problems)
        others = f"; the other {done} are in {shown_path(folder)}" if done else ""
        raise DataError(
            f"{len(problems)} of {len(pictures)} pictures could not be translated: {problems[0]}{others}."
        )
    print(shown_path(folder))
    return 0


@dataclass(frozen=True)
class Picture:
    """One picture to translate.

    Attributes:
        place: Where it lies among others.
        row: Its number there.
        target: The file to write.
    """

    place: Any
    row: int
    target: Path

    @property
    def name(self) -> str:
        """Its name for people."""
        inside = self.place.names[self.row]
        return inside if self.place.path.name == inside else f"{self.place.path.name}/{inside}"

    def pixels(self, channels: int) -> Any:
        """Returns its bytes, (channels, height, width), uint8.

        Raises:
            BadImage: It cannot be decoded.
        """
        import torch

        from genlab.data.decode import Policy, decode

        return torch.tensor(decode(self.place.read(self.row), self.name, Policy(None, channels)).pixels)


class Given:
    """Pictures that are sources."""

    def __init__(self, translator: Any) -> None:
        self.translator, self.spec = translator, translator.model.spec

    def do(self, picture: Picture, number: int, progress: Any) -> None:
        """Translates one and writes the result."""
        from genlab.shapes import bytes_to_levels, to_float

        source = self.spec.source
        levels = bytes_to_levels(picture.pixels(source.shape[0]), source.levels)
        self.write(picture, self.translator(to_float(levels, source.levels), progress))

    def write(self, picture: Picture, image: Any) -> None:
        """Writes an image, (channels, height, width), where the picture's result goes."""
        from PIL import Image

        from genlab.evaluation.pictures import as_pixels
        from genlab.files import replacing

        with replacing(picture.target) as file:
            Image.fromarray(as_pixels(image[None], self.spec.levels)[0]).save(file, format="PNG")

    def finish(self) -> None:
        """Says what there is to say of all of them."""


class Degraded(Given):
    """Clean pictures, of which the run's own degradation makes the sources and to which results are compared.

    Raises:
        ValueError: The run's sources are no degraded images.
    """

    def __init__(self, translator: Any, run: Run) -> None:
        super().__init__(translator)
        from genlab.cli.model import import_room
        from genlab.evaluation.load import load_data

        import_room("data")
        data = load_data(run)
        self.degradation: Any = getattr(data, "degradation", None)
        if self.degradation is None:
            raise ValueError(
                f"--degrade: {run.path} was trained on {type(data).__name__}, whose sources no degradation "
                "makes; leave it out and give the sources."
            )
        self.scores: dict[str, dict[str, float]] = {}

    def do(self, picture: Picture, number: int, progress: Any) -> None:
        import torch

        from genlab.data.decode import BadImage
        from genlab.evaluation.restoration import enlarged, pair_scores
        from genlab.shapes import bytes_to_levels, to_float, to_levels

        spec, scale = self.spec, self.translator.scale
        target = bytes_to_levels(picture.pixels(spec.shape[0])[None], spec.levels)
        height, width = (side - side % scale for side in target.shape[2:])
        if not height * width:
            raise BadImage(picture.name, f"smaller than {scale} pixels, of which the model makes one")
        target = target[:, :, :height, :width]
        left = self.degradation(target, torch.tensor([number]), spec.levels)
        image = self.translator(to_float(left, spec.source.levels)[0], progress)[None]
        border = scale if scale > 1 else 0
        found = pair_scores(to_levels(image, spec.levels), target, spec.levels, border)
        if scale > 1:
            bicubic = to_levels(enlarged(to_float(left, spec.source.levels), scale), spec.levels)
            baseline = pair_scores(bicubic, target, spec.levels, border)
            found |= {f"bicubic {name}": value for name, value in baseline.items()}
        self.scores[picture.name] = found
        self.write(picture, image[0])

    def finish(self) -> None:
        print(score_table(self.scores), end="")


def score_table(scores: dict[str, dict[str, float]]) -> str:
    """Returns the scores of pictures as lines, the means of all of them in the last one."""
    if not scores:
        return ""
    names = list(next(iter(scores.values())))
    means = {name: sum(found[name] for found in scores.values()) / len(scores) for name in names}
    first = max(map(len, [*scores, "picture"]))
    lines = [f"{'picture':<{first}}  " + "  ".join(names)]
    for picture, found in [*scores.items(), ("mean", means)]:
        digits = (f"{found[n]:>{len(n)}.{4 if 'ssim' in n else 2}f}" for n in names)
        lines.append(f"{picture:<{first}}  " + "  ".join(digits))
    return "\n".join(lines) + "\n"


def pictures_of(inputs: Sequence[Path], folder: Path) -> list[Picture]:
    """Returns the pictures of files, folders and archives, each with the file that its result goes to.

    Names and sub-folders are kept, and the ending becomes that of what is written, beside the old one where
    two pictures differ by it alone.

    Raises:
        ValueError: Two pictures would have one result.
    """
    from genlab.data.sources import pictures_at

    found = [(place, row) for place in map(pictures_at, inputs) for row in range(len(place))]
    names = [PurePosixPath(place.names[row]) for place, row in found]
    shared = Counter(name.with_suffix("") for name in names)
    targets = [
        n.with_suffix(ENDING) if shared[n.with_suffix("")] == 1 else n.with_name(n.name + ENDING)
        for n in names
    ]
    twice = next((name for name, num in Counter(targets).items() if num > 1), None)
    if twice is not None:
        raise ValueError(
            f"Two of the pictures would become {folder / twice}: translate them one after the other, into "
            "two folders."
        )
    return [Picture(place, row, folder / target) for (place, row), target in zip(found, targets, strict=True)]


def require_new(targets: Sequence[Path], overwrite: bool) -> None:
    """Refuses to write over files that are there, unless that was asked for."""
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        more = f" and {len(there) - 1:,} more" if len(there) > 1 else ""
        raise ValueError(
            f"{shown_path(there[0])}{more} would be overwritten: name another folder with --output, or add "
            "--overwrite."
        )


def what_is_wrong(picture: Picture, error: Exception) -> str:
    """Returns what to tell of a picture that could not be translated; raises what is no fault of its own."""
    if isinstance(error, DataError):
        return printable(str(error))
    if is_of_memory(error):
        return f"{picture.name}: it needs more memory than there is; --tile 512, or less, needs less"
    raise error


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab translate",
        description="Translate pictures of any size, whose names and sub-folders are kept and whose results "
        "are PNG files; or text, line by line.",
    )
    add_run_options(parser)
    parser.add_argument(
        "inputs",
        type=read.existing_or_input,
        nargs="*",
        help="image files; folders, zips and tars of them; or files of text, - is the standard input",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=read.path,
        help="folder of the results (<run>/translated); of text, a file (the standard output)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument(
        "--reverse", action="store_true", help="the other direction, of models that know both (CycleGAN)"
    )
    parser.add_argument(
        "--tile",
        type=read.count(0),
        help="side of the tiles in pixels; 0: in one piece (1024 of the result, where it has over 2 Mpx)",
    )
    parser.add_argument(
        "--degrade",
        action="store_true",
        help="the images are clean: spoil them first as the run's data were, then measure",
    )
    text = parser.add_argument_group("text (without these, as the run does; the likeliest token if it draws)")
    text.add_argument(
        "--beams", type=read.count(1, 1_000), help="beginnings of each line that a search keeps"
    )
    text.add_argument(
        "--length_penalty",
        type=read.number(0.0, 10.0),
        help="0 prefers short translations, 1 nearly none (0.6)",
    )
    return parser
