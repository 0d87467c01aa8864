"""`genlab data`: what is in images or texts, before a training needs to know; images shown, or packed."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.errors import EXIT_DATA
from genlab.text import printable

if TYPE_CHECKING:
    from genlab.data.base import DataModule


def data(arguments: list[str]) -> int:
    """Looks at data, or packs images into chunks."""
    options = parser().parse_args(arguments)
    return options.run(options)


def parser() -> ArgumentParser:
    """Returns the command's options."""
    parser = Parser(prog="genlab data", description="Look at data before use, or pack images.")
    commands = parser.add_subparsers(required=True, metavar="check|show|pack")
    _add_check(commands)
    _add_show(commands)
    _add_pack(commands)
    return parser


def _add_check(commands: read.Commands) -> None:
    checker = commands.add_parser("check", help="list counts, sizes, formats, bad files and duplicates")
    checker.add_argument(
        "path",
        type=read.existing,
        help="a folder, zip or tar of images; a text or a folder of .txt files; a .tsv of sentence pairs",
    )
    checker.add_argument(
        "--source_path",
        type=read.file,
        help="of pairs in two files, the one with the sentences to start from",
    )
    _add_column(checker)
    checker.set_defaults(run=_check)


def _add_show(commands: read.Commands) -> None:
    shower = commands.add_parser("show", help="draw what is read as one picture, with labels, sizes, splits")
    shower.add_argument(
        "path", nargs="?", default="", help="a folder, zip or tar of images, a pack, or shards"
    )
    shower.add_argument(
        "--config",
        type=read.words,
        help="an experiment, whose data are shown as they are trained on: at PATH, where one is given",
    )
    shower.add_argument(
        "-o",
        "--output",
        type=read.output_file(".png"),
        default=Path("sheet.png"),
        help="the picture (sheet.png)",
    )
    shower.add_argument("-n", "--num", type=read.count(most=1024), default=48, help="images on it (48)")
    shower.set_defaults(run=_show)


def _add_pack(commands: read.Commands) -> None:
    packer = commands.add_parser("pack", help="decode images once into chunks, which can be streamed")
    packer.add_argument(
        "images",
        nargs="+",
        help="a folder, zip or tar of images; or tars of NAME.png with NAME.txt, .cls or .json: a folder of "
        "them, or 'shards-{000..003}.tar'",
    )
    packer.add_argument("-o", "--output", type=read.path, required=True, help="the folder to be made")
    packer.add_argument("--image_size", type=read.count(), default=64, help="side in pixels (64)")
    packer.add_argument(
        "--crop",
        choices=("centre", "none"),
        default="centre",
        help="the centred square, or the whole image squeezed into one (centre)",
    )
    packer.add_argument(
        "--channels", type=int, choices=(1, 3), default=3, help="1 (grey) or 3 (RGB, default)"
    )
    packer.add_argument("--background", default="white", help="colour under transparent pixels (white)")
    packer.add_argument(
        "--chunk_mib",
        type=read.number(above=0.0, most=2048),
        default=32.0,
        help="MiB of a chunk at most (32)",
    )
    packer.add_argument(
        "--label_column",
        type=read.words,
        help="the column of labels in a labels.csv, metadata.csv or .jsonl, in place of class folders",
    )
    packer.add_argument("--workers", type=read.count(most=1024), help="decoding processes (one a core)")
    _add_column(packer)
    packer.set_defaults(run=_pack)


def _add_column(parser: Parser) -> None:
    parser.add_argument(
        "--caption_column",
        default="text",
        help="the column of captions in a metadata.csv or metadata.jsonl (text)",
    )


def _check(options: Namespace) -> int:
    """Lists what a training would find: counts, sizes, formats, conversions, bad files, duplicates."""
    from genlab.data import check, check_text

    if options.source_path is not None or check_text.is_text(options.path):
        text = check_text.check(options.path, options.source_path)
        check_text.print_report(text)
        return 0 if text.ok else EXIT_DATA
    report = check.check(options.path, caption_column=options.caption_column)
    check.print_report(report)
    return 0 if report.ok else EXIT_DATA


def _show(options: Namespace) -> int:
    """Draws a contact sheet; an image that cannot be read is named, and the exit code says so."""
    if not options.path and not options.config:
        raise ValueError("Say what is to be shown: genlab data show PATH, or --config EXPERIMENT.")
    from PIL import Image

    from genlab.evaluation.contact_sheet import of_data, of_source

    if options.config:
        sheet = of_data(_data_of(options.config, options.path), options.num)
    else:
        from genlab.data.shards import open_images

        sheet = of_source(open_images([options.path]), options.num)
    Image.fromarray(sheet.picture()).save(options.output)
    print(f"{options.output}: {len(sheet.items)} of {sum(sheet.counts.values()):,} images")
    for line in sheet.lines():
        print(line)
    for reason in sheet.bad:
        print(f"! {printable(reason)}", file=sys.stderr)
    return EXIT_DATA if sheet.bad else 0


def _data_of(experiment: str, path: str) -> DataModule:
    """Returns the data of an experiment, found by name or file, at another path where one is given."""
    from genlab.cli.model import import_room
    from genlab.configuration.experiments import require
    from genlab.configuration.plain_yaml import read_yaml
    from genlab.evaluation.load import build_data

    file = Path(experiment).expanduser()
    config = read_yaml(file if file.is_file() else require(experiment))
    section = config.get("data") if isinstance(config, dict) else None
    if not isinstance(section, dict | str):
        raise ValueError(f"{experiment} has no section data.")
    section = {"class_path": section} if isinstance(section, str) else section
    if path:
        section = {**section, "init_args": {**(section.get("init_args") or {}), "path": path}}
    import_room("data")
    return build_data(section)


def _pack(options: Namespace) -> int:
    """Writes a pack and says how to train from it."""
    from genlab.data.chunk_writer import write
    from genlab.data.decode import Policy
    from genlab.data.image_tables import label_by_table
    from genlab.data.shards import open_images

    source = open_images(options.images)
    if options.label_column is not None:
        label_by_table(source, options.label_column)
    policy = Policy(options.image_size, options.channels, options.background, crop=options.crop)
    folder: Path = options.output
    chunks = write(source, policy, folder, options.chunk_mib, options.caption_column, options.workers)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
    classes = f", {len(chunks.classes)} classes" if chunks.classes else ""
    print(f"{folder}: {len(chunks):,} images in {len(chunks.files):,} chunks, {size:,.1f} MiB{classes}")
    form = f"--data.image_size {options.image_size}"
    form += " --data.channels 1" if options.channels == 1 else ""
    form += " --data.crop none" if options.crop == "none" else ""
    print(f"train from it: --data.path {folder} --data.stream true {form}")
    return 0
