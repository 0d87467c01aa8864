"""Numbers that are a function of their address."""

import pytest
import torch

from genlab import randomness


def test_normal_rows_do_not_depend_on_the_batch_they_are_drawn_in():
    address = randomness.key(0, "latent")
    whole = randomness.normal(address, torch.arange(100), (3, 5))
    parts = [randomness.normal(address, index, (3, 5)) for index in torch.arange(100).split(7)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[[42]], randomness.normal(address, torch.tensor([42]), (3, 5)))


def test_the_first_numbers_of_a_row_do_not_depend_on_its_length():
    index = torch.arange(4)
    assert torch.equal(randomness.uniform(1, index, 9)[:, :4], randomness.uniform(1, index, 4))


@pytest.mark.parametrize("part", [("a", 1), ("b", 0), ("a", 0, 0), ("a", "0")])
def test_keys_of_different_addresses_give_unrelated_numbers(part):
    index = torch.arange(2000)
    a = randomness.normal(randomness.key("a", 0), index, (1,)).flatten()
    b = randomness.normal(randomness.key(*part), index, (1,)).flatten()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.08


def test_normal_numbers_have_the_moments_of_a_normal_distribution():
    x = randomness.normal(randomness.key("moments"), torch.arange(2000), (200,), torch.float64).flatten()
    moments = torch.stack([(x**order).mean() for order in (1, 2, 3, 4)])
    assert torch.allclose(moments, torch.tensor([0.0, 1.0, 0.0, 3.0], dtype=x.dtype), atol=0.03)


def test_neighbouring_rows_and_columns_are_uncorrelated():
    x = randomness.normal(randomness.key("neighbours"), torch.arange(300), (300,), torch.float64)
    halves = (x[:, :150], x[:, 150:])  # the two numbers of each Box-Muller pair
    for a, b in ((x[1:], x[:-1]), (x[:, 1:], x[:, :-1]), halves):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.02


def test_uniform_numbers_fill_the_open_interval_evenly():
    u = randomness.uniform(randomness.key("even"), torch.arange(1000), 100).flatten()
    assert 0.0 < u.min() < 1e-3 and 1 - 1e-3 < u.max() < 1.0
    counts = torch.histc(u, 50, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 100  # chi-squared of 49 degrees; beyond 100 once in 10^5


def test_keys_are_the_same_on_every_machine():
    assert randomness.key(0, "training", 64) == 2597346626489599020


def test_a_lent_step_gives_both_models_what_belongs_to_the_step():
    own, device = randomness.StepNoise(), torch.device("cpu")
    own.begin(randomness.key("step", 1))
    borrowed = own  # a model inside of another one holds the same object
    first = borrowed.normal("inner", 4, (3,), device)
    own.begin(randomness.key("step", 2))
    assert not torch.equal(borrowed.normal("inner", 4, (3,), device), first)
    own.begin(randomness.key("step", 1))
    assert torch.equal(borrowed.normal("inner", 4, (3,), device), first)
    assert not torch.equal(own.normal("outer", 4, (3,), device), first)


def test_two_ranks_draw_together_what_one_draws_and_numbers_outlast_the_place():
    device = torch.device("cpu")
    one, ranks = randomness.StepNoise(), [randomness.StepNoise() for _ in range(2)]
    one.begin(7)
    for rank, noise in enumerate(ranks):
        noise.begin(7, rank, 2)
    whole = one.uniform("u", 6, (2,), device)
    halves = torch.stack([noise.uniform("u", 3, (2,), device) for noise in ranks], dim=1).flatten(0, 1)
    assert torch.equal(whole, halves)
    with one.numbered(torch.tensor([5, 2])):
        pair = one.normal("z", 2, (3,), device)
    with one.numbered(torch.tensor([2])):
        assert torch.equal(one.normal("z", 1, (3,), device), pair[1:])


def test_numbers_next_to_1_stay_below_it_in_32_bits(monkeypatch):
    largest = torch.tensor([[1.0 - 2.0**-54, 0.5, 2.0**-54]], dtype=torch.float64)
    monkeypatch.setattr(randomness, "uniform", lambda *arguments: largest)
    step = randomness.StepNoise()
    u = step.uniform("any", 1, (3,), torch.device("cpu"))
    assert u.dtype == torch.float32 and u[0, 0] == 1.0 - 2.0**-24 and u[0, 1] == 0.5 and u[0, 2] > 0.0
    assert int((u[0, 0] * 11).long()) == 10  # a place among 11
