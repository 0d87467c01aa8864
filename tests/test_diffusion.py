"""The diffusion family and its networks: what is learned, averaged, hidden, counted and sampled."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from short_training import train

from benchmarks import genlab_jobs as bench
from genlab.data.random_data import RandomData
from genlab.data.random_images import RandomImages
from genlab.data.toy import Gaussian1D
from genlab.evaluation import sampler_curve
from genlab.evaluation.given import given_for
from genlab.families.base import Schedule
from genlab.families.diffusion import Diffusion, Guidance, Objective
from genlab.families.optimizers import Float32Muon
from genlab.metrics.pairs import PSNR
from genlab.networks.attention import CrossAttention
from genlab.networks.dit import DiT, MLPDenoiser
from genlab.networks.embeddings import sinusoids
from genlab.networks.text_reader import TextReader
from genlab.networks.unet import UNet
from genlab.processes.base import CLEAN, Denoiser, Level
from genlab.processes.chain import DiscreteChain
from genlab.processes.grids import UniformGrid
from genlab.processes.likelihood import ProbabilityFlow, VariationalBound
from genlab.processes.prediction import (
    MinSNR,
    Preconditioned,
    PredictData,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genlab.processes.sde import EDM, VESDE, VPSDE, NoiseLadder, RectifiedFlow, SubVPSDE
from genlab.samplers.ancestral import DDIM, Ancestral
from genlab.samplers.conditioning import RePaint
from genlab.samplers.ode import DPMSolver, Euler, Heun, RungeKutta
from genlab.shapes import DataSpec

UNET = partial(UNet, channels=(8, 16), num_blocks=1, attention=(4,), num_groups=4)
TINY_UNET = partial(UNET, channels=(4, 8), num_groups=2)
SMALL = partial(MLPDenoiser, hidden=(16, 16), time_dim=8)
ADAM = partial(torch.optim.Adam, lr=1e-3)
SHORT = DDIM(UniformGrid(4))
GRAY, COLOUR = DataSpec("gray", (1, 8, 8), 3), DataSpec("colour", (3, 16, 24))

PAD = 4
CAPTION = DataSpec("caption", (6,), levels=5, vocabulary='{"pad": 4}')
CODES = DataSpec("codes", (2, 8, 8), 3, 0, CAPTION)
PICTURES = DataSpec("pictures", (1, 8, 8), source=DataSpec("sketches", (2, 8, 8)))
READER = partial(TextReader, num_layers=1, num_heads=2, width=8)
READING = partial(UNET, text=READER)
DIT = partial(DiT, width=16, depth=2, num_heads=2, qk_norm=True)
READING_DIT = partial(DIT, text=partial(READER, positions="rotary"))


def images(num_classes=3, batch_size=8):
    return RandomImages((1, 8, 8), num_classes, num_train=64, num_test=16, batch_size=batch_size)


def diffusion(network=SMALL, process=None, optimizer=ADAM, **options):
    torch.manual_seed(0)
    options.setdefault("sampler", SHORT)
    return Diffusion(images().spec, network, process or DiscreteChain(), optimizer, **options)


def fit(model, data=None, **options):
    train(model, data or images(), **options)
    return model


# Networks

NETWORKS = [
    (UNET, GRAY), (UNET, GRAY.unconditional()), (UNET, COLOUR), (partial(UNET, head_dim=4), GRAY),
    (partial(DiT, width=16, depth=2, num_heads=2), GRAY),
    (partial(DiT, width=16, depth=1, num_heads=2), COLOUR),
    (partial(MLPDenoiser, hidden=(16, 16), time_dim=8), GRAY),
    (partial(MLPDenoiser, hidden=(16, 16), time_dim=8), DataSpec("points", (2,))),
    (READING, CODES), (READING, CODES.told(["source"])), (UNET, PICTURES),
    (READING_DIT, CODES), (READING_DIT, CODES.told(["source"])),
]  # fmt: skip


def filled(network):
    """A network whose zeroed layers are not, as after some training."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network.eval()


def inputs(spec, batch=3):
    """What a network gets: x and t, and by name what it is told."""
    torch.manual_seed(1)
    x, t, told, source = torch.randn(batch, *spec.shape), torch.rand(batch) * 1000, {}, spec.source
    if spec.num_classes:
        told["label"] = torch.arange(batch) % spec.num_classes
    if source is not None:
        is_text = source.kind == "tokens"
        told["source"] = torch.randint(4, (batch, 6)) if is_text else torch.randn(batch, *source.shape)
    return x, t, told


def nothing(spec, told):
    """The same with nothing told."""
    hidden = {"label": spec.num_classes, "source": PAD if spec.source is CAPTION else 0}
    return {name: torch.full_like(value, hidden[name]) for name, value in told.items()}


def rows(told, part):
    return {name: value[part] for name, value in told.items()}


