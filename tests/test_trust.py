"""A configuration is data: whatever way it names foreign code, nothing of it runs."""

import random
import sys
from pathlib import Path

import pytest
import yaml

from genlab.cli.training import GenlabCLI

EXPERIMENT = Path("experiments/dcgan_digits.yaml").absolute()
FIT = ["fit", "--config", str(EXPERIMENT)]

FOREIGN = """
import os
from pathlib import Path
import torch

def trace(how):
    with Path(os.environ["FOREIGN_MARKER"]).open("a") as file:
        file.write(how)

trace("import")

def run(*args, **kwargs):
    trace("call")

def opt(params) -> torch.optim.Optimizer:
    trace("call")

class Net(torch.nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        trace("class")

class lower(Net):
    pass
"""

FX = "torch.fx.graph_module.reduce_graph_module"
POPEN = "torch.utils.cpp_extension.subprocess.Popen"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that foreign code writes; the working folder, where the module of foreign code lies."""
    (tmp_path / "foreign_code.py").write_text(FOREIGN)
    path = tmp_path / "marker"
    monkeypatch.setenv("FOREIGN_MARKER", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield path
    sys.modules.pop("foreign_code", None)


@pytest.fixture
def no_training(monkeypatch):
    """Configurations are parsed and everything that they name is built, but nothing is trained."""
    monkeypatch.setattr(GenlabCLI, "_run_subcommand", lambda self, subcommand: None)


def balance(augment):
    return {"model": {"init_args": {"balance": {"augment": augment}}}}


def popen(marker):
    return {"class_path": POPEN, "init_args": {"args": ["touch", str(marker)]}}


def reduced_graph(marker):
    inner = {"body": {"_code": "forward = print"}, "import_block": f"open({str(marker)!r}, 'w')"}
    return {"class_path": FX, "init_args": inner}


IN_FILES = {
    "a function as an optimiser": {"model": {"init_args": {"generator_optimizer": "foreign_code.run"}}},
    "a function that says it returns one": {
        "model": {"init_args": {"generator_optimizer": "foreign_code.opt"}}
    },
    "a callback": {"trainer": {"callbacks": ["foreign_code.run"]}},
    "a callback alone": {"trainer": {"callbacks": "foreign_code.Net"}},
    "a logger": {"trainer": {"logger": "foreign_code.run"}},
    "a profiler": {"trainer": {"profiler": {"class_path": "foreign_code.Net"}}},
    "a strategy": {"trainer": {"strategy": {"class_path": "foreign_code.Net"}}},
    "a plugin": {"trainer": {"plugins": ["foreign_code.Net"]}},
    "a class of a lower-case name": balance({"class_path": "foreign_code.lower"}),
    "a bare name": balance("foreign_code.lower"),
    "a model": {"model": "foreign_code.Net"},
    "a model's class path": {"model": {"class_path": "foreign_code.Net"}},
    "data": {"data": {"class_path": "foreign_code.Net"}},
    "a metric": {"evaluate": {"metrics": {"fid": "foreign_code.Net"}}},
    "a hook of a callback": {
        "trainer": {
            "callbacks": [{"class_path": "LambdaCallback", "init_args": {"setup": "foreign_code.run"}}]
        }
    },
    "a variant": {"variants": {"other": {"model.loss": "foreign_code.Net"}}},
}


@pytest.mark.fault(54)
@pytest.mark.parametrize("form", IN_FILES)
def test_a_file_cannot_run_foreign_code(form, marker, genlab_command, no_training):
    Path("more.yaml").write_text(yaml.safe_dump(IN_FILES[form]))
    code, _, error = genlab_command(*FIT, "--config", "more.yaml")
    assert not marker.exists()
    assert code == 2 and "foreign_code." in error and "--allow foreign_code" in error


ON_THE_LINE = {
    "an option": ["--model.generator_optimizer", "foreign_code.run"],
    "an option with =": ["--model.generator_optimizer=foreign_code.opt"],
    "JSON": ["--model.balance.augment", '{"class_path": "foreign_code.Net"}'],
    "JSON with =": ['--model.balance.augment={"class_path": "foreign_code.Net"}'],
    "an appended callback": ["--trainer.callbacks+=foreign_code.run"],
    "an appended callback in JSON": ['--trainer.callbacks+={"class_path": "foreign_code.Net"}'],
    "a printed configuration": [
        "--model.balance.augment",
        '{"class_path": "foreign_code.Net"}',
        "--print_config",
    ],
    "text in place of a file": ["--config=trainer: {callbacks: [foreign_code.run]}"],
    "a file in the home folder": ["--config=~/callbacks.yaml"],
    "a short option": ["-c", "callbacks.yaml"],
    "a short option without a space": ["-ccallbacks.yaml"],
    "a file of the trainer": ["--trainer", "trainer.yaml"],
    "a file of the model": ["--model", "class.yaml"],
    "a file of a part": ["--model.balance.augment", "class.yaml"],
    "a file that names one of the trainer": ["--config", "names_trainer.yaml"],
    "a file that names one of the model": ["--config", "names_model.yaml"],
    "a file that names one of the data": ["--config", "names_data.yaml"],
    "a file that names one of a part": ["--config", "names_part.yaml"],
}


@pytest.mark.fault(54)
@pytest.mark.parametrize("form", ON_THE_LINE)
def test_an_argument_cannot_run_foreign_code(form, marker, genlab_command, no_training):
    Path("callbacks.yaml").write_text("trainer: {callbacks: [foreign_code.run]}")
    Path("trainer.yaml").write_text("callbacks: [foreign_code.run]")
    Path("class.yaml").write_text("class_path: foreign_code.Net")
    Path("names_trainer.yaml").write_text("trainer: trainer.yaml")
    Path("names_model.yaml").write_text("model: class.yaml")
    Path("names_data.yaml").write_text("data: class.yaml")
    Path("names_part.yaml").write_text("model: {init_args: {balance: {augment: class.yaml}}}")
    code, _, error = genlab_command(*FIT, *ON_THE_LINE[form])
    assert not marker.exists()
    assert code == 2 and "--allow foreign_code" in error


@pytest.mark.parametrize("scheme", ["file://", "local://", "https://example.org"])
def test_a_configuration_is_a_file_of_this_machine(scheme, marker, genlab_command):
    Path("callbacks.yaml").write_text("trainer: {callbacks: [foreign_code.run]}")
    code, _, error = genlab_command(*FIT, f"--config={scheme}{Path('callbacks.yaml').absolute()}")
    assert code == 2 and "does not exist" in error
    assert not marker.exists()


TRUSTED_PACKAGES = {
    "what builds code of text": lambda marker: balance(reduced_graph(marker)),
    "a process behind an alias": lambda marker: balance(popen(marker)),
    "a process where anything is taken": lambda marker: {
        "trainer": {
            "strategy": {"class_path": "DDPStrategy", "init_args": {"ddp_comm_state": popen(marker)}},
        }
    },
    "a process in a plugin": lambda marker: {
        "trainer": {"plugins": [{"class_path": "AsyncCheckpointIO", "init_args": {"x": popen(marker)}}]}
    },
    "a pickle": lambda marker: {
        "model": {"class_path": "genlab.families.gan.GAN.load_from_checkpoint", "init_args": {}}
    },
    "torch.hub": lambda marker: balance({"class_path": "torch.hub.load"}),
    "a function of genlab": lambda marker: {"trainer": {"callbacks": ["genlab.callbacks.checkpoints.copy"]}},
    "a builtin": lambda marker: balance({"class_path": "builtins.exec"}),
}


@pytest.mark.fault(54)
@pytest.mark.parametrize("form", TRUSTED_PACKAGES)
def test_a_name_inside_a_trusted_package_is_no_way_around(form, marker, genlab_command, no_training):
    Path("more.yaml").write_text(yaml.safe_dump(TRUSTED_PACKAGES[form](marker)))
    code, _, error = genlab_command(*FIT, "--config", "more.yaml")
    assert not marker.exists()
    assert code == 2 and error.count("\n") <= 3, error


def test_an_allowed_package_runs_and_only_while_it_is_allowed(marker, genlab_command, no_training):
    foreign = ["--trainer.callbacks+=foreign_code.Net"]
    code, _, error = genlab_command("--allow", "foreign_code", *FIT, *foreign)
    assert marker.exists()
    assert code == 2 and "Callback" in error  # it was looked at, and is no callback
    marker.unlink()
    sys.modules.pop("foreign_code")
    pytest.MonkeyPatch().delenv("GENLAB_ALLOW")
    code, _, error = genlab_command(*FIT, *foreign)
    assert code == 2 and "--allow foreign_code" in error
    assert not marker.exists()


@pytest.mark.fault(54)
@pytest.mark.parametrize("command", ["sample", "test", "resume", "interpolate"])
@pytest.mark.parametrize("place", ["model", "variants", "data", "trainer"])
def test_a_run_from_elsewhere_cannot_run_code(command, place, marker, copy_of_trained, genlab_command):
    run = copy_of_trained(
        *FIT[1:], "--budget.examples=64", "--budget.evaluate_every=64", "--evaluate.num_samples=8"
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    if place == "model":
        config["model"]["init_args"]["balance"]["augment"] = reduced_graph(marker)
    elif place == "variants":
        config["variants"] = {"other": {"model.balance.augment": reduced_graph(marker)}}
    elif place == "data":
        config["data"] = {"class_path": "foreign_code.Net"}
    else:
        config["trainer"]["callbacks"] = [popen(marker)]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    code, _, error = genlab_command(command, run)
    assert not marker.exists()
    if place == "model" or command in ("test", "resume"):
        assert code == 2 and "--allow" in error


PLACES = {
    "a checkpoint's folder": ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath={there}"],
    "a checkpoint's name": ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=../x"],
    "a logger": ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir={there}"],
    "a profiler": ["--trainer.profiler=SimpleProfiler", "--trainer.profiler.dirpath={there}"],
    "all of it": ["--trainer.default_root_dir={there}"],
}


@pytest.mark.fault(19)
@pytest.mark.parametrize("form", PLACES)
def test_nothing_is_written_outside_of_the_run(form, tmp_path, genlab_command, no_training):
    options = [option.format(there=tmp_path / "there") for option in PLACES[form]]
    code, _, error = genlab_command(*FIT, *options)
    assert code == 2 and "outside of the run" in error
    assert not (tmp_path / "outputs").exists() and not (tmp_path / "there").exists()


def test_an_allowed_folder_may_be_written(tmp_path, genlab_command, no_training):
    options = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path / 'there'}"]
    code, _, error = genlab_command("--allow", str(tmp_path), *FIT, *options)
    assert code == 0, error


def test_a_file_may_be_named_by_a_score(genlab_command, no_training):
    options = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.filename=mine-{val/fid:.2f}"]
    code, _, error = genlab_command(*FIT, *options)
    assert code == 0, error


NAMES = (
    *("foreign_code.run", "foreign_code.opt", "foreign_code.Net", "foreign_code.lower", "foreign_code"),
    *(FX, POPEN, "os.system", "subprocess.Popen", "builtins.eval", "torch.load", "torch.hub.load"),
    *("torch.nn.functional.torch.os.system", "genlab.files.os.system", "genlab.callbacks.record.write_text"),
    *("pytorch_lightning.callbacks.lambda_function.LambdaCallback", "runpy.run_path", "jsonargparse.CLI"),
    *("genlab.families.gan.GAN.load_from_checkpoint", "torch.nn.Linear", "Hinge", "LambdaCallback", "Adam"),
)
SOCKETS = (
    *("model", "model.loss", "model.generator", "model.generator_optimizer", "model.balance.augment"),
    *("model.balance.penalty", "data", "trainer.callbacks", "trainer.callbacks+", "trainer.logger"),
    *("trainer.strategy", "trainer.profiler", "trainer.plugins", "trainer.accelerator", "evaluate.metrics"),
    *("variants", "budget", "log_to", "trainer", "modle"),
)


def mutated(name, draw):
    """Returns a name as an attacker might write it."""
    ways = (
        lambda: name,
        lambda: name.swapcase(),
        lambda: name.replace(".", ".", 1).replace("o", "о", 1),  # a Cyrillic letter
        lambda: name.replace(".", "．", 1),  # a full-width dot
        lambda: f" {name} ",
        lambda: f"{name}.__call__",
        lambda: f"{name}.__init__.__globals__",
        lambda: name[: draw.randrange(1, len(name))],
        lambda: f"torch.nn.modules.{name}",
    )
    return draw.choice(ways)()


def spec(name, draw, depth=0):
    """Returns a value that may build something of the name."""
    inner = {"args": ["true"], "import_block": "1", "lr": 0.1, "setup": name, "dirpath": "/nowhere"}
    arguments = {key: inner[key] for key in draw.sample(sorted(inner), draw.randrange(3))}
    forms = (
        lambda: name,
        lambda: {"class_path": name},
        lambda: {"class_path": name, "init_args": arguments},
        lambda: {"class_path": name, "dict_kwargs": arguments},
        lambda: [name],
        lambda: [{"class_path": name, "init_args": arguments}],
        lambda: {"class_path": "LambdaCallback", "init_args": {"on_fit_start": name}},
        lambda: {draw.choice(("other", "init_args", "__path__")): {"model.loss": name}},
        lambda: {"x": spec(name, draw, depth + 1)} if depth < 3 else name,
    )
    return draw.choice(forms)()


def arguments_of(socket, value, draw, number):
    """Returns options that give a socket a value, in one of the ways there are."""
    text = yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("\n...")
    nested = value
    parts = socket.removesuffix("+").split(".")
    for part in reversed(parts[1:]):
        nested = {"init_args": {part: nested}} if parts[0] == "model" and part == parts[1] else {part: nested}
    Path(f"{number}.yaml").write_text(yaml.safe_dump({parts[0]: nested}))
    Path(f"{number}_value.yaml").write_text(yaml.safe_dump(value))
    Path(f"{number}_names.yaml").write_text(yaml.safe_dump({parts[0]: f"{number}_value.yaml"}))
    ways = (
        ["--config", f"{number}.yaml"],
        [f"-c{number}.yaml"],
        [f"--config=./{number}.yaml"],
        [f"--config=file://{Path(f'{number}.yaml').absolute()}"],
        ["--config", f"{number}_names.yaml"],
        [f"--{socket}", text],
        [f"--{socket}={text}"],
        [f"--{socket}", f"{number}_value.yaml"],
        [f"--{socket}.class_path", text],
        [f"--config={yaml.safe_dump({parts[0]: nested})}"],
    )
    return draw.choice(ways)


def attack(number):
    """Returns the arguments of a seeded random attack, one to three values of which are hostile."""
    draw = random.Random(number)
    arguments = list(FIT)
    for part in range(draw.choice((1, 1, 2, 3))):
        value = spec(mutated(draw.choice(NAMES), draw), draw)
        arguments += arguments_of(draw.choice(SOCKETS), value, draw, f"{number}_{part}")
    return [*arguments, "--print_config"] if draw.random() < 0.1 else arguments


def assert_harmless(number, marker, genlab_command):
    arguments = attack(number)
    code, _, error = genlab_command(*arguments)
    assert not marker.exists(), arguments
    said = [line for line in error.splitlines() if not line.startswith("Run:")]
    assert code in (0, 2) and len(said) <= 3, (arguments, code, error)
    assert code == 0 or said, arguments


@pytest.mark.fault(54)
def test_random_configurations_run_no_foreign_code(marker, genlab_command, no_training):
    for number in range(25):
        assert_harmless(number, marker, genlab_command)


@pytest.mark.slow
def test_two_thousand_random_configurations_run_no_foreign_code(marker, genlab_command, no_training):
    for number in range(2_000):
        assert_harmless(number, marker, genlab_command)
