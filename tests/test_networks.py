import copy
import io
import math

import pytest
import torch
from torch import nn

from genlab.families.classifier import Classifier
from genlab.families.weights import Average
from genlab.networks.augment import DiffAugment, RandomShift, cut_out, jitter_color, translate
from genlab.networks.classifier import ConvClassifier
from genlab.networks.conditioning import Projection
from genlab.networks.dcgan import DCGANDiscriminator, DCGANGenerator, smallest_map
from genlab.networks.mlp import Maxout, MLPDiscriminator, MLPGenerator
from genlab.shapes import DataSpec

BATCH = 4


def image_spec(size: int, channels: int = 1, num_classes: int = 0, width: int | None = None) -> DataSpec:
    return DataSpec("test", (channels, size, width or size), num_classes)


POINTS = DataSpec("points", (2,))
LABELLED_POINTS = DataSpec("points", (2,), num_classes=3)

GENERATORS = [
    ("mlp", lambda spec: MLPGenerator(spec, latent_dim=6, hidden=(16, 16))),
    ("dcgan", lambda spec: DCGANGenerator(spec, latent_dim=6, base_channels=4)),
]
DISCRIMINATORS = [
    ("mlp", lambda spec: MLPDiscriminator(spec, hidden=(16, 16))),
    ("mlp-maxout", lambda spec: MLPDiscriminator(spec, hidden=(8,), activation="maxout", dropout=0.5)),
    ("dcgan", lambda spec: DCGANDiscriminator(spec, base_channels=4)),
    ("dcgan-plain", lambda spec: DCGANDiscriminator(spec, base_channels=4, norm="none")),
    (
        "dcgan-spectral",
        lambda spec: DCGANDiscriminator(spec, base_channels=4, norm="none", spectral_norm=True),
    ),
]
SPECS = [
    image_spec(8), image_spec(8, num_classes=10), image_spec(28), image_spec(32, 3), image_spec(64, 3, 5),
    image_spec(32, 2, width=48), image_spec(128, 1), POINTS, LABELLED_POINTS,
]  # fmt: skip


def pairs(factories) -> list:
    return [
        pytest.param(factory, spec, id=f"{name}-{'x'.join(map(str, spec.shape))}-{spec.num_classes}")
        for name, factory in factories
        for spec in SPECS
        if spec.kind == "image" or name.startswith("mlp")
    ]


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(seed))