@pytest.mark.parametrize(("factory", "spec"), NETWORKS)
def test_denoising_networks_keep_the_shape_and_use_every_parameter(factory, spec):
    network = filled(factory(spec))
    x, t, told = inputs(spec)
    out = network(x, t, **told)
    assert out.shape == x.shape
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(("factory", "spec"), NETWORKS)
def test_each_row_has_its_own_noise_level_and_is_told_its_own(factory, spec):
    network = filled(factory(spec))
    x, t, told = inputs(spec)
    whole = network(x, t, **told)
    alone = [network(x[i : i + 1], t[i : i + 1], **rows(told, slice(i, i + 1))) for i in range(3)]
    assert torch.allclose(whole, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(whole, network(x, t + 50, **told), atol=1e-5)
    for name, value in nothing(spec, told).items():
        assert not torch.allclose(whole, network(x, t, **{**told, name: value}), atol=1e-5), name


@pytest.mark.parametrize(("factory", "spec"), [*NETWORKS[:6], *NETWORKS[-5:]])
def test_image_networks_begin_at_zero(factory, spec):
    x, t, told = inputs(spec)
    assert not factory(spec)(x, t, **told).any()


def test_the_cifar_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = UNet(DataSpec("cifar10", (3, 32, 32)))
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(35.7e6, rel=0.003)


def test_channels_last_memory_changes_no_value():
    network = filled(READING(CODES))
    x, t, told = inputs(CODES)
    expected = network(x, t, **told)
    network.to(memory_format=torch.channels_last)
    assert torch.allclose(network(x, t, **told), expected, atol=1e-5)


def test_attention_mixes_all_pixels_and_convolution_alone_does_not():
    x, t, _ = inputs(DataSpec("wide", (1, 32, 32)), 1)
    moved = x.clone()
    moved[..., 0, 0] += 1

    def touched(attention):
        network = local_unet(attention=attention)
        return bool((network(x, t)[..., -1, -1] != network(moved, t)[..., -1, -1]).any())

    assert touched([32]) and not touched([])


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("coordinates", [False, True])
def test_far_from_the_edges_a_place_is_known_by_its_coordinates_alone(coordinates, axis):
    network = local_unet(attention=[], coordinates=coordinates)
    x, t = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])
    there = network(x.roll(3, axis), t).roll(-3, axis)
    middle = (..., slice(13, 19), slice(13, 19))
    assert torch.allclose(there[middle], network(x, t)[middle], atol=1e-4) != coordinates


def local_unet(**options):
    """Returns a U-Net without the norms, and the middle, that let every pixel know of all others."""
    network = filled(UNet(DataSpec("wide", (1, 32, 32)), (8,), 1, num_groups=1, **options))
    network.middle = torch.nn.ModuleList()
    for module in network.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda h: h
    return network


def test_time_embeddings_are_distinct_for_all_levels_and_alike_for_integers_and_floats():
    t = torch.arange(1000)
    code = sinusoids(t, 64)
    assert torch.equal(code, sinusoids(t.double(), 64)) and code.dtype == torch.float32
    assert torch.cdist(code.double(), code.double()).fill_diagonal_(9).min() > 1e-3


# A text in a U-Net and in a transformer


@pytest.fixture(scope="module", params=[READING, READING_DIT], ids=["UNet", "DiT"])
def reading(request):
    """A network that reads captions, its layers far from zero; read it only."""
    return filled(request.param(CODES))


def looks_of(network):
    return [module.output for module in network.modules() if isinstance(module, CrossAttention)]


def test_a_text_reaches_the_output_by_cross_attention_alone(reading):
    network, (x, t, told) = copy.deepcopy(reading), inputs(CODES)
    for layer in looks_of(network):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    out = network(x, t, **told)
    assert torch.equal(out, network(x, t, **{**told, "source": told["source"].flip(1)}))
    out.square().mean().backward()
    assert not any(p.grad.any() for p in network.text.parameters())
    assert all(layer.weight.grad.any() for layer in looks_of(network))


@pytest.mark.parametrize(("factory", "num_looks"), [(READING, 4), (READING_DIT, 2)])
def test_there_is_a_look_at_the_text_wherever_there_is_attention(factory, num_looks):
    # The U-Net's: down, in the middle and twice on the way up, at the side 4 alone; each begins at nothing.
    looks = looks_of(factory(CODES))
    assert len(looks) == num_looks and not any(layer.weight.any() for layer in looks)
    assert not any(looks_of(network) for network in (UNET(GRAY), UNET(PICTURES), DIT(GRAY)))


def test_normalised_queries_and_keys_make_their_lengths_irrelevant():
    network, (x, t, told) = filled(DIT(GRAY)), inputs(GRAY)
    expected = network(x, t, **told)
    with torch.no_grad():
        for block in network.blocks:
            block.to_qkv.weight[:32] *= 10  # queries and keys, not values
            block.to_qkv.bias[:32] *= 10
    assert torch.allclose(network(x, t, **told), expected, atol=1e-5)


def test_a_caption_alone_is_the_same_caption_in_a_padded_batch(reading):
    x, t, told = inputs(CODES)
    text = told["source"]
    text[0, 2:], text[1, 4:] = PAD, PAD
    whole = reading(x, t, **told)
    for i, length in enumerate((2, 4, 6)):
        alone = {"label": told["label"][i : i + 1], "source": text[i : i + 1, :length]}
        assert torch.allclose(reading(x[i : i + 1], t[i : i + 1], **alone), whole[i : i + 1], atol=1e-6)


def test_a_reader_s_positions_are_those_that_it_is_given():
    kinds = {kind: READER(CAPTION, positions=kind).transformer for kind in ("learned", "rotary", "both")}
    assert {kind: each.position is not None for kind, each in kinds.items()} == {
        "learned": True, "rotary": False, "both": True
    }  # fmt: skip
    rotations = {kind: each.blocks[0].attention.rotation for kind, each in kinds.items()}
    assert rotations["learned"] is None and None not in (rotations["rotary"], rotations["both"])


