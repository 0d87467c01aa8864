"""MaskGIT: what is hidden in training, in which order maps are uncovered, and what is drawn then."""

import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare, qmc

from genlab.families import capabilities
from genlab.families.capabilities import can
from genlab.families.maskgit import CodeGuidance, MaskGIT
from genlab.networks.masked_transformer import MaskedTransformer
from genlab.samplers.masked import (
    ConfidenceOrder,
    HaltonOrder,
    MaskedSampler,
    RandomOrder,
    Step,
    halton_ranks,
)
from genlab.shapes import IGNORED, DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-3)
SMALL = partial(MaskedTransformer, num_layers=1, num_heads=2, width=8)
WORDS = DataSpec("captions", (6,), levels=9, vocabulary='{"kind": "chars", "pad": 8}')
ORDERS = [ConfidenceOrder(), ConfidenceOrder(0.0), RandomOrder(), HaltonOrder()]


def maps(shape=(4, 5), levels=7, num_classes=0, source=None):
    return DataSpec("codes", shape, num_classes, levels, source)


def model_of(spec=None, network=SMALL, moved=0.0, **options):
    torch.manual_seed(0)
    model = MaskGIT(spec or maps(), network, ADAM, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    return model.eval()


def codes_of(num=16, shape=(4, 5), levels=7, seed=0):
    return torch.randint(levels, (num, *shape), generator=torch.Generator().manual_seed(seed))


def batch_of(num=16, **options):
    return {"tokens": codes_of(num, **options), "index": torch.arange(num)}


def losses(model, batch):
    with model.numbered(batch["index"]):
        return model.losses(batch)


class Table(torch.nn.Module):
    """A network without inputs, whose logits can be read and learned, and which keeps what it is given."""

    def __init__(self, spec, num=16):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.randn(num, *spec.shape, spec.levels))

    def forward(self, codes, **given):
        self.read = codes
        return self.logits[: len(codes)]


class Pairs(torch.nn.Module):
    """Binary codes that sway each other: logit 1 of place i is b_i + sum_j w_ij s_j, s = -1, 1, or 0 hidden.

    Its conditionals belong to no joint distribution, so that each order has a law of its own.
    """

    def __init__(self, spec):
        super().__init__()
        num = math.prod(spec.shape)
        generator = torch.Generator().manual_seed(4)
        self.weight = torch.nn.Parameter(torch.randn(num, num, generator=generator))
        self.bias = torch.nn.Parameter(0.5 * torch.randn(num, generator=generator))

    def forward(self, codes, **given):
        spins = torch.tensor([-1.0, 1.0, 0.0])[codes.flatten(1)]
        logit = self.bias + spins @ self.weight.T
        return torch.stack([torch.zeros_like(logit), logit], dim=2).unflatten(1, codes.shape[1:])


# What is hidden, and what the loss hears of


def test_the_loss_moves_masked_places_alone_each_as_a_softmax_does():
    model, batch = model_of(network=Table).train(), batch_of()
    with model.numbered(batch["index"]):
        masked = model.masked(batch["tokens"])
        loss = model.losses(batch)["loss"]
    logits = model.network.logits
    found = torch.autograd.grad(loss, logits)[0]
    right = torch.nn.functional.one_hot(batch["tokens"], 7)
    expected = (logits.softmax(dim=3) - right) * masked[..., None] / masked.sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)
    assert not found[~masked].any() and 0 < masked.sum() < masked.numel()


def test_the_network_sees_the_codes_that_are_not_masked_and_no_other():
    model, batch = model_of(network=Table), batch_of()
    losses(model, batch)
    read, masked = model.network.read, model.network.read == 7
    assert torch.equal(read[~masked], batch["tokens"][~masked]) and masked.any()
    batch["tokens"] = torch.where(masked, (batch["tokens"] + 1) % 7, batch["tokens"])
    losses(model, batch)
    assert torch.equal(model.network.read, read)