def data(spec: DataSpec) -> torch.Tensor:
    return torch.rand(BATCH, *spec.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def labels(spec: DataSpec, shift: int = 0) -> torch.Tensor | None:
    return (torch.arange(BATCH) + shift) % spec.num_classes if spec.num_classes else None


@pytest.mark.parametrize("factory, spec", pairs(GENERATORS))
def test_generators_give_the_shape_of_the_data_and_images_in_range(factory, spec):
    x = factory(spec)(noise() * 100, labels(spec))
    assert x.shape == (BATCH, *spec.shape) and x.dtype == torch.float32
    assert spec.kind != "image" or x.abs().max() <= 1


def test_generated_vectors_are_not_bounded():
    assert MLPGenerator(POINTS, latent_dim=6)(noise() * 1e4).abs().max() > 1


@pytest.mark.parametrize("factory, spec", pairs(DISCRIMINATORS))
def test_discriminators_give_one_logit_an_item(factory, spec):
    assert factory(spec)(data(spec), labels(spec)).shape == (BATCH,)


@pytest.mark.parametrize("factory, spec", [*pairs(GENERATORS), *pairs(DISCRIMINATORS)])
def test_every_parameter_receives_a_gradient(factory, spec):
    torch.manual_seed(0)
    network = factory(spec)
    inputs = noise() if hasattr(network, "latent_dim") else data(spec)
    output = network(inputs, labels(spec))
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("factory, spec", [*pairs(GENERATORS), *pairs(DISCRIMINATORS)])
def test_the_label_changes_the_output_if_and_only_if_the_network_is_conditional(factory, spec):
    torch.manual_seed(0)
    network = factory(spec).eval()
    inputs = noise() if hasattr(network, "latent_dim") else data(spec)
    given = [torch.arange(BATCH) % 3, (torch.arange(BATCH) + 1) % 3]
    first, second = (network(inputs, label) for label in given)
    changed = (first != second).reshape(BATCH, -1).any(dim=1)
    assert changed.tolist() == [spec.num_classes > 0] * BATCH


@pytest.mark.parametrize("factory", [factory for _, factory in [*GENERATORS, *DISCRIMINATORS]])
def test_a_conditional_network_without_labels_says_so(factory):
    network = factory(image_spec(8, num_classes=10))
    with pytest.raises(ValueError, match=r"label is missing.*10 classes"):
        network(noise() if hasattr(network, "latent_dim") else data(image_spec(8)))


@pytest.mark.parametrize("factory, spec", [*pairs(GENERATORS), *pairs(DISCRIMINATORS)])
def test_in_eval_mode_a_row_does_not_depend_on_the_others(factory, spec):
    torch.manual_seed(0)
    network = factory(spec).eval()
    inputs, label = noise() if hasattr(network, "latent_dim") else data(spec), labels(spec)
    alone = torch.cat(
        [network(inputs[i : i + 1], label if label is None else label[i : i + 1]) for i in range(BATCH)]
    )
    assert torch.allclose(network(inputs, label), alone, atol=1e-5)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_dcgan_at_64_pixels_has_the_known_number_of_parameters():
    spec = image_spec(64, 3)
    assert count(DCGANGenerator(spec)) == 3_576_704
    assert count(DCGANDiscriminator(spec)) == 2_765_568


@pytest.mark.parametrize("network", [DCGANGenerator, DCGANDiscriminator])
def test_dcgan_follows_its_guidelines(network):
    layers = list(network(image_spec(64, 3)).modules())
    assert not any(isinstance(layer, nn.Linear | nn.MaxPool2d | nn.AvgPool2d) for layer in layers)
    num_normed = sum(isinstance(layer, nn.BatchNorm2d) for layer in layers)
    num_convolutions = sum(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in layers)
    # The generator's output is not normed; nor are the discriminator's first layer and its logit.
    assert num_convolutions - num_normed == (1 if network is DCGANGenerator else 2)


def test_dcgan_leaves_the_generators_output_and_the_discriminators_input_without_batch_norm():
    generator = list(DCGANGenerator(image_spec(32)).layers)
    assert isinstance(generator[-1], nn.Tanh) and isinstance(generator[-2], nn.ConvTranspose2d)
    first, *rest = DCGANDiscriminator(image_spec(32)).features
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in first)
    assert all(any(isinstance(layer, nn.BatchNorm2d) for layer in block) for block in rest)
    assert all(block[-1].negative_slope == 0.2 for block in [first, *rest])


@pytest.mark.parametrize("network", [DCGANGenerator, DCGANDiscriminator])
def test_dcgan_starts_from_the_papers_distribution(network):
    torch.manual_seed(0)
    for layer in network(image_spec(64, 3)).modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            num = layer.weight.numel()
            assert abs(layer.weight.mean()) < 5 * 0.02 / num**0.5
            assert layer.weight.std().item() == pytest.approx(0.02, rel=5 / num**0.5)
        if isinstance(layer, nn.BatchNorm2d):
            assert abs(layer.weight.mean() - 1) < 5 * 0.02 / len(layer.weight) ** 0.5
            assert 0.01 < layer.weight.std() < 0.03 and not layer.bias.any()


@pytest.mark.parametrize("norm, has_bias", [("none", True), ("batch", False)])
def test_convolutions_have_a_bias_where_no_batch_norm_has_one(norm, has_bias):
    network = DCGANDiscriminator(image_spec(32), 4, norm)
    assert {layer.bias is not None for layer in network.modules() if isinstance(layer, nn.Conv2d)} == {
        has_bias
    }


@pytest.mark.parametrize(
    "size, start, num_doublings",
    [(8, 2, 2), (12, 3, 2), (16, 4, 2), (28, 7, 2), (32, 4, 3), (48, 6, 3), (64, 4, 4), (128, 4, 5)],
)
def test_dcgan_starts_from_a_few_pixels_and_doubles(size, start, num_doublings):
    assert smallest_map(image_spec(size)) == ((start, start), num_doublings)