def test_no_attention_is_paid_to_padding(reading):
    words = reading.text(torch.tensor([[0, 1, PAD, PAD]]))
    assert words.seen.flatten().tolist() == [True, True, True, False, False]
    across = next(module for module in reading.modules() if isinstance(module, CrossAttention))
    queries = torch.randn(1, 9, across.output.in_features)
    weights = across.weights(queries, across.read(words.vectors), words.seen)
    assert not weights[..., 3:].any() and torch.allclose(weights.sum(-1), torch.ones(1, 1, 9))


def test_no_text_is_learned_and_the_same_at_any_length(reading):
    network, (x, t, told) = copy.deepcopy(reading), inputs(CODES)
    hidden = network(x, t, **{**told, "source": torch.full((3, 6), PAD)})
    short = network(x, t, **{**told, "source": torch.full((3, 1), PAD)})
    assert hidden.isfinite().all() and torch.allclose(hidden, short, atol=1e-6)
    hidden.square().mean().backward()
    gradient = network.text.transformer.token.weight.grad
    assert gradient[network.text.mark].any() and not gradient[: network.text.mark].any()


def test_texts_whose_vocabulary_has_no_padding_can_be_hidden_too():
    source = DataSpec("words", (6,), levels=5)
    network = filled(READING(DataSpec("codes", (2, 8, 8), 0, 0, source)))
    x, t, _ = inputs(CODES)
    hidden = network(x, t, source=torch.full((3, 6), source.padding))
    assert hidden.isfinite().all()
    assert not torch.allclose(hidden, network(x, t, source=torch.full((3, 6), 4)), atol=1e-5)


SMALL_IMAGE, MAP = DataSpec("small", (1, 4, 4)), DataSpec("map", (8, 8), levels=5)


@pytest.mark.parametrize("source", [SMALL_IMAGE, MAP, DataSpec("points", (8,), levels=0)])
def test_a_source_that_is_neither_a_text_nor_an_image_of_the_same_sides_is_refused(source):
    with pytest.raises(ValueError, match=rf"gray, 8 x 8, as a source, but {source.name} has shape"):
        UNET(DataSpec("gray", (1, 8, 8), source=source))


@pytest.mark.parametrize(("network", "spec"), [(DiT, PICTURES), (MLPDenoiser, CODES)])
def test_networks_that_read_no_such_source_say_so(network, spec):
    with pytest.raises(ValueError, match=f"{network.__name__} reads no.* source.*model.given, or use UNet"):
        network(spec)


def test_a_network_that_was_built_for_a_source_says_that_it_is_missing(reading):
    for network, spec in ((reading, CODES), (UNET(PICTURES), PICTURES)):
        x, t, told = inputs(spec)
        told.pop("source")
        with pytest.raises(ValueError, match="source is missing"):
            network(x, t, **told)


def test_sides_that_cannot_be_halved_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="multiple of 8, got 28 x 28"):
        UNet(DataSpec("mnist", (1, 28, 28)))
    with pytest.raises(ValueError, match="use MLPDenoiser"):
        UNet(DataSpec("points", (2,)))


# The family


MUONS = [
    (
        partial(DiT, width=16, depth=1, num_heads=2),
        {
            "blocks.0.to_qkv.weight",
            "blocks.0.modulation.1.weight",
            "input.weight",
            "condition.layers.0.weight",
        },
        {"output.weight", "condition.label.weight", "blocks.0.to_qkv.bias"},
    ),
    (
        UNET,
        {"input.weight", "middle.0.attention.to_qkv.weight", "down.0.block.first.2.weight"},
        {"output.2.weight", "condition.label.weight", "input.bias", "down.0.block.first.0.weight"},
    ),
]


@pytest.mark.parametrize(("network", "matrices", "others"), MUONS, ids=["DiT", "UNet"])
def test_muon_takes_matrices_and_filters_and_the_other_optimiser_the_rest(network, matrices, others):
    model = diffusion(network, given=["label"], matrix_optimizer=Float32Muon)
    muon, adam = model.configure_optimizers()["optimizer"].parts
    names = {id(p): name for name, p in model.network.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adam.param_groups for p in group["params"]}
    assert matrices <= taken and others <= left
    assert len(taken) + len(left) == len(names)


PAIRS = [
    (DiscreteChain(), PredictNoise()), (DiscreteChain(), PredictV()), (DiscreteChain(), PredictData()),
    (VPSDE(), PredictNoise()), (SubVPSDE(), PredictNoise()), (VESDE(), PredictNoise()),
    (NoiseLadder(), PredictNoise()), (EDM(), Preconditioned()), (RectifiedFlow(), PredictVelocity()),
]  # fmt: skip


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_every_process_trains_in_half_precision_and_samples_finite_images(process, prediction):
    model = diffusion(TINY_UNET, process, objective=Objective(prediction))
    fit(model, max_steps=2, precision="bf16-mixed")
    assert all(value.isfinite() for value in model.latest.values())
    x = model.sample(4)
    assert x.shape == (4, 1, 8, 8) and x.isfinite().all() and x.abs().max() <= 1
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize(("process", "prediction"), PAIRS)
def test_an_untrained_network_loses_the_targets_square(process, prediction):
    model = diffusion(process=process, objective=Objective(prediction)).train()
    x = torch.zeros(4096, 1, 8, 8).uniform_(-1, 1)
    t = process.training_time((torch.arange(4096) + 0.5) / 4096)
    with model.numbered(torch.arange(4096)):
        loss = model._loss(lambda x, t: 0 * x, x, t, {})["loss"].item()
    alpha, sigma = process.coefficients(t, x)
    zero = prediction.target(torch.ones_like(x) / 3**0.5, 0 * x, alpha, sigma).square().mean()
    noise = prediction.target(0 * x, torch.ones_like(x), alpha, sigma).square().mean()
    assert loss == pytest.approx((zero + noise).item(), rel=0.02)