def test_the_share_of_masked_places_is_the_cosine_of_a_uniform_number_and_each_place_is_as_likely():
    model, num = model_of(maps((4, 4))), 4_000
    with model.numbered(torch.arange(num)):
        masked = model.masked(torch.zeros(num, 4, 4, dtype=torch.int64))
    counts = masked.flatten(1).sum(dim=1).bincount(minlength=17).double()
    # ceil(16 cos(pi u / 2)) = n where cos lies in ((n - 1) / 16, n / 16]
    edges = torch.acos(torch.arange(17).double() / 16) * 2 / math.pi
    assert counts[0] == 0
    assert chisquare(counts[1:].numpy(), (num * (edges[:-1] - edges[1:])).numpy()).pvalue > 0.01
    assert (masked.double().mean(dim=0) - masked.double().mean()).abs().max() < 0.03
    with model.numbered(torch.arange(num)):
        assert model.masked(torch.zeros(num, 4, 4, dtype=torch.int64)).equal(masked)


def test_an_untrained_network_knows_nothing():
    found = losses(model_of(maps((6, 6), 50)), batch_of(64, shape=(6, 6), levels=50))["loss"].item()
    assert found == pytest.approx(math.log(50), rel=0.01)


def test_targets_are_smoothed_in_training_alone():
    model, batch = model_of(label_smoothing=0.1, moved=0.3), batch_of()
    with model.numbered(batch["index"]):
        masked, plain = model.masked(batch["tokens"]), model.losses(batch)["loss"]
        smoothed = model.train().losses(batch)["loss"]
        log_probs = model.network(batch["tokens"].masked_fill(masked, 7)).log_softmax(dim=3)
    evenly = -log_probs.mean(dim=3)[masked].mean()
    assert smoothed.item() == pytest.approx((0.9 * plain + 0.1 * evenly).item(), rel=1e-5)


def test_units_are_the_masked_codes_that_the_loss_is_a_mean_of():
    model, batch = model_of(moved=0.3), batch_of()
    parts = [{name: value[part] for name, value in batch.items()} for part in (slice(5), slice(5, 16))]
    sums = []
    for each in (batch, *parts):
        with model.numbered(each["index"]):
            sums.append((model.losses(each)["loss"] * model.units(each)).item())
    assert sums[0] == pytest.approx(sums[1] + sums[2], rel=1e-5) and model.most_units(batch) == 16 * 20


def test_two_devices_step_as_one_however_many_codes_each_of_them_masks():
    def gradients(rank, world_size):
        model = model_of(moved=0.3).train()
        model._trainer = SimpleNamespace(global_rank=rank, world_size=world_size, accumulate_grad_batches=1)
        part = {name: value[rank::world_size] for name, value in batch_of().items()}
        model.on_train_batch_start(part, 0)
        model.training_step(part, 0).backward()
        return [p.grad for p in model.parameters()], model.weight_in_hand

    (whole, _), (first, a), (second, b) = gradients(0, 1), gradients(0, 2), gradients(1, 2)
    assert a != b
    for one, *two in zip(whole, first, second, strict=True):
        # What devices exchange is a mean, which the step multiplies by their number over all weights.
        torch.testing.assert_close(sum(two) / 2 * 2 / (a + b), one, rtol=1e-4, atol=1e-6)


# How maps are uncovered


class Watched(MaskedSampler):
    """Counts how many places each step uncovers, and how often a place was uncovered."""

    def __call__(self, score, codes, hidden, seed, index):
        self.before, self.seen = [], []

        def watched(codes, hidden, share):
            self.before.append(hidden.clone())
            self.seen.append(codes.masked_fill(hidden, -1))
            return score(codes, hidden, share)

        found = super().__call__(watched, codes, hidden, seed, index)
        self.before.append(torch.zeros_like(hidden))
        self.seen.append(found)
        return found


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_every_place_is_uncovered_once_and_some_in_each_step(order, schedule):
    model = model_of(moved=0.3)
    for num_steps in (1, 3, 19, 20, 21):
        model.sampler = Watched(num_steps, order, schedule)
        codes = model.sample(2, seed=1)
        assert codes.shape == (2, 4, 5) and codes.min() >= 0 and codes.max() < 7
        steps = list(itertools.pairwise(zip(model.sampler.before, model.sampler.seen, strict=True)))
        assert len(steps) == min(num_steps, 20) == model.passes and model.sampler.before[0].all()
        for (before, seen), (after, later) in steps:
            assert (before & after).equal(after) and (before & ~after).flatten(1).any(dim=1).all()
            assert torch.equal(later[~before], seen[~before])  # what is uncovered stays
    assert num_steps > 20 and all((b & ~a).flatten(1).sum(1).eq(1).all() for (b, _), (a, _) in steps)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_what_stays_hidden_follows_the_schedule_and_falls_in_each_step_for_any_number_of_places(schedule):
    num = torch.arange(1, 300)
    for num_steps in (1, 2, 3, 8, 12, 50, 64, 100):
        sampler = MaskedSampler(num_steps, schedule=schedule)
        left = [num, *(sampler.still_hidden(num, i / num_steps, i) for i in range(1, num_steps + 1))]
        assert not left[-1].any()
        falls = torch.stack([a - b for a, b in itertools.pairwise(left)])
        assert (falls >= 0).all() and (falls[:, num >= num_steps] >= 1).all()
    eight = MaskedSampler(8)
    found = [int(eight.still_hidden(torch.tensor(256), i / 8, i)) for i in range(1, 9)]
    assert found == [math.floor(256 * math.cos(math.pi / 16 * i)) for i in range(1, 8)] + [0]


