"""Two stages: what the prior sees, how its codes are scaled and kept, and what the run needs afterwards."""

import copy
import shutil
import textwrap
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from short_training import train

from genlab.callbacks.codes import CodeCache, cached
from genlab.cli.model import given_on_the_command_line, given_with_pictures
from genlab.data.random_images import RandomImages
from genlab.data.scenes import Scenes
from genlab.data.tokenizers import tokenizer_of
from genlab.errors import CheckpointError
from genlab.evaluation.export import export_weights
from genlab.evaluation.first_stage import TrainedStage
from genlab.evaluation.functions import functions_of
from genlab.evaluation.given import item_batch
from genlab.evaluation.pictures import CHARACTER, GAP, LINE
from genlab.evaluation.pictures import captioned as with_captions
from genlab.evaluation.prompts import prompt_sources
from genlab.families import latent as module
from genlab.families.capabilities import HasLikelihood, can
from genlab.families.codes import FirstStage, weights_digest
from genlab.families.diffusion import Diffusion, Objective
from genlab.families.dvae import DiscreteVAE
from genlab.families.gan import GAN
from genlab.families.kl_autoencoder import KLAutoencoder
from genlab.families.latent import Latent, LatentDiffusion
from genlab.families.vqvae import VQVAE
from genlab.losses.adversarial import NonSaturating
from genlab.losses.likelihoods import Gaussian
from genlab.networks.autoencoder import ConvMapDecoder, ConvMapEncoder
from genlab.networks.mlp import MLPDiscriminator, MLPGenerator
from genlab.networks.quantizer import FSQ
from genlab.networks.unet import UNet
from genlab.processes.grids import UniformGrid
from genlab.processes.prediction import PredictVelocity
from genlab.processes.sde import RectifiedFlow
from genlab.samplers.conditioning import Blur, RePaint, Through
from genlab.samplers.ode import Euler
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-2)
CODING = (
    partial(ConvMapEncoder, num_halvings=1, base_channels=4),
    partial(ConvMapDecoder, num_halvings=1, base_channels=4),
)


def images(side=8, **options):
    return RandomImages((1, side, side), 3, levels=17, num_train=64, num_test=16, batch_size=8, **options)


def batch_of(num=8, data=None):
    return item_batch(data or images(), "test", torch.arange(num), torch.device("cpu"))