def test_a_perfect_noise_predictor_loses_nothing():
    model, process = diffusion(), DiscreteChain()
    x, t = torch.rand(8, 1, 8, 8), torch.arange(1, 9) * 100.0

    def knows(x_t, time):
        alpha, sigma = process.coefficients(t, x)
        return (x_t - alpha * x) / sigma

    with model.numbered(torch.arange(8)):
        assert model._loss(knows, x, t, {})["loss"] < 1e-8


@pytest.fixture(scope="module")
def told():
    """A model that is told labels, some of them hidden, after a few steps; its layers are far from zero."""
    model = diffusion(given=["label"], guidance=Guidance(dropout=0.1), likelihood=ProbabilityFlow(2))
    filled(model.network)
    return fit(model).eval()


@pytest.mark.parametrize(
    "sampler", [SHORT, Ancestral(UniformGrid(4)), DDIM(UniformGrid(4), eta=0.7), DPMSolver(UniformGrid(4))]
)
def test_sample_i_is_the_same_in_any_batch_for_any_sampler(sampler, told):
    def draw(index):
        return told.sample_with(sampler, index, seed=3, **given_for(told, index))

    parts = torch.cat([draw(index) for index in torch.arange(7).split(2)])
    assert torch.allclose(draw(torch.arange(7)), parts, atol=1e-4)
    assert torch.equal(told.draw_latent(7, 3)[4:], told.draw_latent(torch.arange(4, 7), 3))


def test_decoding_the_starting_noise_is_sampling(told):
    label = torch.arange(3)
    for sampler in (SHORT, Heun(UniformGrid(3))):
        model = copy.copy(told)
        model.sampler = sampler
        decoded = model.decode(model.draw_latent(3, 5), label=label)
        assert torch.allclose(decoded, model.sample(3, 5, label=label), atol=1e-6)


def test_items_are_hidden_each_on_its_own_as_a_whole_and_only_in_training():
    model = of_codes(guidance=Guidance(dropout=0.3)).train()
    label, text = torch.arange(4_000) % 3, torch.randint(4, (4_000, 6))
    with model.numbered(torch.arange(4_000)):
        found = model._hidden({"label": label, "source": text})
        hidden = found["label"] == 3
        assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.03)
        assert (found["source"][hidden] == PAD).all() and torch.equal(found["source"][~hidden], text[~hidden])
        assert torch.equal(found["label"][~hidden], label[~hidden])
        assert (label < 3).all() and (text < PAD).all()
        assert model.eval()._hidden({"label": label, "source": text})["source"] is text


def test_an_image_that_is_hidden_is_grey():
    model = Diffusion(PICTURES, UNET, VPSDE(), ADAM, given=["source"], guidance=Guidance(dropout=0.5)).train()
    source = torch.rand(40, 2, 8, 8) + 0.1
    with model.numbered(torch.arange(40)):
        found = model._hidden({"source": source})["source"]
    kept = found.flatten(1).all(1)
    assert torch.equal(found[kept], source[kept]) and 0 < kept.sum() < 40 and not found[~kept].any()


def test_guidance_changes_samples_and_one_is_the_conditional_model(told):
    label, guided, strange = torch.arange(3), copy.copy(told), copy.copy(told)
    plain = told.sample(3, label=label)
    guided.guidance = Guidance(3.0, 0.1)
    assert not torch.allclose(guided.sample(3, label=label), plain, atol=1e-5)
    strange.guidance = Guidance(1.0, 0.0)
    assert torch.equal(strange.sample(3, label=label), plain)


def of_codes(**options):
    """A model of codes that is told labels and captions, its layers far from zero."""
    options = {"given": ["label", "source"], "guidance": Guidance(dropout=0.1), "sampler": SHORT, **options}
    torch.manual_seed(0)
    model = Diffusion(CODES, READING, VPSDE(), ADAM, **options)
    filled(model.network)
    return model.eval()


@pytest.fixture(scope="module")
def captioned():
    return of_codes()


def guided_by(model, guidance):
    """The same model with another guidance."""
    other = copy.copy(model)
    other.guidance = guidance
    return other


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_one_told_nothing(captioned):
    _, _, told = inputs(CODES)
    plain, free = captioned.sample(3, **told), captioned.sample(3, **nothing(CODES, told))
    assert torch.equal(guided_by(captioned, Guidance(1.0, 0.1, interval=(0.1, 9.0))).sample(3, **told), plain)
    found = guided_by(captioned, Guidance(0.0, 0.1)).sample(3, **told)
    assert torch.allclose(found, free, rtol=1e-3, atol=1e-2) and not torch.allclose(found, plain, rtol=0.1)


@pytest.mark.parametrize("given", [["label"], ["source"]])
def test_what_is_told_guides_alone_too(given):
    _, _, told = inputs(CODES)
    model, told = of_codes(given=given), {name: told[name] for name in given}
    free = model.sample(3, **nothing(CODES, told))
    found = guided_by(model, Guidance(0.0, 0.1)).sample(3, **told)
    assert torch.allclose(found, free, atol=1e-4)
    assert not torch.allclose(model.sample(3, **told), free, atol=1e-2)