def exact_law(network, shape, order=None):
    """The probability of every binary map: of chain rules in one order, or their mean over all orders.

    P(S, x_S) = sum over i in S of P(S - i, x_(S - i)) P(i is next) p(x_i | x_(S - i))
    """
    num = math.prod(shape)
    states = torch.tensor(list(itertools.product(range(3), repeat=num)))  # 2 is hidden
    with torch.no_grad():
        probs = network(states.unflatten(1, shape)).double().softmax(dim=3).flatten(1, 2)
    hidden, law = (states == 2).sum(dim=1), torch.zeros(len(states), dtype=torch.float64)
    law[-1] = 1.0  # all are hidden
    for left in range(num, 0, -1):
        for place in range(num) if order is None else order[num - left : num - left + 1]:
            rows = torch.nonzero((hidden == left) & (states[:, place] == 2))[:, 0]
            for code in (0, 1):
                share = law[rows] * probs[rows, place, code] / (left if order is None else 1)
                law.index_add_(0, rows - (2 - code) * 3 ** (num - 1 - place), share)
    return law[hidden == 0]


def counts_of(model, num=10_000):
    codes = model.sample(num, seed=3).flatten(1)
    number = (codes * 2 ** torch.arange(codes.shape[1] - 1, -1, -1)).sum(dim=1)
    return number.bincount(minlength=2 ** codes.shape[1]).double()


@pytest.mark.parametrize(
    ("order", "shape"),
    [(RandomOrder(), (3, 3)), (HaltonOrder(), (2, 3)), (ConfidenceOrder(1e9), (2, 3))],
    ids=["random", "halton", "confidence that is all noise"],
)
def test_with_one_place_a_step_samples_are_of_the_model_s_exact_law(order, shape):
    """Over all orders, or of the one order: of each of the 2^9 or 2^6 binary maps."""
    num = math.prod(shape)
    model = model_of(maps(shape, 2), Pairs, sampler=MaskedSampler(num, order))
    places = halton_ranks(*shape).argsort().tolist() if isinstance(order, HaltonOrder) else None
    law = exact_law(model.network, shape, places)
    other = exact_law(model.network, shape, None if places else list(range(num)))
    assert law.sum() == pytest.approx(1) and (law - other).abs().sum() > 0.1
    counts = counts_of(model)
    many = law * counts.sum() > 5
    found = torch.cat([counts[many], counts[~many].sum()[None]])
    expected = torch.cat([law[many], law[~many].sum()[None]]) * counts.sum()
    kept = expected > 0
    assert chisquare(found[kept].numpy(), expected[kept].numpy()).pvalue > 0.001


def test_codes_of_one_step_are_drawn_as_if_they_were_independent():
    model = model_of(maps((2, 2), 2), Pairs, sampler=MaskedSampler(1))
    alone = model.network(torch.full((1, 2, 2), 2)).softmax(dim=3)[0, :, :, 1].flatten().tolist()
    law = [math.prod(p if x else 1 - p for p, x in zip(alone, xs, strict=True)) for xs in binary(4)]
    counts = counts_of(model)
    assert chisquare(counts.numpy(), 10_000 * torch.tensor(law).double().numpy()).pvalue > 0.001


def binary(num):
    return itertools.product((0, 1), repeat=num)


