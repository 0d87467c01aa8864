"""Discrete VAEs: the KL of one image, what draws become as they cool, the schedule."""

import math
from functools import partial

import pytest
import torch

from genlab.data.random_images import RandomImages
from genlab.evaluation.given import item_batch
from genlab.families.codes import one_hot_map
from genlab.families.dvae import DiscreteVAE, Relaxation, gumbel_softmax
from genlab.losses.divergences import kl_to_uniform
from genlab.losses.likelihoods import DiscretizedLogistic
from genlab.networks.autoencoder import ConvMapDecoder, ConvMapEncoder

ADAM = partial(torch.optim.Adam, lr=1e-3)
DATA = RandomImages((1, 8, 8), 3, levels=17, num_train=16, num_test=16, batch_size=8)


def dvae(**options):
    torch.manual_seed(0)
    networks = (
        partial(ConvMapEncoder, num_halvings=1, base_channels=4),
        partial(ConvMapDecoder, num_halvings=1, base_channels=4),
    )
    return DiscreteVAE(DATA.spec, *networks, DiscretizedLogistic, ADAM, **{"num_codes": 6, **options})


def items(*index):
    return item_batch(DATA, "test", torch.tensor(index), torch.device("cpu"))


def test_the_kl_is_log_k_minus_the_entropy():
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.allclose(kl_to_uniform(logits), math.log(5) - entropy)
    assert kl_to_uniform(torch.zeros(5)).item() == pytest.approx(0.0, abs=1e-6)
    assert kl_to_uniform(torch.tensor([99.0, 0.0, 0.0])).item() == pytest.approx(math.log(3))


def test_the_rate_of_an_image_is_a_sum_over_places_and_does_not_change_with_the_batch():
    model = dvae().eval()
    with torch.no_grad():
        model.encoder.output.weight.mul_(10.0)
    alone = [model.losses(items(i))["rate"] for i in range(4)]
    together = model.losses(items(0, 1, 2, 3))["rate"]
    q = model.encoder(items(0)["image"])[0].flatten(1).softmax(dim=0)
    by_hand = (math.log(6) + (q * q.log()).sum(dim=0)).sum()
    assert alone[0].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert torch.stack(alone).mean().item() == pytest.approx(together.item(), rel=1e-5)
    assert max(alone) - min(alone) > 1e-3


def test_a_cold_draw_is_the_one_number_of_the_largest_and_drawn_by_its_probability():
    logits = torch.tensor([0.1, 0.6, 0.3]).log().reshape(1, 3, 1, 1).expand(20_000, -1, -1, -1)
    u = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    cold = gumbel_softmax(logits, u, 1e-4)
    index = (logits - (-u.log()).log()).argmax(dim=1)
    assert (cold - one_hot_map(index, 3)).abs().amax(dim=1).gt(1e-3).float().mean() < 1e-2
    assert torch.allclose(cold.mean(dim=0).flatten(), torch.tensor([0.1, 0.6, 0.3]), atol=0.012)
    ends = torch.tensor([0.0, 1.0, 0.5]).reshape(1, 3, 1, 1)
    assert gumbel_softmax(logits[:1], ends, 1.0 / 16.0).isfinite().all()


def test_a_hard_draw_is_one_number_with_the_gradient_of_the_soft_one():
    logits = torch.randn(2, 4, 3, 3, requires_grad=True)
    u, pull = torch.rand(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    soft, hard = (gumbel_softmax(logits, u, 0.5, straight) for straight in (False, True))
    assert torch.allclose(hard, one_hot_map(soft.argmax(dim=1), 4), atol=1e-6)
    found, expected = (torch.autograd.grad(y, logits, pull)[0] for y in (hard, soft))
    assert torch.equal(found, expected)


def test_an_evaluation_decodes_the_numbers_that_a_second_stage_learns():
    model, batch = dvae().eval(), items(0, 1, 2)
    index = model.encode(batch["image"])
    parameters = model.decoder(one_hot_map(index, 6))
    distortion = -model.likelihood(parameters, batch["image"]).mean()
    losses = model.losses(batch)
    assert losses["distortion"].item() == pytest.approx(distortion.item())
    assert losses["loss"].item() == pytest.approx((distortion + losses["rate"]).item())
    assert torch.equal(model.decode(index), model.likelihood.mean(parameters))
    assert index.shape[1:] == model.code_spec.shape == (4, 4) and model.code_spec.levels == 6


def test_the_temperature_falls_along_a_cosine_and_beta_grows():
    relaxation = Relaxation(1.0, 0.1, 100)
    assert [relaxation.temperature(n) for n in (0, 50, 100, 900)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert Relaxation(last=0.5).temperature(0) == 0.5
    model, weights = dvae(beta=4.0, kl_warmup=40).train(), []
    for model.examples_seen in (0, 10, 80):
        weights.append(model._kl_weight())
    assert weights == [0.0, 1.0, 4.0] and model.eval()._kl_weight() == 4.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Relaxation(last=0.0), "not to 0"),
        (lambda: dvae(num_codes=1), "num_codes must be"),
        (lambda: dvae(beta=-1.0), "beta must not"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