def test_guidance_in_an_empty_interval_is_none_and_everywhere_all_to_the_bit(captioned):
    _, _, told = inputs(CODES)

    def drawn(scale, interval):
        return guided_by(captioned, Guidance(scale, 0.1, interval=interval)).sample(3, **told)

    assert torch.equal(drawn(3.0, (1.0, 1.0)), captioned.sample(3, **told))
    everywhere = drawn(3.0, None)
    assert torch.equal(drawn(3.0, (0.0, math.inf)), everywhere)
    part = drawn(3.0, (0.3, 3.0))
    assert not torch.equal(part, everywhere) and not torch.equal(part, drawn(1.0, None))


def test_the_guide_is_the_averaged_network_after_its_examples_and_then_stays():
    model, kept = diffusion(half_life=16, guidance=Guidance(2.0, guide_after=16)), []
    filled(model.network)

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, model, *_):
            state = {name: value.clone() for name, value in model.average.module.state_dict().items()}
            kept.append((model.earlier.is_taken, state, copy.deepcopy(model.earlier.module.state_dict())))

    fit(model, max_steps=4, callbacks=[Watch()])
    assert [is_taken for is_taken, *_ in kept] == [False, True, True, True]
    averaged = kept[1][1]
    for _, _, guide in kept[1:]:
        assert all(torch.equal(guide[name], averaged[name]) for name in guide)
    assert not all(torch.equal(kept[-1][1][name], averaged[name]) for name in averaged)
    assert not any(p.requires_grad for p in model.earlier.parameters())
    assert not any(module.training for module in model.train().earlier.modules())


def test_a_model_is_not_guided_by_itself_nor_by_a_guide_to_come():
    model = diffusion(guidance=Guidance(3.0, guide_after=16)).eval()
    plain, earlier = model.sample(3), model.earlier
    assert model.passes == SHORT.passes(model.process)
    filled(model.network)
    plain = model.sample(3)
    earlier.offer(model.network, 16)
    assert model.passes == 2 * SHORT.passes(model.process)
    assert torch.allclose(model.sample(3), plain, atol=1e-5)
    for parameter in earlier.parameters():
        parameter.mul_(0.9)
    guided = model.sample(3)
    assert not torch.allclose(guided, plain, atol=1e-3)
    weaker = copy.copy(model)
    weaker.guidance = Guidance(0.0, guide_after=16)
    other = diffusion()
    other.network.load_state_dict(earlier.module.state_dict())
    assert torch.equal(weaker.sample(3), other.sample(3))


def test_an_earlier_network_is_told_what_the_model_is(captioned):
    _, _, told = inputs(CODES)
    model = of_codes(guidance=Guidance(0.0, 0.1, guide_after=16))
    model.earlier.offer(model.network, 16)
    assert torch.equal(model.sample(3, **told), captioned.sample(3, **told))


def test_a_training_that_ends_before_there_is_a_guide_says_so():
    with pytest.warns(UserWarning, match="after 16 examples, before guidance.guide_after 99"):
        fit(diffusion(guidance=Guidance(2.0, guide_after=99)), max_steps=2)


def test_the_errors_of_a_validation_are_the_networks_own(captioned):
    x, _, told = inputs(CODES)
    with captioned.numbered(torch.arange(3)):
        plain = captioned._errors(x, told)
        guided = guided_by(captioned, Guidance(4.0, 0.1))._errors(x, told)
    assert plain == guided and len(plain) == 5


def test_the_error_at_a_ratio_is_comparable_between_processes():
    data = Gaussian1D(num_train=64, num_test=512, batch_size=64)

    class Best(torch.nn.Module):
        """The noise that normal data of unit variance would have, for any process that predicts noise."""

        def __init__(self, spec):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, label=None):
            return x  # filled in below

    found = {}
    for process in (DiscreteChain(), VESDE(), VPSDE()):
        model = Diffusion(data.spec, Best, process, ADAM).eval()
        x = torch.randn(4_000, 1)
        model.network.forward = partial(best_noise, process)
        with model.numbered(torch.arange(4_000)):
            found[process] = model._errors(x, {})
    for ratio in (0.1, 1.0, 10.0):
        expected = ratio**2 / (1 + ratio**2)
        for errors in found.values():
            assert errors[f"x_error@{ratio:g}"].item() == pytest.approx(expected, rel=0.1)


def best_noise(process, scaled, time, label=None):
    t = time.double() / 1000 * process.end
    if isinstance(process, DiscreteChain):
        t = t + 1.0
    alpha, sigma = process.coefficients(t, scaled)
    x_t = scaled * torch.sqrt(alpha**2 + sigma**2)
    return sigma * x_t / (alpha**2 + sigma**2)


@pytest.mark.parametrize(
    "likelihood", [VariationalBound(UniformGrid(5)), ProbabilityFlow(2), ProbabilityFlow(2, num_probes=0)]
)
def test_images_have_a_bounded_likelihood_that_does_not_depend_on_the_batch(likelihood, told):
    model = copy.copy(told)
    model.likelihood = likelihood
    assert model.likelihood_kind == "<=" and model.likelihood_estimator
    x, label = torch.randint(256, (4, 1, 8, 8)) / 127.5 - 1, torch.arange(4) % 3
    with model.numbered(torch.arange(4)):
        whole = model.log_prob(x, label=label)
    with model.numbered(torch.arange(2, 4)):
        part = model.log_prob(x[2:], label=label[2:])
    assert whole.shape == (4,) and whole.isfinite().all() and not whole.requires_grad
    assert torch.allclose(whole[2:], part, rtol=1e-4)