def test_temperature_sharpens_what_is_drawn():
    logits, shares = torch.tensor([0.5, 0.3, 0.2]).log(), {}

    class Fixed(torch.nn.Module):
        def forward(self, codes):
            return logits.expand(*codes.shape, 3)

    for heat in (1.0, 0.5, 1e-3):
        model = model_of(maps((2, 2), 3), lambda spec: Fixed(), sampler=MaskedSampler(1, temperature=heat))
        shares[heat] = model.sample(5_000).flatten().bincount(minlength=3) / 20_000
        expected = (logits / heat).softmax(dim=0)
        assert (shares[heat] - expected).abs().max() < 0.012


def test_the_halton_order_meets_each_place_once_in_the_sequence_s_order():
    for height, width in ((1, 1), (4, 4), (8, 9), (5, 7), (16, 16)):
        assert halton_ranks(height, width).sort().values.equal(torch.arange(height * width))
    # Points 1, 2, 3 of bases 2 and 3: (1/2, 1/3), (1/4, 2/3), (3/4, 1/9).
    assert halton_ranks(4, 3).argsort()[:3].tolist() == [2 * 3 + 1, 1 * 3 + 2, 3 * 3 + 0]
    points = qmc.Halton(2, scramble=False).random(3_000)[1:]
    cells = (points * [16, 7]).astype(int) @ [7, 1]
    assert halton_ranks(16, 7).argsort().tolist() == list(dict.fromkeys(cells.tolist()))


def test_a_quarter_of_the_halton_order_is_spread_evenly_and_of_a_random_one_is_not():
    at_random = torch.rand(256, generator=torch.Generator().manual_seed(0)).argsort()
    most = []
    for ranks in (halton_ranks(16, 16), at_random):
        shown = (ranks < 64).view(16, 16)
        in_blocks = shown.unfold(0, 4, 4).unfold(1, 4, 4).flatten(2).sum(dim=2)
        most.append((in_blocks - 4).abs().max())
    assert most[0] == 1 and most[1] >= 3


def test_confidence_uncovers_the_likeliest_code_first():
    sampler = Watched(20, ConfidenceOrder(0.0))
    model = model_of(network=partial(Table, num=3), sampler=sampler)
    with torch.no_grad():
        model.network.logits.mul_(20)  # nearly certain, so that all draws are the likeliest code
    model.sample(3)
    certainty = model.network.logits.softmax(dim=3).amax(dim=3).flatten(1)
    met = torch.stack([hidden.flatten(1) for hidden in sampler.before]).sum(dim=0)  # steps until uncovered
    first, last = met.argmin(dim=1, keepdim=True), met.argmax(dim=1, keepdim=True)
    assert (certainty.gather(1, first) > certainty.gather(1, last)).all()


def test_the_noise_of_confidence_is_gumbel_s_and_fades_to_none():
    log_prob = codes_of(4_000, (16,)).double()
    for number, left in ((1, 0.75), (2, 0.5), (4, 0.0)):
        step = Step(number, 4, (4, 4), 0, torch.arange(4_000))
        noise = ConfidenceOrder(3.0).priority(log_prob, step) - log_prob
        assert noise.mean().item() == pytest.approx(3 * left * 0.5772, abs=0.05)
        assert noise.std().item() == pytest.approx(3 * left * math.pi / math.sqrt(6), abs=0.05)


def test_what_is_drawn_and_not_uncovered_is_drawn_anew_in_the_next_step():
    class Coin(torch.nn.Module):
        def forward(self, codes):
            return torch.tensor([0.7, 0.3]).log().expand(*codes.shape, 2)

    sampler = MaskedSampler(4, ConfidenceOrder(0.0))  # a 0 is uncovered wherever there is one
    model = model_of(maps((2, 2), 2), lambda spec: Coin(), sampler=sampler)
    share = (model.sample(4_000) == 0).flatten(1).all(dim=1).double().mean().item()
    assert share == pytest.approx(math.prod(1 - 0.3**left for left in (1, 2, 3, 4)), abs=0.03)


# What a sample depends on


