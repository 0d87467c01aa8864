"""`genlab speed`: how good samples are for how many network passes, with every fitting sampler."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.model import add_run_options, load_walking
from genlab.runs.folder import shown_path
from genlab.text import shortened

if TYPE_CHECKING:
    from genlab.runs.folder import Run


def speed(arguments: list[str]) -> int:
    """Scores every sampler at every price; prints a table and keeps it as JSON and as a plot."""
    options = parser().parse_args(arguments)
    model, run = load_walking(options)
    from genlab.evaluation.load import load_data
    from genlab.metrics.extractors import extractor_available, load_extractor
    from genlab.report.table import metrics_table
    from genlab.runs.tests import read_config

    folder = options.output or run.output("speed")
    source = options.extractor or read_config(run)["evaluate"]["extractor"]
    reason = extractor_available(source)
    if reason is not None:
        raise ValueError(f"No scores can be measured: {reason}")
    rows, protocol = measured(model, load_data(run), load_extractor(source), options)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"run": run.name, "examples_seen": model.examples_seen, "protocol": protocol, "points": rows}
    (folder / "speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    plot(rows, folder / "speed.png", title(run, model))
    metrics_table(rows, ("sampler", "passes", "value", "images_per_second", "metric")).show()
    print(shown_path(folder / "speed.png"))
    return 0


def measured(
    model: Any, data: Any, extractor: Any, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns one row for each sampler and price, and the protocol of their scores."""
    from genlab.evaluation.sampler_curve import measure
    from genlab.metrics.frechet import FrechetDistance

    rows: list[dict[str, Any]] = []
    protocol: dict[str, Any] = {}
    for name, choice in chosen(model, options.samplers).items():
        for passes in sorted(set(options.passes)):
            point, protocol = measure(
                *(model, name, choice(passes), data, extractor, [FrechetDistance()], options.num_samples),
                seed=options.seed,
                batch_size=options.batch_size,
            )
            rows.append(point.to_dict())
            print(f"{name}, {point.passes} passes: {point.metric} {point.value:.4g}", file=sys.stderr)
    return rows, protocol


def chosen(model: Any, wanted: list[str] | None) -> dict[str, Any]:
    """Returns the samplers whose name holds one of the given words; all of them without any."""
    from genlab.samplers.choices import fitting_samplers

    known = fitting_samplers(model.process)
    found = {
        name: choice
        for name, choice in known.items()
        if not wanted or any(word.lower() in name.lower() for word in wanted)
    }
    if not found:
        words = shortened(", ".join(wanted or []))
        raise ValueError(f"--samplers: no sampler is called {words}; there are {'; '.join(known)}.")
    for word in wanted or []:
        named = [name for name in found if word.lower() in name.lower()]
        if len(named) > 1:
            told = f"{word} is in {len(named)} names, all of which are measured: {'; '.join(named)}."
            print(f"{told} More of a name chooses one.", file=sys.stderr)
    return found


def plot(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """Draws one curve a sampler, both axes logarithmic."""
    from PIL import Image

    from genlab.evaluation.pictures import new_figure, rendered

    figure, axes = new_figure(8, 5)
    for number, name in enumerate(dict.fromkeys(row["sampler"] for row in rows)):
        points = [(row["passes"], row["value"]) for row in rows if row["sampler"] == name]
        axes.plot(*zip(*points, strict=True), marker="osv^D"[number % 5], linewidth=1, label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="network passes a sample", ylabel=rows[0]["metric"], title=title
    )
    ticks = sorted({row["passes"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    Image.fromarray(rendered(figure)).save(file)


def title(run: Run, model: Any) -> str:
    """Returns what the plot shows."""
    return f"{run.experiment}: {model.examples_seen:,} images seen, {model.sampling_weights} weights"


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(
        prog="genlab speed", description="FID against network passes, for every sampler that fits the model."
    )
    add_run_options(parser)
    parser.add_argument(
        "--passes",
        type=read.count(),
        nargs="+",
        default=[5, 10, 20, 50],
        help="network passes a sample (5 10 20 50)",
    )
    parser.add_argument(
        "--samplers", type=read.words, nargs="+", help="words in the names of the samplers (all)"
    )
    parser.add_argument("--num_samples", type=read.count(2), default=797, help="samples for each score (797)")
    parser.add_argument(
        "--extractor", type=read.words, help="inception, digits, or a classifier's run (as in training)"
    )
    parser.add_argument("--seed", type=read.seed, default=0, help="seed of the samples (0)")
    parser.add_argument("--batch_size", type=read.count(), default=100, help="samples drawn at a time (100)")
    parser.add_argument("--output", type=read.output_folder, help="folder of the files (<run>/speed)")
    return parser
