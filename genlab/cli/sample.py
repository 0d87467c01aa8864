"""`genlab sample`: pictures or texts from a run folder, which knows everything else."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import genlab
from genlab import files
from genlab.cli import arguments as read
from genlab.cli.arguments import Parser
from genlab.cli.lines import lines_from
from genlab.cli.model import (
    add_run_options,
    data_of,
    given_on_the_command_line,
    load,
    require_samples,
    require_walk,
    rows_of,
)
from genlab.errors import DataError, Stopped
from genlab.runs.folder import Run, open_run, shown_path
from genlab.text import printable

PER_PROMPT = 8
"""Images of a prompt, unless told otherwise."""


def sample(arguments: list[str]) -> int:
    """Draws numbered samples of a run: a grid and single files, texts that go on, translations."""
    options = parser().parse_args(arguments)
    if options.film:
        return film(options)
    if options.output is not None:
        read.require(read.output_folder, options.output, "--output")
    if options.to is not None:
        require_archive(options)
    model, run = load(options)
    if options.image:
        require_walk(model, run)
    require_samples(model, run)
    if options.to is not None and model.spec.kind != "image":
        raise ValueError(f"--to writes images, and {run.path} draws none: leave it out.")
    if model.spec.kind == "tokens":
        told = "source" in model.given
        return (write_translations if told else write_texts)(model, run, options)
    ranker = ranker_of(options)
    if options.to is not None:
        return write_archive(model, run, options, ranker)
    folder = options.output or run.output("samples", f"seed{options.seed}")
    prompted = bool(options.prompt or options.prompts)
    shown = write_files(model, folder, options, None if prompted else data_of(model, run), ranker)
    print(shown_path(shown))
    return 0


def ranker_of(options: argparse.Namespace) -> Any:
    """Returns the contrastive model that chooses among the samples of a caption; None where none does."""
    if (options.best_of is None) != (options.ranker is None):
        raise ValueError("--best_of and --ranker: give both, how many samples a caption and who chooses.")
    if options.ranker is None:
        return None
    if options.image:
        raise ValueError("--ranker chooses among samples from noise: leave --image out.")
    return load(argparse.Namespace(**{**vars(options), "checkpoint": None}), options.ranker)[0]


def write_files(model: Any, folder: Path, options: argparse.Namespace, data: Any, ranker: Any = None) -> Path:
    """Writes the samples as single files and, of images, one grid; returns what to look at first."""
    import torch
    from PIL import Image

    from genlab.evaluation.pictures import samples_grid, write_samples
    from genlab.progress import watched

    prompts = prompts_of(options)
    index = torch.arange(num_of(options, prompts))
    start = time.monotonic()
    given = given_on_the_command_line(model, index, options.label, data=data, prompts=prompts)
    batches = watched(index.split(options.batch_size), "sampling", len(index), "sample")
    drawn = torch.cat([draw(model, rows, rows_of(given, rows), options, ranker) for rows in batches])
    tell_pace(len(index), time.monotonic() - start, model)
    write_samples(folder, index.tolist(), drawn, model.spec)
    if model.spec.kind != "image":
        return folder
    columns = len(index) // len(prompts) if prompts else None
    Image.fromarray(samples_grid(model, drawn, index, given, data, columns=columns)).save(folder / "grid.png")
    return folder / "grid.png"


def num_of(options: argparse.Namespace, prompts: list[str]) -> int:
    """Returns how many images are drawn: so many of each prompt, where there are prompts."""
    return (options.num or (PER_PROMPT if prompts else 64)) * max(1, len(prompts))


def require_archive(options: argparse.Namespace) -> None:
    """Refuses a file that could not be written, before a model is loaded."""
    if options.output is not None:
        raise ValueError("--to and --output: give one of them, a file of arrays or a folder of pictures.")
    read.require(read.output_file(".npz"), options.to, "--to")
    if options.to.exists():
        raise ValueError(f"{options.to} is there already: remove it, or name another file.")


def write_archive(model: Any, run: Run, options: argparse.Namespace, ranker: Any = None) -> int:
    """Writes images, and labels where the model is told some, as arrays that evaluation suites read.

    The same command, stopped and given again, goes on.
    """
    from genlab.evaluation.sample_file import SampleFile
    from genlab.progress import bar

    prompts = prompts_of(options)
    num, told = num_of(options, prompts), teller_of(model, run, options, prompts)
    about = made_of(model, run, options, prompts, ranker)
    file = SampleFile(options.to, model.spec, "label" in model.given, about)
    try:
        with file, bar("sampling", num, "sample", done=file.num_done) as progress:
            for rows in file.rest(num, options.batch_size):
                given = told(rows)
                file.append(draw(model, rows, given, options, ranker), given.get("label"))
                progress.update(len(rows))
        file.finish(num)
    except (KeyboardInterrupt, Stopped):
        print(f"{file.num_done:,} of {num:,} are drawn; the same command goes on from here.", file=sys.stderr)
        raise
    print(shown_path(options.to))
    return 0


def teller_of(
    model: Any, run: Run, options: argparse.Namespace, prompts: list[str]
) -> Callable[[Any], dict[str, Any]]:
    """Returns what says of numbered samples what they are told."""
    import torch

    if not prompts:
        data = data_of(model, run)
        return lambda rows: given_on_the_command_line(model, rows, options.label, data=data)
    index = torch.arange(num_of(options, prompts))
    given = given_on_the_command_line(model, index, options.label, prompts=prompts)
    return lambda rows: rows_of(given, rows)


def made_of(
    model: Any, run: Run, options: argparse.Namespace, prompts: list[str], ranker: Any
) -> dict[str, Any]:
    """Returns what samples depend on, beside their numbers."""
    from genlab.families.codes import weights_digest
    from genlab.runs.tests import model_config

    return {
        "genlab": genlab.__version__,
        "model": weights_digest(model),
        "settings": files.digest_of(model_config(run)) if run.config.is_file() else None,
        "seed": options.seed,
        "label": options.label,
        "prompt": prompts,
        "image": None if options.image is None else files.digest(options.image),
        "strength": options.strength,
        "best_of": options.best_of,
        "ranker": None if ranker is None else weights_digest(ranker),
    }


def prompts_of(options: argparse.Namespace) -> list[str]:
    """Returns the prompts of the command line: the one that it gives, or the lines of a file."""
    if options.prompts is None:
        return [options.prompt] if options.prompt else []
    if options.prompt:
        raise ValueError("--prompt and --prompts: give one of them.")
    return [line for line in lines_from([options.prompts]) if line.strip()]


def draw(
    model: Any, index: Any, given: dict[str, Any], options: argparse.Namespace, ranker: Any = None
) -> Any:
    """Returns one batch of samples on the CPU."""
    if ranker is not None:
        from genlab.evaluation.reranking import best_of

        return best_of(model, ranker, index, given, options.best_of, options.seed).cpu()
    if options.image is None:
        return model.sample(index, seed=options.seed, **given).cpu()
    from genlab.evaluation.latents import read_images
    from genlab.samplers.conditioning import FromImage

    x = read_images([options.image], model.spec).to(model.device)
    sampler = FromImage(model.space.inside(x), model.sampler, options.strength)
    return model.sample_with(sampler, index, options.seed, **given).cpu()


def tell_pace(num: int, seconds: float, model: Any) -> None:
    """Says how long the drawing took, where it is in nobody's way."""
    print(f"{num} samples in {seconds:.2f} s ({num / seconds:,.0f}/s on {model.device})", file=sys.stderr)


