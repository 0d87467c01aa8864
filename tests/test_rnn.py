"""Recurrent language models: a state says all of what was read, and is carried from batch to batch."""

import math
from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from short_training import train
from test_resume import differences
from torch.nn.functional import cross_entropy

from genlab.data.text import TextFile
from genlab.families.autoregressive import Autoregressive
from genlab.families.streams import Streams
from genlab.networks.rnn import CausalRNN, State
from genlab.networks.transformer import CausalTransformer
from genlab.samplers.tokens import Greedy
from genlab.shapes import IGNORED, DataSpec

SPEC = DataSpec("text", (8,), levels=11)
CELLS = pytest.mark.parametrize("cell", ["lstm", "gru"])


def network(cell="lstm", spec=SPEC, **options):
    torch.manual_seed(0)
    return CausalRNN(spec, cell, **{"num_layers": 2, "width": 16} | options).eval()


def tokens(batch=3, length=12, seed=0):
    return torch.randint(11, (batch, length), generator=torch.Generator().manual_seed(seed))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


@CELLS
@pytest.mark.parametrize("sizes", [[12], [1] * 12, [5, 4, 3]])
def test_reading_in_pieces_with_the_state_equals_reading_at_once(cell, sizes):
    net, x, state = network(cell), tokens(), State()
    with torch.no_grad():
        pieces = [net(piece, cache=state) for piece in x.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), net(x), rtol=0, atol=1e-6)
        assert not torch.allclose(net(x[:, 6:]), net(x)[:, 6:], atol=1e-3)


@CELLS
def test_a_position_sees_itself_and_what_came_before_of_its_own_row(cell):
    net, x, read = network(cell), tokens(2, 6), []
    net.token.register_forward_hook(lambda *parts: read.append(parts[2].requires_grad_()))
    output = net(x)
    for row in range(2):
        for place in range(6):
            seen = torch.autograd.grad(output[row, place].sum(), read[0], retain_graph=True)[0].abs().sum(2)
            expected = torch.zeros(2, 6, dtype=torch.bool)
            expected[row, : place + 1] = True
            assert torch.equal(seen > 0, expected)


@CELLS
@pytest.mark.parametrize("tied", [True, False])
def test_at_the_start_every_token_is_about_as_likely(cell, tied):
    net, x = network(cell, tied=tied, width=64), tokens(32, 20)
    loss = cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(11), rel=0.03)
    assert (net.token.weight is net.output.weight) == tied


def test_forget_gates_begin_open():
    bias = network(num_layers=1, width=4).recurrent.bias_ih_l0.detach()
    assert bias[4:8].tolist() == [1.0] * 4 and (bias[:4].abs() < 1).all() and (bias[8:].abs() < 1).all()


def test_gradients_end_where_a_state_is_handed_on():
    net, x, state = network(), tokens(), State()
    net(x[:, :6], cache=state)
    net.zero_grad()
    net(x[:, 6:], cache=state).sum().backward()
    untouched = [token for token in x[:, :6].unique().tolist() if token not in x[:, 6:]]
    assert untouched and not net.token.weight.grad[untouched].any()


def test_a_label_speaks_at_every_position():
    net, x = network(spec=DataSpec("text", (8,), 3, 11)), tokens()
    first, other = (net(x, label=torch.full((3,), label)) for label in (0, 1))
    assert (first - other).abs().amax(dim=2).min() > 1e-4


# Streams


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("".join(f"the {n} cats sat on mat {n * n}.\n" for n in range(60)))
    return lambda **more: TextFile(str(path), **{"context": 8, "batch_size": 4, "streams": True} | more)


def test_each_row_of_a_batch_goes_on_where_the_one_before_ended(text):
    data = text()
    batches = list(data.train_dataloader())
    for before, after in pairwise(batches):
        assert torch.equal(after["index"], before["index"] + 1)
        assert torch.equal(after["tokens"][:, 0], before["tokens"][:, -1])
    rows = torch.cat([batch["index"] for batch in batches])
    assert len(rows.unique()) == len(rows) == len(data.training_items(0)) // 4 * 4


@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_read_together_the_rows_of_one(text, world_size):
    from genlab.data.loading import TrainLoader

    def loader(rank, processes):
        data = text()
        order = data.order(len(data.training_items(0)), 4)
        return list(TrainLoader(data.training_items, order, rank, processes))

    ranks = [loader(rank, world_size) for rank in range(world_size)]
    for whole, *parts in zip(loader(0, 1), *ranks, strict=True):
        joined = torch.stack([part["index"] for part in parts], dim=1).flatten()
        assert torch.equal(joined, whole["index"])