def test_known_codes_are_kept_and_the_others_are_what_follows_from_them():
    model = model_of(maps((3, 3), 2), Pairs, sampler=MaskedSampler(3, RandomOrder()))
    codes = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 0, 1]])
    known = torch.tensor([[True, True, False], [True, True, True], [True, True, True]])
    filled = model.fill(codes.expand(5_000, 3, 3), known, 5_000, seed=2)
    assert torch.equal(filled[:, known], codes[known].expand(5_000, 8))
    exact = model.network(codes.masked_fill(~known, 2)[None]).softmax(dim=3)[0, 0, 2, 1].item()
    assert filled[:, 0, 2].double().mean().item() == pytest.approx(exact, abs=0.025) and 0.1 < exact < 0.9
    assert torch.equal(model.fill(codes[None], torch.ones(3, 3, dtype=torch.bool), 1)[0], codes)


def test_each_map_may_have_its_own_known_codes_and_all_of_the_rest_are_drawn():
    model, codes = model_of(moved=0.3), codes_of(6)
    known = (
        torch.rand(6, 4, 5, generator=torch.Generator().manual_seed(1))
        < torch.linspace(0, 1, 6)[:, None, None]
    )
    for num_steps in (1, 5, 20):
        sampler = Watched(num_steps)
        filled = model.fill(codes.masked_fill(~known, 10**6), known, 6, sampler=sampler)
        assert torch.equal(filled[known], codes[known]) and filled.max() < 7
        alone = model.fill(codes[2:3], known[2:3], torch.tensor([2]), sampler=sampler)
        assert torch.equal(alone[0], filled[2])


def test_guidance_of_1_is_the_conditional_model_and_of_0_the_free_one():
    spec, label = maps(num_classes=3), torch.arange(12) % 3
    networks = partial(model_of, spec, moved=0.5, given=["label"])
    steered = {scale: networks(guidance=CodeGuidance(scale, 0.1, grows=False)) for scale in (0.0, 1.0, 3.0)}
    drawn = {scale: model.sample(12, label=label) for scale, model in steered.items()}
    plain = networks()
    assert torch.equal(drawn[1.0], plain.sample(12, label=label))
    assert torch.equal(drawn[0.0], plain.sample(12, label=torch.full((12,), 3)))
    assert not torch.equal(drawn[3.0], drawn[1.0]) and not torch.equal(drawn[0.0], drawn[1.0])
    assert steered[3.0].passes == 2 * plain.passes == 16
    near = networks(guidance=CodeGuidance(1.0 + 1e-9, 0.1))  # both are asked, and cancel
    assert torch.equal(near.sample(12, label=label), drawn[1.0])


