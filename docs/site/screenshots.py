"""The pictures of docs/: `make screenshots`, or ARGS="report sheet" for some. Needs Chromium.

Each is what a command of genlab draws or what a browser shows of its page, with few colours so that it stays
small. `samples` and `neighbours` train what `make demo` trains; the others read the repository alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
RECORDS = ROOT / "experiments" / "results" / "digits-90s"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
WIDTH, SCALE = 1000, 1.25
"""Of a page, in pixels of style sheets; and device pixels for each."""
COLUMNS, CORNER = 5, 4 * 66
"""Moments of a training, from first to last, and the pixels of a corner of 4 by 4 digits of its grid."""


def genlab(*arguments: str | Path, outputs: Path) -> None:
    """Runs a command of this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GENLAB_OUTPUTS": str(outputs)}
    subprocess.run([sys.executable, "-m", "genlab", *map(str, arguments)], check=True, env=environment)


def keep(name: str, picture: Image.Image, colours: int = 64) -> None:
    """Writes a picture into docs/pictures with so many colours."""
    PICTURES.mkdir(exist_ok=True)
    small = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    small.save(PICTURES / f"{name}.png", optimize=True)
    print(f"docs/pictures/{name}.png: {(PICTURES / f'{name}.png').stat().st_size / 1000:.0f} kB")


def photographed(page: Path, selector: str | None, height: int, target: Path) -> Image.Image:
    """Returns what Chromium shows of a page: an element of it, or its top.

    Raises:
        SystemExit: There is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        sys.exit("There is no Chromium here: make browser")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": height}, device_scale_factor=SCALE)
        tab.goto(page.as_uri())
        shown = tab.locator(selector).first if selector else tab
        shown.screenshot(path=target)
        browser.close()
    return Image.open(target)


def report(folder: Path) -> None:
    """The top of the report of the kept comparison."""
    keep("report", photographed(_report(folder), None, 900, folder / "report.png"))


def compare(folder: Path) -> None:
    """The table of the same report."""
    keep(
        "compare", photographed(_report(folder), "div:has(> table.sortable)", 900, folder / "compare.png"), 32
    )


def fid(folder: Path) -> None:
    """The first chart of the same report, which the README shows: the FID of every row."""
    keep("fid", photographed(_report(folder), "svg.chart", 900, folder / "fid.png"), 128)


def training(folder: Path) -> None:
    """Every family of the kept comparison through its training, side by side: corners of the kept grids."""
    films = {each.parents[1].name: sorted(each.glob("samples_*.png")) for each in RECORDS.glob("*/*/samples")}
    font = ImageFont.load_default(size=15)
    left, gap = 150, 8
    sheet = Image.new("L", (left + COLUMNS * (CORNER // 4 + gap), len(films) * (CORNER // 4 + gap) + 30), 255)
    draw = ImageDraw.Draw(sheet)
    for row, (name, grids) in enumerate(sorted(films.items())):
        top = 30 + row * (CORNER // 4 + gap)
        middle = top + CORNER // 8
        draw.text((0, middle), name.removesuffix("_digits"), fill=0, font=font, anchor="lm")
        for column in range(COLUMNS):
            number = round(column * (len(grids) - 1) / (COLUMNS - 1))
            corner = Image.open(grids[number]).crop((0, 0, CORNER, CORNER))
            place = left + column * (CORNER // 4 + gap)
            sheet.paste(corner.resize((CORNER // 4, CORNER // 4), Image.Resampling.BOX), (place, top))
            if row == 0:
                told = f"{100 * column / (COLUMNS - 1):.0f} %"
                draw.text((place + CORNER // 8, 15), told, fill=0, font=font, anchor="mm")
    keep("training", sheet, 32)


def _report(folder: Path) -> Path:
    page = folder / "report.html"
    if not page.exists():
        genlab("report", RECORDS, "-o", page, outputs=folder)
    return page


def sheet(folder: Path) -> None:
    """What `genlab data show` draws of the embedded digits."""
    genlab("data", "show", "--config", "dcgan_digits", "-n", "40", "-o", folder / "sheet.png", outputs=folder)
    keep("sheet", Image.open(folder / "sheet.png"), 32)


def samples(folder: Path) -> None:
    """A grid of samples of the run that `make demo` trains."""
    run = _demo(folder)
    genlab("sample", run, "-n", "64", "--seed", "0", outputs=folder)
    keep("samples", Image.open(run / "samples" / "seed0" / "grid.png"), 32)


def neighbours(folder: Path) -> None:
    """Its samples beside their nearest training images."""
    run = _demo(folder)
    genlab("neighbours", run, "-n", "12", outputs=folder)
    keep("neighbours", Image.open(run / "samples" / "neighbours_seed0.png"), 32)


def _demo(folder: Path) -> Path:
    run = folder / "dcgan_digits" / "demo"
    if not run.exists():
        genlab("fit", "--config", "dcgan_digits", "--run_name", "demo", outputs=folder)
    return run


ALL: dict[str, Callable[[Path], None]] = {
    made.__name__: made for made in (report, compare, fid, training, sheet, samples, neighbours)
}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(ALL)
    if unknown := [name for name in wanted if name not in ALL]:
        sys.exit(f"There is no picture {', '.join(unknown)}; there are {', '.join(ALL)}.")
    with tempfile.TemporaryDirectory() as place:
        for name in wanted:
            ALL[name](Path(place))
