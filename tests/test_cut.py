"""CUT: patches are found again in their own picture, and in no other one."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from genlab.families.cut import CUT
from genlab.losses.adversarial import LeastSquares
from genlab.losses.contrastive import PatchNCE
from genlab.networks.image_to_image import PatchDiscriminator, UNetGenerator
from genlab.networks.resnet_generator import PatchHeads, ResNetGenerator
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-3)
SPEC = DataSpec("paintings", (3, 16, 16), source=DataSpec("photos", (3, 16, 16)))
PLAYERS = {
    "generator": partial(ResNetGenerator, base_channels=2, num_blocks=2),
    "discriminator": partial(PatchDiscriminator, base_channels=2, num_layers=1, norm="instance"),
    "heads": partial(PatchHeads, width=4),
    "loss": LeastSquares(),
    "generator_optimizer": ADAM,
    "discriminator_optimizer": ADAM,
    "given": ["source"],
    "num_patches": 12,
}


def cut(spec=SPEC, **options):
    torch.manual_seed(0)
    return CUT(spec, **{**PLAYERS, **options})


def a_batch(num=3):
    generator = torch.Generator().manual_seed(1)
    image, source = (torch.rand(num, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))
    return {"image": image, "source": source, "index": torch.arange(num)}


# The loss


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("num", [2, 16, 64])
def test_orthonormal_features_and_equal_ones_give_the_closed_forms(num, temperature):
    loss = PatchNCE(temperature)
    basis = torch.linalg.qr(torch.randn(3, num, num, dtype=torch.float64)).Q
    expected = math.log1p((num - 1) * math.exp(-1 / temperature))
    assert loss(basis, basis).item() == pytest.approx(expected, rel=1e-9)
    equal = basis[:, :1].expand(3, num, num)
    assert loss(equal, equal).item() == pytest.approx(math.log(num), rel=1e-9)
    assert loss(basis, basis.roll(1, 1)).item() == pytest.approx(expected + 1 / temperature, rel=1e-9)


def test_gradients_reach_the_queries_alone_and_never_cross_images():
    queries, keys = (normalize(torch.randn(3, 5, 8), dim=-1).requires_grad_() for _ in range(2))
    loss = PatchNCE()
    loss(queries, keys).backward()
    assert keys.grad is None and (queries.grad.abs().sum(dim=(1, 2)) > 0).all()
    alone = queries.detach()[:1].clone().requires_grad_()
    loss(alone, keys[:1]).backward()
    assert torch.allclose(alone.grad / 3, queries.grad[:1], atol=1e-6)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        PatchNCE(0)


# The family


def test_the_generators_loss_is_the_papers():
    model, batch = cut().eval(), a_batch()
    with torch.no_grad(), model.numbered(batch["index"]):
        losses = model.losses(batch)
        fake = model.generate(batch, "validation")
        squares = (model.discriminator(fake) - 1).square().mean()
        again = model.losses({**batch, "image": batch["source"]})
    paper = squares + (losses["nce"] + losses["identity"]) / 2
    assert losses["generator"].item() == pytest.approx(paper.item(), rel=1e-5)
    assert losses["luminance_correlation"] != 0
    # With the image in the place of the source, both terms ask the same of other places.
    assert again["nce"] == losses["nce"] and again["identity"].item() == pytest.approx(
        again["nce"].item(), rel=0.3
    )
    one_term = cut(keeps_identity=False).eval()
    with torch.no_grad(), one_term.numbered(batch["index"]):
        single = one_term.losses(batch)
    assert "identity" not in single
    assert single["generator"].item() == pytest.approx((squares + single["nce"]).item(), rel=1e-5)


def test_an_image_that_is_its_source_is_found_again_but_for_what_the_negatives_share():
    model, batch = cut(), a_batch()
    with torch.no_grad(), model.numbered(batch["index"]):
        kept = model._nce([batch["source"]], [batch["source"]])[0]
        other = model._nce([batch["image"]], [batch["source"]])[0]
    assert kept < other and kept < math.log(12)


def test_each_loss_reaches_its_own_networks_alone():
    model, batch = cut(), a_batch()
    with model.numbered(batch["index"]):
        fake = model.generate(batch, "latent")
        losses = model.generator_losses(fake, model.judge(fake, batch), batch)
    networks = {
        "translator": model.generator.translator,
        "heads": model.generator.heads,
        "discriminator": model.discriminator,
    }

    def reached(loss):
        return {
            name
            for name, network in networks.items()
            if any(
                gradient is not None and gradient.any()
                for gradient in torch.autograd.grad(
                    loss, list(network.parameters()), retain_graph=True, allow_unused=True
                )
            )
        }

    assert reached(losses["nce"]) == reached(losses["identity"]) == {"translator", "heads"}
    assert reached(losses["adversarial"]) == {"translator", "discriminator"}


def test_a_pictures_contrast_depends_on_no_other_picture():
    model, batch = cut().double(), a_batch()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    made = batch["image"].clone().requires_grad_()
    with model.numbered(batch["index"]):
        keys = model.generator.translator.encode(made)
        places = [model._places(h, "x") for h in keys]
        (loss,) = model._nce([made], [batch["source"]])
    loss.backward()
    whole = made.grad[1:2]
    alone = batch["image"][1:2].clone().requires_grad_()
    with model.numbered(batch["index"][1:2]):
        model._nce([alone], [batch["source"][1:2]])[0].backward()
    assert torch.allclose(whole, alone.grad / 3, rtol=1e-6, atol=1e-12)
    assert [p.shape for p in places] == [(3, 12), (3, 12), (3, 12), (3, 12), (3, 12)]
    assert all(len(row.unique()) == 12 for p in places for row in p)


def test_both_contrasts_in_one_pass_are_those_of_two():
    model, batch = cut(), a_batch()
    made, starts = [batch["image"] / 2, batch["image"]], [batch["source"], batch["image"]]
    with torch.no_grad(), model.numbered(batch["index"]):
        together = model._nce(made, starts)
        model.generator.translator.statistics = nn.BatchNorm2d(1)  # says that rows mix
        apart = model._nce(made, starts)
    assert together[0] != together[1]
    torch.testing.assert_close(together, apart)


def test_of_few_places_all_are_compared():
    model = cut(num_patches=20)
    assert model._places(torch.zeros(2, 1, 4, 4), "x").tolist() == [list(range(16))] * 2


def test_heads_give_directions_of_their_own_width():
    heads = PatchHeads([3, 5], width=7)
    found = heads([torch.randn(2, 4, 3), torch.randn(2, 6, 5)])
    assert [x.shape for x in found] == [(2, 4, 7), (2, 6, 7)]
    assert all(torch.allclose(x.norm(dim=-1), torch.ones(x.shape[:2]), atol=1e-5) for x in found)
    assert [layer.out_features for layer in PatchHeads([3]).modules() if isinstance(layer, nn.Linear)] == [
        256,
        256,
    ]


def test_wrong_settings_are_refused_with_their_rule():
    grey = DataSpec("paintings", (3, 16, 16), source=DataSpec("photos", (1, 16, 16)))
    for spec, options, message in (
        (SPEC, {"given": []}, r"set given to \[source\]"),
        (SPEC, {"generator": lambda spec: nn.Identity()}, "Identity has none: use ResNetGenerator or"),
        (SPEC, {"num_patches": 1}, "num_patches must be at least 2.*got 1"),
        (SPEC, {"nce_weight": -1.0}, "nce_weight must not be negative, got -1.0"),
        (grey, {}, r"keeps_identity needs images and sources of one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            cut(spec, **options)
    unet = partial(UNetGenerator, base_channels=2, norm="instance")
    assert len(cut(generator=unet).generator.heads.heads) == 4
    assert cut(grey, keeps_identity=False).sample(2, source=torch.zeros(2, 1, 16, 16)).shape == (2, 3, 16, 16)