def test_guided_logits_are_as_the_formula_says_and_grow_along_the_walk():
    assert [CodeGuidance(3.0, 0.1).at(share) for share in (0.0, 0.5, 1.0)] == [1.0, 2.0, 3.0]
    assert CodeGuidance(3.0, 0.1, grows=False).at(0.0) == 3.0
    asked, label, codes = [], torch.tensor([0, 2]), codes_of(2)
    model = model_of(maps(num_classes=3), moved=0.5, given=["label"], guidance=CodeGuidance(3.0, 0.1))

    class Asks(MaskedSampler):
        def __call__(self, score, codes, hidden, seed, index):
            asked.extend(score(codes, hidden, share) for share in (0.0, 0.5, 1.0))
            return super().__call__(score, codes, hidden, seed, index)

    known = torch.rand(4, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    model.fill(codes, known, 2, sampler=Asks(2), label=label)
    read = codes.masked_fill(~known, 7)
    with torch.no_grad():
        given, free = model.network(read, label), model.network(read, torch.tensor([3, 3]))
    for weight, logits in zip((1.0, 2.0, 3.0), asked, strict=True):
        torch.testing.assert_close(logits, free + weight * (given - free), rtol=1e-4, atol=1e-5)


def test_a_share_of_all_that_is_told_is_hidden_in_training_and_nothing_otherwise():
    spec, told = maps(num_classes=3, source=WORDS), {}
    model = model_of(spec, given=["label", "source"], guidance=CodeGuidance(1.0, 0.25))
    model.network.forward = lambda codes, **given: (told.update(given), torch.zeros(*codes.shape, 7))[1]
    batch = {**batch_of(2_000), "label": torch.arange(2_000) % 3, "source": codes_of(2_000, (6,), 8)}
    losses(model, batch)
    assert torch.equal(told["label"], batch["label"]) and torch.equal(told["source"], batch["source"])
    losses(model.train(), batch)
    hidden = told["label"] == 3
    assert hidden.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert (told["source"][hidden] == IGNORED).all()
    assert torch.equal(told["source"][~hidden], batch["source"][~hidden])
    assert torch.equal(told["label"][~hidden], batch["label"][~hidden])


# The network


def test_places_see_all_places_and_the_text_but_none_of_its_padding():
    torch.manual_seed(0)
    net, read = SMALL(maps((2, 3), source=WORDS)), []
    net.reader.token.register_forward_hook(lambda *parts: read.append(parts[2].requires_grad_()))
    source = torch.tensor([[1, 2, 3, 4, 8, 8], [IGNORED] * 6])
    output = net(codes_of(2, (2, 3)), source=source)
    for row, text in ((0, [True] * 4 + [False] * 2), (1, [False] * 6)):
        found = torch.autograd.grad(output[row, 1, 0] @ torch.randn(7), read[0], retain_graph=True)[0]
        assert (found[row].abs().sum(dim=1) > 0).tolist() == [True] * 6 + text
        assert not found[1 - row].any()


def test_what_fills_up_a_text_changes_nothing_and_words_and_their_order_do():
    net = model_of(maps((2, 3), source=WORDS), moved=0.3, given=["source"]).network
    codes, says = codes_of(1, (2, 3)), lambda words: net(codes, source=torch.tensor([words]))
    text = says([1, 2, 3, 8, 8, 8])
    torch.testing.assert_close(says([1, 2, 3, IGNORED, 8, IGNORED]), text, rtol=0, atol=1e-6)
    torch.testing.assert_close(says([8] * 6), net(codes), rtol=0, atol=1e-6)  # no text at all
    for other in ([1, 2, 8, 8, 8, 8], [2, 1, 3, 8, 8, 8], [1, 2, 4, 8, 8, 8]):
        assert (says(other) - text).abs().max() > 1e-3


def test_words_and_codes_of_one_number_have_vectors_of_their_own():
    net = SMALL(maps((2, 3), num_classes=4, source=WORDS))
    assert net.reader.token.weight.shape == (7 + 1 + 9, 8) and net.reader.position.weight.shape == (12, 8)
    assert net.reader.label.weight.shape == (5, 8) and SMALL(maps()).reader.label is None
    codes, label = codes_of(1, (2, 3), 3), torch.tensor([2])
    output = net(codes, label, torch.tensor([[4, 5, 8, 8, 8, 8]]))
    read = []
    net.reader.token.register_forward_hook(lambda *parts: read.append(parts[1][0]))
    net(codes, label, torch.tensor([[4, 5, 8, 8, 8, 8]]))
    assert output.shape == (1, 2, 3, 7) and read[0][0, :6].equal(codes[0].flatten())
    assert read[0][0, 6:8].tolist() == [7 + 1 + 4, 7 + 1 + 5]


# What it is not


def test_it_has_no_likelihood_and_does_not_pass_for_a_model_of_texts_or_pixels():
    model = model_of()
    assert can(model, capabilities.Samples)
    for other in ("HasLikelihood", "Completes", "CompletesImages", "HasLatent", "Denoises"):
        assert not can(model, getattr(capabilities, other))


def test_wrong_data_and_arguments_are_refused_in_words():
    refused = [
        (lambda: model_of(DataSpec("text", (9,), levels=5)), "MaskGIT models maps of codes"),
        (lambda: model_of(DataSpec("digits", (1, 8, 8), levels=17)), "models maps .* digits holds images"),
        (lambda: SMALL(DataSpec("text", (9,), levels=5)), "MaskedTransformer needs maps of codes"),
        (lambda: SMALL(maps(source=DataSpec("x", (1, 8, 8)))), "source of text, and x has shape"),
        (lambda: model_of(label_smoothing=1.0), "label_smoothing must be in"),
        (lambda: model_of(guidance=CodeGuidance(2.0, 0.1)), "scale 2.0 needs given"),
        (
            lambda: model_of(maps(num_classes=3), given=["label"], guidance=CodeGuidance(2.0)),
            "guidance.dropout above 0",
        ),
        (lambda: MaskedSampler(0), "num_steps must be at least 1"),
        (lambda: MaskedSampler(temperature=0.0), "temperature must be above 0"),
        (lambda: MaskedSampler(schedule="square"), "schedule must be cosine or linear"),
        (lambda: ConfidenceOrder(-1.0), "temperature of an order"),
    ]
    for build, message in refused:
        with pytest.raises(ValueError, match=message):
            build()
