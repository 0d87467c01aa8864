"""The commands as functions of Python: the same code, the same words, values in place of printed tables.

What is wrong is an exception of `genlab.errors` or a ValueError, in the words of the command. Whatever is
heavy is imported by the function that needs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from genlab.errors import EXIT_INTERRUPTED
from genlab.report.results import Results, Score, of_comparison
from genlab.runs.changes import ACCEPT
from genlab.runs.folder import Run, open_run

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from genlab.evaluation.image_sets import ImageSet
    from genlab.families.base import Model
    from genlab.metrics.base import SampleMetric

Images: TypeAlias = "str | Path | Run | np.ndarray | Tensor | ImageSet"
"""What can be scored."""

FLAGS = ("--again", ACCEPT)
"""Options without a value."""

__all__ = ["compare", "fit", "load", "open_run", "sample", "score", "test"]


def fit(experiment: str | Path | Run, settings: Mapping[str, Any] | None = None) -> Run:
    """Trains, as `genlab fit --config EXPERIMENT` does, or goes on with a run, as `genlab resume RUN` does.

    Args:
        experiment: Its name (`genlab experiments` lists them) or its YAML file; or a run.
        settings: Values by the names that the command's options have, such as
            `{"budget.seconds": 60, "model.loss": "Hinge"}`; of one without a value whether it is given,
            such as `{"accept-change": True}`.

    Returns:
        The run, whose folder says everything.

    Raises:
        ValueError: A setting is wrong, or there is no such experiment.
        DataError: The data cannot be used.
        Diverged: A loss is no longer finite.
        KeyboardInterrupt: It was stopped, with a checkpoint written; `fit(run)` goes on.
    """
    from genlab.cli.main import run_of

    start = [str(experiment.path)] if isinstance(experiment, Run) else [f"--config={experiment}"]
    with _interruptible():
        run = run_of("fit", [*start, *_options(settings)])
    if run is None:
        raise ValueError("A trial leaves no run: leave trainer.fast_dev_run to the command line.")
    return run


def test(run: str | Path | Run, settings: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Scores a run by the full protocol, as `genlab test RUN` does, which prints every score with it.

    What was measured before of the same weights and settings is not measured again, unless by
    `{"again": True}`.

    Args:
        run: The run, or its folder.
        settings: As in `fit`.

    Returns:
        The values by name; the run's record, `run.read()["test"]`, has all that was found.
    """
    from genlab.cli.main import run_of

    run = run if isinstance(run, Run) else open_run(run)
    with _interruptible():
        run_of("test", [str(run.path), *_options(settings)])
    return dict(run.read()["test"]["values"])


def load(run: str | Path | Run, checkpoint: str | Path | None = None, device: str | None = None) -> Model:
    """Returns the trained model of a run, in evaluation mode.

    `model.sample(16, seed=0)` draws from it, (16, channels, height, width) in [-1, 1] for images. One that
    was trained with labels takes these in turn, as `genlab.sample` does, or as `label=torch.tensor([...])`
    says; one that is told sources takes those of the run's test split.

    Args:
        run: The run, its folder, or a file that `genlab export --to safetensors` has written.
        checkpoint: Another checkpoint than the last one: a file, "best" or "last".
        device: Such as "cpu"; CUDA where none is named and there is one.

    Raises:
        CheckpointError: The run has no whole checkpoint, or its weights belong to another model.
    """
    from genlab.cli.model import data_of, loaded
    from genlab.evaluation.given import TellingSample
    from genlab.families.capabilities import can_be_sampled

    model, of = loaded(_path(run), checkpoint, device)
    if model.given and can_be_sampled(model):
        model.sample = TellingSample(model, cache(lambda: data_of(model, of)))  # type: ignore[assignment]
    return model


