"""`genlab test`: every measure in the record, variants of the same weights, nothing measured twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import genlab
from genlab.callbacks import evaluate
from genlab.cli.main import main
from genlab.files import digest
from genlab.metrics.extractors import load_extractor
from genlab.report.film import film_of
from genlab.runs import tests as stored
from genlab.runs.folder import Run, list_runs
from genlab.shapes import DataSpec

FIRST = {"model.sampler": "Ancestral", "model.sampler.grid": "UniformGrid", "model.sampler.grid.num_steps": 2}
SECOND = {"model.sampler.grid.num_steps": 3}
VARIANTS = {"ddpm-2": FIRST, "three steps": SECOND}


def fit_arguments(extractor, variants=VARIANTS):
    unet = ("--model.network.channels", "[8]", "--model.network.num_groups", "4")
    process = ("--model.process.num_steps", "20", "--model.sampler.grid.num_steps", "4")
    likelihood = ("--model.likelihood", "VariationalBound", "--model.likelihood.grid", "UniformGrid")
    return (
        *("fit", "--config", "experiments/ddpm_digits.yaml", *unet, "--model.network.attention", "[]"),
        *(*process, *likelihood, "--model.likelihood.grid.num_steps", "2"),
        *("--variants", json.dumps(variants), "--extractor", str(extractor), "--trainer.accelerator", "cpu"),
        *("--evaluate.num_samples", "8", "--evaluate.num_test_samples", "30", "--samples.num", "4"),
        *("--evaluate.num_likelihood", "20", "--budget.examples", "128", "--budget.evaluate_every", "64"),
        *("--evaluate.at_start", "true"),
    )


@pytest.fixture(scope="module")
def tested(trained_once, tiny_extractor, short_measures):
    """The folder of a diffusion run with two variants, trained and tested."""
    run = trained_once(*fit_arguments(tiny_extractor(1))[1:])
    with short_measures():
        assert main(["test", str(run)]) == 0
    return run


@pytest.fixture
def run(tested, tmp_path, short_measures):
    """A copy of the tested run, to be changed."""
    with short_measures():
        yield Run(shutil.copytree(tested, tmp_path / "outputs" / tested.parent.name / tested.name))


def record_without(run, **fields):
    record = run.read()
    for name, value in fields.items():
        record[name] = value
    run.record.write_text(json.dumps(record))


# The entry


def test_one_test_leaves_every_measure_of_the_model_in_the_record(tested):
    record = Run(tested).read()
    entry = record["test"]
    names = {name.split("@")[0] for name in entry["values"]}
    assert names >= {"fid", "fid_std", "kid", "precision", "recall", "nll", "bits_per_dim"}
    assert names >= {"reconstruction_mse", "loss"} and "loss" in entry["split_means"]
    assert "fid@30vs797" not in entry["split_means"] and "nll" not in entry["split_means"]
    assert entry["protocol"]["num_fake"] == 30 and entry["protocol"]["likelihood"]["num_real"] == 20
    assert entry["protocol"]["reconstruction"]["split"] == "test"
    assert entry["speed"]["nfe"] == 4 and entry["speed"]["peak_memory_mib"] is None  # on a CPU
    assert entry["copies"]["num_train"] == 900 and 0 <= entry["copies"]["share"] <= 1
    assert entry["latent"]["type"] == "noise" and entry["latent"]["dim"] == 64
    assert 0 < entry["latent"]["linear_probe"] <= 1 <= entry["latent"]["path_length"]
    assert entry["floor"]["fid@30vs797"] > 0
    assert entry["genlab"] == genlab.__version__ and entry["arguments"] == []
    assert entry["checkpoint_digest"] == digest(tested / "checkpoints" / "last.ckpt", stored.DIGEST_LENGTH)
    for path in entry["pictures"].values():
        with Image.open(tested / path) as picture:
            assert min(picture.size) > 60


def test_variants_are_the_same_weights_sampled_otherwise(tested):
    record = Run(tested).read()
    variants, own = record["variants"], record["test"]
    assert list(variants) == list(VARIANTS)
    assert [variants[name]["speed"]["nfe"] for name in VARIANTS] == [2, 3]
    for name, entry in variants.items():
        assert entry["settings"] == VARIANTS[name]
        assert entry["checkpoint_digest"] == own["checkpoint_digest"]
        names = {value.split("@")[0] for value in entry["values"]}
        assert "fid" in names and not names & {"nll", "bits_per_dim", "reconstruction_mse", "loss"}
        assert "latent" not in entry and entry["protocol"]["metrics"] == own["protocol"]["metrics"]
        assert all(
            path.startswith("test/") and (tested / path).is_file() for path in entry["pictures"].values()
        )
    grids = [
        np.asarray(Image.open(tested / entry["pictures"]["samples"])) for entry in (own, variants["ddpm-2"])
    ]
    assert not np.array_equal(*grids)
    folders = {path.rsplit("/", 1)[0] for entry in variants.values() for path in entry["pictures"].values()}
    assert folders == {"test/ddpm-2", "test/three-steps"}


def test_a_variant_equal_to_the_model_has_the_same_scores(run, genlab_command):
    config = yaml.safe_load(run.config.read_text())
    config["variants"] = {"same": {"model.sampler.grid.num_steps": 4}}
    run.config.write_text(yaml.safe_dump(config))
    code, _, error = genlab_command("test", run.path)
    assert code == 0, error
    record = run.read()
    assert list(record["variants"]) == ["same"]  # those that the configuration names no more are gone
    same, own = record["variants"]["same"]["values"], record["test"]["values"]
    assert all(own[name] == pytest.approx(value, rel=1e-5, abs=1e-6) for name, value in same.items())


def test_the_table_has_a_column_for_each_variant_and_a_line_for_each_measure(run, genlab_command):
    code, out, _ = genlab_command("test", run.path)
    assert code == 0
    head, *lines = out.splitlines()
    assert [word in head for word in ("value", "spread", "floor", "ddpm-2", "three steps", "protocol")]
    labels = [line.split("  ")[0] for line in lines]
    assert labels[0] == "fid@30vs797" and labels[-1].startswith(("loss", "x_error"))
    for label in ("copy share", "linear probe", "path length", "network evaluations"):
        assert label in labels
    assert not any("_std" in label for label in labels)
    evaluations = next(line for line in lines if line.startswith("network evaluations"))
    assert evaluations.split()[2:5] == ["4", "2", "3"]


# What is measured again


def measured(run, genlab_command, *options):
    """Which entries a test measured anew: those whose marks are gone."""
    record = run.read()
    for entry in (record["test"], *record["variants"].values()):
        entry["mark"] = True
    run.record.write_text(json.dumps(record))
    code, _, error = genlab_command("test", run.path, *options)
    assert code == 0, error
    record = run.read()
    if "mark" not in record["test"]:
        assert error.endswith("run.json: scores of last.ckpt\n")
    return ["test"] * ("mark" not in record["test"]) + [
        name for name, entry in record["variants"].items() if "mark" not in entry
    ]


def test_a_second_test_prints_the_stored_table_without_importing_torch(run, genlab_command):
    code = (
        "import sys\nfrom genlab.cli.main import main\n"
        f"code = main(['test', {str(run.path)!r}])\n"
        "print(code, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *table, last = done.stdout.strip().splitlines()
    assert last == "0 False False"
    assert table[0].startswith("metric") and "--again" in done.stderr and done.stderr.count("\n") == 1
    _, again, _ = genlab_command("test", run.path)
    assert again.splitlines() == table


def test_nothing_is_measured_twice_and_everything_again_when_asked(run, genlab_command):
    assert measured(run, genlab_command) == []
    assert measured(run, genlab_command, "--again") == ["test", *VARIANTS]


def change_checkpoint(run):
    path = run.checkpoints / "last.ckpt"
    shutil.copy(run.checkpoints / "best.ckpt", path)
    state = torch.load(path, weights_only=True)
    state["examples_seen"] += 1
    torch.save(state, path)


def change_config(run):
    config = yaml.safe_load(run.config.read_text())
    config["evaluate"]["drawing"]["seed"] = 1
    run.config.write_text(yaml.safe_dump(config))


def change_version(run):
    record_without(run, test={**run.read()["test"], "genlab": "0.0.1"})


def change_variant(run):
    config = yaml.safe_load(run.config.read_text())
    config["variants"]["three steps"] = {"model.sampler.grid.num_steps": 5}
    run.config.write_text(yaml.safe_dump(config))


def lose_variant(run):
    variants = run.read()["variants"]
    record_without(run, variants={"three steps": variants["three steps"]})


CHANGES = {
    change_checkpoint: ["test", *VARIANTS],
    change_config: ["test", *VARIANTS],
    change_version: ["test"],
    change_variant: ["three steps"],
    lose_variant: ["ddpm-2"],
}


LONGER = (change_config, change_version)


@pytest.mark.parametrize(
    "change",
    [pytest.param(each, marks=[pytest.mark.slow] if each in LONGER else []) for each in CHANGES],
    ids=lambda change: change.__name__,
)
def test_what_has_changed_is_measured_and_the_rest_is_kept(change, run, genlab_command):
    change(run)
    assert measured(run, genlab_command) == CHANGES[change]
    assert measured(run, genlab_command) == []


def test_other_options_are_another_test(run, genlab_command):
    options = ("--evaluate.num_test_samples", "20")
    assert measured(run, genlab_command, *options) == ["test", *VARIANTS]
    assert run.read()["test"]["arguments"] == list(options)
    assert measured(run, genlab_command, *options) == []


def test_a_test_that_was_killed_goes_on_where_it_was(run, genlab_command, monkeypatch):
    from genlab.cli import testing

    built = testing.built_variant
    record_without(run, test=None, variants={})

    def interrupted(config, settings, spec, name):
        if name == "three steps":
            raise KeyboardInterrupt
        return built(config, settings, spec, name)

    monkeypatch.setattr(testing, "built_variant", interrupted)
    with pytest.raises(KeyboardInterrupt):
        genlab_command("test", run.path)
    assert list(run.read()["variants"]) == ["ddpm-2"] and "fid@30vs797" in run.read()["test"]["values"]
    monkeypatch.setattr(testing, "built_variant", built)
    assert measured(run, genlab_command) == ["three steps"]


def test_scores_that_wait_for_an_extractor_are_made_once_there_is_one(
    run, genlab_command, tiny_extractor, monkeypatch
):
    config = yaml.safe_load(run.config.read_text())
    config["evaluate"]["extractor"] = None  # the default, which may be absent
    run.config.write_text(yaml.safe_dump(config))
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "extractor_available", lambda source: "not yet.")
        code, _, error = genlab_command("test", run.path)
    assert code == 0 and "No scores by features" in error
    assert "speed" in run.read()["test"] and "copies" not in run.read()["test"]
    there = load_extractor(tiny_extractor(1))
    monkeypatch.setattr(evaluate, "extractor_available", lambda source: None)
    monkeypatch.setattr(evaluate, "load_extractor", lambda source: there)
    assert measured(run, genlab_command) == ["test", *VARIANTS]
    assert "copies" in run.read()["test"]


# Mistakes


MISTAKES = {
    "a misspelt key": ({"model.samplr": "DDIM"}, "there is no option 'samplr'. Did you mean 'sampler'?"),
    "a misspelt class": ({"model.sampler": "DDIN"}, "Did you mean 'DDIM'?"),
    "an option of another class": ({"model.sampler.num_steps": 3}, "there is no option 'num_steps'"),
    "another group": ({"budget.examples": 3}, "there is no key 'budget.examples'"),
    "a wrong value": ({"model.sampler.eta": 7.0}, "eta must be in [0, 1], got 7.0"),
    "another network": ({"model.network.channels": [4]}, "changes the network"),
    "a foreign class": ({"model.sampler": "evil.Bad"}, "evil"),
    "nothing on the way": ({"model.sampler": "DDIM", "model.sampler.grid.num_steps": 3}, "nothing at 'grid'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_variant_is_named_before_training(mistake, genlab_command, tiny_extractor):
    settings, expected = MISTAKES[mistake]
    code, _, error = genlab_command(*fit_arguments(tiny_extractor(1), {"good": SECOND, "bad": settings}))
    assert code == 2 and expected in error and ("variants.bad" in error or "evil" in error)
    assert len(error) < 700
    assert list_runs() == []  # nothing was begun


def test_checking_variants_leaves_the_training_s_random_numbers_alone():
    from genlab.cli.model import import_room
    from genlab.cli.testing import check_variants
    from genlab.configuration.trust import MODEL_ROOMS
    from genlab.evaluation.load import build_model

    for room in MODEL_ROOMS:
        import_room(room)
    config = yaml.safe_load(Path("experiments/ddpm_digits.yaml").read_text())["model"]
    model = build_model(config, DataSpec("digits", (1, 8, 8), num_classes=10, levels=17))
    state = torch.get_rng_state()
    check_variants(model, config, VARIANTS)
    assert torch.equal(torch.get_rng_state(), state)


# Films and neighbours


def test_the_training_becomes_a_film_without_importing_torch(run):
    code = (
        "import sys\nfrom genlab.cli.main import main\n"
        f"code = main(['samples', {str(run.path)!r}, '--film'])\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    path, last = done.stdout.strip().splitlines()
    assert last == "0 False" and path.endswith("samples/training.gif")
    with Image.open(run.samples / "training.gif") as film:
        assert film.n_frames == 3  # before training, in the middle, at the end
        frames, lengths = [], []
        for number in range(3):
            film.seek(number)
            frames.append(np.asarray(film.convert("L")))
            lengths.append(film.info["duration"])
    grids = [np.asarray(Image.open(path).convert("L")) for path in sorted(run.samples.glob("samples_*.png"))]
    height, width = grids[0].shape
    for frame, grid in zip(frames, grids, strict=True):
        assert frame.shape[0] > height and frame.shape[1] == width
        assert np.abs(frame[:height].astype(int) - grid).mean() < 4  # GIFs have 256 colours
        assert (frame[height:] < 128).any()  # the number of images
    assert not np.array_equal(frames[0][height:], frames[2][height:])
    assert lengths[-1] > lengths[0]


def test_a_run_without_grids_has_no_film(run, genlab_command):
    for path in run.samples.glob("*.png"):
        path.unlink()
    code, _, error = genlab_command("sample", run.path, "--film")
    assert code == 2 and "has no grids" in error
    with pytest.raises(ValueError, match="has no grids"):
        film_of(run)


def test_neighbours_of_samples_are_listed_and_shown_the_nearest_first(run, genlab_command):
    code, out, error = genlab_command("neighbours", run.path, "-n", "5", "--seed", "3")
    assert code == 0, error
    head, *rows, share, path = out.splitlines()
    assert head.split() == ["sample", "distance", "of", "threshold", "training", "images"]
    assert sorted(int(row.split()[0]) for row in rows) == [0, 1, 2, 3, 4]
    distances = [float(row.split()[1]) for row in rows]
    assert distances == sorted(distances) and "of 5 samples" in share
    with Image.open(run.samples / "neighbours_seed3.png") as picture:
        assert path.endswith("neighbours_seed3.png") and picture.size[0] > 4 * 64
    code, _, error = genlab_command("neighbours", run.path, "-n", "0")
    assert code == 2 and "-n/--num: must be a whole number from 1" in error