def test_dequantised_images_round_to_the_images_themselves():
    from genlab.shapes import to_float, to_levels

    model = diffusion(objective=Objective(dequantise=True))
    levels = torch.arange(256).repeat(4).reshape(16, 1, 8, 8).to(torch.uint8)
    with model.numbered(torch.arange(16)):
        spread = model._spread(to_float(levels))
        assert torch.equal(diffusion()._spread(to_float(levels)), to_float(levels))
    assert torch.equal(to_levels(spread), levels) and not torch.equal(spread, to_float(levels))
    offset = (spread - to_float(levels)) * 255 / 2
    assert offset.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_a_model_of_points_learns_their_width_and_its_likelihood_is_exact():
    data = Gaussian1D(mean=0.5, std=0.7, num_train=4_000, num_test=64, batch_size=256)
    torch.manual_seed(0)
    model = Diffusion(
        data.spec,
        partial(MLPDenoiser, hidden=(32, 32)),
        VPSDE(),
        partial(torch.optim.Adam, lr=5e-3),
        sampler=RungeKutta(40),
        likelihood=ProbabilityFlow(30, num_probes=0),
        half_life=8_000,
    )
    fit(model, data, max_steps=250).eval()
    x = model.sample(2_000)
    assert x.mean().item() == pytest.approx(0.5, abs=0.1) and x.std().item() == pytest.approx(0.7, abs=0.1)
    assert model.likelihood_kind == "exact"
    places = torch.linspace(-0.5, 1.5, 9)[:, None]
    assert torch.allclose(model.log_prob(places), data.log_density(places).float(), atol=0.15)
    assert torch.allclose(model.decode(model.encode(places)), places, atol=0.02)


def test_a_learned_variance_trains_bounds_and_samples():
    network = partial(TINY_UNET, learned_variance=True)
    model = fit(diffusion(network, DiscreteChain(20), likelihood=VariationalBound(UniformGrid(20))))
    assert set(model.latest) == {"simple", "bound", "loss"}
    expected = model.latest["simple"] + 1e-3 * model.latest["bound"]
    assert model.latest["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert model.sample_with(Ancestral(UniformGrid(20)), 2).isfinite().all()
    with model.numbered(torch.arange(2)):
        assert model.eval().log_prob(torch.zeros(2, 1, 8, 8)).isfinite().all()
    with pytest.raises(ValueError, match="needs the process DiscreteChain"):
        fit(diffusion(network, VPSDE()))


def test_the_bound_teaches_the_variance_and_not_the_mean():
    model = diffusion(partial(UNET, learned_variance=True), DiscreteChain(20))
    x, t = torch.rand(4, 1, 8, 8), torch.tensor([1.0, 5.0, 10.0, 20.0])
    with model.numbered(torch.arange(4)):
        model._loss(model.network, x, t, {})["bound"].backward()
    gradient = model.network.output[-1].weight.grad
    assert not gradient[:1].any() and gradient[1:].any()


def test_weights_by_min_snr_count_clear_images_less():
    plain, weighted = diffusion(), diffusion(objective=Objective(weighting=MinSNR(5.0)))
    x = torch.rand(4, 1, 8, 8)
    for t, factor in ((1.0, 5 * 1e-4 / 0.9999), (900.0, 1.0)):
        losses = []
        for model in (plain, weighted):
            with model.numbered(torch.arange(4)):
                losses.append(model._loss(model.network, x, torch.full((4,), t), {})["loss"].item())
        assert losses[1] / losses[0] == pytest.approx(factor, rel=1e-3)


def test_known_pixels_stay_and_unknown_ones_are_filled(told):
    known = torch.rand(1, 1, 8, 8)
    mask = (torch.arange(8) < 4).float().expand(1, 1, 8, 8)
    x = told.sample_with(RePaint(known, mask, UniformGrid(3), 2), 2, label=torch.zeros(2).long())
    assert torch.equal(x * mask, (known * mask).expand(2, 1, 8, 8))
    assert not torch.allclose(x[0], x[1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dropout": 1.0}, r"guidance.dropout must be in \[0, 1\), got 1.0"),
        ({"interval": (2.0, 1.0)}, r"guidance.interval must be 0 <= low <= high.*got \[2.0, 1.0\]"),
        ({"interval": (-1.0, 1.0)}, r"guidance.interval must be 0 <= low"),
        ({"guide_after": -1}, "guidance.guide_after must not be negative, got -1"),
        ({"scale": 2.0, "dropout": 0.1}, r"guidance.scale 2.0 needs given \[label\] or \[source\]"),
        ({"scale": 2.0, "given": ["label"]}, "and guidance.dropout above 0, as 0.1, or guidance.guide_after"),
    ],
)
def test_wrong_settings_are_refused_with_their_rule(option, message):
    told = {"given": option.pop("given", [])}
    with pytest.raises(ValueError, match=message):
        diffusion(guidance=Guidance(**option), **told)


def test_the_flows_likelihood_is_computed_where_derivatives_are_switched_off(told):
    x, label = torch.rand(3, 1, 8, 8) * 2 - 1, torch.arange(3)
    with told.numbered(torch.arange(3)):
        expected = told.log_prob(x, label=label)
        with torch.inference_mode():
            assert torch.allclose(told.log_prob(x + 0, label=label + 0), expected, rtol=1e-5)


def test_the_learning_rate_follows_the_examples_and_not_the_steps():
    model = diffusion(optimizer=partial(torch.optim.SGD, lr=1.0), schedule=Schedule(decay=2 * 3 * 8))
    (optimizer,) = train(model, images(), max_steps=3).optimizers
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5, rel=1e-6)  # half of the examples are seen


