"""SRGAN and regression: which term moves which network, what pretraining leaves alone, what content is."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from short_training import train
from torch import nn
from torch.nn.functional import conv2d, l1_loss, mse_loss, relu
from torchvision.models.vgg import cfgs, make_layers

from genlab.data.random_data import RandomData
from genlab.evaluation.given import item_batch
from genlab.families.regression import ImageRegression
from genlab.families.srgan import SRGAN
from genlab.files import digest
from genlab.losses.adversarial import LeastSquares
from genlab.losses.distances import AbsoluteError, Charbonnier, SquaredError
from genlab.losses.perceptual import (
    VGG19_LAYERS,
    DiscriminatorFeatures,
    Pixels,
    VGGFeatures,
    imagenet_normalised,
    vgg19_features,
)
from genlab.networks.image_to_image import PatchDiscriminator
from genlab.networks.mlp import MLPDiscriminator
from genlab.networks.srresnet import SRResNet, VGGDiscriminator
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-2)
GENERATOR = partial(SRResNet, features=4, num_blocks=1, kernel_size=3)
DISCRIMINATOR = partial(VGGDiscriminator, base_channels=4, num_layers=2, hidden=8)


def pairs():
    source = DataSpec("small", (3, 8, 8)).to_dict()
    return RandomData((3, 16, 16), source=source, num_train=16, num_test=8, batch_size=4)


def srgan(content=None, **options):
    torch.manual_seed(0)
    networks = {"generator": GENERATOR, "discriminator": DISCRIMINATOR}
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    game = {"content": content or DiscriminatorFeatures(), "loss": LeastSquares(), "given": ["source"]}
    return SRGAN(pairs().spec, **{**networks, **optimizers, **game, **options})


def batch_of(num=4):
    return item_batch(pairs(), "train", torch.arange(num), torch.device("cpu"))


def noise(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Regression


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (SquaredError(), mse_loss),
        (AbsoluteError(), l1_loss),
        (Charbonnier(1e-6), l1_loss),
        (Charbonnier(1e4), lambda x, y: mse_loss(x, y) / 2e4),
    ],
)
def test_distances_are_means_over_pixels(distance, expected):
    x, y = noise(0, 2, 3, 5, 4).double(), noise(1, 2, 3, 5, 4).double()
    assert distance(x, y).item() == pytest.approx(expected(x, y).item(), rel=1e-4)
    assert distance(x, x).item() == 0.0 and distance(x.half(), y.half()).dtype == torch.float32


def regression(distance=None, **options):
    torch.manual_seed(0)
    return ImageRegression(
        pairs().spec, GENERATOR, distance or SquaredError(), ADAM, **{"given": ["source"], **options}
    )


def test_regression_learns_the_distance_of_its_images_and_samples_are_the_network_s():
    model, batch = regression(AbsoluteError()).eval(), batch_of()
    torch.nn.init.uniform_(model.network.output.bias, -2.0, 2.0)  # beyond the range of images
    x = model.sample(torch.arange(4), source=batch["source"])
    raw = model.network(source=batch["source"])
    assert (
        raw.abs().max() > 1
        and torch.equal(x, raw.clamp(-1, 1))
        and torch.equal(x, model.sample(4, 7, source=batch["source"]))
    )
    assert model.losses(batch)["loss"].item() == pytest.approx(l1_loss(raw, batch["image"]).item())
    with pytest.raises(ValueError, match=r"set given to \[source\]"):
        regression(given=[])


# Phases


def test_pretraining_is_regression_to_the_bit_and_leaves_the_discriminator_as_it_was():
    model, before = srgan(pretraining=12, half_life=8), srgan().discriminator.state_dict()
    alone = regression(half_life=8)
    for each in (model, alone):
        train(each, pairs(), max_steps=3)
    assert model.examples_seen == 12 and model.is_pretraining and set(model.latest) == {"loss", "pixels"}
    for mine, theirs in ((model.generator, alone.network), (model.average.module, alone.average.module)):
        assert all(torch.equal(a, theirs.state_dict()[name]) for name, a in mine.state_dict().items())
    after = model.discriminator.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.discriminator_updates == 0


def test_the_players_begin_with_the_first_batch_after_pretraining():
    model = srgan(pretraining=8)
    before = {name: value.clone() for name, value in model.discriminator.state_dict().items()}
    trainer = train(model, pairs(), max_steps=3)
    assert model.discriminator_updates == 1 and trainer.global_step == 3 and not model.is_pretraining
    assert {"content", "adversarial", "pixels", "discriminator"} <= set(model.latest)
    changed = [
        name for name, value in model.discriminator.state_dict().items() if not value.equal(before[name])
    ]
    assert any(name.endswith("weight") for name in changed)


# Terms


def touched(model, step):
    """The names of the players whose parameters a step gives a gradient, seen when the player learns."""
    found = []

    def learn(loss, player):
        model.zero_grad()
        loss.backward()
        for name in ("generator", "discriminator"):
            gradients = [p.grad for p in getattr(model, name).parameters() if p.grad is not None]
            if any(bool(g.any()) for g in gradients):
                found.append(name)
        model.zero_grad()

    model._learn = learn
    step()
    return found


@pytest.mark.parametrize("content", [DiscriminatorFeatures(), Pixels()])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_every_term_of_the_generator_s_loss_reaches_the_generator_alone(content, weights):
    model, batch = srgan(content, adversarial_weight=weights[0], pixel_weight=weights[1]), batch_of()
    fake = model.generate(batch, "latent")
    assert touched(model, lambda: model._generator_step(batch, fake)) == ["generator"]
    fake = model.generate(batch, "latent").detach()
    assert touched(model, lambda: model._discriminator_step(batch, fake)) == ["discriminator"]


def test_the_generator_s_loss_is_the_weighed_sum_of_its_terms():
    model, batch = srgan(adversarial_weight=0.3, pixel_weight=2.0).eval(), batch_of()
    with torch.no_grad():
        losses, fake = model.losses(batch), model.generate(batch, "validation")
    total = losses["content"] + 0.3 * losses["adversarial"] + 2.0 * losses["pixels"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)
    assert losses["pixels"].item() == pytest.approx(mse_loss(fake, batch["image"]).item())
    expected = LeastSquares().generator(model.discriminator(fake))
    assert losses["adversarial"].item() == pytest.approx(expected.item())


def test_the_judge_sees_images_alone_and_says_how_probable_they_are():
    model, batch = srgan(discriminator=partial(PatchDiscriminator, base_channels=4, num_layers=1)), batch_of()
    swapped = {**batch, "source": batch["source"].roll(1, 0)}
    model.eval()
    assert torch.equal(model.judge(batch["image"], batch), model.judge(batch["image"], swapped))
    assert model.probability_real(batch["image"], source=batch["source"]) is None  # of least squares
    with pytest.raises(ValueError, match="is told source"):
        model.probability_real(batch["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"given": []}, r"set given to \[source\]"),
        ({"pixel_weight": -1.0}, "pixel_weight must not be negative"),
        ({"pretraining": -1}, "pretraining must not be negative"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        srgan(**options)


# Content


def test_features_of_the_discriminator_are_compared_layer_by_layer():
    judge, x, y = DISCRIMINATOR(pairs().spec).eval(), noise(0, 2, 3, 16, 16), noise(1, 2, 3, 16, 16)
    distances = [
        l1_loss(judge.features[:depth](x), judge.features[:depth](y))
        for depth in range(1, 1 + len(judge.features))
    ]
    found = DiscriminatorFeatures()(x, y, judge)
    assert found.item() == pytest.approx(sum(distances).item() / len(distances), rel=1e-6)
    assert DiscriminatorFeatures()(x, x, judge).item() == 0.0
    model = srgan(discriminator=partial(MLPDiscriminator, hidden=[4]))
    with pytest.raises(ValueError, match="those of a MLPDiscriminator cannot be had"):
        model.setup("fit")


def test_the_features_are_those_of_torchvisions_vgg19():
    with torch.device("meta"):
        mine, theirs = vgg19_features(), make_layers(cfgs["E"])
    assert [type(layer) for layer in mine] == [type(layer) for layer in theirs]
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (mine, theirs)]
    assert shapes[0] == shapes[1]
    assert VGG19_LAYERS[::2] == tuple(name.replace("relu", "conv") for name in VGG19_LAYERS[1::2])
    assert (VGG19_LAYERS.index("conv5_4"), len(VGG19_LAYERS)) == (30, 32)


@pytest.fixture(params=["safetensors", "pth"])
def weights(request, tmp_path):
    """A file of the first layers, as torchvision names them."""
    torch.manual_seed(0)
    state = {f"features.{name}": value for name, value in vgg19_features(6).state_dict().items()}
    file = tmp_path / f"vgg19.{request.param}"
    save_file(state, file) if request.param == "safetensors" else torch.save(state, file)
    return file


def test_content_is_the_distance_of_named_layers(weights):
    layers = ["conv1_1", "relu1_2"]
    content, judge = VGGFeatures(str(weights), digest(weights), layers), nn.Identity()
    x, y = (noise(seed, 2, 3, 16, 16) for seed in (0, 1))
    state = content.network.state_dict()

    def by_hand(images):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        h = ((images + 1) / 2 - mean[:, None, None]) / std[:, None, None]
        first = conv2d(h, state["0.weight"], state["0.bias"], padding=1)
        second = conv2d(relu(first), state["2.weight"], state["2.bias"], padding=1)
        return first / 12.75, relu(second) / 12.75

    expected = [mse_loss(a, b).item() for a, b in zip(by_hand(x), by_hand(y), strict=True)]
    assert content(x, y, judge).item() == pytest.approx(sum(expected) / 2, rel=1e-5)
    x.requires_grad_()
    content(x, y, judge).backward()
    assert x.grad.any() and all(p.grad is None and not p.requires_grad for p in content.network.parameters())
    grey = noise(2, 1, 1, 8, 8)
    assert torch.equal(imagenet_normalised(grey), imagenet_normalised(grey.expand(-1, 3, -1, -1)))
    model = srgan(content)
    model.setup("fit")
    assert not any("content" in name for name in model.state_dict())


def test_weights_that_are_missing_or_others_are_refused_before_training(weights, tmp_path):
    right = digest(weights)
    wrong = "0" * 8 + right[8:]
    for path, sha256, message in (
        (tmp_path / "none.pth", right, "are not at .*none.pth.*DiscriminatorFeatures or Pixels"),
        (weights, wrong, f"is {right[:16]}... and not {wrong[:16]}..."),
        (weights, "dcbb9e9d", "is another file, or damaged"),
    ):
        model = srgan(VGGFeatures(str(path), sha256, ["relu1_1"]))
        with pytest.raises(ValueError, match=message):
            train(model, pairs(), max_steps=1)
        assert model.examples_seen == 0
    with pytest.raises(ValueError, match="holds no weights of VGG19"):
        _ = VGGFeatures(str(weights), right, ["relu5_4"]).network


@pytest.mark.parametrize(
    ("options", "message"),
    [({"layers": ["relu6_1"]}, "got relu6_1"), ({"sha256": "dc"}, "at least 8 digits")],
)
def test_impossible_features_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        VGGFeatures("vgg19.pth", **options)
