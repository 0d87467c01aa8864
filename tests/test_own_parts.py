"""Parts of a person's own: what `genlab new` writes, --allow, and packages that declare their parts."""

import itertools
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from gaussian_oracle import MEAN, moments, relative_error
from planting import in_a_fork

from genlab.cli.new import KINDS, texts
from genlab.cli.templates.data import NewData
from genlab.cli.templates.family import discrepancy
from genlab.cli.templates.loss import NewLoss
from genlab.cli.templates.metric import NewMetric
from genlab.cli.templates.network import NewNetwork
from genlab.cli.templates.sampler import NewSampler
from genlab.cli.training import GenlabCLI
from genlab.configuration.trust import allowed_packages
from genlab.data.digits import Digits
from genlab.losses.adversarial import NonSaturating
from genlab.metrics.base import Drawn, Reference
from genlab.metrics.features import Features
from genlab.processes.grids import UniformGrid
from genlab.processes.sde import EDM, VPSDE, RectifiedFlow
from genlab.runs.folder import list_runs
from genlab.shapes import DataSpec

ROOT = Path(__file__).resolve().parents[1]
TRIAL = ("--trainer.fast_dev_run", "1", "--trainer.accelerator", "cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, where commands are typed."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    return folder


@pytest.fixture
def no_training(monkeypatch):
    """Configurations are parsed and everything that they name is built, but nothing is trained."""
    monkeypatch.setattr(GenlabCLI, "_run_subcommand", lambda self, subcommand: None)


# What is written


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "network" else []) for kind in KINDS]
)
def test_each_new_part_trains_for_a_batch_by_the_command_that_it_names(kind, here, genlab_command):
    package = f"own_{kind}"  # one each, as Python keeps what it has imported
    code, out, error = genlab_command("new", kind, f"{package}/a_part")
    assert code == 0, error
    _, _, said = out.partition("then: genlab ")
    command, *options = shlex.split(said)
    assert command == "fit" and f"{package}.a_part" not in sys.modules
    # A score is printed by a test alone.
    command = "test" if kind == "metric" else command
    code, out, error = genlab_command(command, *options, *TRIAL)
    assert code == 0, error
    assert "coverage@" in out if kind == "metric" else "100%" in error
    assert hasattr(sys.modules[f"{package}.a_part"], "APart")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_names_the_own_part_alone(kind):
    files = texts(kind, "own", "a_1st_part")
    assert next(iter(files)).name == "a_1st_part.py"
    assert len(files) == 1 + (kind in ("family", "data"))
    for text in files.values():
        assert "genlab.cli" not in text and "genlab/cli" not in text and "New" not in text
        assert "own.a_1st_part.A1stPart" in text or "own/a_1st_part.yaml" in text


def test_nothing_is_overwritten_not_even_an_experiment_alone(here, genlab_command):
    assert genlab_command("new", "family", "own_parts/mine")[0] == 0
    for kept in (Path("own_parts/mine.py"), Path("own_parts/mine.yaml"), Path("own_parts/__init__.py")):
        kept.write_text("edited")
    Path("own_parts/mine.py").rename("own_parts/other.py")
    for part in ("own_parts/mine", "own_parts/other", "own_parts/other.py"):
        code, out, error = genlab_command("new", "family", part)
        assert code == 2 and "is there already" in error and error.count("\n") == 1 and not out
    assert not Path("own_parts/mine.py").exists() and not Path("own_parts/other.yaml").exists()
    assert genlab_command("new", "loss", "own_parts/third")[0] == 0
    assert Path("own_parts/__init__.py").read_text() == "edited"


@pytest.mark.parametrize(
    "part",
    [
        *("mine", "own/", "/mine", "own/Mine", "own/2d", "own/a-b", "own/class", "import/a", "../own/a"),
        *("own/a/b", "random/a", "genlab/a", "torch/a", "numpy/a", "sys/a", "a_file/mine", "own/é"),
        *("own/mine.yaml", ""),
    ],
)
def test_a_bad_name_is_refused_in_one_line_and_leaves_nothing(part, here, genlab_command):
    Path("a_file").touch()
    code, out, error = genlab_command("new", "loss", part)
    assert code == 2 and error.count("\n") == 1 and not out
    assert os.listdir() == ["a_file"]