def write_texts(model: Any, run: Run, options: argparse.Namespace) -> int:
    """Prints texts token by token as they are drawn, one after the other."""
    import torch

    from genlab.data.tokenizers import tokenizer_of
    from genlab.samplers.tokens import Categorical

    tokenizer = tokenizer_of(model.spec.vocabulary)
    start = prompt_tokens(tokenizer, model, options.prompt)
    sampler = Categorical(options.temperature, options.top_k, options.top_p)
    for number in range(options.num or 1):
        index = torch.tensor([number])
        given = given_on_the_command_line(model, index, options.label)
        tokens = model.complete(start, options.length or 500, index, options.seed, sampler, **given)
        print_stream(tokenizer, options.prompt, (int(token) for token in tokens))
    return 0


def write_translations(model: Any, run: Run, options: argparse.Namespace) -> int:
    """Prints what a translator makes of the prompt, or of test sentences beside what they were to be.

    Raises:
        ValueError: The model is told no sentence, or a length was asked for.
        DataError: There is no prompt, and the test sentences are not there.
    """
    from genlab.cli.lines import tell_of
    from genlab.evaluation.lines import LineTranslator, held_out_translations, one_line
    from genlab.samplers.tokens import Categorical

    translator = LineTranslator(model, options.seed)
    if options.length is not None:
        raise ValueError("--length: a translation ends by itself; leave it out.")
    if (options.temperature, options.top_k, options.top_p) != (1.0, 0, 1.0):
        model.sampler = Categorical(options.temperature, options.top_k, options.top_p)
    if options.prompt:
        for text in translator([options.prompt] * (options.num or 1)):
            print(one_line(text))
        tell_of(translator)
        return 0
    try:
        found = held_out_translations(model, data_of(model, run), options.num or 8, seed=options.seed)
    except DataError as error:
        error.add_note("Or name a sentence to translate: --prompt TEXT.")
        raise
    print(*found, sep="\n\n")
    return 0