def sample(
    run: str | Path | Run | Model,
    num: int = 64,
    seed: int = 0,
    label: int | None = None,
    prompts: Sequence[str] = (),
    batch_size: int = 100,
) -> Tensor:
    """Returns samples as `genlab sample RUN` draws them: sample i of a seed is the same in any batch.

    Args:
        run: A run, or a model that `load` returned.
        num: How many, of each prompt where there are prompts.
        seed: Theirs.
        label: The class to draw; each in turn where the model is told one and none is named.
        prompts: What to draw, for models that read texts.
        batch_size: Drawn at a time.

    Shapes:
        Returns (n, channels, height, width) in [-1, 1] for images, (n, dimensions) for points, (n, length)
        for tokens, on the CPU.

    Raises:
        ValueError: The model cannot be sampled, or not so.
    """
    import torch

    from genlab.cli.model import data_of, given_on_the_command_line, loaded, require_samples, rows_of

    model, of = loaded(_path(run)) if isinstance(run, str | Path | Run) else (run, None)
    require_samples(model, of)
    index = torch.arange(num * max(1, len(prompts)))
    data = None if prompts or of is None else data_of(model, of)
    given = given_on_the_command_line(model, index, label, data=data, prompts=prompts)
    parts = index.split(batch_size)
    with torch.no_grad():
        return torch.cat([model.sample(rows, seed=seed, **rows_of(given, rows)).cpu() for rows in parts])  # type: ignore[operator]


def score(
    images: Images,
    reference: Images,
    metrics: Sequence[str | SampleMetric] | None = None,
    *,
    extractor: str | Path | Run | None = None,
    training: Images | None = None,
    num: int | None = None,
    seed: int = 0,
    batch_size: int = 100,
    device: str | None = None,
) -> Score:
    """Scores images that were made anywhere, as `genlab score IMAGES REFERENCE` does.

    Args:
        images: What is scored: a tensor or an array (uint8, or floats in [-1, 1]; channels first or last), a
            folder, zip, tar, .npz or .npy, or a run, whose samples are.
        reference: Real images that were not learned from, in the same forms; of a run, its test split.
        metrics: Only these, such as `["fid", "kid"]`; all that the extractor allows if None.
        extractor: Whose features are compared: "inception", "digits" or a classifier's run; None for
            Inception.
        training: Images that were learned from: copies of them are counted.
        num: Samples of a run that are drawn; 10,000 if None.
        seed: Theirs.
        batch_size: Images at a time.
        device: Where features are computed; CUDA where none is named and there is one.

    Returns:
        `.values` by name, with `.protocol`, what must be equal for two to be compared.

    Raises:
        DataError: Some of the images cannot be used.
        MetricError: The extractor cannot be had.
    """
    from genlab.cli.score import Asked

    ruler = None if extractor is None else str(_path(extractor) if isinstance(extractor, Run) else extractor)
    asked = Asked(ruler, None if metrics is None else list(metrics), num, seed, batch_size, device)
    return asked.score(images, reference, training)[0]


def compare(
    runs: Sequence[str | Path | Run] | str | Path | Run | None = None,
    columns: Sequence[str] | None = None,
    rank: str | None = None,
) -> Results:
    """Puts runs side by side, as `genlab compare RUNS...` does.

    Args:
        runs: Runs, their folders, or folders of them; all of $GENLAB_OUTPUTS or ./outputs if None.
        columns: Only these, such as `["fid", "ms"]`.
        rank: Column to rank by; refused where it would be unfair.

    Returns:
        A table for people, whose `rows` are numbers: `pandas.DataFrame(table.rows)`.

    Raises:
        ValueError: There are no runs, or no such column.
    """
    from genlab.report.columns import chosen
    from genlab.report.comparison import compare as compared
    from genlab.runs.folder import outputs_root

    named = [runs] if isinstance(runs, str | Path | Run) else list(runs or [])
    comparison = compared([_path(run) for run in named] or [outputs_root()], rank)
    return of_comparison(comparison, chosen(columns) if columns else None)


def _path(run: str | Path | Run) -> Path:
    return run.path if isinstance(run, Run) else Path(run).expanduser()


def _options(settings: Mapping[str, Any] | None) -> list[str]:
    """Returns settings as a person would type them."""
    given = {f"--{name}": value for name, value in (settings or {}).items()}
    flags = [name for name in FLAGS if given.pop(name, False)]
    return [*flags, *(f"{name}={_typed(value)}" for name, value in given.items())]


def _typed(value: Any) -> str:
    if isinstance(value, Run):
        return str(value.path)
    return str(value) if isinstance(value, str | Path) else json.dumps(value)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C end a training with a checkpoint, and a session of Python go on."""
    from genlab.cli.main import stoppable

    try:
        with stoppable():
            yield
    except SystemExit as stop:
        if stop.code != EXIT_INTERRUPTED:
            raise
        raise KeyboardInterrupt from stop
