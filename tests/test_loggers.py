"""wandb and TensorBoard as people expect them: read back from what they leave on the disk."""

import json
import shutil
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.plugins.precision import MixedPrecision
from short_training import train
from wandb_files import read_whole

from genlab.cli import loggers, testing
from genlab.data.random_images import RandomImages
from genlab.families import base
from genlab.families.classifier import Classifier
from genlab.families.gan import GAN
from genlab.families.players import Balance
from genlab.families.steps import learning_rates
from genlab.losses.adversarial import Hinge
from genlab.networks.classifier import ConvClassifier
from genlab.networks.mlp import MLPDiscriminator, MLPGenerator
from genlab.runs.folder import Run, list_runs
from genlab.runs.metrics_file import read_metrics

SMALL = (
    *("--config", "experiments/dcgan_digits.yaml", "--trainer.accelerator", "cpu"),
    *("--model.generator", "MLPGenerator", "--model.discriminator", "MLPDiscriminator"),
    *("--evaluate.num_samples", "20", "--evaluate.num_test_samples", "20", "--samples.num", "4"),
    *("--budget.examples", "640", "--budget.evaluate_every", "320", "--trainer.log_every_n_steps", "2"),
)
POINTS = (
    *("fit", "--config", "experiments/gan_gaussian1d.yaml", "--trainer.accelerator", "cpu"),
    *("--data.num_train", "256", "--data.num_test", "64", "--data.batch_size", "64"),
    *("--evaluate.num_samples", "32", "--samples.num", "4", "--trainer.log_every_n_steps", "1"),
    *("--trainer.callbacks", "[]", "--budget.examples", "256", "--budget.evaluate_every", "128"),
)


class Own(Logger):
    """A logger of one's own, which keeps what it is given; its service fails after so many lines."""

    name, version = "own", 0
    lines: ClassVar[list] = []
    config: ClassVar[dict] = {}

    def __init__(self, most: int = 10**6):
        super().__init__()
        self.most = most

    def log_metrics(self, metrics, step=None):
        if len(self.lines) >= self.most:
            raise ConnectionError("the service is away")
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        self.config.update(params)


OWN = ("--allow", __name__, f"--trainer.logger={__name__}.Own")


@pytest.fixture
def own():
    Own.lines.clear()
    Own.config.clear()
    return Own


@pytest.fixture(scope="module")
def logged(tiny_extractor, short_measures, tmp_path_factory):
    """A run that went to wandb, TensorBoard and a logger of one's own, went on, and was tested twice."""
    from genlab.cli.main import main

    extractor = tiny_extractor(1)
    folder = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch, short_measures():
        for name, value in {
            "GENLAB_OUTPUTS": folder / "outputs",
            "GENLAB_CACHE": folder / "cache",
            "GENLAB_RUN": "",
            "HOME": extractor.parent,  # so that the configuration names the home folder
            "WANDB_DATA_DIR": folder / "staging",
            "WANDB_MODE": "offline",
            "WANDB_SILENT": "true",
        }.items():
            patch.setenv(name, str(value))
        to = ("--log_to", "[wandb, tensorboard]", "--log_artifacts", "[checkpoints, report]")
        monitor = "--trainer.callbacks+=LearningRateMonitor"
        Own.lines.clear()
        assert main(["fit", *SMALL, "--extractor", str(extractor), *to, *OWN, monitor]) == 0
        run = list_runs()[-1]
        assert main(["resume", str(run.path), "--budget.examples", "960", *OWN[:2]]) == 0
        assert main(["test", str(run.path), *OWN[:2]]) == 0
    return SimpleNamespace(run=run, home=extractor.parent, lines=[*Own.lines], config={**Own.config})


@pytest.fixture(scope="module")
def offline(logged):
    """What wandb kept of the training, of its continuation and of the test."""
    folders = logged.run.path.glob("wandb/offline-run-*")
    return [read_whole(folder) for folder in sorted(folders, key=lambda folder: folder.stat().st_ctime)]


@pytest.fixture(scope="module")
def events(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"images": 0, "tensors": 0, "scalars": 0}
    return EventAccumulator(str(logged.run.path / "tensorboard"), everything).Reload()


