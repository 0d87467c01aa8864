"""What `genlab export --to hub` writes: a model, with what a stranger must know of it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from genlab.runs.folder import Run
from genlab.text import printable

WEIGHTS = "model.safetensors"


def write_folder(
    model: Any, run: Run, checkpoint: Path, target: Path, licence: str = "", data_licence: str = ""
) -> dict[str, float]:
    """Writes weights, configuration, samples and the card of a run, once the weights are proven.

    Args:
        model: Of the checkpoint.
        run: Its run.
        checkpoint: Its file.
        target: A folder that is not there, or is empty.
        licence: Of the weights; see `Card`.
        data_licence: Of the data; see `Card`.

    Returns:
        The largest difference of each of the model's functions over `NUM_COMPARED` inputs.
    """
    import yaml

    from genlab.evaluation.export import export_weights
    from genlab.files import making
    from genlab.report.card import Card
    from genlab.report.gather import Trained
    from genlab.runs.environment import private
    from genlab.runs.tests import model_config, read_config

    trained = Trained.of(run)
    known = paper_of(run, model), task_of(model), licence, data_licence
    card = Card(trained, WEIGHTS, is_tested(run, checkpoint), *known)
    with making(target) as folder:
        found = export_weights(model, private(model_config(run)), folder / WEIGHTS)
        config = yaml.safe_dump(private(read_config(run)), sort_keys=False, allow_unicode=True)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        (folder / "README.md").write_text(card.markdown, encoding="utf-8")
        if card.picture:
            name, content = card.picture
            (folder / name).write_bytes(content)
    unsaid = {"weights": ("--licence", card.licence), "data": ("--data_licence", card.licence_of_data)}
    for what, (option, said) in unsaid.items():
        if not said:
            print(f"! The card states no licence of the {what}: {option} does.", file=sys.stderr)
    for problem in card.problems:
        print(f"! {printable(problem)}", file=sys.stderr)
    return found


def is_tested(run: Run, checkpoint: Path) -> bool:
    """Returns whether the test in a run's record is of the weights of a checkpoint."""
    from genlab.files import digest
    from genlab.runs.tests import DIGEST_LENGTH

    test = run.read().get("test") or {}
    return test.get("checkpoint_digest") == digest(checkpoint, DIGEST_LENGTH)


def paper_of(run: Run, model: Any) -> str:
    """Returns the paper that the run's experiment names, else the first of its family; "" for none."""
    from genlab.configuration.experiments import Experiment, find

    file = find(run.experiment)
    if file is not None:
        experiment = Experiment(file)
        if experiment.family == type(model).__name__ and experiment.paper:
            return experiment.paper
    cited = re.search(r"arXiv:\d{4}\.\d{4,5}", type(model).__doc__ or "")
    return cited[0] if cited else ""


def task_of(model: Any) -> str:
    """Returns what a model does in the words of model hubs, "" where they have none for it."""
    from genlab.families.capabilities import can_be_sampled

    if not can_be_sampled(model):
        return ""
    source = model.spec.source if "source" in model.given else None
    tasks = {
        ("image", ""): "unconditional-image-generation",
        ("image", "tokens"): "text-to-image",
        ("image", "image"): "image-to-image",
        ("tokens", ""): "text-generation" if model.spec.vocabulary else "",
        ("tokens", "tokens"): "translation",
    }
    return tasks.get((model.spec.kind, source.kind if source else ""), "")
