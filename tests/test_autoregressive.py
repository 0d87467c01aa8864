"""Autoregressive models: the chain rule is exact, samples are as likely as it says, bytes count once."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from scipy.stats import chisquare
from short_training import train

from genlab.data.random_data import RandomData
from genlab.data.text import TextFile
from genlab.evaluation.likelihood import score_likelihood
from genlab.families.autoregressive import Autoregressive
from genlab.families.base import Schedule
from genlab.families.optimizers import Float32Muon
from genlab.networks.rnn import CausalRNN
from genlab.networks.transformer import CausalTransformer
from genlab.samplers.tokens import Categorical, Greedy
from genlab.shapes import IGNORED, DataSpec

ADAM = partial(torch.optim.AdamW, lr=1e-2)
SMALL = partial(CausalTransformer, num_layers=1, num_heads=2, width=8)
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 40


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "cats.txt"
    path.write_text(TEXT)
    return TextFile(str(path), context=8, batch_size=4, eval_batch_size=5)


def model_of(spec, **options):
    torch.manual_seed(0)
    return Autoregressive(spec, options.pop("network", SMALL), options.pop("optimizer", ADAM), **options)


def validated(model, data, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)
    trainer.validate(model, data, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def sharpened(model):
    """The model with weights far from zero, so that its probabilities are far from equal."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model.eval()


RNN = partial(CausalRNN, num_layers=1, width=8)
ROTARY = partial(SMALL, positions="rotary", tied=False)
TRITS, MAPS = DataSpec("trits", (3,), levels=3), DataSpec("codes", (2, 2), levels=2)
FORMS = pytest.mark.parametrize("spec, network", [(TRITS, SMALL), (MAPS, SMALL), (MAPS, ROTARY), (MAPS, RNN)])


def every(spec):
    """All texts or maps of a form, as samples are."""
    rows = torch.cartesian_prod(*[torch.arange(spec.levels)] * math.prod(spec.shape))
    return rows.reshape(-1, *spec.shape)


def as_batch(x):
    """Samples as batches hold them: texts with a token before."""
    return x if x.dim() == 3 else torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)


@FORMS
def test_the_probabilities_of_all_texts_sum_to_one_and_they_are_drawn_as_often(spec, network):
    model, x, num = sharpened(model_of(spec, network=network)), every(spec), 4_000
    p = model.log_prob(as_batch(x)).exp().double()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    assert p.max() > 2 / len(p)  # far from equal, or any network would pass
    drawn = model.sample(num)
    assert drawn.shape == (num, *spec.shape) and drawn.dtype == torch.int64
    counts = (drawn[:, None] == x[None]).flatten(2).all(dim=2).sum(dim=0)
    assert chisquare(counts, num * p / p.sum()).pvalue > 1e-3


@pytest.mark.parametrize("network", [SMALL, RNN])
@pytest.mark.parametrize("shape", [(16,), (4, 5)])
def test_an_untrained_model_knows_nothing(shape, network):
    x = torch.randint(0, 50, (8, *shape))
    batch = {"tokens": as_batch(x), "index": torch.arange(8)}
    model = model_of(DataSpec("text", shape, levels=50), network=network)
    assert model.losses(batch)["loss"].item() == pytest.approx(math.log(50), rel=0.02)


def test_a_map_is_read_from_the_top_behind_a_start_that_never_comes():
    model = sharpened(model_of(DataSpec("codes", (2, 3), num_classes=2, levels=4), given=["label"]))
    x, label = torch.randint(0, 4, (5, 2, 3)), torch.arange(5) % 2
    behind = torch.cat([torch.full((5, 1), 4), x.flatten(1)[:, :-1]], dim=1)
    logits = model.network(behind, label=label)[..., :4].log_softmax(dim=2)
    expected = logits.gather(2, x.flatten(1)[..., None]).sum(dim=(1, 2))
    torch.testing.assert_close(model.log_prob(x, label=label), expected)
    batch = {"tokens": x, "label": label, "index": torch.arange(5)}
    assert model.losses(batch)["loss"].item() == pytest.approx(-expected.sum().item() / 30, rel=1e-5)
    with torch.no_grad():
        model.network.token.weight[4] *= 50.0  # tied: the start's score is far above all
    assert model.sample(64, label=torch.arange(64) % 2).max() == 3