def autoencoder(seed=0):
    """Its code is of uneven channels, far from 1."""
    torch.manual_seed(seed)
    model = KLAutoencoder(images().spec, *CODING, ADAM, latent_channels=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.network.encoder.output.weight[1] *= 30.0
    return model


def scalar_codes():
    torch.manual_seed(0)
    model = VQVAE(images().spec, *CODING, partial(FSQ, levels=[3, 4]), ADAM, code_dim=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def discrete_codes():
    return DiscreteVAE(images().spec, *CODING, Gaussian, ADAM, num_codes=5)


def diffusion(spec, **options):
    network = partial(UNet, channels=(4,), num_blocks=1, attention=(), num_groups=2)
    walk = {"objective": Objective(PredictVelocity()), "sampler": Euler(UniformGrid(4))}
    return Diffusion(spec, network, RectifiedFlow(), ADAM, **walk, **options)


def two_stages(stage=None, prior=diffusion, family=LatentDiffusion, spec=None):
    return family(spec or images().spec, FirstStage(stage or autoencoder()), prior)


def scaled(model):
    """With a scale far from 1, as if it had been measured."""
    model.scale.copy_(torch.tensor([0.25, 3.0])[: len(model.scale), None, None])
    return model


# What the prior sees


def test_the_prior_sees_exactly_the_codes_times_a_scale_that_makes_each_channel_one():
    model, data, seen = two_stages(), images(), []
    losses = model.prior.losses
    model.prior.losses = lambda batch: seen.append(batch) or losses(batch)
    train(model, data, 1)
    batch = item_batch(data, "train", seen[0]["index"], torch.device("cpu"))
    codes = model.first_stage.model.encode(batch["image"])
    assert torch.equal(seen[0]["point"], codes * model.scale) and "image" not in seen[0]
    assert torch.equal(seen[0]["label"], batch["label"])
    everything = item_batch(data, "train", torch.arange(64), torch.device("cpu"))
    z = model.encode(everything["image"])
    std = z.transpose(0, 1).flatten(1).std(dim=1)
    assert (std - 1.0).abs().max() < 0.02 and len(data.items("train")) == 64 == model.num_measured
    raw = (z / model.scale).transpose(0, 1).flatten(1).std(dim=1)
    assert raw.max() / raw.min() > 3.0


def test_samples_are_decoded_after_the_scale_is_taken_back():
    model, index = two_stages(), torch.arange(3)
    model.scale.fill_(4.0)
    z = model.prior.sample(index, 5)
    assert torch.equal(model.sample(index, 5), model.first_stage.model.decode(z / 4.0))
    x = batch_of()["image"]
    assert torch.allclose(
        model.decode(model.encode(x)), model.first_stage.model.decode(model.encode(x) / 4.0)
    )


def test_the_scale_is_measured_over_all_devices_together(monkeypatch):
    sums, data = [], images()

    def scale(rank, world_size, joined):
        monkeypatch.setattr(module, "place", lambda: (rank, world_size))
        monkeypatch.setattr(module, "joined_sum", joined)
        model = two_stages()
        model.measure_scale(data, torch.device("cpu"))
        return model.scale.flatten()

    whole = scale(0, 1, lambda values: values)
    halves = [scale(rank, 2, lambda values: sums.append(values) or values) for rank in range(2)]
    together = scale(1, 2, lambda values: sums[0] + sums[1])
    assert torch.allclose(together, whole) and not any(torch.allclose(half, whole) for half in halves)


def test_what_is_exported_are_the_functions_of_both_stages():
    model, x = two_stages().eval(), batch_of()["image"]
    functions = {function.name: function for function in functions_of(model)}
    assert list(functions) == ["denoiser", "decoder", "encoder"]
    z = functions["encoder"].call(x=x)
    assert torch.equal(z, model.encode(x)) and torch.equal(functions["decoder"].call(z=z), model.decode(z))
    assert functions["denoiser"].inputs["x"].shape == (64, 2, 4, 4) == functions["decoder"].inputs["z"].shape
    with pytest.raises(ValueError, match="A LatentDiffusion is two models"):
        export_weights(model, {}, Path("weights.safetensors"))


def test_code_numbers_have_no_scale():
    model = two_stages(scalar_codes(), lambda spec: Numbers(spec), Latent)
    index = model.encode(batch_of()["image"])
    assert index.dtype == torch.int64 and index.shape == (8, 4, 4) and model.code_spec.levels == 12
    assert torch.equal(model.decode(index), model.first_stage.model.decode(index))


def test_noise_is_put_on_the_vectors_of_code_numbers_and_what_is_drawn_is_rounded_to_codes():
    model, data, x = two_stages(scalar_codes()), images(), batch_of()["image"]
    stage = model.first_stage.model
    assert model.code_spec.shape == (2, 4, 4) and model.code_spec.levels == 0
    model.measure_scale(data, torch.device("cpu"))
    index = stage.encode(x)
    z = model.encode(x)
    assert torch.equal(z, stage.codebook.look_up(index).movedim(-1, 1) * model.scale)
    assert torch.equal(model.coded({"code": index, "image": x})["point"], z)
    assert torch.equal(model.decode(z), stage.decode(index))
    # Levels of 3 and 4 lie 1 and 1/2 apart: less than half of that is forgiven, and more is another code.
    nudge = torch.tensor([0.49, 0.24])[:, None, None] * (torch.rand(z.shape) * 2 - 1)
    assert torch.equal(model.decode(z + nudge * model.scale), stage.decode(index))
    assert not torch.equal(model.decode(z + 2.2 * nudge * model.scale), stage.decode(index))
    drawn = model.prior.sample(torch.arange(3), 5) / model.scale
    assert torch.equal(model.sample(torch.arange(3), 5), stage.decode(stage.nearest(drawn)))
    train(model, data, 1)


def test_a_measurement_through_rounded_codes_has_the_decoders_own_derivative():
    model = scaled(two_stages(scalar_codes()))
    stage, z = model.first_stage.model, torch.randn(1, 2, 4, 4, requires_grad=True)
    codes = stage.vectors(stage.nearest(z / model.scale)).requires_grad_()
    v = torch.randn(1, 1, 8, 8)
    (through,) = torch.autograd.grad(model.space.decode(z), z, v)
    (wanted,) = torch.autograd.grad(stage.eval().decoder(codes), codes, v)
    assert torch.allclose(through, wanted / model.scale, atol=1e-6) and through.abs().max() > 0


class Numbers(Diffusion):
    """A prior of code numbers that learns nothing."""

    def __init__(self, spec):
        super(Diffusion, self).__init__(spec)

    def losses(self, batch):
        return {"loss": batch["tokens"].float().mean()}


def test_a_channel_that_is_the_same_everywhere_is_refused():
    stage = autoencoder()
    with torch.no_grad():
        stage.network.encoder.output.weight[1] = 0.0
    with pytest.raises(ValueError, match="Channel 1 of the first stage's codes is the same everywhere"):
        two_stages(stage).measure_scale(images(), torch.device("cpu"))


def test_likelihoods_of_codes_are_none_of_images():
    model = two_stages()
    assert can(model.prior, HasLikelihood) and not can(model, HasLikelihood)


# The first stage is frozen, and no other one


def test_training_leaves_the_first_stage_alone_and_a_checkpoint_without_it():
    model = two_stages()
    stage = model.first_stage.model
    before = {name: value.clone() for name, value in stage.state_dict().items()}
    train(model.train(), images(), 2)
    assert all(torch.equal(value, before[name]) for name, value in stage.state_dict().items())
    assert not stage.training and not any(p.requires_grad for p in stage.parameters())
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"scale", "num_measured", "prior", "_extra_state"}


def test_another_first_stage_than_that_of_the_training_is_refused():
    state = two_stages().state_dict()
    two_stages(autoencoder(seed=0)).load_state_dict(state)
    with pytest.raises(CheckpointError, match="is another one than the prior was trained on"):
        two_stages(autoencoder(seed=1)).load_state_dict(state)


def test_a_first_stage_moves_to_the_device_and_layout_of_its_prior():
    model = two_stages().double()
    assert next(model.first_stage.model.parameters()).dtype == torch.float64


def gan(spec):
    players = (partial(MLPGenerator, latent_dim=2, hidden=[4]), partial(MLPDiscriminator, hidden=[4]))
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    return GAN(spec, generator=players[0], discriminator=players[1], loss=NonSaturating(), **optimizers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": gan}, "prior: a GAN has several optimisers that take turns"),
        (
            {"prior": lambda spec: autoencoder(), "family": Latent},
            "a KLAutoencoder cannot be drawn from: its c",
        ),
        ({"stage": gan(images().spec)}, "A GAN is no first stage, which has codes"),
        ({"spec": images(16).spec}, r"knows images of shape \(1, 8, 8\), and random has \(1, 16, 16\)"),
        ({"spec": DataSpec("grey", (1, 8, 8))}, "knows images of levels 17, and grey has 256"),
        (
            {"stage": scalar_codes(), "prior": Numbers, "family": LatentDiffusion},
            "takes a prior that removes noise, such as Diffusion, and Numbers does not",
        ),
        ({"stage": discrete_codes()}, "and those of a DiscreteVAE do not: take a first stage"),
    ],
)
def test_what_is_no_first_stage_or_no_prior_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        two_stages(**arguments)


