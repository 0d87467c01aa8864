"""The `genlab` command: finds what was asked for and imports only that.

Help and listings answer in a fraction of a second because nothing here imports torch.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import genlab
from genlab.errors import EXIT_CODES, Stopped, exit_code, explain
from genlab.files import require_writable
from genlab.runs.changes import ACCEPT
from genlab.runs.folder import Run, open_run, outputs_root
from genlab.text import nearest, printable

TRAINING = {
    "fit": "train a model:                genlab fit --config dcgan_digits",
    "validate": "score on the validation data: genlab validate RUN",
    "test": "score with the full protocol: genlab test RUN",
    "predict": "write one sample per item:    genlab predict RUN",
}

OTHERS = {
    "resume": "continue a stopped run:       genlab resume RUN",
    "sample": "draw a grid and single PNGs:  genlab sample RUN -n 64 --seed 0",
    "samples": "the same; training as a film: genlab samples RUN --film",
    "neighbours": "nearest training images:      genlab neighbours RUN -n 12 --seed 0",
    "reconstruct": "encode and decode images:     genlab reconstruct RUN IMAGES...",
    "interpolate": "walk through latent space:    genlab interpolate RUN --seeds 0 1",
    "inpaint": "fill in a part of a picture:   genlab inpaint RUN IMAGE MASK",
    "complete": "draw the rest of a picture:   genlab complete RUN IMAGE --rows 14",
    "restore": "denoise, deblur, enlarge:      genlab restore RUN IMAGES... --noise 50",
    "translate": "pictures of any size, or text: genlab translate RUN IMAGES|TEXTS... -o FOLDER|FILE",
    "export": "for other programs:           genlab export RUN --to onnx|safetensors|hub|diffusers",
    "score": "images made anywhere:        genlab score IMAGES REFERENCE --extractor digits|inception|RUN",
    "speed": "FID against network passes:    genlab speed RUN",
    "bench": "train and compare families:   genlab bench digits --families gan,vae --budget 90s --seeds 5",
    "experiments": "list what can be trained:     genlab experiments digits",
    "new": "write a part of your own:     genlab new family|network|loss|data|metric|sampler PACKAGE/NAME",
    "sweep": "search for good settings:     genlab sweep EXPERIMENT --over KEY=log:1e-4:1e-2 --trials 20",
    "lr": "find a learning rate:         genlab lr EXPERIMENT",
    "runs": "list the runs and their scores",
    "compare": "runs side by side:            genlab compare outputs/",
    "report": "the same as one HTML file:    genlab report outputs/ -o report.html",
    "records": "their numbers alone, small:   genlab records outputs/ -o FOLDER",
    "data": "look at data, or pack them:   genlab data check PATH",
}

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Signals that end a command; the last one is sent when a terminal is closed."""

LOGGING = ("--log_to", "--log_artifacts")
"""Options that change nothing of what is measured."""

ALIASES = {"samples": "sample"}
"""Every other command is the function of its own name in the file of its own name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = take_allowed([argument for argument in given if argument != "--debug"])
    open_streams()
    try:
        with stoppable():
            done = answer(given)
            sys.stdout.flush()
            return done
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Stopped as stop:
        print(f"genlab: stopped by {stop.reason}.", file=sys.stderr)
        return int(stop.code or 0)
    except Exception as error:
        code = exit_code(error)
        if debug or code is None:
            raise
        print("genlab:", printable(explain(error), keep="\n"), file=sys.stderr)
        return code


def open_streams() -> None:
    """Opens what the caller has closed, and gives the pipes of Windows, of 256 letters, all of them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - to the process's end
        elif isinstance(stream, io.TextIOWrapper) and stream.encoding.startswith("cp"):
            stream.reconfigure(encoding="utf-8")


def answer(given: list[str]) -> int:
    """Returns the exit code of a command, after having done it."""
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if given[0] == "--version":
        print(f"genlab {genlab.__version__}")
        return 0
    if given[0] == "--print_completion":
        from genlab.cli.completion import script

        resuming = {**TRAINING, "resume": OTHERS["resume"]}
        others = {name: ALIASES.get(name, name) for name in OTHERS if name not in resuming}
        print(script(given[1] if len(given) > 1 else "", resuming, others))
        return 0
    return command(given[0])(given[1:])


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets Ctrl-C, SIGTERM and SIGHUP end the block wherever it is.

    Raises:
        Stopped: One of them came.
    """
    process = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != process:
            raise KeyboardInterrupt  # a reader of data, which ends quietly
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        # What is ignored stays ignored: so `nohup` works.
        before = {n: signal.signal(n, stop) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def command(name: str) -> Callable[[list[str]], int]:
    """Returns the function that runs a command, importing no other one."""
    if name in TRAINING:
        return lambda rest: train(name, rest)
    if name == "resume":
        return resume
    if name in OTHERS:
        function = ALIASES.get(name, name)
        return getattr(importlib.import_module(f"genlab.cli.{function}"), function)
    hint = nearest(name, [*TRAINING, *OTHERS]) or " `genlab --help` lists them."
    raise ValueError(f"There is no command '{name}'.{hint}")


def train(name: str, rest: list[str]) -> int:
    """Runs one of Lightning's commands; returns the exit code."""
    run_of(name, rest)
    return 0