@pytest.mark.parametrize("size, remedy", [(100, 96), (36, 32), (30, 28), (4, 8), (218, 192)])
def test_dcgan_names_a_size_that_fits(size, remedy):
    with pytest.raises(ValueError, match=rf"got {size} x {size}.* {remedy}\."):
        DCGANGenerator(image_spec(size))
    assert smallest_map(image_spec(remedy))


def test_dcgan_refuses_vectors():
    with pytest.raises(ValueError, match="needs images"):
        DCGANDiscriminator(POINTS)


def test_maxout_is_the_largest_of_its_linear_maps():
    layer = Maxout(3, 2, num_pieces=4)
    x = torch.randn(5, 3)
    maps = (x @ layer.linear.weight.T + layer.linear.bias).reshape(5, 2, 4)
    assert torch.allclose(layer(x), maps.max(dim=2).values, atol=1e-6)


def test_projection_is_the_inner_product_with_the_labels_embedding():
    projection, h, label = Projection(3, 5), torch.randn(BATCH, 5), torch.tensor([0, 2, 1, 2])
    expected = torch.stack([projection.embedding.weight[c] @ row for c, row in zip(label, h, strict=True)])
    assert torch.allclose(projection(h, label), expected)
    assert not Projection(0, 5)(h, None).any()


def test_dcgan_projects_on_the_features_summed_over_positions():
    spec = image_spec(16, num_classes=3)
    network, x = DCGANDiscriminator(spec, 4, "none").eval(), data(spec)
    change = network(x, torch.full((BATCH,), 2)) - network(x, torch.full((BATCH,), 0))
    embedding = network.projection.embedding.weight
    expected = network.features(x).sum(dim=(2, 3)) @ (embedding[2] - embedding[0])
    assert torch.allclose(change, expected, atol=1e-5)


def spectral_discriminator(spec: DataSpec) -> DCGANDiscriminator:
    torch.manual_seed(0)
    return DCGANDiscriminator(spec, base_channels=4, norm="none", spectral_norm=True)


def test_spectral_norm_gives_every_weight_the_largest_singular_value_1():
    spec = image_spec(16, num_classes=3)
    network = spectral_discriminator(spec)
    for _ in range(200):
        network(data(spec), labels(spec))
    network.eval()
    weights = [layer.weight for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Embedding)]
    assert len(weights) == 4
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda network: Average(network, 64).module])
def test_a_copy_with_spectral_norm_is_equal_and_independent(copier):
    spec = image_spec(8, num_classes=3)
    network = spectral_discriminator(spec)
    network(data(spec), labels(spec))
    duplicate = copier(network).eval()
    network.eval()
    before = duplicate(data(spec), labels(spec))
    assert torch.equal(network(data(spec), labels(spec)), before)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 1
    assert torch.equal(duplicate(data(spec), labels(spec)), before)


def test_spectral_norm_survives_a_checkpoint_bit_for_bit():
    spec = image_spec(8, num_classes=3)
    network = spectral_discriminator(spec)
    network(data(spec), labels(spec))
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    restored = DCGANDiscriminator(spec, base_channels=4, norm="none", spectral_norm=True)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(2):  # the second forward also depends on the restored power iteration
        assert torch.equal(restored(data(spec), labels(spec)), network(data(spec), labels(spec)))


@pytest.mark.parametrize(
    "network", [spectral_discriminator, DCGANDiscriminator], ids=["spectral", "batch norm"]
)
def test_averages_follow_their_closed_form_through_parametrisations(network):
    spec = image_spec(8)
    network = network(spec)
    average = Average(network, half_life=64 / math.log2(1 / 0.15))
    average.update(network, 64)  # the first update copies; the ramp stands at 2 / 11 in the second
    old = [parameter.clone() for parameter in network.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
    network(data(spec))
    average.update(network, 64)
    for before, now, mean in zip(old, network.parameters(), average.module.parameters(), strict=True):
        assert torch.allclose(mean, 0.15 * before + 0.85 * now, atol=1e-6)
    for now, copied in zip(network.buffers(), average.module.buffers(), strict=True):
        assert torch.equal(now, copied)
    assert average.num_updates == 2


def ramp(size: int = 16, channels: int = 3, num: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(num, channels, size, size, generator=generator).add(0.5)


OPERATIONS = ["color", "translation", "cutout"]


@pytest.mark.parametrize("policy", [[], *([name] for name in OPERATIONS), OPERATIONS])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 48)])
def test_augmentation_keeps_the_shape_and_passes_gradients(policy, shape):
    torch.manual_seed(0)
    x = torch.rand(32, *shape, requires_grad=True)
    y = DiffAugment(policy)(x)
    y.sum().backward()
    assert y.shape == x.shape and x.grad.flatten(1).abs().sum(dim=1).gt(0).all()