# Codes that are found once


def fitting(data):
    strategy = SimpleNamespace(root_device=torch.device("cpu"), barrier=lambda: None)
    return SimpleNamespace(datamodule=data, fast_dev_run=0, is_global_zero=True, strategy=strategy)


@pytest.mark.parametrize("stage", [autoencoder, scalar_codes])
def test_codes_are_encoded_once_and_are_those_that_a_step_would_find(stage):
    model = two_stages(stage(), diffusion if stage is autoencoder else Numbers, Latent)
    model = scaled(model) if stage is autoencoder else model
    key = model.code_spec.kind
    data, plain = images(), images()
    CodeCache().on_fit_start(fitting(data), model)
    for split in ("train", "val"):
        index = torch.arange(6)
        batch, bare = (item_batch(each, split, index, torch.device("cpu")) for each in (data, plain))
        assert "code" in batch and "code" not in bare
        assert torch.allclose(model.coded(batch)[key].double(), model.coded(bare)[key].double(), atol=1e-5)
        assert model.coded(batch)[key].dtype == model.coded(bare)[key].dtype
        assert data.fingerprint(split) == plain.fingerprint(split)
    model.first_stage.model.encode = None  # nobody is asked a second time, in a step neither
    assert model.coded(batch)[key].shape[0] == len(index)
    again = images()
    CodeCache().on_fit_start(fitting(again), model)
    np.testing.assert_array_equal(again.split("train")["code"], data.split("train")["code"])