def test_a_rotary_transformer_tells_the_start_from_the_code_zero():
    model = sharpened(model_of(DataSpec("codes", (2, 2), levels=2), network=ROTARY))
    zeros = torch.tensor([[model.start, 0, 0, 0]])
    logits = model.network(zeros)[0, :, :2].log_softmax(dim=1)
    assert (logits[1:] - logits[:-1]).abs().amax(dim=1).min() > 1e-3


def test_maps_of_codes_stand_for_no_bytes_and_begin_anew_one_after_the_other():
    data = RandomData((2, 3), levels=5, num_train=16, num_test=16, batch_size=4)
    data.num_tokens, data.num_bytes = lambda split: 16 * 6, lambda split: 7
    model = model_of(data.spec, network=RNN)
    values = validated(model, data)
    assert model.streams is None and values.keys() == {"val/loss", "val/perplexity"}
    nats = sum(-model.log_prob(batch["tokens"]).sum().item() for batch in data.val_dataloader())
    assert values["val/loss"] == pytest.approx(nats / (16 * 6), rel=1e-5)
    assert values["val/perplexity"] == pytest.approx(math.exp(values["val/loss"]), rel=1e-6)
    found = score_likelihood(model, data, "val")
    assert found.values["nll_per_token"] == pytest.approx(nats / (16 * 6), rel=1e-5)


def test_the_loss_is_a_mean_over_tokens_and_knows_nothing_of_what_is_ignored():
    model = sharpened(model_of(DataSpec("text", (6,), levels=5)))
    tokens = torch.randint(0, 5, (3, 7))
    tokens[1, 4:] = IGNORED
    nats = -model.log_prob(tokens)
    assert model.units({"tokens": tokens}) == 15
    batch = {"tokens": tokens, "index": torch.arange(3)}
    assert model.losses(batch)["loss"].item() == pytest.approx(nats.sum().item() / 15, rel=1e-5)
    shorter = torch.cat([tokens[1:2, :4], torch.full((1, 3), IGNORED)], dim=1)
    assert torch.allclose(nats[1], -model.log_prob(shorter)[0])


def test_the_first_token_is_read_and_not_predicted():
    model = sharpened(model_of(DataSpec("text", (2,), levels=4)))
    x = torch.tensor([[0, 1, 2], [3, 1, 2]])
    logits = model.network(x[:, :-1]).log_softmax(-1)
    expected = logits[:, 0, 1] + logits[:, 1, 2]
    assert torch.allclose(model.log_prob(x), expected, atol=1e-6) and expected[0] != expected[1]


class Seen(torch.nn.Module):
    """A network that keeps what it is asked."""

    context = 8

    def __init__(self, spec):
        super().__init__()
        self.matrix, self.vector = torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)

    def forward(self, tokens):
        self.tokens = tokens
        return torch.zeros(*tokens.shape, 5)


def test_a_window_s_gaps_reach_the_network_as_a_token_that_it_has():
    model = model_of(DataSpec("text", (4,), levels=5), network=Seen)
    model.log_prob(torch.tensor([[1, 2, IGNORED, IGNORED, IGNORED]]))
    assert model.network.tokens.tolist() == [[1, 2, 0, 0]]


def test_weights_decay_in_matrices_alone():
    model = model_of(
        DataSpec("text", (4,), levels=5), network=Seen, optimizer=partial(ADAM, weight_decay=0.5)
    )
    groups = model.configure_optimizers()["optimizer"].param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    network = model.network
    assert decays[id(network.matrix.weight)] == 0.5 and decays[id(network.matrix.bias)] == 0.0
    assert decays[id(network.vector.weight)] == 0.0 and len(decays) == 4