def test_an_unknown_kind_is_answered_by_those_there_are(here, genlab_command):
    code, _, error = genlab_command("new", "sampelr", "own/mine")
    assert code == 2 and all(kind in error for kind in KINDS) and error.count("\n") == 1


def test_a_new_part_is_written_without_torch(here):
    code = (
        "import sys; from genlab.cli.main import main; main(['new', 'family', 'own/a']); "
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, stdout=subprocess.DEVNULL)


# What the written parts promise


def test_the_discrepancy_is_the_double_sum_over_different_items_and_none_of_equal_distributions():
    made, real = torch.randn(5, 1, 2, 2), torch.randn(4, 1, 2, 2) + 1.0

    def kernel(a, b):
        return sum(math.exp(-(a - b).square().mean() / (2 * width)) for width in (0.2, 1.5)) / 2

    def mean(pairs):
        values = [kernel(a, b) for a, b in pairs]
        return sum(values) / len(values)

    within = mean(itertools.permutations(made, 2)) + mean(itertools.permutations(real, 2))
    expected = within - 2 * mean(itertools.product(made, real))
    assert float(discrepancy(made, real, (0.2, 1.5))) == pytest.approx(expected, abs=1e-6)
    torch.manual_seed(0)
    many = torch.stack([discrepancy(*torch.randn(2, 50, 3), (0.5,)) for _ in range(200)])
    assert abs(many.mean()) < 4 * many.std() / math.sqrt(200) and bool((many < 0).any())


def test_a_loss_without_smoothing_is_the_non_saturating_one_and_with_it_the_best_answer_is_less_sure():
    real, fake = torch.randn(2, 50)
    for name, given in (("discriminator", (real, fake)), ("generator", (fake,))):
        plain = getattr(NonSaturating(), name)(*given)
        assert torch.allclose(getattr(NewLoss(0.0), name)(*given), plain)
    best = torch.logit(torch.tensor([0.9])).requires_grad_()
    NewLoss(0.1).discriminator(best, fake).backward()
    assert abs(best.grad.item()) < 1e-6
    with pytest.raises(ValueError, match="smoothing must be in"):
        NewLoss(0.5)


def test_the_sampler_is_of_second_order_and_asks_once_a_step():
    process, errors = RectifiedFlow(), []  # on which even steps are even of both coefficients
    for num_steps in (20, 40, 80, 160):
        sampler = NewSampler(UniformGrid(num_steps))
        assert sampler.passes(process) == num_steps
        errors.append(float(relative_error(moments(sampler, process)[1])))
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert all(3.5 < ratio < 5.5 for ratio in ratios), (errors, ratios)


@pytest.mark.parametrize("process", [VPSDE(), EDM(), RectifiedFlow()], ids=lambda each: type(each).__name__)
def test_the_sampler_keeps_the_mean_exactly(process):
    mean, _ = moments(NewSampler(), process)
    assert torch.allclose(mean, MEAN, rtol=0, atol=1e-12)