def test_another_first_stage_and_other_images_have_other_files():
    first, other, data = FirstStage(autoencoder()), FirstStage(autoencoder(1)), images()
    files = {cached(data, split, stage) for split in ("train", "val") for stage in (first, other)}
    assert len(files) == 4


def test_a_change_of_any_weight_makes_another_first_stage():
    stage = autoencoder()
    digests = {FirstStage(stage).digest}
    for weights in stage.state_dict().values():
        weights.view(-1)[0] += 1.0
        digests.add(FirstStage(stage).digest)
    assert len(digests) == 1 + len(stage.state_dict())


def test_the_digest_of_weights_is_the_one_that_checkpoints_and_protocols_hold():
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0]]))
        model.bias.copy_(torch.tensor([0.5]))
    held = "9af2c899fbe58413b0a152f8ddf6395e7e0cb3261b4c415e2eab284d7a48726e"
    assert weights_digest(model) == held
    assert weights_digest(model.bfloat16()) not in ("", held)


def test_the_best_checkpoint_of_a_first_stage_is_taken_where_one_was_chosen():
    best, last = Path("best.ckpt"), Path("last.ckpt")
    chosen = [TrainedStage("", print) for _ in range(2)]
    for stage, found in zip(chosen, (best, None), strict=True):
        stage.run = SimpleNamespace(best_checkpoint=found, checkpoint=lambda: last)
    assert [stage.checkpoint for stage in chosen] == [best, last]


def test_images_that_move_are_encoded_in_every_step():
    data = images(flip=True)
    CodeCache().on_fit_start(fitting(data), two_stages())
    assert data.split("train").get("code") is None


# Samplers in the codes


def test_inpainting_keeps_the_codes_of_known_pixels_and_fills_the_others():
    model, x = scaled(two_stages()), batch_of(3)["image"]
    mask = torch.ones(1, 8, 8)
    mask[:, 3:] = 0.0
    known, inside = model.space.known(mask), model.space.inside(x)
    assert torch.equal(inside, model.first_stage.model.encode(x) * model.scale)
    assert known.shape == (1, 4, 4) and known[0, 0].all() and not known[0, 1:].any()
    z = model.prior.sample_with(RePaint(inside, known, UniformGrid(4), 2), torch.arange(3))
    assert torch.equal(z[:, :, 0], inside[:, :, 0]) and not torch.equal(z[:, :, 1:], inside[:, :, 1:])
    whole = model.sample_with(RePaint(inside, torch.ones_like(known), UniformGrid(4), 1), torch.arange(3))
    assert torch.allclose(whole, model.decode(model.encode(x)), atol=1e-6)


def test_a_measurement_through_a_decoder_has_the_jacobian_as_its_derivative():
    model = scaled(two_stages())
    z, blur = torch.randn(1, 2, 4, 4), Blur(1.0)
    through = model.space.measured(blur)
    assert isinstance(through, Through)

    def decoded(z):
        return blur(model.first_stage.model.decoded(z / model.scale))

    jacobian = torch.autograd.functional.jacobian(decoded, z)
    jacobian = jacobian.reshape(64, 32)
    at, u, y = through.at(z), torch.randn_like(z), torch.randn(1, 1, 8, 8)
    assert torch.allclose(at(u).flatten(), jacobian @ u.flatten(), atol=1e-5)
    assert torch.allclose(at.adjoint(y).flatten(), jacobian.T @ y.flatten(), atol=1e-5)
    assert torch.equal(through(z), decoded(z))


# From the command line


