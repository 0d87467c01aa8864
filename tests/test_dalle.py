"""DALL-E's second stage: captions and codes are one text, and the codes given a caption a distribution."""

import math
from functools import partial

import pytest
import torch
from scipy.stats import chisquare

from genlab.families.dalle import DALLE
from genlab.families.optimizers import Float32Muon
from genlab.networks.transformer import CausalTransformer
from genlab.samplers.tokens import Categorical, Greedy
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-3)
SMALL = partial(CausalTransformer, num_layers=2, num_heads=2, width=16)
NUM_CODES, NUM_WORDS, LENGTH, START = 3, 5, 4, 8
CAPTIONS = torch.tensor([[1, 2, 3, 4], [2, 3, 0, 0], [4, 1, 2, 0]])
"""The vocabulary's 0 fills up."""

INDEX = torch.tensor([3, 0, 7])


def spec_of(shape=(2, 2), levels=NUM_CODES, words=NUM_WORDS, length=LENGTH):
    source = DataSpec("captions", (length,), levels=words, vocabulary='{"pad": 0}')
    return DataSpec("codes", shape, levels=levels, source=source)


def model_of(spec=None, sharpness=0.4, **options):
    """A model whose probabilities are far from equal."""
    torch.manual_seed(0)
    model = DALLE(spec or spec_of(), SMALL, ADAM, given=["source"], **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(sharpness * torch.randn_like(parameter))
    return model.eval()


def every_map(shape=(2, 2)):
    rows = torch.cartesian_prod(*[torch.arange(NUM_CODES)] * math.prod(shape))
    return rows.reshape(-1, *shape)


def read(captions, x):
    """The one text of captions and codes, as the docstring has it: codes, words, start."""
    words = torch.where(captions == 0, START, captions + NUM_CODES)
    return torch.cat([torch.full((len(words), 1), START), words, x.flatten(1)], dim=1)


def test_likelihoods_and_losses_are_those_of_one_text_each_place_scored_on_its_kind_alone():
    model, x = model_of(), torch.randint(NUM_CODES, (3, 2, 2))
    logits = model.network(read(CAPTIONS, x)[:, :-1])
    words = logits[:, :LENGTH, NUM_CODES:START].log_softmax(2).gather(2, CAPTIONS[..., None])[..., 0]
    codes = logits[:, LENGTH:, :NUM_CODES].log_softmax(2).gather(2, x.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(model.log_prob(x, source=CAPTIONS), codes.sum(dim=1))
    losses = model.losses({"tokens": x, "source": CAPTIONS})
    by_caption = [words[0].mean(), words[1, :2].mean(), words[2, :3].mean()]
    torch.testing.assert_close(losses["text_nats"], -torch.stack(by_caption).mean())
    torch.testing.assert_close(losses["image_nats"], -codes.mean())
    torch.testing.assert_close(losses["loss"], losses["text_nats"] / 8 + losses["image_nats"] * 7 / 8)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_text_s_weight_is_its_share_of_the_loss(weight):
    model = model_of(text_weight=weight)
    losses = model.losses({"tokens": torch.randint(NUM_CODES, (3, 2, 2)), "source": CAPTIONS})
    expected = weight * losses["text_nats"] + (1 - weight) * losses["image_nats"]
    torch.testing.assert_close(losses["loss"], expected)


def test_a_code_sees_the_whole_caption_and_earlier_codes_and_a_caption_sees_no_code():
    model, x, seen = model_of(), torch.randint(NUM_CODES, (1, 2, 2)), []
    model.network.token.register_forward_hook(lambda module, _, out: seen.append(out) or out)
    losses = model.losses({"tokens": x, "source": CAPTIONS[:1]})
    of_text, of_image = (
        torch.autograd.grad(losses[name], seen[0], retain_graph=True)[0][0].abs().sum(dim=1)
        for name in ("text_nats", "image_nats")
    )
    assert len(of_text) == LENGTH + 4  # the start, the caption, and all codes but the last
    assert (of_text[:LENGTH] > 0).all() and (of_text[LENGTH:] == 0).all() and (of_image > 0).all()
    logits = model.network(read(CAPTIONS[:1], x)[:, :-1])[0, LENGTH:, :NUM_CODES].log_softmax(1)
    for place, of_place in enumerate(logits):
        gradient = torch.autograd.grad(of_place[0], seen[1], retain_graph=True)[0][0].abs().sum(dim=1)
        assert (gradient[: LENGTH + 1 + place] > 0).all() and (gradient[LENGTH + 1 + place :] == 0).all()


@pytest.mark.parametrize("caption", [CAPTIONS[1], CAPTIONS[2]])
def test_the_probabilities_of_all_maps_given_a_caption_sum_to_one_and_samples_have_them(caption):
    model, every, num = model_of(), every_map(), 4_000
    p = model.log_prob(every, source=caption.expand(len(every), -1)).exp().double()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5) and p.max() > 3 / len(every)
    drawn = model.sample(num, source=caption.expand(num, -1))
    assert drawn.shape == (num, 2, 2) and drawn.dtype == torch.int64
    counts = (drawn[:, None] == every[None]).flatten(2).all(dim=2).sum(dim=0)
    often = p * num >= 5.0
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([p[often], p[~often].sum()[None]]) * num
    assert chisquare(observed, expected * num / expected.sum()).pvalue > 1e-3


def test_the_caption_alters_what_is_drawn():
    p = model_of().log_prob(every_map(), source=CAPTIONS[:1].expand(81, -1)).exp()
    other = model_of().log_prob(every_map(), source=CAPTIONS[1:2].expand(81, -1)).exp()
    assert (p - other).abs().sum() > 0.1


SAMPLERS = {"categorical": Categorical(0.7), "top_k": Categorical(top_k=2), "greedy": Greedy()}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=list(SAMPLERS))
def test_samples_are_those_of_reading_the_whole_text_again_for_each_code(sampler, guidance):
    model = model_of(sampler=sampler, text_dropout=0.1, guidance=guidance)
    x = torch.zeros(3, 2, 2, dtype=torch.int64)
    for place in range(4):
        told, untold = (
            model.network(read(captions, x)[:, : 1 + LENGTH + place])[:, -1, :NUM_CODES]
            for captions in (CAPTIONS, torch.zeros_like(CAPTIONS))
        )
        logits = untold + guidance * (told - untold)
        x.flatten(1)[:, place] = sampler.choose(logits, 5, INDEX, 1 + LENGTH + place)
    assert torch.equal(model.sample(INDEX, 5, source=CAPTIONS), x)