def coverage(fake, real, **settings):
    """The metric of two sets of features, samples coming in two batches and out of order."""
    metric = NewMetric(**settings)
    rows = torch.arange(len(real))
    metric.set_reference(Reference(len(real), real.mean(0), torch.cov(real.T), real.float(), rows))
    for index in torch.randperm(len(fake)).split(len(fake) // 2 + 1):
        metric.update(Drawn(index, fake[index], Features(pool=fake[index].float())))
    return metric.compute()["coverage"], metric.protocol()


def test_coverage_is_the_share_of_real_images_that_samples_come_near_to():
    torch.manual_seed(0)
    real = torch.cat([torch.randn(30, 2), torch.randn(10, 2) + 100.0])
    assert coverage(real, real)[0] == 1.0
    assert coverage(real[:30], real)[0] == 0.75  # one of two modes
    assert coverage(real + 1e4, real)[0] == 0.0
    outlier = torch.tensor([[50.0, 50.0], [1e6, 0.0]])
    assert coverage(torch.cat([real[:30], outlier]), real)[0] == 0.75
    assert coverage(real, real[:4], k=5)[1] == {"k": 3, "num": 10_000}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_the_network_begins_without_its_blocks_and_each_of_them_can_learn(shape):
    torch.manual_seed(0)
    network = NewNetwork(DataSpec("x", shape, num_classes=3), width=8, depth=2)
    x, t, label = torch.randn(2, *shape), torch.tensor([0.0, 900.0]), torch.tensor([0, 2])
    out = network(x, t, label)
    assert out.shape == x.shape and torch.allclose(out, network.output(network.input(x)), atol=1e-6)
    out.square().sum().backward()
    assert all(bool(block[-1].weight.grad.abs().sum() > 0) for block in network.blocks)
    with pytest.raises(ValueError, match="label is missing"):
        network(x, t)


def test_the_data_are_the_digits_in_two_levels_split_like_all_data():
    data = NewData(threshold=16, batch_size=100)
    packed = {name: data.split(name) for name in ("train", "val", "test")}
    assert {name: len(rows) for name, rows in packed.items()} == {"train": 900, "val": 100, "test": 797}
    digits = Digits()
    ink = sum(int((digits.split(name)["image"] == 16).sum()) for name in packed)
    assert sum(int(rows["image"].sum()) for rows in packed.values()) == ink
    batch = data.to_device_batch(next(iter(data.loader("test"))), "cpu")
    assert batch["image"].unique().tolist() == [-1.0, 1.0]
    assert data.describe()["preprocessing"] == {"threshold": 16}


# Runs of own parts


def test_a_run_of_an_own_family_is_drawn_from_once_it_is_allowed_and_says_so_until_then(
    here, monkeypatch, genlab_command
):
    assert genlab_command("new", "family", "own_run/mine")[0] == 0
    short = ("--budget.examples", "200", "--budget.evaluate_every", "null", "--samples.num", "0")
    quiet = ("--evaluate.at_start", "false", "--evaluate.num_samples", "8", "--trainer.accelerator", "cpu")
    code, _, error = genlab_command(
        "fit", "--config", "own_run/mine.yaml", "--allow", "own_run", *short, *quiet
    )
    assert code == 0, error
    (run,) = list_runs()
    assert yaml.safe_load(run.config.read_text())["model"]["class_path"] == "own_run.mine.Mine"
    drawn = ("sample", run.path, "-n", "2")
    for name in [name for name in sys.modules if name.startswith("own_run")]:
        del sys.modules[name]
    monkeypatch.delenv("GENLAB_ALLOW")
    code, _, error = genlab_command(*drawn)
    assert code == 2 and "add --allow own_run" in error and error.count("\n") == 1
    assert "own_run.mine" not in sys.modules
    code, _, error = genlab_command(*drawn, "--allow", "own_run")
    assert code == 0, error
    for name in [name for name in sys.modules if name.startswith("own_run")]:
        del sys.modules[name]
    sys.path.remove(str(here))
    monkeypatch.chdir(here.parent)
    code, _, error = genlab_command(*drawn, "--allow", "own_run")
    assert code == 2 and "own_run" in error and "folder that holds it" in error and error.count("\n") == 1
    assert "own_run.mine" not in sys.modules


# Packages that declare their parts

PART = """
from genlab.losses.adversarial import Hinge as Theirs
class {name}(Theirs):
    pass
"""

DIGITS = ("fit", "--config", "dcgan_digits", "--trainer.accelerator", "cpu")
LOSS = (*DIGITS, "--model.loss")

NUMBERS = itertools.count()
"""Of packages: Python, and the parser, remember the classes of one that is gone."""


@pytest.fixture
def installed(here):
    """Installs a package, as pip leaves it, that declares a part or other values; returns both names."""
    site = here.parent / "site-packages"

    def install(*values, code=PART, name=""):
        number = next(NUMBERS)
        package, name = f"own_package{number}", name or f"OwnLoss{number}"
        place = site / package
        info = place / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (place / f"{package}.py").write_text(code.format(name=name))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"part{n} = {value}" for n, value in enumerate(values or (f"{package}:{name}",))]
        (info / "entry_points.txt").write_text("\n".join(["[genlab.parts]", *lines]))
        sys.path.append(str(place))
        return package, name

    return install


