"""Autoregressive models: the chain rule is exact, samples are as likely as it says, bytes count once."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from short_training import train

from genlab.data.text import TextFile
from genlab.families.autoregressive import Autoregressive
from genlab.families.base import Schedule
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


def test_the_probabilities_of_all_texts_sum_to_one():
    model = sharpened(model_of(DataSpec("bits", (4,), levels=3)))
    texts = torch.cartesian_prod(*[torch.arange(3)] * 4)
    x = torch.cat([torch.zeros(len(texts), 1, dtype=torch.int64), texts], dim=1)
    log_prob = model.log_prob(x)
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert log_prob.exp().max() > 3 / 81  # far from equal, or any network would pass


def test_texts_are_drawn_as_often_as_they_are_likely():
    model = sharpened(model_of(DataSpec("bits", (3,), levels=2)))
    texts = torch.cartesian_prod(*[torch.arange(2)] * 3)
    p = model.log_prob(torch.cat([torch.zeros(8, 1, dtype=torch.int64), texts], dim=1)).exp().double()
    num = 4_000
    drawn = model.sample(num) @ torch.tensor([4, 2, 1])
    counts = torch.bincount(drawn, minlength=8).double()
    chi_square = ((counts - num * p).square() / (num * p)).sum().item()
    assert chi_square < 24.3  # 0.999 quantile of 7 degrees of freedom


def test_an_untrained_model_knows_nothing():
    spec = DataSpec("text", (16,), levels=50)
    batch = {"tokens": torch.randint(0, 50, (8, 17)), "index": torch.arange(8)}
    assert model_of(spec).losses(batch)["loss"].item() == pytest.approx(math.log(50), rel=0.02)


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