def prompt_tokens(tokenizer: Any, model: Any, prompt: str) -> Any:
    """Returns what a text goes on from: the prompt behind the token that begins a text.

    Raises:
        ValueError: The prompt holds characters that the model has never seen.
    """
    import torch

    if unknown := tokenizer.unknown_in(prompt):
        raise ValueError(f"--prompt holds {' '.join(map(repr, unknown))}, which this model has never seen.")
    return torch.tensor([[model.start, *tokenizer.encode(prompt).tolist()]], device=model.device)


def print_stream(tokenizer: Any, prompt: str, tokens: Any) -> None:
    """Prints a text while it is drawn; bytes that are no whole character yet wait for the next token."""
    sys.stdout.write(prompt)
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if not text.endswith("\N{REPLACEMENT CHARACTER}") or len(waiting) > 4:
            sys.stdout.write(text)
            sys.stdout.flush()
            waiting.clear()
    sys.stdout.write("\n")


def film(options: argparse.Namespace) -> int:
    """Writes the run's training as an animated GIF, from the grids that it left."""
    from genlab.report.film import film_of

    target = options.output
    if target is not None and target.suffix != ".gif":
        target = target / "training.gif"
    if target is not None:
        read.require(read.output_file(".gif"), target, "--output")
    film = film_of(open_run(options.run), target)
    for problem in film.problems:
        print(f"! {printable(problem)}", file=sys.stderr)
    print(f"{film.num_frames} frames", file=sys.stderr)
    print(shown_path(film.path))
    return 0


def parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = Parser(prog="genlab sample", description="Draw samples of a run.")
    add_run_options(parser)
    parser.add_argument(
        "-n",
        "--num",
        type=read.count(),
        help="number of samples (64 images, 8 of a prompt, 1 text, 8 translations)",
    )
    parser.add_argument(
        "--seed", type=read.seed, default=0, help="sample i of a seed is the same in any batch (0)"
    )
    parser.add_argument("--label", type=read.label, help="class to draw, for models trained with labels")
    parser.add_argument("--output", type=read.path, help="folder of the files (<run>/samples/seed<seed>)")
    parser.add_argument(
        "--to",
        metavar="FILE.npz",
        type=read.path,
        help="write arrays instead, as evaluation suites read them: arr_0, uint8 (n, height, width, 3), and "
        "arr_1, the labels told; stopped, the same command goes on",
    )
    parser.add_argument(
        "--film",
        action="store_true",
        help="draw nothing; the training's grids as a GIF (samples/training.gif)",
    )
    parser.add_argument("--batch_size", type=read.count(), default=100, help="samples drawn at a time (100)")
    parser.add_argument("--image", type=read.image, help="begin with this image, noised (diffusion models)")
    parser.add_argument(
        "--strength",
        type=read.number(above=0.0, most=1.0),
        default=0.5,
        help="with --image: near 0 keeps it, 1 forgets it (0.5)",
    )
    parser.add_argument(
        "--prompt",
        default="",
        help="what to draw; what a text goes on from; of a translator, the sentence to translate",
    )
    parser.add_argument(
        "--prompts", type=read.file_or_input, help="file with a prompt a line (-: standard input); -n of each"
    )
    parser.add_argument("--best_of", type=read.count(), help="draw so many for each, keep what fits best")
    parser.add_argument("--ranker", type=read.path, help="contrastive run that tells what fits")
    text = parser.add_argument_group("texts, printed as they are drawn")
    text.add_argument("--length", type=read.count(), help="tokens to draw (500); translations end themselves")
    text.add_argument(
        "--temperature", type=read.number(above=0.0), default=1.0, help="near 0 takes the likeliest token (1)"
    )
    text.add_argument(
        "--top_k", type=read.count(0), default=0, help="draw among so many likeliest tokens (0: all)"
    )
    text.add_argument(
        "--top_p",
        type=read.number(above=0.0, most=1.0),
        default=1.0,
        help="draw among the likeliest of this mass (1)",
    )
    return parser