def test_the_caption_is_read_at_once_and_each_code_once():
    model, lengths = model_of(), []
    model.network.token.register_forward_hook(lambda module, tokens, _: lengths.append(tokens[0].shape[1]))
    model.sample(3, source=CAPTIONS)
    assert lengths == [1 + LENGTH, 1, 1, 1]


def test_the_filling_of_captions_may_be_left_out():
    model, x = model_of(), torch.randint(NUM_CODES, (2, 2, 2))
    short, whole = ({"tokens": x, "source": CAPTIONS[1:, :num]} for num in (3, 4))
    a, b = model.losses(short), model.losses(whole)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(model.log_prob(x, source=CAPTIONS[1:, :3]), model.log_prob(x, source=CAPTIONS[1:]))
    index = INDEX[:2]
    assert torch.equal(model.sample(index, source=CAPTIONS[1:, :3]), model.sample(index, source=CAPTIONS[1:]))


def test_an_untrained_model_knows_nothing():
    spec = spec_of((4, 4), levels=40, words=30, length=6)
    x, source = torch.randint(40, (8, 4, 4)), torch.randint(1, 30, (8, 6))
    losses = model_of(spec, sharpness=0.0).losses({"tokens": x, "source": source})
    assert losses["text_nats"].item() == pytest.approx(math.log(30), rel=0.02)
    assert losses["image_nats"].item() == pytest.approx(math.log(40), rel=0.02)


def test_another_optimiser_takes_the_matrices_between_vectors():
    model = model_of(matrix_optimizer=Float32Muon)
    muon, adam = model.configure_optimizers()["optimizer"].parts
    taken = {id(p) for group in muon.param_groups for p in group["params"]}
    left = {id(p) for group in adam.param_groups for p in group["params"]}
    assert id(model.network.blocks[0].widen.weight) in taken
    assert {id(model.network.output_weight), id(model.network.token.weight)} <= left
    assert len(taken) + len(left) == len(list(model.network.parameters()))


def test_hidden_captions_are_empty_ones_in_training_alone_and_their_text_is_not_scored():
    model, num = model_of(text_dropout=0.5), 64
    batch = {"tokens": torch.randint(NUM_CODES, (num, 2, 2)), "source": CAPTIONS[:1].expand(num, -1)}
    told = model.losses(batch)
    torch.testing.assert_close(told, model_of().losses(batch))
    empty = model.losses({**batch, "source": torch.zeros(num, LENGTH, dtype=torch.int64)})
    assert empty["text_nats"] == 0 and not torch.equal(told["image_nats"], empty["image_nats"])
    is_hidden = model.draw_uniform("hide text", num) < 0.5
    assert 16 < is_hidden.sum() < 48
    source = batch["source"].masked_fill(is_hidden[:, None], 0)
    expected, found = model.losses({**batch, "source": source}), model.train().losses(batch)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found["text_nats"], told["text_nats"])  # a mean over those that are told


def test_guidance_leaves_empty_captions_as_they_are():
    empty = torch.zeros(6, LENGTH, dtype=torch.int64)
    drawn = [model_of(text_dropout=0.1, guidance=scale).sample(6, source=empty) for scale in (1.0, 4.0)]
    assert torch.equal(*drawn)


@pytest.mark.parametrize(
    "spec, options, message",
    [
        (spec_of(), {"given": []}, r"set given to \[source\]"),
        (DataSpec("text", (4,), levels=5, source=spec_of().source), {}, "models maps of codes with captions"),
        (DataSpec("codes", (2, 2), levels=5, source=DataSpec("i", (1, 4, 4))), {}, "with images"),
        (spec_of(), {"text_weight": 1.0}, "text_weight must be in"),
        (spec_of(), {"text_dropout": -0.1}, "text_dropout must be in"),
        (spec_of(), {"guidance": 2.0}, "needs text_dropout above 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(spec, options, message):
    with pytest.raises(ValueError, match=message):
        DALLE(spec, SMALL, ADAM, **{"given": ["source"], **options})