def test_a_schedule_rises_evenly_and_falls_along_a_cosine():
    assert Schedule(100).factor(0) == pytest.approx(0.01) and Schedule(100).factor(500) == 1.0
    fall = Schedule(decay=300).factor
    assert fall(300) == 0.0 and fall(900) == 0.0 and fall(100) == pytest.approx(0.75)
    assert Schedule(decay=64).factor(16) == pytest.approx(0.5 + 0.5**1.5)
    assert Schedule(100, 300).factor(49) == pytest.approx(0.5 * fall(49)) and Schedule().factor(10**9) == 1.0


def test_a_learning_rate_falls_to_its_floor_and_stays_there():
    for fall in ("cosine", "linear"):
        factor = Schedule(decay=200, fall=fall, floor=0.1).factor
        assert [factor(n) for n in (0, 100, 200, 900)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert Schedule(100, floor=0.1).factor(49) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"schedule.floor must be in \[0, 1\], got 1.5"):
        Schedule(floor=1.5)


def test_a_schedule_may_be_constant_first_and_fall_evenly():
    factor = Schedule(hold=100, decay=300, fall="linear").factor
    assert [factor(seen) for seen in (0, 100, 150, 200, 300, 900)] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert Schedule(hold=100, decay=300).factor(200) == pytest.approx(0.5)
    for hold, decay in ((300, 300), (100, 0), (-1, 300)):
        with pytest.raises(
            ValueError, match=f"schedule.hold must lie between 0 and schedule.decay, got {hold}"
        ):
            Schedule(hold=hold, decay=decay)
    for name in ("warmup", "decay"):
        with pytest.raises(ValueError, match=rf"schedule.{name} must not be negative, got -3"):
            Schedule(**{name: -3})


@pytest.mark.parametrize("process", [DiscreteChain(), VESDE(), EDM()])
def test_the_score_is_that_of_the_noise_the_network_sees(process):
    model = diffusion(process=process).eval()
    filled(model.network)
    level, x_t = process.level_of(0.7), torch.randn(2, 1, 8, 8)
    time = process.network_time(torch.full((2,), level.t).double()).float()
    noise = model.network(x_t / math.hypot(level.alpha, level.sigma), time)
    assert torch.allclose(model.score(x_t, level), -noise / level.sigma, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_network_compiles_as_one_graph():
    network = READING(CODES)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    x, t, told = inputs(CODES)
    assert torch.allclose(compiled(x, t, **told), network(x, t, **told))


def test_the_benchmark_trains_and_samples_the_network_of_the_peers():
    job = {"image": (3, 32, 32), "batch": 2, "dim": 64, "mults": (1, 2, 2), "timesteps": 1000}
    assert bench._num_parameters(bench._ddpm(SimpleNamespace(**job))) == 5_249_619  # as diffusers' network
    small = {**job, "image": (3, 8, 8), "dim": 8, "steps": 2, "clip": 1.0}
    train = bench.ddpm_train(SimpleNamespace(**small))
    assert train["run"](0) == 4 and train["params"] < 200_000
    sample = bench.ddim_sample(SimpleNamespace(**small, sampling_steps=3, warmup_sampling_steps=1))
    assert sample["run"](0) == 4 and sample["params"] == train["params"]


# Parity with diffusers, where it is installed, step by step and with the same noise


@pytest.fixture
def diffusers():
    return pytest.importorskip("diffusers")


PUBLISHED_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}


class NoiseNetwork:
    """Stands for a network that predicts the noise: smooth, bounded and different at every level."""

    def __call__(self, x, ratio):
        return torch.tanh(x) * (0.4 + 0.1 * math.log(ratio))


class NoiseDenoiser(Denoiser):
    """The same network seen through a level; its input has unit variance, as diffusers scales it."""

    def __call__(self, x_t, level):
        scaled = x_t / math.hypot(level.alpha, level.sigma)
        return (x_t - level.sigma * NoiseNetwork()(scaled, level.sigma / level.alpha)) / level.alpha


def with_our_table(scheduler):
    """Their chain in float64, so that its rounding to float32 does not hide a difference of formulas."""
    process = DiscreteChain()
    scheduler.betas, scheduler.alphas = process.betas, 1 - process.betas
    scheduler.alphas_cumprod = process.alpha_bar
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler


def their_chain(scheduler, x):
    """Their states after each step, and the times at which the network was asked."""
    process, states, times = DiscreteChain(), [], []
    for t in scheduler.timesteps:
        level = process.level(float(t) + 1.0)
        x = scheduler.step(NoiseNetwork()(x, level.sigma / level.alpha), t, x).prev_sample
        states.append(x)
        times.append(level.t)
    return states, times


def our_states(sampler, process, levels, x, noise=None):
    """Our states after each step: what the levels so far, walked alone, lead to."""
    states = []
    for number in range(1, len(levels)):
        states.append(sampler.walk(process, NoiseDenoiser(), x, levels[: number + 1], noise))
    return states


def assert_equal_states(ours, theirs):
    assert len(ours) == len(theirs)
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        # Theirs rounds some states to float32, which hold numbers up to the largest ratio.
        distance = (a - b.double()).abs().max() / a.abs().max().clamp(min=1.0)
        assert distance < 1e-5, f"step {number}: {distance:.1e}"


