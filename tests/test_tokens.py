import math

import pytest
import torch
from scipy.stats import chisquare

from genlab.networks.transformer import CausalTransformer
from genlab.samplers.tokens import Categorical, Greedy
from genlab.shapes import DataSpec

VOCABULARY, CONTEXT = 13, 6
MANY = torch.arange(20_000)
TOY = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])


def logits(batch: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def network(num_classes: int = 0) -> CausalTransformer:
    torch.manual_seed(0)
    spec = DataSpec("text", (CONTEXT,), num_classes, VOCABULARY)
    built = CausalTransformer(spec, num_layers=2, num_heads=2, width=16).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return built


def starts(index: torch.Tensor, length: int = 2) -> torch.Tensor:
    """A start that depends on the sample's number alone."""
    return (index[:, None] * 5 + torch.arange(length)) % VOCABULARY


def written(start, num_tokens, sampler, seed=0, index=None, net=None, **given) -> torch.Tensor:
    index = torch.arange(len(start)) if index is None else index
    return torch.stack(list(sampler.write(net or network(), start, num_tokens, seed, index, **given)), dim=1)


def naive(start, num_tokens, sampler, seed=0, **given) -> torch.Tensor:
    """The whole window read again for every token, without any memory."""
    text, net = start, network(3 if given else 0)
    for _ in range(num_tokens):
        with torch.no_grad():
            scores = net(text[:, -CONTEXT:], **given)[:, -1]
        token = sampler.choose(scores, seed, torch.arange(len(start)), text.shape[1])
        text = torch.cat([text, token[:, None]], dim=1)
    return text[:, start.shape[1] :]


# One token


@pytest.mark.parametrize("sampler", [Categorical(temperature=1e-4), Categorical(top_k=1),
                                     Categorical(top_p=1e-9)])  # fmt: skip
def test_the_limits_of_the_categorical_sampler_are_greedy(sampler):
    greedy = Greedy().choose(logits(), 0, torch.arange(64), 0)
    assert torch.equal(greedy, logits().argmax(dim=1))
    for position in range(5):
        assert torch.equal(sampler.choose(logits(), 0, torch.arange(64), position), greedy)


@pytest.mark.parametrize("sampler", [Greedy(), Categorical(top_k=1), Categorical(top_p=0.1)])
def test_of_equal_tokens_the_first_one_comes(sampler):
    assert sampler.choose(torch.tensor([[0.0, 2.0, 2.0, 2.0]]), 0, torch.arange(1), 0).item() == 1


@pytest.mark.parametrize("top_p, kept", [
    (0.3, [1]), (0.39, [1]), (0.41, [1, 3]), (0.64, [1, 3]), (0.66, [1, 3, 4]), (0.84, [1, 3, 4]),
    (0.94, [1, 2, 3, 4]), (0.96, [0, 1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4]),
])  # fmt: skip
def test_top_p_keeps_the_fewest_tokens_whose_mass_reaches_it(top_p, kept):
    share = Categorical(top_p=top_p).probabilities(TOY.log()[None])[0]
    assert share.nonzero()[:, 0].tolist() == kept
    assert share[kept].tolist() == pytest.approx((TOY[kept] / TOY[kept].sum()).tolist(), rel=1e-6)


def test_top_p_on_the_boundary_keeps_no_token_too_many():
    halves = torch.tensor([[0.0, 1.0, 2.0, 2.0]]).mul(-math.log(2)).double()  # 1/2, 1/4, 1/8, 1/8
    for top_p, num in [(0.5 - 1e-9, 1), (0.5 + 1e-9, 2), (0.75 - 1e-9, 2), (0.75 + 1e-9, 3)]:
        assert Categorical(top_p=top_p).probabilities(halves).count_nonzero() == num


def test_top_p_counts_the_mass_among_the_top_k():
    # Of 0.4, 0.25 and 0.2, renormalised to 0.47, 0.29 and 0.24, two reach 0.7.
    assert Categorical(top_k=3, top_p=0.7).probabilities(TOY.log()[None]).count_nonzero() == 2
    assert Categorical(top_p=0.7).probabilities(TOY.log()[None]).count_nonzero() == 3


@pytest.mark.parametrize("top_k", [1, 3, VOCABULARY, 100])
def test_top_k_keeps_the_k_likeliest(top_k):
    kept = Categorical(top_k=top_k).probabilities(logits()) > 0
    k = min(top_k, VOCABULARY)
    expected = torch.zeros_like(kept).scatter(1, logits().topk(k, dim=1).indices, True)
    assert torch.equal(kept, expected)


def test_temperature_divides_the_logits():
    share = Categorical(temperature=2.0).probabilities(TOY.log()[None])[0]
    assert share.tolist() == pytest.approx((TOY.sqrt() / TOY.sqrt().sum()).tolist(), rel=1e-6)


@pytest.mark.parametrize("sampler", [
    Categorical(), Categorical(temperature=2.0), Categorical(top_k=2), Categorical(top_p=0.8),
    Categorical(0.5, 4, 0.9),
])  # fmt: skip
@pytest.mark.parametrize("position", [0, 7])
def test_tokens_are_as_frequent_as_their_probabilities(sampler, position):
    rows = TOY.log().expand(len(MANY), -1)
    drawn = sampler.choose(rows, 3, MANY, position).bincount(minlength=5)
    expected = sampler.probabilities(rows[:1])[0] * len(MANY)
    possible = expected > 0
    assert drawn[~possible].sum() == 0
    assert chisquare(drawn[possible], expected[possible]).pvalue > 1e-3


def test_draws_at_two_positions_and_of_two_seeds_are_independent():
    rows = torch.zeros(len(MANY), 4)
    first = Categorical().choose(rows, 0, MANY, 0)
    for seed, position in [(0, 1), (1, 0)]:
        pairs = (4 * first + Categorical().choose(rows, seed, MANY, position)).bincount(minlength=16)
        assert chisquare(pairs).pvalue > 1e-3


def test_tokens_that_cannot_come_never_do():
    rows = torch.full((1000, 6), -torch.inf)
    rows[:, [2, 4]] = 0.0
    for sampler in [Categorical(), Categorical(top_k=5), Categorical(top_p=0.99)]:
        assert set(sampler.choose(rows, 0, torch.arange(1000), 0).tolist()) == {2, 4}


@pytest.mark.parametrize("number, token", [(0.0, 1), (0.5, 1), (0.6, 3), (1.0, 3)])
def test_even_the_ends_of_the_unit_interval_draw_a_token_that_may_come(monkeypatch, number, token):
    # The smallest and largest uniform numbers; the largest rounds to 1.
    drawn = torch.tensor([[max(number, 2.0**-54)]], dtype=torch.float64)
    monkeypatch.setattr("genlab.samplers.tokens.randomness.uniform", lambda *parts: drawn)
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    assert Categorical().choose(row, 0, torch.arange(1), 0).item() == token


def test_rounding_of_two_near_equal_logits_moves_no_more_than_their_boundary():
    up = torch.tensor([0.0, 0.0, 1.0, 0.0]) * 1e-6
    rows = torch.zeros(len(MANY), 4)
    for sampler in [Categorical(), Categorical(top_p=0.999), Categorical(top_k=4)]:
        changed = sampler.choose(rows, 0, MANY, 0) != sampler.choose(rows + up, 0, MANY, 0)
        assert changed.sum() <= 2


@pytest.mark.parametrize("sampler", [Greedy(), Categorical(), Categorical(0.8, 5, 0.9)])
def test_a_row_is_drawn_alike_in_any_batch(sampler):
    index = torch.arange(100, 164)
    together = sampler.choose(logits(), 5, index, 3)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sampler.choose(logits()[order], 5, index[order], 3), together[order])
    alone = [sampler.choose(logits()[i : i + 1], 5, index[i : i + 1], 3) for i in range(64)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("options, message", [
    ({"temperature": 0.0}, "temperature must be above 0, got 0.0; Greedy"),
    ({"temperature": math.nan}, "temperature must be above 0, got nan"),
    ({"top_k": -1}, "top_k must be at least 0, got -1"),
    ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
])  # fmt: skip
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Categorical(**options)


# The walk


@pytest.mark.parametrize("length", [1, 4, CONTEXT, CONTEXT + 3])
@pytest.mark.parametrize("sampler", [Greedy(), Categorical()])
def test_a_walk_writes_what_reading_the_cropped_window_anew_for_each_token_writes(length, sampler):
    start = starts(torch.arange(5), length)
    assert torch.equal(written(start, 12, sampler), naive(start, 12, sampler))


def test_a_walk_tells_the_network_its_label():
    start, label = starts(torch.arange(6)), torch.arange(6) % 3
    told = written(start, 8, Categorical(), net=network(3), label=label)
    assert torch.equal(told, naive(start, 8, Categorical(), label=label))
    assert not torch.equal(told, written(start, 8, Categorical(), net=network(3), label=label.flip(0)))


def test_sample_i_is_the_same_text_in_any_batch():
    index = torch.tensor([4, 9, 2, 7])
    together = written(starts(index), 10, Categorical(), index=index)
    alone = [written(starts(i), 10, Categorical(), index=i) for i in index.split(1)]
    assert torch.equal(torch.cat(alone), together)
    assert not torch.equal(together, written(starts(index), 10, Categorical(), index=index, seed=1))


def test_a_text_that_is_cut_and_given_as_a_start_goes_on_as_it_did():
    start = starts(torch.arange(4))
    whole = written(start, 10, Categorical())
    rest = written(torch.cat([start, whole[:, :4]], dim=1), 6, Categorical())
    assert torch.equal(rest, whole[:, 4:])


def test_tokens_come_one_by_one_and_each_is_read_once_until_the_context_is_full():
    net, read = network(), []
    net.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    steps = Greedy().write(net, starts(torch.arange(2), 3), 6, 0, torch.arange(2))
    assert next(steps).shape == (2,) and read == [3]
    assert len(list(steps)) == 5
    assert read == [3, 1, 1, 1, CONTEXT, CONTEXT]


def test_a_walk_leaves_no_graph_and_its_caller_with_gradients():
    steps = Categorical().write(network(), starts(torch.arange(2)), 3, 0, torch.arange(2))
    for token in steps:
        assert not token.requires_grad and torch.is_grad_enabled()


def test_a_walk_from_nothing_is_refused():
    with pytest.raises(ValueError, match="start must hold at least one token"):
        written(torch.zeros(2, 0, dtype=torch.int64), 3, Greedy())
