"""Networks compiled in training: one key, and runs that go on with and without it."""

import json
from functools import partial

import pytest
import torch
from test_families import FAMILIES, alike, gan, images, train_steps

from genlab.evaluation.checkpoint import read_checkpoint
from genlab.families.players import Balance
from genlab.losses.penalties import R1
from genlab.report.gather import gather
from genlab.runs.folder import list_runs

SHORT = (
    *("--config", "vae_digits", "--trainer.accelerator", "cpu", "--samples.num", 0, "--run_name", "one"),
    *("--evaluate.at_start", "false", "--evaluate.num_samples", 20, "--evaluate.extractor", "digits"),
)


def test_the_penalty_of_a_compiled_discriminator_has_its_second_derivative(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    options = {"balance": Balance(penalty=R1(weight=1.0))}
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = gan(images().spec, compile=compile, **options)
        train_steps(FAMILIES["gan"], model)
        losses.append(model.latest)
    assert "penalty" in losses[0] and all(alike(losses[0][name], losses[1][name]) for name in losses[0])


@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_compiled_or_not_and_its_checkpoints_do_not_know(first, genlab_command, monkeypatch):
    made = []

    def compiled(forward):
        return lambda *args: made.append(getattr(forward, "__self__", None)) or forward(*args)

    monkeypatch.setattr(torch, "compile", compiled)
    typed = ("--model.compile", str(first).lower())
    code, _, error = genlab_command("fit", *SHORT, "--budget.examples", 128, *typed)
    assert code == 0, error
    run = list_runs()[-1]
    assert bool(made) == first and json.loads(run.record.read_text()).get("compiled", False) == first
    (row,) = gather([run.path]).runs
    assert row.hardware.endswith(", compiled") == first
    keys = read_checkpoint(run.checkpoint())["state_dict"].keys()
    assert not [key for key in keys if "orig_mod" in key or "compiled" in key]
    made.clear()
    again = ("--budget.examples", 256, "--model.compile", str(not first).lower())
    code, _, error = genlab_command("resume", run.path, *again)
    assert code == 2 and "model.compile" in error and "--accept-change" in error
    code, _, error = genlab_command("resume", run.path, *again, "--accept-change")
    assert code == 0, error
    assert bool(made) != first
    assert read_checkpoint(run.checkpoint())["state_dict"].keys() == keys
    made.clear()
    assert genlab_command("sample", run.path, "-n", 2)[0] == 0 and made == []


def test_where_nothing_compiles_this_is_said_before_there_is_a_run(genlab_command, monkeypatch):
    def failing(_):
        raise RuntimeError("No working C++ compiler found in cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(torch, "compile", lambda function: failing)
    code, _, error = genlab_command("fit", *SHORT, "--budget.examples", 128, "--model.compile", "true")
    assert code == 2
    assert "model.compile needs a C++ compiler" in error and "No working C++ compiler found" in error
    assert "Leave model.compile out" in error and list_runs() == []