def test_an_empty_policy_changes_nothing_and_unknown_names_are_refused():
    assert torch.equal(DiffAugment([])(ramp()), ramp())
    with pytest.raises(ValueError, match="color, translation and cutout, got rotation"):
        DiffAugment(["color", "rotation"])


@pytest.mark.parametrize("policy", [[name] for name in OPERATIONS])
def test_each_image_draws_its_own_change_from_the_global_generator(policy):
    one = ramp(num=1).expand(16, -1, -1, -1)
    torch.manual_seed(3)
    first = DiffAugment(policy)(one)
    assert len({row.numpy().tobytes() for row in first}) > 8
    torch.manual_seed(3)
    assert torch.equal(DiffAugment(policy)(one), first)


def test_color_shifts_the_mean_by_at_most_a_half_and_scales_contrast_by_a_half_to_three_halves():
    torch.manual_seed(0)
    grey = ramp(channels=1, num=512)  # saturation does nothing to a single channel
    changed = jitter_color(grey)
    shift = changed.mean(dim=(1, 2, 3)) - grey.mean(dim=(1, 2, 3))
    contrast = changed.std(dim=(1, 2, 3)) / grey.std(dim=(1, 2, 3))
    for value, low, high in [(shift, -0.5, 0.5), (contrast, 0.5, 1.5)]:
        assert low <= value.min() < low + 0.05 and high - 0.05 < value.max() <= high + 1e-5


def test_saturation_scales_the_differences_between_channels_by_0_to_2():
    torch.manual_seed(0)
    spread = torch.tensor([-1.0, 0.0, 1.0])[None, :, None, None].expand(512, 3, 4, 4)
    flat = spread + torch.zeros(1, 1, 4, 4)
    changed = jitter_color(flat)
    assert torch.allclose(changed.mean(dim=1).std(dim=(1, 2)), torch.zeros(512), atol=1e-6)
    difference = (changed[:, 2] - changed[:, 0])[:, 0, 0] / 2  # saturation times contrast
    assert 0 <= difference.min() < 0.1 and 2.5 < difference.max() <= 3
    assert difference.mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("height, width", [(8, 8), (16, 16), (32, 16)])
