import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.genlab_jobs import gpt_train
from genlab.networks.attention import Cosine, Rotation
from genlab.networks.transformer import CausalTransformer
from genlab.shapes import DataSpec

VOCABULARY, CONTEXT, BATCH = 11, 8, 3
SPEC = DataSpec("text", (CONTEXT,), levels=VOCABULARY)


def network(num_classes: int = 0, spec: DataSpec = SPEC, **options) -> CausalTransformer:
    """Weights ten times as large as those at the start, so that what is seen is far above rounding errors."""
    torch.manual_seed(0)
    spec = DataSpec(spec.name, spec.shape, num_classes, spec.levels)
    built = CausalTransformer(spec, **{"num_layers": 2, "num_heads": 2, "width": 16} | options).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    return built


def tokens(length: int = CONTEXT, batch: int = BATCH, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def in_pieces(net: CausalTransformer, x: torch.Tensor, sizes: list[int], **given) -> torch.Tensor:
    cache = net.new_cache()
    return torch.cat([net(piece, cache=cache, **given) for piece in x.split(sizes, dim=1)], dim=1)


def influence(net: CausalTransformer, x: torch.Tensor) -> torch.Tensor:
    """Whether position i's logits of row a move with the vector read at j of row b: (a, i, b, j)."""
    read = []
    hook = net.token.register_forward_hook(lambda *parts: read.append(parts[2].requires_grad_()))
    output = net(x)
    hook.remove()
    weights = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1))
    rows = [
        torch.autograd.grad((output[a, i] * weights).sum(), read[0], retain_graph=True)[0].abs().amax(dim=2)
        for a in range(len(x))
        for i in range(x.shape[1])
    ]
    return torch.stack(rows).reshape(*x.shape, *x.shape) > 0


def test_a_position_sees_itself_and_all_earlier_ones_of_its_own_row_and_nothing_else():
    seen = influence(network(), tokens())
    earlier = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    expected = torch.eye(BATCH, dtype=torch.bool)[:, None, :, None] & earlier[None, :, None, :]
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("sizes", [[1] * 8, [8], [5, 1, 1, 1], [1, 3, 4], [3, 5]])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_reading_in_pieces_equals_reading_at_once_up_to_a_full_context(sizes, num_classes):
    net, x = network(num_classes), tokens()
    given = {"label": torch.arange(BATCH)} if num_classes else {}
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(net, x, sizes, **given), net(x, **given), rtol=0, atol=1e-5)


def test_a_cleared_cache_reads_a_new_window_in_the_memory_it_has():
    net = network()
    cache = net.new_cache()
    with torch.no_grad():
        net(tokens(), cache=cache)
        places = [memory.stored.data_ptr() for memory in cache]
        assert cache.is_full
        cache.clear()
        window = tokens(CONTEXT - 1, seed=1)
        torch.testing.assert_close(net(window, cache=cache), net(window), rtol=0, atol=1e-5)
    assert [memory.stored.data_ptr() for memory in cache] == places
    assert cache.length == CONTEXT - 1 and not cache.is_full


@pytest.mark.fault(48)
@pytest.mark.parametrize("read", [0, 1, CONTEXT])
def test_a_text_beyond_the_context_is_refused_and_leaves_the_cache_as_it_was(read):
    net = network()
    cache = net.new_cache()
    if read:
        net(tokens(read), cache=cache)
    with pytest.raises(ValueError, match=rf"context of {CONTEXT} tokens, got {CONTEXT + 1}"):
        net(tokens(CONTEXT + 1 - read), cache=cache)
    assert cache.length == read


def closed_form(vocabulary: int, context: int, layers: int, width: int, bias: bool) -> int:
    matrices = width * (vocabulary + context) + layers * 12 * width**2
    return matrices + (2 * layers + 1) * width + (layers * 9 * width + (2 * layers + 1) * width) * bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_the_number_of_parameters_is_that_of_the_closed_form(bias, num_classes):
    net = network(num_classes, num_layers=3, num_heads=4, width=24, bias=bias)
    expected = closed_form(VOCABULARY, CONTEXT, 3, 24, bias) + num_classes * 24
    assert sum(p.numel() for p in net.parameters()) == expected


def test_the_closed_form_gives_the_published_124_million_parameters_of_gpt2():
    assert closed_form(50257, 1024, 12, 768, bias=True) == 124_439_808


def test_at_the_start_every_token_is_about_as_likely():
    torch.manual_seed(0)
    net = CausalTransformer(DataSpec("text", (64,), levels=65))
    x = torch.randint(65, (16, 65), generator=torch.Generator().manual_seed(2))
    loss = cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), rel=0.02)


def test_weights_begin_at_a_fiftieth_and_those_that_end_a_branch_shrink_with_the_depth():
    torch.manual_seed(0)
    net = CausalTransformer(SPEC, num_layers=8, width=128)
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            ends_branch = name.endswith(("attention.output.weight", "narrow.weight"))
            assert parameter.std().item() == pytest.approx(0.02 / (4 if ends_branch else 1), rel=0.1), name


