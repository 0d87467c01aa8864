"""ELECTRA: gaps are filled by one player and found by the other, which teaches the first one nothing."""

import math
from functools import partial

import pytest
import torch

from genlab.data.numbers import NumberText
from genlab.evaluation.probing import bigram_shift, swapped
from genlab.families.electra import Electra
from genlab.networks.transformer import BidirectionalTransformer
from genlab.shapes import IGNORED, DataSpec

SPEC = DataSpec("text", (20,), levels=7)
SMALL = partial(BidirectionalTransformer, num_layers=1, num_heads=2, width=8)
ADAM = partial(torch.optim.Adam, lr=1e-3)


def model_of(spec=SPEC, **options):
    torch.manual_seed(0)
    return Electra(spec, SMALL, SMALL, ADAM, **options)


def batch_of(num=16, length=20, levels=7):
    tokens = torch.randint(levels, (num, length + 1), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens, "index": torch.arange(num)}


def losses(model, batch):
    with model.numbered(batch["index"]):
        return model.losses(batch)


def test_the_discriminator_s_loss_reaches_no_weight_of_the_generator_and_conversely():
    model, batch = model_of(), batch_of()
    writers = [*model.generator.parameters(), model.generator_bias]
    readers = [*model.discriminator.parameters(), *model.judge.parameters()]
    for loss, own, others in (("generator", writers, readers), ("discriminator", readers, writers)):
        value = losses(model, batch)[loss]
        found = torch.autograd.grad(value, own + others, allow_unused=True)
        assert all(gradient is not None for gradient in found[: len(own)])
        assert all(gradient is None for gradient in found[len(own) :])


def test_untrained_players_know_nothing_and_the_loss_is_their_weighted_sum():
    found = losses(model_of(discriminator_weight=3.0), batch_of(200))
    assert found["generator"].item() == pytest.approx(math.log(7), rel=0.02)
    assert found["discriminator"].item() == pytest.approx(math.log(2), rel=0.05)
    assert found["loss"].item() == pytest.approx((found["generator"] + 3 * found["discriminator"]).item())
    # of the 3 gaps among 20 tokens, 6 of 7 are filled with another token
    assert found["replaced_share"].item() == pytest.approx(0.15 * 6 / 7, abs=0.012)
    assert found["masked_accuracy"].item() == pytest.approx(1 / 7, abs=0.06)


def test_gaps_are_a_share_of_each_text_and_all_else_stays_as_it_is():
    model, batch = model_of(), batch_of()
    batch["tokens"][3, 12:] = IGNORED
    seen = {}
    model.generator.register_forward_pre_hook(lambda module, inputs: seen.update(gapped=inputs[0]))
    model.discriminator.register_forward_pre_hook(lambda module, inputs: seen.update(replaced=inputs[0]))
    losses(model, batch)
    tokens = batch["tokens"][:, 1:].clamp_min(0)
    gaps = seen["gapped"] == model.gap
    assert gaps.sum(dim=1).tolist() == [3] * 3 + [math.ceil(0.15 * 11)] + [3] * 12
    assert not gaps[3, 11:].any() and torch.equal(seen["gapped"][~gaps], tokens[~gaps])
    assert torch.equal(seen["replaced"][~gaps], tokens[~gaps]) and seen["replaced"].max() < model.gap
    assert (gaps.sum(dim=0) > 0).sum() > 10  # other places in each text


def test_what_fills_a_gap_is_drawn_as_the_generator_says():
    model = model_of()
    logits = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2, 0.0, 0.0]).log().expand(20_000, 1, -1)
    gaps = torch.zeros(20_000, 1, dtype=torch.int64)
    with model.numbered(torch.arange(20_000)):
        drawn = model.corrupted(torch.full((20_000, 2), 6), logits, gaps, gaps == 0)
    shares = drawn[:, 0].bincount(minlength=7) / 20_000
    assert (shares - logits[0, 0].exp()).abs().max() < 0.015 and (drawn[:, 1] == 6).all()