NAMED = {
    "an option": ["{name}"],
    "its whole name": ["{package}.{name}"],
    "JSON": ['{{"class_path": "{name}"}}'],
    "a file of the part": ["part.yaml"],
    "a file": ["--config=more.yaml"],
    "a variant": ["--variants", "{{other: {{model.loss: {name}}}}}"],
}


OFTEN = ("an option", "a file")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=[] if form in OFTEN else [pytest.mark.slow]) for form in NAMED]
)
def test_an_installed_part_is_named_by_its_class_alone_and_imported_no_sooner(
    form, here, installed, genlab_command, no_training
):
    package, name = installed()
    Path("more.yaml").write_text(f"model: {{init_args: {{loss: {{class_path: {name}}}}}}}")
    Path("part.yaml").write_text(f"class_path: {name}")
    assert package not in sys.modules
    options = [option.format(package=package, name=name) for option in NAMED[form]]
    code, _, error = genlab_command(*(DIGITS if options[0].startswith("--") else LOSS), *options)
    assert code == 0 and hasattr(sys.modules[package], name), error


def test_a_run_of_an_installed_part_needs_no_word_more_and_another_one_does_not_import_it(
    here, installed, genlab_command
):
    package, name = installed()
    short = ("--budget.examples", "64", "--budget.evaluate_every", "null", "--samples.num", "0")
    quiet = ("--evaluate.at_start", "false", "--evaluate.num_samples", "8")
    assert genlab_command(*LOSS, "Hinge", *short, *quiet, "--run_name", "plain")[0] == 0
    assert package not in sys.modules
    code, _, error = genlab_command(*LOSS, name, *short, *quiet, "--run_name", "own")
    assert code == 0, error
    del sys.modules[package]
    code, _, error = genlab_command("sample", here.parent / "outputs/dcgan_digits/plain", "-n", "2")
    assert code == 0 and package not in sys.modules, error
    code, _, error = genlab_command("sample", here.parent / "outputs/dcgan_digits/own", "-n", "2")
    assert code == 0 and package in sys.modules, error


def test_a_name_of_genlab_goes_on_meaning_what_it_did(installed, genlab_command, no_training):
    package, _ = installed(name="LeastSquares")
    code, out, error = genlab_command(*LOSS, "LeastSquares", "--print_config")
    assert code == 0 and "genlab.losses.adversarial.LeastSquares" in out, error
    assert package not in sys.modules

    def named_both_ways():
        code, _, error = genlab_command(*LOSS, f"{package}.LeastSquares")
        assert code == 0 and package in sys.modules, error
        code, _, error = genlab_command(*LOSS, "LeastSquares")  # of this process: both are there now
        assert code == 2 and f"genlab.losses.adversarial.LeastSquares, {package}.LeastSquares" in error
        assert error.count("\n") == 1

    assert in_a_fork(named_both_ways) == 0  # or the name would be ambiguous to all tests after this one


def test_a_misspelt_part_is_answered_by_the_declared_one(installed, genlab_command, no_training):
    package, name = installed()
    code, _, error = genlab_command(*LOSS, name.replace("ss", "s"))
    assert code == 2 and f"Did you mean '{name}'?" in error and package not in sys.modules


@pytest.mark.parametrize("value", ["os:system", "genlab.files:os", "torch.hub:load", "subprocess:Popen"])
def test_no_package_can_declare_what_is_not_its_own(value, installed, genlab_command, no_training):
    installed(value)
    assert value.partition(":")[0].partition(".")[0] not in allowed_packages()
    for name in (value.replace(":", "."), value.partition(":")[2]):
        code, _, error = genlab_command(*LOSS, name)
        assert code == 2 and error.count("\n") == 1, error


@pytest.mark.parametrize("code", ["import own_missing", ""], ids=["import", "class"])
def test_a_declared_part_that_is_not_there_is_said_in_one_line(code, installed, genlab_command, no_training):
    package, name = installed(code=code)
    status, _, error = genlab_command(*LOSS, name)
    assert status == 2 and f"{package}:{name}" in error and error.count("\n") == 1, error


def test_two_packages_that_declare_one_name_are_both_named(installed, genlab_command, no_training):
    packages = [installed(name="OwnLoss")[0] for _ in range(2)]
    code, _, error = genlab_command(*LOSS, "OwnLoss")
    assert code == 2 and all(f"{package}:OwnLoss" in error for package in packages)
