"""Beam search: greedy at one end, all texts at the other, and the same for a sentence in any batch."""

import itertools

import pytest
import torch

from genlab.networks.rnn import CausalRNN
from genlab.networks.transformer import CausalTransformer
from genlab.samplers.beam import Beam
from genlab.samplers.tokens import Greedy
from genlab.shapes import DataSpec

END, LENGTH = 2, 4
START = torch.tensor([[0], [1], [3], [4]])


def network(kind=CausalTransformer, levels=5, context=8):
    """A network that is sure of itself here and there, so that the best text is not the greedy one."""
    torch.manual_seed(3)
    net = kind(DataSpec("text", (context,), levels=levels), num_layers=1, width=8).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    return net


def enumerated(net, start, end, penalty):
    """The best score of all texts of at most LENGTH tokens, read one by one, and the text."""
    levels, found = net.token.num_embeddings, {}
    for text in itertools.product(range(levels), repeat=LENGTH):
        cut = text[: text.index(end) + 1] if end in text else text
        if cut not in found:
            row = torch.cat([start, torch.tensor([cut])], dim=1)
            log_prob = net(row[:, :-1]).double().log_softmax(2)[0, range(-len(cut), 0), list(cut)].sum()
            found[cut] = log_prob.item() / ((5 + len(cut)) / 6) ** penalty
    best = max(found, key=found.__getitem__)
    return found[best], best


@pytest.mark.parametrize("penalty", [0.0, 4.0])
def test_a_beam_with_room_for_every_text_finds_the_best_of_all(penalty):
    net = network(levels=4)
    with torch.no_grad():
        texts, scores = Beam(4**LENGTH, penalty).search(net, START[:3], LENGTH, END)
        for row in range(3):
            score, best = enumerated(net, START[row : row + 1], END, penalty)
            assert scores[row].item() == pytest.approx(score, abs=1e-5)
            assert tuple(texts[row, : len(best)].tolist()) == best


@pytest.mark.parametrize("kind", [CausalTransformer, CausalRNN])
@pytest.mark.parametrize("end", [END, None])
def test_a_beam_of_one_is_greedy(kind, end):
    net, index = network(kind), torch.arange(4)
    arguments = (net, START, 12, 0, index, end)  # beyond the transformer's context
    beam, greedy = (torch.stack(list(s.write(*arguments)), dim=1) for s in (Beam(1), Greedy()))
    assert torch.equal(beam, greedy)


def test_a_wider_beam_finds_no_worse_and_somewhere_a_better_text():
    nets = network(levels=7)
    start = torch.arange(7)[:, None]
    scores = [Beam(width, 0.0).search(nets, start, 6, END)[1] for width in (1, 2, 8, 200)]
    assert (scores[-1] >= torch.stack(scores) - 1e-9).all() and (scores[-1] > scores[0] + 1e-6).any()


def test_a_sentence_is_searched_for_alike_in_any_batch():
    net = network(CausalRNN)
    together, scores = Beam(3).search(net, START, 6, END)
    for row in range(4):
        alone, score = Beam(3).search(net, START[row : row + 1], 6, END)
        assert torch.equal(alone[0], together[row]) and score[0] == pytest.approx(scores[row].item())


def test_a_higher_penalty_writes_no_shorter_texts():
    net = network()
    lengths = [(Beam(50, alpha).search(net, START, 6, END)[0] != END).sum() for alpha in (0.0, 1.0, 4.0)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


@pytest.mark.parametrize("options", [{"width": 0}, {"length_penalty": -0.1}])
def test_a_bad_argument_is_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Beam(**options)
