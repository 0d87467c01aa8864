"""CycleGAN: losses reach their networks, the pool remembers, both directions are translated and scored."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genlab.colour import luminance_correlation
from genlab.data.reversed import WayBackData
from genlab.data.translated_shapes import TranslatedShapes
from genlab.evaluation.given import given_for
from genlab.evaluation.score import back_name, score
from genlab.families.capabilities import TranslatesBack, can
from genlab.families.cyclegan import CycleGAN, ImagePool
from genlab.losses.adversarial import LeastSquares
from genlab.metrics.pairs import PSNR
from genlab.networks.image_to_image import PatchDiscriminator, UNetGenerator
from genlab.networks.resnet_generator import ResNetGenerator
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-3)
SPEC = DataSpec("paintings", (3, 16, 16), source=DataSpec("photos", (3, 16, 16), levels=17))
PLAYERS = {
    "generator": partial(ResNetGenerator, base_channels=2, num_blocks=1),
    "discriminator": partial(PatchDiscriminator, base_channels=2, num_layers=1, norm="instance"),
    "loss": LeastSquares(),
    "generator_optimizer": ADAM,
    "discriminator_optimizer": ADAM,
    "given": ["source"],
}


class Same(nn.Module):
    """A generator that changes nothing."""

    def __init__(self, spec):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, source):
        return self.gain * source


def cyclegan(spec=SPEC, **options):
    torch.manual_seed(0)
    return CycleGAN(spec, **{**PLAYERS, **options})


def a_batch(num=3, size=16):
    generator = torch.Generator().manual_seed(1)
    image, source = (torch.rand(num, 3, size, size, generator=generator) * 2 - 1 for _ in range(2))
    return {"image": image, "source": source, "index": torch.arange(num)}


def reached(model, loss):
    """The networks that a loss has a gradient in."""
    players = {"generator": model.generator, "discriminator": model.discriminator}
    networks = {f"{name} {way}": getattr(p, way) for name, p in players.items() for way in ("there", "back")}
    found = {}
    for name, network in networks.items():
        gradients = torch.autograd.grad(
            loss, list(network.parameters()), retain_graph=True, allow_unused=True
        )
        found[name] = any(gradient is not None and gradient.any() for gradient in gradients)
    return {name for name, is_reached in found.items() if is_reached}


# Losses


def test_a_generator_that_changes_nothing_has_no_cycle_and_no_identity_loss():
    losses = cyclegan(generator=Same).losses(a_batch())
    assert losses["cycle"] == 0 and losses["identity"] == 0 and losses["adversarial"] > 0


def test_the_generators_loss_is_the_papers():
    model, batch = cyclegan(), a_batch()
    x, y = batch["source"], batch["image"]
    there, back = model.generator.there, model.generator.back
    with torch.no_grad():
        losses = model.losses(batch)
        fake_y, fake_x = there(source=x), back(source=y)
        squares = [(judge(fake) - 1).square().mean() for judge, fake in (
            (model.discriminator.there, fake_y), (model.discriminator.back, fake_x)
        )]  # fmt: skip
        cycle = (back(source=fake_y) - x).abs().mean() + (there(source=fake_x) - y).abs().mean()
        identity = (there(source=y) - y).abs().mean() + (back(source=x) - x).abs().mean()
    paper = sum(squares) + 10 * cycle + 5 * identity
    assert losses["generator"].item() == pytest.approx(paper.item() / 2, rel=1e-5)
    assert losses["cycle"].item() == pytest.approx(cycle.item() / 2, rel=1e-5)
    assert losses["identity"].item() == pytest.approx(identity.item() / 2, rel=1e-5)
    assert losses["loss"] == losses["generator"]


def test_a_batch_norm_is_not_shown_two_kinds_of_images_at_once():
    model = cyclegan(generator=partial(UNetGenerator, base_channels=2, norm="batch", dropout=0.0))
    seen = []
    model.generator.there.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(len(named["source"])), with_kwargs=True
    )
    model.losses(a_batch())
    assert seen == [3, 3, 3]  # in one pass, [3, 6]


def test_each_loss_reaches_its_own_networks_alone():
    model, batch = cyclegan(), a_batch()
    fake = model.generate(batch, "latent")
    losses = model.generator_losses(fake, model.judge(fake, batch), batch)
    generators = {"generator there", "generator back"}
    assert reached(model, losses["cycle"]) == reached(model, losses["identity"]) == generators
    assert reached(model, losses["adversarial"]) == {*generators, "discriminator there", "discriminator back"}
    image, source = model.judge(fake, batch).chunk(2)
    assert reached(model, image.sum()) == {"generator there", "discriminator there"}
    assert reached(model, source.sum()) == {"generator back", "discriminator back"}
    learned = model.loss.discriminator(
        model.judge(model.real(batch), batch), model.judge(fake.detach(), batch)
    )
    assert reached(model, learned) == {"discriminator there", "discriminator back"}


def test_real_and_generated_images_are_judged_in_one_pass_as_if_apart():
    model, batch = cyclegan(), a_batch()
    real, fake = model.real(batch), model.generate(batch, "latent").detach()
    passes = []
    model.discriminator.there.register_forward_pre_hook(lambda _, seen: passes.append(len(seen[0])))
    both = model.judge_both(real, fake, batch)
    assert passes == [2 * len(batch["image"])]
    for found, images in zip(both, (real, fake), strict=True):
        torch.testing.assert_close(found, model.judge(images, batch))


def test_without_an_identity_term_there_are_two_passes_less():
    passes = []
    model = cyclegan(identity_weight=0.0)
    for network in (model.generator.there, model.generator.back):
        network.register_forward_pre_hook(lambda *_: passes.append(1))
    assert "identity" not in model.losses(a_batch()) and len(passes) == 4


def test_inverted_colours_are_a_correlation_of_minus_one():
    x = a_batch()["image"]
    assert luminance_correlation(x, 0.5 * x).tolist() == pytest.approx([1.0] * len(x))
    assert luminance_correlation(x, -x).tolist() == pytest.approx([-1.0] * len(x))
    assert not luminance_correlation(x, torch.zeros_like(x)).any()
    assert abs(luminance_correlation(x, a_batch(4)["source"][1:]).mean()) < 0.3
    model = cyclegan(generator=Same)
    with torch.no_grad():
        model.generator.there.gain.fill_(-1.0)
        model.generator.back.gain.fill_(-1.0)
    losses = model.losses(a_batch())
    assert losses["cycle"] == 0 and losses["luminance_correlation"].item() == pytest.approx(-1.0)
    assert "luminance_correlation" in model.signs


def test_wrong_settings_are_refused_with_their_rule():
    grey = DataSpec("paintings", (3, 16, 16), source=DataSpec("photos", (1, 16, 16)))
    for spec, options, message in (
        (SPEC, {"given": []}, r"set given to \[source\]"),
        (grey, {}, r"one shape, got \(3, 16, 16\) and \(1, 16, 16\)"),
        (SPEC, {"cycle_weight": -1.0}, "cycle_weight must not be negative, got -1.0"),
        (SPEC, {"pool_size": -1}, "pool_size must not be negative, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            cyclegan(spec, **options)


# The pool


def draws(num, seed=0):
    return torch.rand(num, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbered_images(first, num):
    return torch.arange(first, first + num).float()[:, None, None, None]


def test_a_pool_of_size_0_is_no_pool():
    pool, x = ImagePool(0), a_batch()["image"]
    assert all(torch.equal(pool.exchange(x, draws(3, seed)), x) for seed in range(5)) and pool.images == []


def test_a_pool_is_filled_first_and_then_gives_old_images_for_half_of_the_new_ones():
    pool = ImagePool(50)
    first = numbered_images(0, 50)
    assert torch.equal(pool.exchange(first, draws(50)), first)
    new = numbered_images(50, 4_000)
    shown = pool.exchange(new, draws(4_000, 1)).flatten()
    old = shown != new.flatten()
    assert old.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert len(pool.images) == 50 and (shown <= new.flatten()).all()
    # An image that is kept leaves the pool in a draw of one of 100: it is shown once, and 100 images later.
    ages = (new.flatten() - shown)[old]
    assert len(shown[old].unique()) == old.sum() and ages.mean().item() == pytest.approx(100, rel=0.1)
    kept = torch.stack(pool.images).flatten()
    assert set(shown.tolist()) | set(kept.tolist()) == set(range(50, 4_050)) | set(first.flatten().tolist())


def test_a_pools_images_are_its_own():
    pool, x = ImagePool(2), torch.zeros(2, 1, 1, 1)
    shown = pool.exchange(x, draws(2))
    shown += 1.0
    x += 2.0
    assert pool.state().sum() == 0
    other = ImagePool(2)
    other.restore(pool.state())
    assert torch.equal(other.state(), pool.state())


def on(model, rank, world_size, address=7):
    model.step_noise.begin(address, rank, world_size)
    return model


def test_two_processes_show_their_discriminators_what_one_shows_it(monkeypatch):
    one, two = cyclegan(pool_size=4), [cyclegan(pool_size=4) for _ in range(2)]
    for step in range(5):
        fake = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step))
        halves = [torch.cat([part[rank::2] for part in fake.chunk(2)]) for rank in range(2)]
        whole = on(one, 0, 1, step).shown(fake)
        for rank, model in enumerate(two):
            parts = [iter(half.chunk(2)) for half in halves]
            monkeypatch.setattr(
                model, "all_gather", lambda x, p=parts: torch.stack([next(each) for each in p])
            )
            found = on(model, rank, 2, step).shown(halves[rank])
            assert torch.equal(found, torch.cat([part[rank::2] for part in whole.chunk(2)]))
    assert not torch.equal(whole, fake)
    assert all(torch.equal(a.state(), b.state()) for a, b in zip(one.pools, two[1].pools, strict=True))


def test_the_pools_travel_in_the_checkpoint():
    model, kept = on(cyclegan(pool_size=3), 0, 1), {}
    model.shown(torch.randn(8, 3, 4, 4))
    model.on_save_checkpoint(kept)
    assert [len(images) for images in kept["pools"]] == [3, 3]
    smaller = cyclegan(pool_size=2)
    smaller.on_load_checkpoint(kept)
    assert [torch.equal(p.state(), k[1:]) for p, k in zip(smaller.pools, kept["pools"], strict=True)] == [
        True
    ] * 2


# Both directions


def test_the_way_back_is_a_model_of_the_data_turned_round():
    model, batch = cyclegan(half_life=4).eval(), a_batch()
    back = model.reversed()
    assert can(model, TranslatesBack) and back.reversed() is model and back.given == ("source",)
    assert back.spec == DataSpec("photos", (3, 16, 16), levels=17, source=DataSpec("paintings", (3, 16, 16)))
    assert back.seen_spec == back.spec and back.sampling_weights == "ema" and back.device == model.device
    there = model.sample(batch["index"], source=batch["source"])
    again = back.sample(batch["index"], source=there)
    assert torch.equal(again, model.average.module.back(source=there)) and not torch.allclose(there, again)
    assert back.sampling_network is model.average.module.back
    assert model.sampling_network is model.average.module.there
    with pytest.raises(ValueError, match="is told source, but got nothing"):
        back.sample(batch["index"])


def test_both_directions_are_scored_against_the_data_of_their_own_side():
    data = TranslatedShapes(num_train=8, num_test=6, image_size=16, batch_size=4)
    model = cyclegan(data.spec, generator=Same).eval()
    with torch.no_grad():
        model.generator.back.gain.fill_(0.0)
    found = score(model, data, None, [PSNR()], 100)
    view = WayBackData(data)
    forth, grey = (PSNR() for _ in range(2))
    for metric, made, target in ((forth, "source", "image"), (grey, None, "source")):
        levels = torch.from_numpy(data.split("test")[target])
        x = torch.full_like(levels, 128) if made is None else torch.from_numpy(data.split("test")[made])
        metric.set_data(data.spec)
        metric.update(SimpleNamespace(index=torch.arange(6), x=x, target=levels))
    assert found.values["psnr"] == pytest.approx(forth.compute()["psnr"], abs=1e-6)
    assert found.values["psnr_back"] == pytest.approx(grey.compute()["psnr"], abs=1e-6)
    assert found.protocol["back"]["data"] == "circles" and found.protocol["data"] == "squares"
    assert found.protocol["back"]["data_fingerprint"] == view.fingerprint("test")[:16]
    source = given_for(model.reversed(), torch.tensor([1, 7]), view)["source"]
    assert torch.equal(source[0], source[1]) and back_name("fid@9vs8") == "fid_back@9vs8"