FIRST = {
    "model": {
        "class_path": "KLAutoencoder",
        "init_args": {
            "encoder": {"class_path": "ConvMapEncoder", "init_args": {"num_halvings": 1, "base_channels": 4}},
            "decoder": {"class_path": "ConvMapDecoder", "init_args": {"num_halvings": 1, "base_channels": 4}},
            "optimizer": {"class_path": "torch.optim.Adam"},
            "latent_channels": 2,
        },
    },
    "data": {"class_path": "Digits"},
    "budget": {"examples": 128},
    "samples": {"num": 0},
}
UNET = {"channels": [4], "num_blocks": 1, "attention": [], "num_groups": 2}
SECOND = {
    "model": {
        "class_path": "LatentDiffusion",
        "init_args": {
            "first_stage": "first",
            "prior": {
                "class_path": "Diffusion",
                "init_args": {
                    "network": {"class_path": "UNet", "init_args": UNET},
                    "process": {"class_path": "RectifiedFlow"},
                    "objective": {"prediction": {"class_path": "PredictVelocity"}},
                    "optimizer": {"class_path": "torch.optim.Adam"},
                    "sampler": {
                        "class_path": "Euler",
                        "init_args": {"grid": {"class_path": "UniformGrid", "init_args": {"num_steps": 2}}},
                    },
                },
            },
        },
    },
    "data": {"class_path": "Digits"},
    "budget": {"examples": 128},
    "samples": {"num": 0},
    "evaluate": {"metrics": {}, "at_start": False},
}


def file_of(folder, name, config):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_run_of_two_stages_needs_no_other_folder(genlab_command, tmp_path):
    outputs, quiet = tmp_path / "outputs", ("--trainer.accelerator", "cpu", "--run_name", "a")
    second = file_of(tmp_path, "second", SECOND)
    code, _, said = genlab_command("fit", "--config", second, *quiet)
    assert code == 2 and "first is neither a run nor an experiment with a finished run in" in said
    known = genlab_command("fit", "--config", second, "--model.first_stage", "vqvae_digits", *quiet)
    assert known[0] == 2 and "Train it first: genlab fit --config vqvae_digits" in known[2]
    for name, config in (("first", FIRST), ("second", SECOND)):
        assert genlab_command("fit", "--config", file_of(tmp_path, name, config), *quiet)[0] == 0
    run = outputs / "second" / "a"
    shutil.move(outputs / "first", tmp_path / "elsewhere")
    assert genlab_command("sample", run, "-n", 2)[0] == 0
    moved = shutil.move(run, outputs / "second" / "b")
    assert genlab_command("resume", moved, "--budget.examples", "192")[0] == 0
    code, said, _ = genlab_command("runs")
    assert code == 0 and "first" not in said


SCENES = {"image_size": 48, "num_train": 64, "num_test": 16, "num_zero_shot": 0, "batch_size": 16}
READER = {"class_path": "TextReader", "init_args": {"num_layers": 1, "num_heads": 2, "width": 8}}


def captioned(config):
    """The configuration for scenes, whose prior is told their captions."""
    config = copy.deepcopy(config)
    config["data"] = {"class_path": "Scenes", "init_args": SCENES}
    config["budget"]["examples"] = 32
    model = config["model"]["init_args"]
    for coder in ("encoder", "decoder"):
        if coder in model:
            model[coder]["init_args"]["num_halvings"] = 3
    if "prior" in model:
        prior = model["prior"]["init_args"]
        prior["given"], prior["network"]["init_args"]["text"] = ["source"], READER
    return config


@pytest.fixture
def told(monkeypatch):
    """What each model of two stages is told that samples are drawn of."""
    seen = []
    for name in ("sample", "sample_with"):
        draw = getattr(LatentDiffusion, name)

        def telling(*arguments, draw=draw, **given):
            seen.append(given["source"].clone())
            return draw(*arguments, **given)

        monkeypatch.setattr(LatentDiffusion, name, telling)
    return seen


