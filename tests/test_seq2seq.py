"""Encoder-decoders: what is written follows from the source and what was written, and from no padding."""

import math
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from translating import untrained

from genlab.data.numbers import NumberNames
from genlab.evaluation.attention import of_attention, pieces
from genlab.evaluation.lines import translate_lines
from genlab.families.autoregressive import Autoregressive
from genlab.networks.encoder_decoder import EncoderDecoderTransformer, sinusoids
from genlab.networks.seq2seq import AdditiveAttention, AttentionGRU, EncoderDecoderGRU, reversed_within
from genlab.samplers.beam import Beam
from genlab.samplers.tokens import Greedy
from genlab.shapes import DataSpec

VOCABULARY = '{"kind":"characters","start":1,"pad":0,"end":2,"characters":"0123456"}'
SPEC = DataSpec("pairs", (9,), 0, 11, DataSpec("sources", (9,), 0, 11, None, VOCABULARY), VOCABULARY)
SMALL = partial(EncoderDecoderTransformer, num_layers=2, num_heads=2, width=16, dropout=0.0)
NETWORKS = {
    "gru": partial(EncoderDecoderGRU, width=16),
    "attention": partial(AttentionGRU, width=16),
    "transformer": SMALL,
}
ALL = pytest.mark.parametrize("name", NETWORKS)
ATTENTIVE = pytest.mark.parametrize("name", ["attention", "transformer"])


def network(name):
    """A network whose weights are far from their small first values, so that what is seen is seen."""
    torch.manual_seed(0)
    net = NETWORKS[name](SPEC).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return net


def sources(batch=4, seed=1):
    """Sources of 2, 3, 4 ... tokens, each ended and filled with padding."""
    rows = torch.randint(3, 11, (batch, 9), generator=torch.Generator().manual_seed(seed))
    for number, row in enumerate(rows):
        row[number + 2], row[number + 3 :] = 2, 0
    return rows


def targets(batch=4, length=6):
    return torch.randint(3, 11, (batch, length), generator=torch.Generator().manual_seed(2))


@ALL
def test_a_sentence_alone_equals_the_same_among_longer_ones(name):
    net, source, y = network(name), sources(), targets()
    with torch.no_grad():
        together = net(y, source=source)
        for row in range(4):
            alone = net(y[row : row + 1], source=source[row : row + 1, : row + 3])
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


@ALL
def test_what_is_written_depends_on_earlier_tokens_and_on_the_whole_source_without_its_padding(name):
    net, source, y, read = network(name), sources(), targets(), []
    tables = [net.token] if name == "transformer" else [net.source_token, net.token]
    for table in tables:
        table.register_forward_hook(lambda *parts: read.append(parts[2].requires_grad_()))
    output = net(y, source=source)
    for place in range(6):
        found = torch.autograd.grad(output[1, place].sum(), read, retain_graph=True, allow_unused=True)
        of_source, of_text = (part.abs().sum(dim=2) > 0 for part in found)
        assert of_source.tolist() == [[False] * 9, [True] * 4 + [False] * 5, [False] * 9, [False] * 9]
        assert of_text[1].tolist() == [True] * (place + 1) + [False] * (5 - place)
        assert not of_text[[0, 2, 3]].any()


@ALL
@pytest.mark.parametrize("sizes", [[1] * 6, [2, 3, 1]])
def test_writing_in_pieces_with_a_memory_equals_writing_at_once(name, sizes):
    net, source, y = network(name), sources(), targets()
    cache = net.new_cache()
    with torch.no_grad():
        pieces_of_it = [net(part, source=source, cache=cache) for part in y.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces_of_it, dim=1), net(y, source=source), rtol=0, atol=1e-5)
        rows = torch.tensor([2, 2, 0, 1])
        cache.take(rows)
        after = net(y[:, :1], source=source[rows], cache=cache)[:, 0]
        whole = net(torch.cat([y[rows], y[:, :1]], dim=1), source=source[rows])[:, -1]
    torch.testing.assert_close(after, whole, rtol=0, atol=1e-5)


@ALL
def test_at_the_start_every_token_is_about_as_likely(name):
    torch.manual_seed(0)
    net, y = NETWORKS[name](SPEC).eval(), targets(32)
    loss = cross_entropy(
        net(y[:, :-1], source=sources()[:1].expand(32, -1)).flatten(0, 1), y[:, 1:].flatten()
    )
    assert loss.item() == pytest.approx(math.log(11), rel=0.02)


@ATTENTIVE
def test_attention_is_a_share_of_the_source_and_exactly_nothing_of_its_padding(name):
    net, source = network(name), sources()
    maps = net.maps(targets(), source)
    assert maps.shape == (4, 6, 9)
    torch.testing.assert_close(maps.sum(dim=2), torch.ones(4, 6))
    padding = (source == 0)[:, None].expand_as(maps)
    assert (maps[padding] == 0).all() and (maps[~padding] > 0).all()