def test_scored_rows_are_long_and_hold_every_token_once(text):
    data = text(test_fraction=0.45)
    rows = data.split("test")["tokens"]
    assert rows.shape[1] == 64 * 8 + 1 and len(rows) > 1
    found = rows[:, 1:][rows[:, 1:] != IGNORED]
    assert data.tokenizer.decode(found) == data.parts["test"] and len(found) == data.num_tokens("test")


def test_a_row_keeps_its_state_only_where_its_item_follows():
    streams = Streams(State())
    streams.follow(torch.tensor([0, 10, 20])).value = (torch.ones(1, 3, 2), 2 * torch.ones(1, 3, 2))
    kept = streams.follow(torch.tensor([1, 12, 21])).tensors
    assert [x[0, :, 0].tolist() for x in kept] == [[1.0, 0.0, 1.0], [2.0, 0.0, 2.0]]
    assert streams.follow(torch.tensor([2, 13])).tensors == ()


@CELLS
def test_training_over_a_stream_gives_the_states_of_reading_it_whole_and_forgets_at_an_epoch(cell, text):
    """At a learning rate of 0 the network stays, and the last state of an epoch is that of its stretches."""
    data = text()
    torch.manual_seed(0)
    model = Autoregressive(
        data.spec, lambda spec: CausalRNN(spec, cell, 1, 8), lambda p: torch.optim.SGD(p, 0.0)
    )
    num = len(data.train_dataloader())
    train(model, data, max_steps=num)
    stretches = torch.cat([batch["tokens"][:, :-1] for batch in text().train_dataloader()], dim=1)
    whole = State()
    with torch.no_grad():
        model.network(stretches, cache=whole)
    for found, expected in zip(model.streams.memory.tensors, whole.tensors, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    followed = model.streams.follow(next(iter(data.train_dataloader()))["index"])
    assert not any(x.any() for x in followed.tensors)


class Keep(pl.Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_run_stopped_inside_of_a_stream_goes_on_to_the_bit(text, tmp_path):
    def run(steps, step, file, start=None):
        torch.manual_seed(0)
        model = Autoregressive(text().spec, lambda spec: CausalRNN(spec, "lstm", 1, 8), sgd)
        train(model, text(), steps, callbacks=[Keep(tmp_path / file, step)], start=start)
        return torch.load(tmp_path / file, weights_only=True)

    first = run(5, 2, "first.ckpt")
    assert any(x.any() for x in first["streams"]["states"])
    whole, parts = run(5, 5, "whole.ckpt"), run(5, 5, "parts.ckpt", tmp_path / "first.ckpt")
    assert differences(whole, parts) == []
    del first["streams"]
    torch.save(first, tmp_path / "forgetful.ckpt")
    assert differences(whole, run(5, 5, "other.ckpt", tmp_path / "forgetful.ckpt")) != []


def test_states_of_two_processes_come_back_to_their_rows():
    whole = Streams(State())
    whole.follow(torch.arange(6)).value = torch.arange(6.0).reshape(1, 6, 1)
    parts = [Streams(State()) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.load_state_dict(whole.state_dict(), torch.device("cpu"), rank, 2)
    assert parts[1].index.tolist() == parts[1].memory.tensors[0].flatten().tolist() == [1, 3, 5]


def test_streams_are_refused_by_a_network_without_a_state(text):
    data = text()
    model = Autoregressive(data.spec, lambda spec: CausalTransformer(spec, 1, 2, 8), sgd)
    with pytest.raises(ValueError, match=r"data\.streams is for networks that carry a state.*take CausalRNN"):
        train(model, data, 1)


def test_a_text_is_written_with_one_step_for_each_token(text):
    model = Autoregressive(text().spec, lambda spec: CausalRNN(spec, "gru", 1, 8), sgd)
    read = []
    model.network.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].shape[1]))
    start = torch.tensor([[1, 2, 3]])
    written = torch.stack(list(model.complete(start, 20, 1, sampler=Greedy())), dim=1)
    assert read == [3] + [1] * 19
    with torch.no_grad():
        whole = model.network(torch.cat([start, written], dim=1))[:, 2:-1].argmax(dim=2)
    assert torch.equal(whole, written)
