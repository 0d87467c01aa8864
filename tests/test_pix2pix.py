"""pix2pix: pairs are judged, the generator is pulled to the true image, samples follow their sources."""

from functools import partial

import pytest
import torch
from short_training import train

from genlab.data.base import DataModule
from genlab.data.packed import Packed
from genlab.evaluation.given import given_for, item_batch
from genlab.families.pix2pix import Pix2Pix
from genlab.families.players import Balance
from genlab.losses.adversarial import LeastSquares, NonSaturating
from genlab.networks.image_to_image import PatchDiscriminator, UNetGenerator
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=4e-3, betas=(0.5, 0.999))
GENERATOR = partial(UNetGenerator, base_channels=4, norm="instance", dropout=0.0)
DISCRIMINATOR = partial(PatchDiscriminator, base_channels=4, num_layers=1, norm="instance")


class Negatives(DataModule):
    """Random images whose sources are their negatives."""

    @property
    def spec(self):
        return DataSpec("negatives", (1, 16, 16), source=DataSpec("positives", (1, 16, 16)))

    def load(self):
        generator = torch.Generator().manual_seed(0)
        blocks = torch.randint(0, 256, (40, 1, 4, 4), generator=generator, dtype=torch.uint8)
        images = blocks.repeat_interleave(4, 2).repeat_interleave(4, 3).numpy()
        packed = Packed({"image": images, "source": 255 - images})
        return {"train": packed, "test": packed.take(torch.arange(8).numpy())}


PLAYERS = {
    "generator": GENERATOR,
    "discriminator": DISCRIMINATOR,
    "loss": NonSaturating(),
    "generator_optimizer": ADAM,
    "discriminator_optimizer": ADAM,
    "given": ["source"],
}


def pix2pix(**options):
    torch.manual_seed(0)
    return Pix2Pix(Negatives().spec, **{**PLAYERS, **options})


def batch_of(num=4):
    return item_batch(Negatives(batch_size=4), "train", torch.arange(num), torch.device("cpu"))


def test_the_generator_s_loss_is_the_game_s_and_the_distance_weighed():
    model, batch = pix2pix(l1_weight=10.0, loss=LeastSquares()).eval(), batch_of()
    with torch.no_grad():
        fake = model.generate(batch, "validation")
        losses = model.losses(batch)
        expected = LeastSquares().generator(model.discriminator(fake, source=batch["source"]))
    assert losses["l1"].item() == pytest.approx((fake - batch["image"]).abs().mean().item())
    assert losses["adversarial"].item() == pytest.approx(expected.item())
    assert losses["generator"].item() == pytest.approx((expected + 10.0 * losses["l1"]).item(), rel=1e-6)
    assert losses["loss"] == losses["generator"]


def test_the_discriminator_judges_pairs():
    model, batch = pix2pix(), batch_of()
    swapped = {**batch, "source": batch["source"].roll(1, 0)}
    assert not torch.allclose(model.judge(batch["image"], batch), model.judge(batch["image"], swapped))


def test_a_translation_follows_its_source_and_neither_seed_nor_neighbours():
    model, data = pix2pix(), Negatives(batch_size=4)
    index = torch.arange(10)  # of 8 items: the last two are the first again
    given = given_for(model, index, data)
    x = model.sample(index, **given)
    assert x.shape == (10, 1, 16, 16) and torch.allclose(x[8:], x[:2], atol=1e-6)
    assert torch.equal(x, model.sample(index, seed=1, **given))
    alone = model.sample(index[3:4], **given_for(model, index[3:4], data))
    assert torch.allclose(alone, x[3:4], atol=1e-6)
    assert not torch.allclose(x[0], x[1])


def test_sources_come_from_the_split_that_is_named_and_as_floats():
    model, data = pix2pix(), Negatives(batch_size=4)
    source = given_for(model, torch.tensor([2]), data, "test")["source"]
    assert source.dtype == torch.float32 and source.min() >= -1.0 and source.max() <= 1.0
    target = item_batch(data, "test", torch.tensor([2]), torch.device("cpu"))["image"]
    assert torch.allclose(source, -target, atol=1e-6)
    with pytest.raises(ValueError, match="give the data"):
        given_for(model, torch.tensor([2]))


def test_a_few_steps_learn_to_turn_negatives_round():
    model, data = pix2pix(), Negatives(batch_size=4)
    before = model.eval().losses(batch_of(8))["l1"].item()
    train(model.train(), data, max_steps=40)
    after = model.eval().losses(batch_of(8))["l1"].item()
    assert after < 0.8 * before
    assert model.discriminator_updates == 40 and model.examples_seen == 160


def test_without_sources_there_is_nothing_to_translate():
    with pytest.raises(ValueError, match=r"set given to \[source\]"):
        pix2pix(given=[])
    with pytest.raises(ValueError, match="needs pairs"):
        Pix2Pix(DataSpec("photos", (1, 16, 16)), **PLAYERS)
    with pytest.raises(ValueError, match="l1_weight must not be negative"):
        pix2pix(l1_weight=-1.0)


def test_several_discriminator_steps_are_counted_as_for_any_game():
    model = pix2pix(balance=Balance(discriminator_steps=2))
    trainer = train(model, Negatives(batch_size=4), max_steps=3)
    assert model.discriminator_updates == 6 and trainer.global_step == 3