def test_padding_changes_no_code_and_no_judgement():
    model, batch = model_of().eval(), batch_of()
    longer = torch.cat([batch["tokens"][:, :16], torch.full((16, 5), IGNORED)], dim=1)
    torch.testing.assert_close(model.encode(longer), model.encode(batch["tokens"][:, :16]), rtol=0, atol=1e-6)
    assert not torch.allclose(model.encode(longer), model.encode(batch["tokens"]), atol=1e-3)


def test_a_reader_sees_both_sides_and_only_its_own_text():
    torch.manual_seed(0)
    net, read = SMALL(SPEC), []
    net.token.register_forward_hook(lambda *parts: read.append(parts[2].requires_grad_()))
    tokens, seen = batch_of(2)["tokens"][:, 1:9], torch.ones(2, 8, dtype=torch.bool)
    seen[0, 6:] = False
    output = net(tokens, seen)
    found = torch.autograd.grad(output[0, 2] @ torch.randn(8), read[0])[0].abs().sum(dim=2) > 0
    assert found.tolist() == [[True] * 6 + [False] * 2, [False] * 8]


def test_rotary_positions_know_distances_and_order_but_no_place():
    torch.manual_seed(0)
    tokens = batch_of(2)["tokens"][:, 1:9]
    later = torch.cat([torch.zeros(2, 3, dtype=torch.int64), tokens], dim=1)
    seen = torch.ones(2, 11, dtype=torch.bool)
    seen[:, :3] = False
    for positions, is_same in (("rotary", True), ("learned", False), ("both", False)):
        net = SMALL(SPEC, positions=positions)
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        h = net(tokens)
        assert torch.allclose(net(later, seen)[:, 3:], h, atol=1e-5) == is_same
        assert not torch.allclose(net(tokens.flip(1)).flip(1), h, atol=1e-3)
    with pytest.raises(ValueError, match="must be even for rotary positions, got 3"):
        BidirectionalTransformer(SPEC, num_heads=2, width=6, positions="rotary")


def test_a_bad_share_and_images_are_refused():
    with pytest.raises(ValueError, match="masked must be in"):
        model_of(masked=1.0)
    with pytest.raises(ValueError, match="models tokens, and digits holds images"):
        model_of(DataSpec("digits", (1, 8, 8), levels=17))


# Its code


def test_half_of_the_texts_have_two_neighbours_exchanged_and_the_others_nothing():
    tokens = torch.arange(400 * 9).reshape(400, 9)
    tokens[::2, 5:] = IGNORED
    found, is_changed = swapped(tokens, torch.arange(400))
    differs = found != tokens
    assert torch.equal(differs.any(dim=1), is_changed) and 160 < is_changed.sum() < 240
    assert (differs.sum(dim=1)[is_changed] == 2).all() and not differs[:, 0].any()
    assert torch.equal(found.sort(dim=1).values, tokens.sort(dim=1).values)
    assert not differs[::2, 5:].any() and differs[1::2, 8].any()
    one = torch.ones(10, 9, dtype=torch.int64)
    assert not swapped(one, torch.arange(10))[1].any()  # nothing to exchange
    part, _ = swapped(tokens[7:9], torch.tensor([7, 8]))
    assert torch.equal(part, found[7:9])


class InOrder:
    """Knows of each text how many tokens are smaller than the one before."""

    latent_type, device = "knowledge", torch.device("cpu")

    def encode(self, tokens):
        return (tokens[:, 2:] < tokens[:, 1:-1]).float() + 1e-3 * torch.randn(len(tokens), 15)


def test_the_probe_tells_exchanged_words_from_a_code_that_knows_their_order():
    data = NumberText(100, context=16)
    data.stretches["train"], data.stretches["test"] = torch.arange(4000).numpy(), torch.arange(2000).numpy()
    found = bigram_shift(InOrder(), data)
    assert found["linear_probe"] > 0.9 and found["dim"] == 15 and found["probe"] == "bigram shift"