def test_translation_moves_by_up_to_an_eighth_and_fills_with_zeros(height, width):
    torch.manual_seed(0)
    x = torch.arange(1.0, height * width + 1).reshape(1, 1, height, width).expand(400, 2, -1, -1)
    seen = set()
    for row in translate(x):
        assert torch.equal(row[0], row[1])
        down, right = position_of_shift(row[0], height, width)
        expected = torch.zeros(height, width)
        expected[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = x[
            0, 0, max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
        ]
        assert torch.equal(row[0], expected)
        seen.add((down, right))
    reach_down, reach_right = height // 8, width // 8
    assert len(seen) == (2 * reach_down + 1) * (2 * reach_right + 1)
    assert {down for down, _ in seen} == set(range(-reach_down, reach_down + 1))
    assert {right for _, right in seen} == set(range(-reach_right, reach_right + 1))


def position_of_shift(image: torch.Tensor, height: int, width: int) -> tuple[int, int]:
    where = (height // 2, width // 2)
    value = int(image[where]) - 1
    return where[0] - value // width, where[1] - value % width


@pytest.mark.parametrize("size", [8, 16])
def test_cutout_zeroes_a_square_of_half_the_side_or_what_the_border_leaves_of_it(size):
    torch.manual_seed(0)
    areas = []
    for row in cut_out(ramp(size, num=400)) == 0:
        assert torch.equal(row[0], row[1]) and torch.equal(row[0], row[2])
        rows, columns = row[0].any(dim=1), row[0].any(dim=0)
        assert torch.equal(row[0], rows[:, None] & columns[None, :])
        for side in (rows, columns):
            first, last = side.nonzero().min().item(), side.nonzero().max().item()
            assert side.sum() == last - first + 1 <= size // 2
            assert side.sum() == size // 2 or first == 0 or last == size - 1
        areas.append(int(row[0].sum()))
    assert max(areas) == (size // 2) ** 2 and min(areas) >= (size // 4) ** 2


def test_cutout_and_translation_stay_in_range():
    assert DiffAugment(["translation", "cutout"])(ramp()).max() <= ramp().max()


def test_random_shift_moves_training_images_only_and_repeats_the_border():
    torch.manual_seed(0)
    x = torch.arange(64.0).reshape(1, 1, 8, 8).expand(200, 1, 8, 8)
    shift = RandomShift(1)
    assert torch.equal(shift.eval()(x), x)
    seen = {tuple(row[0, 3:5, 3].tolist()) for row in shift.train()(x)}
    assert seen == {(27.0 + 8 * i + j, 35.0 + 8 * i + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
    assert shift(x).min() == 0 and shift(x).max() == 63
    assert torch.equal(shift(torch.full((3, 1, 8, 8), -1.0)), torch.full((3, 1, 8, 8), -1.0))


CLASSIFIED = [image_spec(8, 1, 10), image_spec(32, 3, 10), image_spec(28, 1, 10), image_spec(128, 3, 5)]


@pytest.mark.parametrize("spec", CLASSIFIED, ids=lambda spec: "x".join(map(str, spec.shape)))
def test_classifiers_give_logits_of_their_features(spec):
    network, x = ConvClassifier(spec, num_features=16, base_channels=4).eval(), data(spec)
    features = network.features(x)
    assert features.shape == (BATCH, 16) and network(x).shape == (BATCH, spec.num_classes)
    assert torch.equal(network.head(features), network(x))


def test_every_parameter_of_a_classifier_receives_a_gradient():
    spec = CLASSIFIED[1]
    network = ConvClassifier(spec, num_features=16, base_channels=4)
    network(data(spec)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("spec", [image_spec(8), LABELLED_POINTS])
def test_classifiers_refuse_data_without_images_or_labels(spec):
    with pytest.raises(ValueError, match="needs images of at least 2 classes"):
        ConvClassifier(spec)


class FixedLogits(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)[:, :3]


def classifier(**options) -> Classifier:
    return Classifier(image_spec(4, 1, 3), FixedLogits, lambda p: torch.optim.SGD(p, lr=1.0), **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_classifier_minimises_smoothed_cross_entropy_and_counts_hits(smoothing):
    x, label = torch.randn(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = classifier(label_smoothing=smoothing).losses({"image": x, "label": label})
    log_probabilities = x.flatten(1)[:, :3].log_softmax(dim=1)
    target = nn.functional.one_hot(label, 3) * (1 - smoothing) + smoothing / 3
    assert torch.allclose(losses["loss"], -(target * log_probabilities).sum(dim=1).mean())
    hits = log_probabilities.argmax(dim=1) == label
    assert losses["accuracy"].item() == pytest.approx(hits.float().mean().item())


def test_a_classifier_augments_in_training_only():
    model = classifier(augment=nn.Flatten(0))  # breaks the shape, so that its use is seen
    batch = {"image": torch.randn(3, 1, 4, 4), "label": torch.arange(3)}
    assert model.eval().losses(batch)["loss"].isfinite()
    with pytest.raises(IndexError):
        model.train().losses(batch)


def test_a_classifier_learns_and_hands_over_its_network_as_extractor():
    torch.manual_seed(0)
    spec = image_spec(8, 1, 2)
    model = Classifier(spec, lambda s: ConvClassifier(s, 8, 4), lambda p: torch.optim.Adam(p, lr=0.01))
    label = torch.arange(64) % 2
    image = torch.randn(64, 1, 8, 8) * 0.3 + (label * 2.0 - 1.0)[:, None, None, None]
    optimizer = model.configure_optimizers()
    for _ in range(30):
        losses = model.losses({"image": image, "label": label})
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["accuracy"] > 0.95
    assert model.extractor_network.features(image).shape == (64, 8)