def test_a_trained_model_s_bits_per_byte_count_every_byte_once(text):
    model = model_of(text.spec, schedule=Schedule(warmup=128))
    train(model, text, max_steps=60)
    values = validated(model, text)
    nats = sum(-model.log_prob(batch["tokens"]).sum().item() for batch in text.val_dataloader())
    assert values["val/loss"] == pytest.approx(nats / text.num_tokens("val"), rel=1e-5)
    assert values["val/perplexity"] == pytest.approx(math.exp(values["val/loss"]), rel=1e-6)
    expected = nats / math.log(2) / text.num_bytes("val")
    assert values["val/bits_per_byte"] == pytest.approx(expected, rel=1e-5)
    assert values["val/bits_per_byte"] < 3.0 < math.log2(text.spec.levels)


def test_part_of_a_split_has_no_bits_per_byte(text):
    values = validated(model_of(text.spec), text, limit_val_batches=1)
    assert "val/perplexity" in values and "val/bits_per_byte" not in values


def test_examples_are_tokens(text):
    model = model_of(text.spec)
    train(model, text, max_steps=3)
    assert model.examples_seen == 3 * 4 * 8


def test_a_text_goes_on_from_its_start_whatever_stands_beside_it(text):
    model = sharpened(model_of(text.spec))
    start = torch.tensor([[1, 2], [3, 4]])
    both = torch.stack(list(model.complete(start, 12, 2, seed=5)), dim=1)
    alone = torch.stack(list(model.complete(start[1:], 12, torch.tensor([1]), seed=5)), dim=1)
    assert torch.equal(both[1:], alone) and both.shape == (2, 12)
    other = torch.stack(list(model.complete(start, 12, 2, seed=6)), dim=1)
    assert not torch.equal(both, other)
    greedy = [torch.stack(list(model.complete(start, 12, 2, seed, Greedy())), dim=1) for seed in (0, 1)]
    assert torch.equal(*greedy)


def test_samples_begin_after_the_token_that_ends_a_line(text):
    model = model_of(text.spec, sampler=Categorical(temperature=0.5))
    assert text.tokenizer.decode([model.start]) == "\n"
    assert model.sample(3).shape == (3, 8)


def test_images_are_refused():
    with pytest.raises(ValueError, match="models tokens, and digits holds images"):
        model_of(DataSpec("digits", (1, 8, 8), levels=17))


# Steps of unequal batches


class Uneven(pl.LightningDataModule):
    """Sentences of 1 to 8 tokens, in batches of some."""

    def __init__(self, batch_size):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        tokens = torch.randint(0, 5, (8, 9), generator=torch.Generator().manual_seed(0))
        tokens[torch.arange(9) > torch.arange(1, 9)[:, None]] = IGNORED
        parts = tokens.split(self.batch_size)
        batches = [{"tokens": part, "index": torch.arange(len(part))} for part in parts]
        return torch.utils.data.DataLoader(batches, batch_size=None)