def test_the_stream_keeps_its_scale_at_any_depth():
    def variance(num_layers: int) -> float:
        torch.manual_seed(0)
        net = CausalTransformer(SPEC, num_layers=num_layers, width=64)
        streams = []
        net.norm.register_forward_hook(lambda module, inputs, output: streams.append(inputs[0]))
        net(tokens(batch=16))
        return streams[0].var().item()

    assert variance(16) == pytest.approx(variance(2), rel=0.15)


def test_the_head_is_the_matrix_of_the_tokens():
    net, never_read = network(), VOCABULARY - 1
    x = tokens().clamp(max=never_read - 1)
    with torch.no_grad():
        net.token.weight[never_read] += torch.linspace(-1, 1, 16)
    last = []
    net.norm.register_forward_hook(lambda *parts: last.append(parts[2]))
    torch.testing.assert_close(net(x), last[0] @ net.token.weight.T)
    changed = (net(x) - network()(x)).abs()
    assert changed.shape == (BATCH, CONTEXT, VOCABULARY)
    assert changed[..., never_read].min() > 1e-3 and changed[..., :never_read].max() < 1e-5


def test_the_order_of_earlier_tokens_matters():
    net, x = network(), tokens()
    swapped = x[:, [1, 0, *range(2, CONTEXT)]]
    moved = (x[:, 0] != x[:, 1]).nonzero()[:, 0]
    assert len(moved)
    difference = (net(swapped) - net(x))[moved, 2:].abs().amax(dim=2)
    assert difference.min() > 1e-3


def test_equal_tokens_at_all_places_are_told_apart_by_their_positions_alone():
    net, x = network(), torch.full((1, CONTEXT), 4)
    assert (net(x)[0, 1:] - net(x)[0, :-1]).abs().amax(dim=1).min() > 1e-3
    with torch.no_grad():
        net.position.weight.zero_()
    torch.testing.assert_close(net(x)[0, 1:], net(x)[0, :-1], rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only():
    net, x = network(dropout=0.3), tokens()
    assert torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x), network()(x), rtol=0, atol=0)
    net.train()
    assert (net(x) - net(x)).abs().amax(dim=2).min() > 0


def test_dropout_also_drops_attention():
    net, x = network(dropout=0.5, num_layers=1).train(), tokens()
    net.dropout.p = net.blocks[0].dropout.p = 0.0
    assert not torch.equal(net(x), net(x))


def test_the_label_speaks_at_every_position_and_is_required():
    net, x = network(num_classes=4), tokens()
    first, second = (net(x, label=torch.full((BATCH,), label)) for label in (0, 1))
    assert (first - second).abs().amax(dim=2).min() > 1e-3
    mixed = net(x, label=torch.tensor([1, 0, 1]))
    torch.testing.assert_close(mixed, torch.stack([second[0], first[1], second[2]]))
    with pytest.raises(ValueError, match=r"label is missing.*4 classes"):
        net(x)
    assert torch.equal(network()(x, label=torch.zeros(BATCH, dtype=torch.int64)), network()(x))


def test_it_refuses_to_be_told_a_source():
    with pytest.raises(TypeError, match="source"):
        network()(tokens(), source=tokens())


def test_every_parameter_receives_a_gradient():
    net = network(num_classes=BATCH, bias=True).train()
    output = net(tokens(), label=torch.arange(BATCH))
    (output * torch.randn_like(output)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_it_learns_to_repeat_what_came_three_tokens_ago():
    torch.manual_seed(0)
    net = CausalTransformer(SPEC, num_layers=2, num_heads=2, width=32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(250):
        x = torch.randint(VOCABULARY, (32, 3), generator=generator).repeat(1, 3)
        loss = cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten(), reduction="none")
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    loss = loss.reshape(32, 8).mean(dim=0)
    assert loss[2:].max() < 0.2
    assert loss[:2].min() > 0.9 * math.log(VOCABULARY)


@pytest.mark.parametrize("spec", [DataSpec("points", (2,), levels=0), DataSpec("codes", (4, 4), levels=16),
                                  DataSpec("images", (1, 8, 8))])  # fmt: skip
def test_data_that_are_not_texts_are_refused(spec):
    with pytest.raises(ValueError, match=rf"needs texts.*{spec.name}"):
        CausalTransformer(spec)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads must divide width, got 3 and 128"):
        CausalTransformer(SPEC, num_heads=3)


# What later models changed

MODERN = {"positions": "rotary", "norm": "rms", "qk_norm": True, "activation": "relu2", "tied": False}
BOTH = MODERN | {"positions": "both"}


@pytest.mark.parametrize("options", [MODERN, BOTH], ids=["rotary", "both"])
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5]])
def test_reading_in_pieces_equals_reading_at_once_with_all_options(sizes, options):
    net, x = network(**options, logit_cap=5.0), tokens()
    with torch.no_grad():
        torch.testing.assert_close(in_pieces(net, x, sizes), net(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [MODERN, BOTH], ids=["rotary", "both"])
def test_all_options_together_see_no_later_token_and_teach_every_parameter(options):
    net = network(**options, logit_cap=5.0)
    earlier = torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    expected = torch.eye(BATCH, dtype=torch.bool)[:, None, :, None] & earlier[None, :, None, :]
    assert torch.equal(influence(net, tokens()), expected)
    net(tokens()).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_both_kinds_of_positions_are_rotary_ones_with_a_vector_for_each_place():
    both, rotary, x = network(positions="both"), network(positions="rotary"), tokens()
    rotary.load_state_dict({k: v for k, v in both.state_dict().items() if k != "position.weight"})
    assert not torch.allclose(both(x), rotary(x), atol=1e-2)
    torch.nn.init.zeros_(both.position.weight)
    torch.testing.assert_close(both(x), rotary(x))


def test_rotated_scores_depend_on_the_distance_alone():
    torch.manual_seed(0)
    rotation, q, k = Rotation(50, 8), torch.randn(8), torch.randn(8)
    turned = rotation(q.expand(50, 8)) @ rotation(k.expand(50, 8)).T
    for distance in (-20, -1, 0, 3):
        along = turned.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=0, atol=1e-5)
    assert turned[0, 0].item() == pytest.approx((q @ k).item(), abs=1e-5)
    assert abs(turned[0, 3] - turned[0, 0]) > 0.1
    torch.testing.assert_close(rotation(q.expand(4, 8), first=7), rotation(q.expand(50, 8))[7:11])
    # one pair of numbers turns by one radian for each position
    assert Rotation(3, 2)(torch.tensor([[1.0, 0.0]] * 3))[2].tolist() == pytest.approx(
        [math.cos(2), math.sin(2)]
    )