START = torch.linspace(-2.0, 2.0, 2 * 16, dtype=torch.float64).reshape(2, 1, 4, 4)


def test_ddim_equals_that_of_diffusers_step_by_step(diffusers):
    scheduler = diffusers.DDIMScheduler(
        **PUBLISHED_BETAS, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"
    )
    with_our_table(scheduler).set_timesteps(20)
    theirs, times = their_chain(scheduler, START)
    process, grid = DiscreteChain(), UniformGrid(20, leading=True)
    levels = grid.levels(process)
    assert [level.t for level in levels[:-1]] == times
    assert_equal_states(our_states(DDIM(grid), process, levels, START), theirs)


def test_ddpm_equals_that_of_diffusers_step_by_step(diffusers, monkeypatch):
    import diffusers.schedulers.scheduling_ddpm as ddpm

    noise = torch.randn(20, *START.shape, dtype=torch.float64)
    drawn = iter(noise)
    monkeypatch.setattr(ddpm, "randn_tensor", lambda *_, **__: next(drawn))
    scheduler = diffusers.DDPMScheduler(
        **PUBLISHED_BETAS, clip_sample=False, variance_type="fixed_small", timestep_spacing="leading"
    )
    with_our_table(scheduler).set_timesteps(20)
    theirs, times = their_chain(scheduler, START)
    process, grid = DiscreteChain(), UniformGrid(20, leading=True)
    levels = grid.levels(process)
    assert [level.t for level in levels[:-1]] == times
    ours = our_states(Ancestral(grid), process, levels, START, lambda _, number: noise[number])
    assert_equal_states(ours, theirs)


def their_ratios(scheduler, x):
    """Their states in x / alpha, with sigma / alpha at each, for schedulers that walk over ratios."""
    states = []
    scheduler.sigmas = scheduler.sigmas.double()
    for t in scheduler.timesteps:
        if scheduler.step_index is None:
            scheduler._init_step_index(t)
        ratio = scheduler.sigmas[scheduler.step_index].item()
        x = scheduler.step(NoiseNetwork()(x / math.hypot(1.0, ratio), ratio), t, x).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize("karras", [False, True])
def test_euler_equals_that_of_diffusers_step_by_step(diffusers, karras):
    scheduler = diffusers.EulerDiscreteScheduler(**PUBLISHED_BETAS, use_karras_sigmas=karras)
    scheduler.set_timesteps(12)
    levels = [Level(s, 1.0, s) for s in scheduler.sigmas.tolist()[:-1]] + [CLEAN]
    x = START * levels[0].sigma
    assert_equal_states(our_states(Euler(), EDM(), levels, x), their_ratios(scheduler, x))


@pytest.mark.parametrize("karras", [False, True])
def test_heun_equals_that_of_diffusers_step_by_step(diffusers, karras):
    scheduler = diffusers.HeunDiscreteScheduler(**PUBLISHED_BETAS, use_karras_sigmas=karras)
    scheduler.set_timesteps(12)
    ratios = scheduler.sigmas.tolist()
    levels = [Level(s, 1.0, s) for s in [ratios[0], *ratios[1:-1:2]]] + [CLEAN]
    x = START * levels[0].sigma
    theirs = their_ratios(scheduler, x)
    # Two of their steps are one of ours; their states between are guesses. The last has no second half.
    ours = our_states(Heun(), EDM(), levels, x)
    assert_equal_states(ours, [*theirs[1::2], theirs[-1]])


@pytest.mark.parametrize("karras", [False, True])
def test_dpm_solver_equals_that_of_diffusers_step_by_step(diffusers, karras):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **PUBLISHED_BETAS, use_karras_sigmas=karras, algorithm_type="dpmsolver++", solver_order=2
    )
    scheduler.set_timesteps(12)
    ratios = scheduler.sigmas.double()
    scheduler.sigmas = ratios
    levels = [Level(s, 1 / math.hypot(1.0, s), s / math.hypot(1.0, s)) for s in ratios.tolist()[:-1]]
    levels.append(CLEAN)
    theirs, x = [], START
    for t, ratio in zip(scheduler.timesteps, ratios.tolist(), strict=False):
        x = scheduler.step(NoiseNetwork()(x, ratio), t, x).prev_sample
        theirs.append(x)
    assert_equal_states(our_states(DPMSolver(), DiscreteChain(), levels, START), theirs)


def test_a_rate_is_of_the_images_that_were_drawn_after_a_first_one(monkeypatch):
    data = RandomData((1, 8, 8), source=PICTURES.source.to_dict(), num_test=4)
    model = Diffusion(data.spec, TINY_UNET, VPSDE(), ADAM, given=["source"]).eval()
    clock, drawn, draw = [0.0], [], model.sample_with

    def timed(sampler, index, seed=0, **given):
        drawn.append(len(index))
        clock[0] += 2.0 * len(index) + 100.0 * (len(drawn) == 1)  # what warms up
        return draw(sampler, index, seed, **given)

    monkeypatch.setattr(model, "sample_with", timed)
    monkeypatch.setattr(sampler_curve, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    arguments = (model, "DDIM", SHORT, data, None, [PSNR()], 50)
    point, protocol = sampler_curve.measure(*arguments, split="test", batch_size=3)
    assert drawn == [1, 3, 1] and protocol["num_fake"] == 4  # no more than there are sources
    assert (point.seconds, point.images_per_second) == (8.0, 0.5)
    assert 0 < point.value < 50