def test_pictures_are_filled_restored_and_compared_by_a_model_of_captions(
    genlab_command, tmp_path, told, tiny_extractor
):
    for name, config in (("first", FIRST), ("second", SECOND)):
        path = file_of(tmp_path, name, captioned(config))
        quiet = ("--trainer.accelerator", "cpu", "--run_name", "a")
        code, _, error = genlab_command("fit", "--config", path, *quiet)
        assert code == 0, error
    run, prompt = tmp_path / "outputs" / "second" / "a", "a red circle"
    picture, mask = tmp_path / "picture.png", tmp_path / "mask.png"
    rows = np.arange(48)[:, None] * np.ones(48)[None]
    Image.fromarray((5 * rows).astype(np.uint8)).convert("RGB").save(picture)
    Image.fromarray(np.where(rows >= 24, 255, 0).astype(np.uint8)).save(mask)
    wanted = prompt_sources(reader_of_captions(), [prompt])
    for command in (
        ("inpaint", run, picture, mask, "-n", 2, "--steps", 2, "--resamplings", 1),
        ("inpaint", run, picture, mask, "-n", 2, "--steps", 2, "--resamplings", 0),
        ("restore", run, picture, picture, "--noise", 40, "--steps", 2),
    ):
        told.clear()
        code, out, error = genlab_command(*command, "--prompt", prompt)
        assert code == 0 and Path(out.strip()).is_file(), error
        assert torch.equal(torch.cat(told), wanted.repeat(2, 1))
    for command in (("inpaint", run, picture, mask), ("restore", run, picture, "--noise", 40)):
        code, _, error = genlab_command(*command)
        assert code == 2 and error.count("\n") == 1
        assert "--prompt is missing: this LatentDiffusion of scenes is told in words" in error
    told.clear()
    compare = ("-n", 18, "--batch_size", 10, "--extractor", tiny_extractor(3))
    code, out, error = genlab_command("neighbours", run, *compare)
    assert code == 0 and "of 18 samples" in out, error
    captions = torch.from_numpy(Scenes(**SCENES).split("test")["source"]).long()
    assert torch.equal(torch.cat(told), captions[torch.arange(18) % 16])


def reader_of_captions(**spec):
    """What commands ask of a model that draws images of captions."""
    spec = Scenes().spec if not spec else DataSpec("other", **spec)
    return SimpleNamespace(
        spec=spec, seen_spec=spec, given=("source",), device=torch.device("cpu"), uses_labels=False
    )


def test_prompts_are_told_as_captions_are_each_for_its_share_of_the_samples():
    data = Scenes(num_train=8, num_test=8, num_zero_shot=0, val_fraction=0.5, batch_size=1)
    model, rows = reader_of_captions(), data.split("test")["source"][:2]
    words = tokenizer_of(model.spec.source.vocabulary)
    prompts = [words.decode(row) for row in rows.tolist()]
    given = given_on_the_command_line(model, torch.arange(6), None, prompts=prompts)
    assert given.keys() == {"source"}
    np.testing.assert_array_equal(given["source"].numpy(), rows.repeat(3, axis=0))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a red elephant", "The prompt 'a red elephant' holds .*which this model has never read"),
        ("a " * 11, "has 11 tokens: this model reads 1 to 10"),
        (" ", "has 0 tokens: this model reads 1 to 10"),
    ],
)
def test_a_prompt_that_is_no_caption_is_refused(prompt, message):
    with pytest.raises(ValueError, match=message):
        prompt_sources(reader_of_captions(), [prompt])


def test_prompts_of_a_model_that_reads_none_are_refused():
    model = reader_of_captions(shape=(1, 8, 8))
    with pytest.raises(ValueError, match="--prompt: this SimpleNamespace of other reads no texts"):
        given_on_the_command_line(model, torch.arange(2), None, prompts=["a"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DataSpec("sources", (1, 8, 8), levels=256), "is told an image for each, which cannot be given here"),
        (Scenes().spec.source, "--prompt is missing: .* is told in words what a picture shows"),
    ],
)
def test_what_is_told_of_a_persons_pictures_is_never_invented(source, message):
    model = reader_of_captions(shape=(1, 8, 8), source=source)
    with pytest.raises(ValueError, match=message):
        given_with_pictures(model, torch.arange(2), SimpleNamespace(prompt="", label=None))


def test_captioned_images_stand_above_their_captions():
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    longest = "a very long caption of many words that must be wrapped"
    picture = with_captions(x, ["one", longest, "three"], columns=2)
    assert picture.shape[2] == 3 and picture.shape[1] == 2 * (128 + 4) + 4
    under = LINE * len(textwrap.wrap(longest, 128 // CHARACTER)) + GAP
    first = picture[4 : 4 + 128 : 16, 4 : 4 + 128 : 16]
    below = picture[-128 - under - GAP : -under - GAP : 16, 4 : 4 + 128 : 16]
    expected = ((x + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype("uint8")
    np.testing.assert_array_equal(first, expected[0])
    np.testing.assert_array_equal(below, expected[2])