def test_a_transformers_map_is_the_attention_that_it_used():
    net, source, y = network("transformer"), sources(), targets()
    block, seen = net.decoder[-1].across, {}
    block.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs, output=output))
    maps = net.maps(y, source)
    with torch.no_grad():
        x, keys_values, mask = seen["inputs"]
        weights = block.weights(x, keys_values, mask)
        h = (weights @ keys_values[1]).transpose(1, 2).flatten(2)
        torch.testing.assert_close(block.output(h), seen["output"], rtol=0, atol=1e-5)
    torch.testing.assert_close(maps, weights.mean(dim=1))


def test_additive_attention_equals_a_plain_loop():
    torch.manual_seed(0)
    attention, query, h = AdditiveAttention(5, 6, 7), torch.randn(3, 5), torch.randn(3, 4, 6)
    seen = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    found = attention(query, attention.keys(h), seen)
    for row in range(3):
        scores = [
            attention.score.weight[0]
            @ torch.tanh(attention.to_query(query[row]) + attention.keys(h[row, place]))
            for place in range(int(seen[row].sum()))
        ]
        powers = [score.exp() for score in scores]
        expected = torch.stack([power / sum(powers) for power in powers])
        torch.testing.assert_close(found[row, : len(scores)], expected)
        assert not found[row, len(scores) :].any()


def test_rows_turned_round_within_their_length_come_back():
    x, num = torch.arange(10.0).reshape(2, 5, 1), torch.tensor([3, 5])
    turned = reversed_within(x, num)
    assert turned[..., 0].tolist() == [[2, 1, 0, 3, 4], [9, 8, 7, 6, 5]]
    assert torch.equal(reversed_within(turned, num), x)


def test_sinusoids_of_two_positions_know_their_distance_alone():
    table = sinusoids(40, 16)
    products = table @ table.T
    for distance in (1, 7):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))
    assert table[0].tolist() == [0.0, 1.0] * 8 and table[3, 0].item() == pytest.approx(math.sin(3))


@ALL
def test_data_without_a_source_are_refused(name):
    with pytest.raises(ValueError, match="needs sentences with a source, and text has none"):
        NETWORKS[name](DataSpec("text", (9,), levels=11))


# Translating


@pytest.fixture(scope="module")
def translator():
    """A model of numbers and their digits that knows nothing."""
    data = NumberNames(100, length=32)
    return untrained(data), data


def test_lines_are_translated_as_the_data_they_come_from_and_in_any_order(translator):
    model, data = translator
    pairs = data.directed["test"]
    batch = next(iter(data.loader("test", batch_size=10)))
    drawn = model.sample(batch["index"], source=batch["source"])
    expected = [data.tokenizer.decode(row) for row in drawn.tolist()]
    assert translate_lines(model, pairs.sources) == expected and len(set(expected)) > 3
    assert translate_lines(model, pairs.sources[::-1], batch_size=3) == expected[::-1]
    assert translate_lines(model, ["", "forty " * 30])[0] == "" and translate_lines(model, []) == []


def test_a_model_of_texts_alone_translates_no_lines(translator):
    model = Autoregressive(translator[1].spec, lambda spec: torch.nn.Linear(1, 1), torch.optim.Adam)
    with pytest.raises(ValueError, match="translates no sentences: train one"):
        translate_lines(model, ["one"])


@pytest.mark.parametrize("sampler", [Greedy(), Beam(3)])
def test_a_text_that_has_ended_says_nothing_more(translator, sampler):
    model, data = translator
    source = next(iter(data.loader("test", batch_size=10)))["source"]
    drawn = torch.stack(
        list(model.complete(torch.ones(10, 1).long(), 32, 10, 0, sampler, source=source)), dim=1
    )
    ended = (drawn == 2).cumsum(dim=1) > 0
    assert ended.any() and (drawn[ended] == 2).all()


def test_the_picture_of_attention_is_drawn_and_names_the_tokens(translator):
    model, data = translator
    pictures = of_attention(model, data)
    assert pictures["attention"].shape[2] == 3 and pictures["attention"].std() > 5
    assert pieces(data.tokenizer, [*data.tokenizer.encode("six-6").tolist(), 2, 0]) == [
        "s",
        "i",
        "x",
        "-",
        "6",
        "⊙",
    ]
    assert (
        of_attention(Autoregressive(data.spec, NETWORKS["gru"], torch.optim.Adam, given=["source"]), data)
        == {}
    )


def test_batches_are_as_long_as_their_longest_sentence_which_ends_once_and_begins_unasked(translator):
    data = translator[1]
    for batch in data.loader("train", batch_size=7):
        assert (batch["source"][:, -1] != 0).any() and (batch["tokens"][:, -1] != -1).any()
        assert not (batch["tokens"][:, 1:] == 1).any() and ((batch["tokens"] == 2).sum(dim=1) == 1).all()
