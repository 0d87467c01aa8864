"""`genlab export --to hub` and `--to diffusers`: a card says what its run says, weights do what it does."""

import copy
import json
import re
import shutil

import pytest
import torch
import yaml
from comparison_runs import record, write_run
from test_export import model_of

import genlab
from genlab.cli.hub import task_of
from genlab.cli.main import main
from genlab.evaluation import diffusers as pipelines
from genlab.files import making
from genlab.networks.unet import UNet
from genlab.networks.unet2d import as_unet2d
from genlab.processes.base import posterior
from genlab.processes.chain import DiscreteChain
from genlab.processes.prediction import PredictData, PredictNoise, PredictV, PredictVelocity
from genlab.processes.schedules import CosineSchedule
from genlab.processes.sde import VPSDE
from genlab.report.card import NOT_STATED, Card
from genlab.report.forms import markdown_text
from genlab.report.gather import Trained
from genlab.runs.environment import private
from genlab.runs.folder import Run
from genlab.samplers.ancestral import Ancestral
from genlab.samplers.scheduler import scheduler_settings
from genlab.shapes import DataSpec

SMALL = (
    *("--config", "experiments/ddpm_digits.yaml", "--variants", "{}", "--trainer.accelerator", "cpu"),
    *(
        "--model.network.channels",
        "[8]",
        "--model.network.num_groups",
        "4",
        "--model.network.attention",
        "[8]",
    ),
    *("--model.sampler.grid.num_steps", "4", "--model.likelihood", "VariationalBound"),
    *("--model.likelihood.grid", "UniformGrid", "--model.likelihood.grid.num_steps", "2"),
    *("--evaluate.num_samples", "8", "--evaluate.num_test_samples", "30", "--evaluate.num_likelihood", "20"),
    *("--samples.num", "4", "--budget.examples", "128", "--budget.evaluate_every", "64"),
)


@pytest.fixture(scope="module")
def tested(trained_once, tiny_extractor, short_measures, tmp_path_factory):
    """A diffusion run, tested; nothing changes it."""
    run = trained_once(*SMALL, "--extractor", tiny_extractor(1))
    folder = shutil.copytree(run, tmp_path_factory.mktemp("tested") / run.parent.name / run.name)
    with short_measures():
        assert main(["test", str(folder)]) == 0
    return folder


@pytest.fixture
def run(tested, tmp_path):
    """A copy of it, to be changed."""
    return Run(shutil.copytree(tested, tmp_path / "outputs" / tested.parent.name / tested.name))