def of(rows, name):
    return [number for row in rows if name in row for number in (row["examples_seen"], row[name])]


def test_every_number_lies_at_the_examples_seen_in_both(logged, offline, events):
    rows = read_metrics(logged.run.metrics_jsonl)
    names = {name for row in rows for name in row if name.startswith(("train/", "val/"))}
    assert {"train/generator", "val/fid@20vs100", "val/loss"} <= names
    for name in names:
        expected = of(rows, name)
        assert of([row for part in offline for row in part.rows], name) == pytest.approx(expected)
        shown = [number for event in events.Scalars(name) for number in (event.step, event.value)]
        assert shown == pytest.approx(expected, rel=1e-5)
    steps = [(row["examples_seen"], row["step"]) for row in rows]
    assert set(steps) <= {pair for part in offline for pair in part.values("trainer/global_step")}
    assert {"training_seconds", "trainer/global_step"} <= set(events.Tags()["scalars"])
    assert all(part.axes["*"] == "examples_seen" for part in offline)


def test_each_players_gradient_and_learning_rate_stand_in_every_line_of_losses(logged):
    rows = [row for row in read_metrics(logged.run.metrics_jsonl) if "train/loss" in row]
    assert [row["examples_seen"] for row in rows] == [128, 256, 384, 512, 640, 768, 896]
    for player in ("generator", "discriminator"):
        assert all(row[f"train/gradient_norm/{player}"] > 0 for row in rows)
        assert {row[f"train/learning_rate/{player}"] for row in rows} == {1e-3}


def test_the_whole_configuration_is_shown_without_the_home_folder(logged, offline, events):
    run, home = logged.run, logged.home
    config = yaml.safe_load(run.config.read_text())
    shown = {name: value for name, value in offline[1].config.items() if name != "_wandb"}
    assert shown.pop("evaluate") == {**config.pop("evaluate"), "extractor": "~/tiny1.safetensors"}
    assert shown == config
    texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors("config/text_summary")]
    assert yaml.safe_load(texts[-1].strip("`").removeprefix("yaml")) == {
        **shown,
        "evaluate": offline[1].config["evaluate"],
    }
    files = [p for p in run.path.glob("wandb/**/*") if p.is_file() and p.name != "debug.log"]
    assert len(files) > 2 and not any(str(home).encode() in path.read_bytes() for path in files)