def run_of(name: str, rest: list[str]) -> Run | None:
    """Runs one of Lightning's commands, on a run folder where one is given instead of options.

    Returns:
        The run that it made or was about; None of a trial.
    """
    again, accepts = name == "test" and "--again" in rest, ACCEPT in rest
    given = [argument for argument in rest if argument != ACCEPT and not (again and argument == "--again")]
    rest = short_options(given)
    if rest and not rest[0].startswith("-"):
        run, given = open_run(rest[0]), given[1:]
        if name == "test" and not again and show_stored_test(run, given):
            return run
        rest = run_arguments(run, rest[1:])
        require_writable(run.path)
    elif name == "fit" and not any("fast_dev_run" in option for option in rest):
        require_writable(outputs_root())
    for option in LOGGING:
        given = taken(option, given)[1]
    quieten()
    from genlab.cli.training import main as train_main

    return train_main([name, *rest], given, again, accepts)


def show_stored_test(run: Run, given: list[str]) -> bool:
    """Prints what a test of the same checkpoint and options found before; False if it must be made."""
    checkpoint = run.last_checkpoint
    must_be_made = any(option.startswith(("--ckpt_path", *LOGGING)) for option in given)
    if checkpoint is None or not run.config.is_file() or must_be_made:
        return False
    from genlab.report.test_table import table_of
    from genlab.runs.tests import kept_test, kept_variants, stamp, variants_of

    made_of, variants = stamp(run, checkpoint, given), variants_of(run)
    entry, kept = kept_test(run, made_of), kept_variants(run, made_of, variants)
    if entry is None or kept.keys() != variants.keys():
        return False
    table_of(entry, kept).show()
    print(
        f"Measured before, of this very {checkpoint.name} ({made_of.checkpoint_digest}); "
        "--again measures anew.",
        file=sys.stderr,
    )
    return True


def resume(rest: list[str]) -> int:
    """Continues a run in its own folder, from its last checkpoint."""
    if not rest or rest[0].startswith("-"):
        raise ValueError("Say which run to continue: genlab resume outputs/<experiment>/<run>")
    return train("fit", rest)


def run_arguments(run: Run, rest: list[str]) -> list[str]:
    """Returns the options that a run folder stands for, and those that were typed after it.

    The folder stands for its configuration and its last checkpoint, unless `--ckpt_path` names another one.
    """
    run.require_todays_model()
    from genlab.runs.tests import is_without_validation

    named, others = taken("--ckpt_path", rest)
    checkpoint = named if named not in (None, "best", "last") else str(run.checkpoint(named or "last"))
    is_given = any(argument.startswith("--data.val_fraction") for argument in rest)
    as_it_was = ["--data.val_fraction=0"] if is_without_validation(run) and not is_given else []
    return ["--config", str(run.config), "--ckpt_path", checkpoint, *as_it_was, *others]


def taken(option: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Returns the last value that an option was given, None for none, and the other arguments."""
    value, rest = None, []
    iterator = iter(arguments)
    for argument in iterator:
        name, equals, given = argument.partition("=")
        if name == option:
            value = given if equals else next(iterator, "")
        else:
            rest.append(argument)
    return value, rest


def short_options(arguments: list[str]) -> list[str]:
    """Writes genlab's short options out: --extractor X is --evaluate.extractor X."""
    return [
        argument.replace("--extractor", "--evaluate.extractor", 1)
        if argument.split("=", 1)[0] == "--extractor"
        else argument
        for argument in arguments
    ]


def take_allowed(arguments: list[str]) -> list[str]:
    """Removes `--allow PACKAGE` and remembers the package for this process and those it starts."""
    rest, allowed = [], list(filter(None, os.environ.get("GENLAB_ALLOW", "").split(",")))
    iterator = iter(arguments)
    for argument in iterator:
        name, _, value = argument.partition("=")
        if name == "--allow":
            allowed.append(value or next(iterator, ""))
        else:
            rest.append(argument)
    if allowed:
        os.environ["GENLAB_ALLOW"] = ",".join(dict.fromkeys(filter(None, allowed)))
    return rest


def quieten() -> None:
    """Silences warnings about choices that genlab makes on purpose."""
    for text in (
        ".*does not have many workers.*",
        ".*`LightningCLI`'s args parameter.*",
        ".*LightningCLI's args parameter.*",
        ".*GPU available but not used.*",
        ".*Consider setting `persistent_workers.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*module\\(s\\) in eval mode at the start of training.*",  # the averaged copy
        ".*isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # sums are reduced before they are logged
        ".*Couldn't infer the batch indices.*",
    ):
        warnings.filterwarnings("ignore", message=text)
    warnings.formatwarning = lambda text, *_, **__: f"warning: {text}\n"


def overview() -> str:
    """Returns the list of all commands."""
    lines = ["genlab trains every family of generative models and compares them fairly.", ""]
    lines += [f"  {name:<12}{text}" for name, text in {**TRAINING, **OTHERS}.items()]
    lines += [
        "",
        "RUN is a folder such as outputs/dcgan_digits/20260101-120000; it needs no other setting.",
        "Options of a command: genlab fit --help (Lightning's, and budget, evaluate, samples, health).",
        "  --extractor NAME|RUN   features that sample scores use: inception, digits, or a classifier's run",
        "  --again                measure what `genlab test RUN` has measured before, too",
        "  --allow PACKAGE        let a configuration name classes of this package",
        f"  {ACCEPT}        go on or test although settings or data have changed; recorded in run.json",
        "  --debug                show the traceback of an error",
        "  --print_completion bash|zsh|tcsh",
        "                         a script by which the shell completes commands, options and experiments",
        "",
        "Of several processes, one that does not answer is waited for $GENLAB_TIMEOUT seconds (300).",
        "",
        "Exit codes:",
        *(f"  {code:<4}{meaning}" for code, meaning in EXIT_CODES.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