def exported(run, target, genlab_command):
    """Exports a run to a folder; returns the card's head, and its text."""
    code, out, error = genlab_command("export", run.path, "--to", "hub", "-o", target)
    assert code == 0 and out.strip() == str(target), error
    assert "hf upload NAME" in error
    _, head, text = (target / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def rows_of(text, first="metric"):
    """The rows of a card's table by their first cells."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    start = next(n for n, line in enumerate(lines) if line[0] == first)
    return {line[0]: dict(zip(lines[start], line, strict=False)) for line in lines[start + 2 :]}


# The folder for a hub


def test_a_card_has_the_numbers_of_its_run(run, tmp_path, genlab_command):
    environment = json.loads(run.environment.read_text())
    environment["command"] = ["genlab", "fit", "--config", "experiments/ddpm_digits.yaml"]
    run.environment.write_text(json.dumps(environment))
    head, text = exported(run, tmp_path / "folder", genlab_command)
    record = run.read()
    (result,) = head["model-index"][0]["results"]
    scores = {metric["name"]: metric["value"] for metric in result["metrics"]}
    values, means = record["test"]["values"], record["test"]["split_means"]
    assert scores == {name: v for name, v in values.items() if "_std" not in name and name not in means}
    assert {"fid@30vs797", "bits_per_dim"} <= scores.keys() and result["dataset"]["name"] == "digits"
    rows = rows_of(text)
    for name, value in scores.items():
        assert float(rows[name]["value"]) == pytest.approx(value, rel=1e-3)
    assert float(rows["copy share"]["value"]) == pytest.approx(record["test"]["copies"]["share"])
    assert "30 samples (ema, seed 0) against 797 test items of digits" in rows["fid@30vs797"]["protocol"]
    for told in (
        f"- Parameters: {record['parameters']:,}",
        "- Data: digits, 1x8x8, 900 train, 100 val, 797 test",
        "- Budget: 128 images",
        "- Seen: 128 images",
        "- Device: 1 x cpu, 1 thread",
        "- Training seed: 0",
        "- Paper: Ho et al. 2020, arXiv:2006.11239",
        "- Licence of the data: CC BY 4.0 (UCI Machine Learning Repository)",
        f"- Licence of the weights: {NOT_STATED}",
        f"{100 * record['test']['copies']['share']:.3g} % of its samples count as copies",
        "Of a single training",
        "```text\ngenlab fit --config experiments/ddpm_digits.yaml\ngenlab test ddpm_digits/",
    ):
        assert told in text
    assert head["pipeline_tag"] == "unconditional-image-generation" and "license" not in head


def test_the_weights_of_the_folder_load_and_give_the_samples_of_the_run(run, tmp_path, genlab_command):
    _, text = exported(run, tmp_path / "folder", genlab_command)
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == [
        *("README.md", "config.yaml", "model.safetensors", "samples.png")
    ]
    (code,) = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "folder")
        exec(code, names)
    torch.testing.assert_close(names["samples"], genlab.sample(run, 16, seed=0))


def test_a_card_states_the_licences_that_are_known_or_given_and_says_which_are_not(
    run, tmp_path, genlab_command
):
    options = ("--to", "hub", "-o")
    code, _, error = genlab_command("export", run.path, *options, tmp_path / "a", "--licence", "apache-2.0")
    head = yaml.safe_load((tmp_path / "a/README.md").read_text().split("---\n")[1])
    assert code == 0 and head["license"] == "apache-2.0" and "no licence" not in error
    record = run.read()
    del record["data"]["licence"]  # as of a run of before
    run.record.write_text(json.dumps(record))
    code, _, error = genlab_command("export", run.path, *options, tmp_path / "b")
    assert code == 0 and "no licence of the weights: --licence" in error
    assert "no licence of the data: --data_licence" in error
    assert f"- Licence of the data: {NOT_STATED}\n" in (tmp_path / "b/README.md").read_text()
    given = ("--data_licence", "mine, <b>all</b> rights kept")
    code, _, _ = genlab_command("export", run.path, *options, tmp_path / "c", *given)
    assert code == 0 and "- Licence of the data: mine, &lt;b" in (tmp_path / "c/README.md").read_text()
    code, _, error = genlab_command("export", run.path, "--to", "safetensors", *given)
    assert code == 2 and "--to hub" in error


NAME = (
    "a<b>&lt;|`c`[d](https://e.org) **f** _g_ ~~h~~ $i$ ![j](k.png) www.l.org \x1b[31m\n---\n# m \\| <script>"
)


def test_a_name_with_markdown_and_html_in_it_stays_a_text(run, tmp_path, genlab_command):
    from markdown_it import MarkdownIt

    record = run.read()
    record["experiment"] = record["family"] = record["data"]["name"] = NAME
    record["health"]["flags"] = [{"examples_seen": 64, "problem": NAME}]
    record["test"]["protocol"]["data"] = NAME
    record["device"] = record["genlab"] = NAME
    record["test"]["values"][NAME] = 1.0
    run.record.write_text(json.dumps(record))
    environment = json.loads(run.environment.read_text())
    environment["command"] = ["genlab", "fit", f"```\n# out\n````{NAME}"]
    run.environment.write_text(json.dumps(environment))
    head, text = exported(run, tmp_path / "folder", genlab_command)
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in NAME)
    assert head["tags"] == ["genlab", shown, shown]
    assert head["model-index"][0]["name"] == shown
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    blocks = parser.parse(text)
    headings = [blocks[n + 1].content for n, block in enumerate(blocks) if block.type == "heading_open"]
    sections = ["Model", "Training", "Scores", "Limits", "Use", "How it was made"]
    assert headings[1:] == sections and not any(block.type.startswith(("html", "hr")) for block in blocks)
    inside = [token for block in blocks for token in block.children or []]
    assert {token.type for token in inside} <= {"text", "image", "code_inline", "text_special", "softbreak"}
    assert [token.attrs["src"] for token in inside if token.type == "image"] == ["samples.png"]
    said = ["".join(token.content for token in block.children or []) for block in blocks]
    assert shown in said and f"Family: {shown}" in said and f"After 64 images: {shown}." in said
    assert not re.search(r"(?:https?:|www\.)", re.sub(r"```.*?```+\n", "", text, flags=re.DOTALL))
    assert len([block for block in blocks if block.type == "fence"]) == 2


@pytest.mark.parametrize("plain", ["cvae_digits", "a-b.c", "5 % of 3 < 4"[:8], "μ², ≤ 1"])
def test_an_ordinary_name_is_written_as_it_is(plain):
    assert markdown_text(plain) == plain


def test_scores_of_other_weights_are_not_told_of_these(run, tmp_path, genlab_command):
    run.update(test={"checkpoint_digest": "0123456789abcdef"})
    head, text = exported(run, tmp_path / "folder", genlab_command)
    assert "model-index" not in head and "These weights were not tested" in text
    assert "| metric" not in text and "copies what it learned from was not measured" in text
    assert (tmp_path / "folder/samples.png").is_file()


def of_seeds(folder, *seeds, **changes):
    """The cards of hand-made runs that differ in their seeds."""
    runs = [Run(write_run(folder, record(seed=seed, fid=fid, **changes))) for seed, fid in enumerate(seeds)]
    return [Card(Trained(run, run.read(), run.status), "model.safetensors", True) for run in runs]


def test_several_seeds_give_intervals_and_one_seed_says_so(tmp_path):
    fids = [1.0, 1.2, 1.5]
    card = of_seeds(tmp_path / "three", *fids)[1]
    logs = torch.tensor(fids, dtype=torch.float64).log()
    half = 4.302653 * float(logs.std()) / 3**0.5  # Student's t of 2 degrees of freedom at 97.5 %
    center, low, high = (float((logs.mean() + step).exp()) for step in (0.0, -half, half))
    over = card.markdown.split("Over 3 training seeds")[1].split("Of the weights here, seed 1")[0]
    assert rows_of(over, "model")["dcgan_digits"]["FID@797"] == f"{center:.2f} \\[{low:.3f}, {high:.2f}]"
    (result,) = yaml.safe_load(card.markdown.split("---\n")[1])["model-index"][0]["results"]
    assert result["metrics"][0] == {"type": "fid", "name": "fid@797", "value": 1.2}
    (alone,) = of_seeds(tmp_path / "one", 1.0)
    assert "Of a single training" in alone.markdown and "training seeds" not in alone.markdown


def test_what_went_wrong_is_among_the_limits(tmp_path):
    flags = [{"examples_seen": 64000, "problem": "recall fell"}]
    changes = {"health": {"ok": False, "flags": flags}, "status": "diverged"}
    (card,) = of_seeds(tmp_path / "wrong", 1.0, **changes)
    assert "The training did not finish: diverged." in card.markdown
    assert "After 64,000 images: recall fell." in card.markdown and "nothing wrong" not in card.markdown
    (sound,) = of_seeds(tmp_path / "sound", 1.0)
    assert "nothing wrong" in sound.markdown and "did not finish" not in sound.markdown


def test_secrets_and_homes_are_not_published(run, tmp_path, monkeypatch, genlab_command):
    monkeypatch.setenv("HOME", "/elsewhere/ada")
    config = yaml.safe_load(run.config.read_text())
    config["data"]["init_args"]["cache"] = "/elsewhere/ada/faces"
    config["logger"] = {"api_key": "topsecretkey", "url": "https://ada:pw@host.org/x"}
    run.config.write_text(yaml.safe_dump(config))
    environment = json.loads(run.environment.read_text())
    environment["command"] += ["--wandb.api_key=topsecretkey", "--x", "/elsewhere/ada/faces"]
    run.environment.write_text(json.dumps(environment))
    run.update(test={"arguments": ["--y", "hf_abcdefgh12345678"]})
    _, text = exported(run, tmp_path / "folder", genlab_command)
    told = text + (tmp_path / "folder/config.yaml").read_text()
    for secret in ("topsecretkey", "elsewhere", "hf_abcdefgh12345678", "ada:pw"):
        assert secret not in told
    assert "~/faces" in told and "***" in told
    written = yaml.safe_load((tmp_path / "folder/config.yaml").read_text())
    assert written["model"] == config["model"] and written == private(config)


def test_a_test_that_is_not_whole_is_named_and_no_folder_is_left(run, tmp_path, genlab_command):
    stored = run.read()
    del stored["test"]["protocol"]["weights"]
    run.record.write_text(json.dumps(stored))
    code, _, error = genlab_command("export", run.path, "--to", "hub", "-o", tmp_path / "folder")
    assert code == 2 and "its test is not whole ('weights')" in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs"]


def test_a_folder_that_holds_something_is_left_as_it_is(run, tmp_path, genlab_command):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("written by hand")
    code, _, error = genlab_command("export", run.path, "--to", "hub", "-o", folder)
    assert code == 2 and "holds something already" in error
    assert (folder / "README.md").read_text() == "written by hand" and len(list(folder.iterdir())) == 1
    (folder / "README.md").unlink()
    with making(folder) as new:
        (new / "a").write_text("b")
        assert not list(folder.iterdir())
    assert (folder / "a").read_text() == "b" and list(tmp_path.glob(".*")) == []


def test_weights_alone_and_two_stages_are_refused_in_a_line(run, tmp_path, monkeypatch, genlab_command):
    target = tmp_path / "folder"
    exported(run, target, genlab_command)
    code, _, error = genlab_command(
        "export", target / "model.safetensors", "--to", "hub", "-o", tmp_path / "x"
    )
    assert code == 2 and "a model card is made of a run" in error and error.count("\n") == 1
    monkeypatch.setattr("genlab.evaluation.export.can", lambda *asked: True)
    code, _, error = genlab_command("export", run.path, "--to", "hub", "-o", tmp_path / "x")
    assert code == 2 and "is two models" in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


IMAGES, SENTENCES = DataSpec("i", (1, 8, 8)), DataSpec("s", (9,), levels=30, vocabulary="{}")


@pytest.mark.parametrize(
    ("spec", "given", "task"),
    [
        (IMAGES, ["label"], "unconditional-image-generation"),
        (DataSpec("i", (1, 8, 8), source=SENTENCES), ["source"], "text-to-image"),
        (DataSpec("i", (1, 8, 8), source=SENTENCES), [], "unconditional-image-generation"),
        (DataSpec("i", (1, 8, 8), source=IMAGES), ["source"], "image-to-image"),
        (DataSpec("s", (9,), levels=30, source=SENTENCES), ["source"], "translation"),
        (SENTENCES, [], "text-generation"),
        (DataSpec("codes", (4, 4), levels=30), [], ""),
        (DataSpec("moons", (2,), levels=0), [], ""),
    ],
)
def test_a_model_is_called_by_what_it_is_told_and_draws(spec, given, task, monkeypatch):
    model = type("Model", (), {"spec": spec, "given": given})()
    monkeypatch.setattr("genlab.families.capabilities.can_be_sampled", lambda model: True)
    assert task_of(model) == task
    monkeypatch.setattr("genlab.families.capabilities.can_be_sampled", lambda model: False)
    assert task_of(model) == ""


# The folder for diffusers

UNETS = {
    "as in the paper": ((1, 8, 8), {"channels": [8, 16], "attention": [4], "num_groups": 4}),
    "several heads": (
        (3, 16, 8),
        {"channels": [8, 16, 8], "attention": [8, 2], "head_dim": 4, "num_groups": 8},
    ),
    "learned variance": (
        (1, 8, 8),
        {"channels": [8], "num_blocks": 1, "num_groups": 2, "learned_variance": True},
    ),
}


def unet(shape=(1, 8, 8), num_classes=0, source=None, **arguments):
    """A U-Net whose every weight counts."""
    torch.manual_seed(0)
    spec = DataSpec("images", shape, num_classes, source=source)
    network = UNet(spec, **{"channels": [8, 16], "num_groups": 4, **arguments}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_a_unet_of_diffusers_gives_what_ours_gives(name):
    diffusers = pytest.importorskip("diffusers")
    shape, arguments = UNETS[name]
    network = unet(shape, **arguments)
    found = as_unet2d(network, shape)
    twin = diffusers.UNet2DModel(**found.arguments).eval()
    twin.load_state_dict(found.weights)
    x, t = torch.randn(64, *shape), torch.linspace(0, 999, 64)
    expected = network(x, t)
    torch.testing.assert_close(twin(x, t).sample, expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (torch.nn.Linear(2, 2), "the network Linear"),
        (unet(num_classes=3), r"condition\.label, since its pipeline tells no label"),
        (unet(source=DataSpec("t", (5,), levels=30)), "text, which reads a text"),
        (unet(source=DataSpec("j", (1, 8, 8))), "a source beside the image"),
        (unet(coordinates=True), "coordinates beside the image"),
        (unet(channels=[8, 12], num_groups=8), r"norm of \d+ groups where others have 8"),
    ],
)
def test_a_layer_without_a_counterpart_is_named(network, what):
    with pytest.raises(ValueError, match=f"no counterpart of .*{what}.*: use --to safetensors"):
        as_unet2d(network, (1, 8, 8))


@pytest.mark.parametrize(
    ("process", "prediction", "what"),
    [
        (VPSDE(), PredictNoise(), "the process VPSDE"),
        (DiscreteChain(20), PredictNoise(), "a chain of 20 steps, only of 1,000"),
        (DiscreteChain(), PredictVelocity(), "the prediction PredictVelocity"),
    ],
)
def test_a_chain_without_a_counterpart_is_named(process, prediction, what):
    with pytest.raises(ValueError, match=f"no counterpart of {what}: use --to safetensors"):
        scheduler_settings(process, prediction, Ancestral(), True, False)


@pytest.mark.parametrize("prediction", [PredictNoise(), PredictData(), PredictV()])
@pytest.mark.parametrize(("schedule", "wide"), [(None, False), (CosineSchedule(), True)])
def test_a_scheduler_of_diffusers_steps_as_the_chain_does(prediction, schedule, wide):
    diffusers = pytest.importorskip("diffusers")
    chain = DiscreteChain(1000, schedule)
    settings = scheduler_settings(chain, prediction, Ancestral(wide=wide), True, False)
    scheduler = diffusers.DDPMScheduler(**settings)
    x_t, output = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    for t in (1, 2, 400, 1000):
        here, there = chain.level(t), chain.level(t - 1)
        c_skip, c_out = (
            float(scale) for scale in prediction.scales(*map(torch.tensor, (here.alpha, here.sigma)))
        )
        step = posterior(here, there)
        mean = step.to_x * (c_skip * x_t + c_out * output).clamp(-1, 1) + step.to_x_t * x_t
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0))
        found = scheduler.step(output, t - 1, x_t, generator=generator).prev_sample
        variance = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2 if wide else step.variance
        expected = mean + (variance**0.5 * noise if t > 1 else 0.0)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_run_becomes_a_pipeline_whose_first_estimate_is_the_runs(run, tmp_path, genlab_command):
    diffusers = pytest.importorskip("diffusers")
    code, out, error = genlab_command("export", run.path, "--to", "diffusers", "-o", tmp_path / "folder")
    assert code == 0 and out.strip() == str(tmp_path / "folder") and "denoiser: differs by at most" in error
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "folder", low_cpu_mem_usage=False)
    model, x = genlab.load(run), torch.randn(4, 1, 8, 8)
    expected = model.average.module(x, torch.full((4,), 998.0))
    torch.testing.assert_close(pipeline.unet(x, 998).sample, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model.network(x, torch.full((4,), 998.0)), expected, atol=1e-3)
    betas = model.process.betas.float()
    torch.testing.assert_close(pipeline.scheduler.betas, betas)
    assert pipeline(2, num_inference_steps=2, output_type="np").images.shape == (2, 8, 8, 1)


def test_what_differs_from_the_model_makes_no_pipeline(tmp_path):
    pytest.importorskip("diffusers")
    model = model_of("ddpm_digits")

    def other(network, shape):
        found = as_unet2d(network, shape)
        return found._replace(
            weights={**found.weights, "conv_out.bias": found.weights["conv_out.bias"] + 0.1}
        )

    with pytest.raises(ValueError, match=r"that was written differs from the model by 0\.0"):
        pipelines.export_pipeline(model, other, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    guided = copy.copy(model)
    guided.guidance = type(model.guidance)(scale=2.0, guide_after=1)
    with pytest.raises(ValueError, match=r"no counterpart of a guidance\.scale"):
        pipelines.export_pipeline(guided, as_unet2d, tmp_path / "folder")
    with pytest.raises(ValueError, match="a GAN of digits does not"):
        pipelines.export_pipeline(model_of("gan_digits"), as_unet2d, tmp_path / "folder")


def test_a_missing_diffusers_is_named_with_its_extra(run, monkeypatch, genlab_command):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, error = genlab_command("export", run.path, "--to", "diffusers")
    assert code == 2 and "pip install 'genlab[diffusers]'" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_pipeline_draws_what_the_chain_draws_of_the_same_noise(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    model = model_of("ddpm_digits")
    pipelines.export_pipeline(model, as_unet2d, tmp_path / "folder")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "folder", low_cpu_mem_usage=False)
    noises = [torch.randn(2, 1, 8, 8) for _ in range(1000)]
    for place in ("pipelines.ddpm.pipeline_ddpm", "schedulers.scheduling_ddpm"):
        given = iter(noises if place.startswith("pipelines") else noises[1:])
        monkeypatch.setattr(f"diffusers.{place}.randn_tensor", lambda *a, given=given, **k: next(given))
    images = torch.tensor(pipeline(2, output_type="np").images).permute(0, 3, 1, 2) * 2 - 1
    sampler, drawn = Ancestral(), iter(noises)
    with torch.no_grad():
        expected = sampler(model.process, model.denoiser(), lambda *name: next(drawn))
    torch.testing.assert_close(images, expected.clamp(-1, 1), atol=2e-3, rtol=0.0)