def test_tensorboard_compares_runs_by_settings_and_scores(events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.summary_metadata.values()
    plugins = [m.plugin_data for m in content if m.plugin_data.plugin_name == "hparams"]
    found = [HParamsPluginData.FromString(plugin.content) for plugin in plugins]
    (experiment,) = (each.experiment for each in found if each.HasField("experiment"))
    assert "val/fid@20vs100" in {metric.name.tag for metric in experiment.metric_infos}
    (start,) = (each.session_start_info for each in found if each.HasField("session_start_info"))
    assert start.hparams["model.init_args.generator.class_path"].string_value.endswith("MLPGenerator")


def test_sample_grids_are_pictures_in_both(logged, offline, events):
    seen = [examples for part in offline for examples, _ in part.values("samples._type")]
    assert seen == [0, 320, 640, 960] == [event.step for event in events.Images("samples")]
    assert len(list(logged.run.path.glob("wandb/offline-run-*/files/media/images/samples_*.png"))) == 4


def test_a_run_that_goes_on_and_its_test_are_one_run_of_wandb(logged, offline):
    kept = logged.run.read()["loggers"]
    assert set(kept) == {"wandb", "tensorboard"} and kept["wandb"]["project"] == "genlab"
    assert len(offline) == 3 and {part.start.run_id for part in offline} == {kept["wandb"]["id"]}
    names = {(part.start.display_name, part.start.run_group, part.exit_code) for part in offline}
    assert names == {(f"dcgan_digits/{logged.run.name}", "dcgan_digits", 0)}


def test_the_test_table_is_in_both(logged, offline, events):
    entry = logged.run.read()["test"]
    for name, value in entry["values"].items():
        assert offline[2].values(f"test/{name}") == [(960, pytest.approx(value))]
        assert [(e.step, e.value) for e in events.Scalars(f"test/{name}")] == [(960, pytest.approx(value))]
    (path,) = logged.run.path.glob("wandb/offline-run-*/files/media/table/test/*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"][:2] == ["metric", "value"] and table["columns"][-1] == "protocol"
    values = {row[0]: row[1] for row in table["data"]}
    assert values["fid@20vs797"] == pytest.approx(entry["values"]["fid@20vs797"])
    (event,) = events.Tensors("test/table/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 960 and "| fid@20vs797 |" in text and "20 samples (ema, seed 0)" in text


def test_a_test_that_was_made_is_logged_and_not_measured_again(logged, genlab_command, tmp_path, monkeypatch):
    run = Run(shutil.copytree(logged.run.path, tmp_path / "outputs" / "dcgan_digits" / "copy"))
    monkeypatch.setattr(testing.TestedRun, "measure", lambda *arguments: 1 / 0)
    before = sorted(run.path.glob("tensorboard/events*"))
    code, shown, error = genlab_command("test", run.path, "--log_to", "[tensorboard]", "--allow", __name__)
    assert code == 0 and "fid@20vs797" in shown, error
    (new,) = set(run.path.glob("tensorboard/events*")) - set(before)
    assert b"test/table" in new.read_bytes() and b"test/fid@20vs797" in new.read_bytes()


def test_tensorboard_shows_what_is_learned_again_in_place_of_what_was_lost(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path / "gan_digits" / "first")
    run.samples.mkdir(parents=True)
    for begun, steps, value in ((0, (64, 128, 192), 1.0), (64, (128,), 2.0)):
        _, logger = loggers.loggers_of(run, None, [], ["tensorboard"], begun)
        for step in steps:
            logger.log_metrics({"loss": value}, step=step)
        logger.finalize("success")
    events = EventAccumulator(str(run.path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(64, 1.0), (128, 2.0)]


def test_artifacts_are_the_report_and_a_folder_that_is_a_run(logged, offline):
    name = logged.run.read()["loggers"]["wandb"]["id"]
    for part in offline:
        assert part.artifacts[f"report-{name}"] == (["latest"], ["report.html"])
        files = ["checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "run.json"]
        assert part.artifacts[f"checkpoints-{name}"] == (["latest"], files)


def test_downloaded_checkpoints_can_be_sampled_from(logged, genlab_command, tmp_path):
    for name, path in loggers.checkpoint_files_of(logged.run).items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "run" / name)
    code, _, error = genlab_command("sample", tmp_path / "run", "-n", "2", "--allow", __name__)
    assert code == 0 and (tmp_path / "run/samples/seed0/grid.png").is_file(), error


def test_a_logger_of_ones_own_is_kept_and_counts_examples_whoever_logs(logged):
    rates = [step for step, metrics in logged.lines if "lr-Adam" in metrics]
    scores = [step for step, metrics in logged.lines if "val/fid@20vs100" in metrics]
    assert scores == [0, 320, 640, 960] and all(step % 64 == 0 for step in rates) and max(rates) > 640
    assert any("test/fid@20vs797" in metrics and step == 960 for step, metrics in logged.lines)
    assert logged.config["budget"]["examples"] == 960


# Optimisers' steps


class Norms(Callback):
    """Notes the norms of gradients as they come, before what a model does with them."""

    def __init__(self):
        self.found = {}

    def on_before_optimizer_step(self, trainer, model, optimizer):
        parts = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        self.found.setdefault(trainer.optimizers.index(optimizer), []).append(torch.cat(parts).norm().item())


def images():
    return RandomImages((1, 8, 8), num_classes=2, num_train=32, num_test=8, batch_size=8)


def classifier(data, **optimizer):
    network = partial(ConvClassifier, num_features=4, base_channels=4)
    return Classifier(data.spec, network, partial(torch.optim.SGD, lr=0.5, **optimizer))


def test_the_norm_is_that_of_the_whole_gradient_before_it_is_clipped():
    data, norms = images(), Norms()
    model = classifier(data)
    train(model, data, gradient_clip_val=1e-3, log_every_n_steps=1, callbacks=[norms])
    assert norms.found[0][-1] > 1e-2
    assert model.gradient_norms["gradient_norm"].item() == pytest.approx(norms.found[0][-1], rel=1e-5)
    assert model.learning_rates == {"learning_rate": 0.5}


def test_the_norm_is_without_the_scale_of_half_precision_for_fused_optimisers_too():
    found = []
    for fused in (False, True):
        data = images()
        torch.manual_seed(0)
        model = classifier(data, fused=fused)
        plugins = [MixedPrecision("16-mixed", "cpu")]
        train(model, data, max_steps=1, log_every_n_steps=1, gradient_clip_val=1.0, plugins=plugins)
        found.append(model.gradient_norms["gradient_norm"].item())
    assert found[0] == pytest.approx(found[1], rel=1e-3) and 0.01 < found[0] < 100


def test_players_norms_are_their_own_and_unclipped():
    data, norms = images(), Norms()
    model = GAN(
        data.spec,
        generator=partial(MLPGenerator, latent_dim=4, hidden=[8]),
        discriminator=partial(MLPDiscriminator, hidden=[8]),
        loss=Hinge(),
        generator_optimizer=partial(torch.optim.Adam, lr=1e-3),
        discriminator_optimizer=partial(torch.optim.Adam, lr=3e-3),
        balance=Balance(discriminator_steps=2, clip=1e-4),
    )
    train(model, data, max_steps=2, log_every_n_steps=3, callbacks=[norms])
    shown = {name: value.item() for name, value in model.gradient_norms.items()}
    # Of four batches the third is logged: the generator's last step before it is its first one.
    expected = {
        "gradient_norm/generator": norms.found[0][0],
        "gradient_norm/discriminator": norms.found[1][2],
    }
    assert shown == pytest.approx(expected, rel=1e-5) and min(shown.values()) > 1e-4
    assert model.learning_rates == {"learning_rate/generator": 1e-3, "learning_rate/discriminator": 3e-3}


@pytest.mark.parametrize(("every", "accumulated", "times"), [(4, 1, 2), (5, 2, 1), (0, 1, 0)])
def test_norms_are_computed_for_lines_alone(every, accumulated, times, monkeypatch):
    calls = Counter()
    monkeypatch.setattr(base, "gradient_norm", lambda optimizer: calls.update(["norm"]))
    data = images()
    options = {"log_every_n_steps": every, "accumulate_grad_batches": accumulated}
    train(classifier(data), data, max_steps=8 // accumulated, **options)
    assert calls["norm"] == times


def test_groups_of_different_rates_are_told_apart_also_where_a_schedule_ends():
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 0.1}, {"params": [weights[1]]}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)
    assert learning_rates(optimizer) == {"/0": 0.0, "/1": 0.0}
    assert learning_rates(torch.optim.SGD([{"params": [w]} for w in weights], lr=0.2)) == {"": 0.2}


# What fails, and what is refused


@pytest.mark.fault(59)
def test_a_logger_that_fails_under_a_callback_of_lightnings_ends_nothing(genlab_command, own):
    given = (*OWN, "--trainer.logger.most", "2", "--trainer.callbacks+=LearningRateMonitor")
    code, _, error = genlab_command(*POINTS, *given)
    assert code == 0, error
    assert error.count("Own failed (ConnectionError: the service is away) and is left out") == 1
    assert list_runs()[-1].read()["status"] == "finished"
    assert len(read_metrics(list_runs()[-1].metrics_jsonl)) == 7


@pytest.fixture
def wandb_offline(monkeypatch, tmp_path):
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.fault(59)
def test_training_goes_on_without_wandb_where_its_service_dies(genlab_command, wandb_offline, monkeypatch):
    import wandb

    log, lines = wandb.Run.log, []

    def dies(run, data, *args, **kwargs):
        lines.append(data)
        if len(lines) > 3:
            raise ConnectionResetError(104, "Connection reset by peer")
        return log(run, data, *args, **kwargs)

    monkeypatch.setattr(wandb.Run, "log", dies)
    code, _, error = genlab_command(*POINTS, "--log_to", "[wandb]")
    run = list_runs()[-1]
    assert code == 0 and error.count("WandbLogger failed (ConnectionResetError") == 1, error
    assert run.read()["status"] == "finished" and len(read_metrics(run.metrics_jsonl)) == 7
    assert len(lines) == 4 and wandb.run is None


class Closed(Own):
    """A logger that cannot begin."""

    why: ClassVar[str] = ""

    @property
    def experiment(self):
        import wandb

        raise getattr(wandb.errors, self.why)("No API key configured.\nmore")


@pytest.mark.fault(59)
def test_without_an_account_nothing_begins_and_without_a_network_training_does(genlab_command, monkeypatch):
    given = ("--allow", __name__, f"--trainer.logger={__name__}.Closed")
    monkeypatch.setattr(Closed, "why", "UsageError")
    code, _, error = genlab_command(*POINTS, *given)
    assert code == 2 and "`wandb login`" in error and "WANDB_MODE=offline" in error and not list_runs()
    monkeypatch.setattr(Closed, "why", "CommError")
    code, _, error = genlab_command(*POINTS, *given)
    assert code == 0 and "Closed failed (CommError: No API key configured.) and is left out" in error
    assert list_runs()[-1].read()["status"] == "finished"


def test_a_run_that_goes_on_elsewhere_does_without_what_is_not_there(monkeypatch, capsys):
    monkeypatch.setattr(Closed, "why", "UsageError")
    trainer = SimpleNamespace(loggers=[Closed()], callbacks=[], is_global_zero=True)
    with loggers.logging_to(trainer, None, [], [], must_begin=False):
        assert trainer.loggers == []
    assert "Closed failed" in capsys.readouterr().err
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: name == "wandb" or None)
    with pytest.warns(UserWarning, match=r"also logs to tensorboard, which is not installed here: pip"):
        assert loggers.kept_loggers({"loggers": {"wandb": {}, "tensorboard": {}, "other": {}}}) == ["wandb"]
    assert loggers.kept_loggers({"loggers": None}) == []


WRONG = {
    "a name that is none": (["--log_to", "[wandbb]"], "wandb or tensorboard"),
    "an artifact that is none": (
        ["--log_to", "[wandb]", "--log_artifacts", "[weights]"],
        "checkpoints or report",
    ),
    "artifacts without wandb": (
        ["--log_to", "[tensorboard]", "--log_artifacts", "[report]"],
        "--log_to [wandb]",
    ),
    "wandb twice": (["--log_to", "[wandb]", "--trainer.logger", "WandbLogger"], "leave it out"),
    "a logger that is none": (["--trainer.logger", "WandbLoger"], "WandbLogger"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_what_cannot_be_logged_to_is_refused_before_there_is_a_folder(mistake, genlab_command):
    given, words = WRONG[mistake]
    code, _, error = genlab_command(*POINTS, *given)
    assert code == 2 and words in error and len(error.splitlines()) <= 3, error
    assert not list_runs()


def test_a_package_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for name, remedy in {
        "tensorboard": r"pip install 'genlab\[tensorboard\]'",
        "wandb": "pip install",
    }.items():
        with pytest.raises(ValueError, match=rf"--log_to \[{name}\] needs the package {name}.*{remedy}"):
            loggers.check_loggers([name], [], None)


def test_what_the_environment_says_of_a_wandb_run_holds(tmp_path, wandb_offline, monkeypatch):
    for name in ("PROJECT", "NAME", "RUN_GROUP", "RUN_ID"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name.lower()}")
    run = Run(tmp_path / "gan_digits" / "first")
    run.samples.mkdir(parents=True)
    run.record.write_text(json.dumps({"loggers": {"wandb": {"project": "before"}}}))
    _, logger = loggers.loggers_of(run, None, [], ["wandb", "wandb"])
    begun = logger._wandb_init
    assert isinstance(logger, WandbLogger) and begun["name"] == "my-name"
    assert (begun["id"], begun["project"], begun["group"]) == ("my-run_id", "before", "my-run_group")