def test_an_infinite_cap_is_none_and_a_finite_one_bounds():
    x = tokens()
    free, far, near = (network(logit_cap=cap)(x) for cap in (None, 1e6, 0.5))
    torch.testing.assert_close(far, free, rtol=1e-4, atol=1e-4)
    assert near.abs().max() <= 0.5 < free.abs().max()
    torch.testing.assert_close(near, 0.5 * torch.tanh(free / 0.5))


def test_queries_and_keys_of_one_length_bound_every_score():
    attention = network(qk_norm=True).blocks[0].attention
    with torch.no_grad():
        attention.cosine.gain.copy_(torch.tensor([0.5, 2.0]))
    qkv = 100 * torch.randn(3, 2, 2, 8, 8)
    q, k, v = attention._placed(qkv, 0)
    expected = torch.tensor([0.5, 2.0])[:, None, None] * math.sqrt(8)  # g = gain sqrt(head_dim)
    cosines = torch.nn.functional.cosine_similarity(qkv[0, :, :, :, None], qkv[1, :, :, None], dim=-1)
    torch.testing.assert_close(q @ k.mT / math.sqrt(8), expected * cosines)
    assert torch.equal(v, qkv[2])


@pytest.mark.parametrize("length", [8, 256])
def test_from_the_start_a_token_can_give_nearly_all_of_its_attention_to_one(length):
    cosine = Cosine(2, 8, length)
    q = torch.eye(8)[:1].expand(2, 1, 2, length, 8).clone()
    q[1, :, :, 1:] = torch.eye(8)[1]  # one key alone is as the query
    queries, keys = cosine(q)
    share = (queries @ keys.mT / math.sqrt(8)).softmax(dim=-1)[..., 0]
    assert share.min() > 0.9
    assert cosine.gain.dim() == 1  # a vector, which neither decays nor is orthogonalised


def test_squared_relu_and_untied_matrices_are_what_they_say():
    net = network(activation="relu2", tied=False)
    assert net.blocks[0].activate(torch.tensor([-2.0, 0.5, 3.0])).tolist() == [0.0, 0.25, 9.0]
    assert net.head is not None and net.output_weight is net.head.weight
    tied = network()
    assert tied.output_weight is tied.token.weight


def test_root_mean_square_norms_neither_centre_nor_shift():
    norm, x = network(norm="rms").norm, torch.randn(4, 16) + 3
    found = norm(x) / norm.weight
    torch.testing.assert_close(found, x / x.square().mean(dim=1, keepdim=True).sqrt(), rtol=1e-4, atol=1e-5)


def test_the_benchmarks_job_of_gpt_does_rounds_over_more_than_an_epoch(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 40)
    sizes = SimpleNamespace(
        batch=8, block=16, layers=1, heads=2, dim=8, dropout=0.0, lr=1e-3, betas=(0.9, 0.99)
    )
    job = gpt_train(
        SimpleNamespace(**vars(sizes), weight_decay=0.1, clip=1.0, steps=9, text=tmp_path / "text.txt")
    )
    assert job["run"](0) == 9 * 8 * 16
    assert job["params"] > 0


@pytest.mark.parametrize("options, message", [
    ({"positions": "rotary", "width": 6}, "must be even for rotary positions, got 3"),
    ({"logit_cap": 0.0}, "logit_cap must be above 0, got 0.0"),
])  # fmt: skip
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CausalTransformer(SPEC, num_heads=2, **options)