@pytest.mark.parametrize("num", [2, 4])
def test_accumulated_batches_of_unequal_lengths_are_one_batch(num):
    found = []
    for batch_size, batches in ((8, 1), (8 // num, num)):
        sgd = partial(torch.optim.SGD, lr=0.3)
        model = model_of(DataSpec("text", (8,), levels=5), optimizer=sgd)
        data = Uneven(batch_size)
        train(model, data, max_steps=1, accumulate_grad_batches=batches, gradient_clip_val=0.5)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        assert model.weight_in_hand is None
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_smoothed_targets_are_a_mean_with_all_tokens_in_training_alone():
    model = sharpened(model_of(DataSpec("text", (6,), levels=5), label_smoothing=0.2))
    tokens = torch.randint(0, 5, (3, 7))
    tokens[1, 4:] = IGNORED
    batch = {"tokens": tokens, "index": torch.arange(3)}
    log_p = model.network(tokens[:, :-1].clamp_min(0)).log_softmax(2)
    is_text = tokens[:, 1:] != IGNORED
    right = log_p.gather(2, tokens[:, 1:, None].clamp_min(0))[..., 0]
    expected = -(0.8 * right + 0.2 * log_p.mean(dim=2))[is_text].mean()
    assert model.losses(batch)["loss"].item() == pytest.approx(-right[is_text].mean().item(), rel=1e-5)
    assert model.train().losses(batch)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


# Two optimisers as one

MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


def muon_model(text, **options):
    muon = partial(Float32Muon, lr=0.02)
    return model_of(text.spec, matrix_optimizer=muon, **options)


def test_muon_takes_the_matrices_between_vectors_and_the_other_one_the_rest(text):
    model = muon_model(text, network=partial(SMALL, tied=False))
    muon, adam = model.configure_optimizers()["optimizer"].parts
    names = {id(p): name for name, p in model.network.named_parameters()}
    taken = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    left = {names[id(p)] for group in adam.param_groups for p in group["params"]}
    linear = ("to_qkv", "attention.output", "widen", "narrow")
    assert taken == {f"blocks.0.{n}.weight" for n in ("attention.to_qkv", "attention.output", *linear[2:])}
    assert {"token.weight", "position.weight", "head.weight", "norm.weight"} <= left
    assert len(taken) + len(left) == len(names)


@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40)])
def test_a_step_of_muon_moves_a_matrix_in_all_directions_alike(shape):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    weight = torch.nn.Parameter(torch.ones(shape))
    weight.grad = u @ torch.linspace(0.2, 3.0, min(shape)).diag() @ v
    Float32Muon([weight], lr=0.1, weight_decay=0.5).step()
    moved = (0.95 - weight.detach()) / (0.1 * max(1.0, shape[0] / shape[1]) ** 0.5)
    singular = u.T @ moved @ v.T
    assert (singular - singular.diag().diag()).abs().max() < 1e-4
    assert singular.diag().min() > 0.67 and singular.diag().max() < 1.15


@MUON
def test_muon_is_torchs_apart_from_the_precision():
    shapes = ((8, 8), (8, 8), (24, 8))
    weights = [[torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2)]
    for kind, own in zip((Float32Muon, torch.optim.Muon), weights, strict=True):
        optimizer, generator = kind(own, lr=0.1, weight_decay=0.1), torch.Generator().manual_seed(0)
        for _ in range(3):
            for weight in own:
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.step()
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.01)


def test_the_filters_of_a_convolution_are_a_matrix_with_a_row_for_each_output():
    torch.manual_seed(0)
    filters = torch.nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = torch.nn.Parameter(filters.detach().flatten(1).clone())
    for weight in (filters, matrix):
        weight.grad = torch.linspace(-1, 1, 48).sin().reshape(weight.shape)
        Float32Muon([weight], lr=0.1).step()
    torch.testing.assert_close(filters.flatten(1), matrix, rtol=0, atol=1e-6)


def test_muon_refuses_a_vector():
    with pytest.raises(ValueError, match=r"moves matrices, got a parameter of shape \(3,\)"):
        Float32Muon([torch.nn.Parameter(torch.zeros(3))])


def test_joined_optimisers_follow_one_schedule_and_resume_to_the_bit(text, tmp_path):
    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    options = {"schedule": Schedule(warmup=1000), "optimizer": partial(torch.optim.AdamW, lr=1e-2)}
    model = muon_model(text, **options)
    trainer = train(model, text, max_steps=4, callbacks=[Keep()])
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    factor = model.schedule.factor(model.examples_seen)
    assert rates == pytest.approx([0.02 * factor, 1e-2 * factor, 1e-2 * factor])
    again = muon_model(text, **options)
    train(again, text, max_steps=4, start=tmp_path / "2.ckpt")
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
