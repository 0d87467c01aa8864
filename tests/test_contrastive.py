"""A small CLIP: the loss, what finds what among how many, and the best of several samples."""

import math
from functools import partial
from types import SimpleNamespace

import learning_processes
import pytest
import pytorch_lightning as pl
import torch
from short_training import train
from torch.nn.functional import normalize

from genlab.callbacks.evaluate import Drawing
from genlab.cli.sample import draw, made_of, parser, ranker_of
from genlab.data.random_data import RandomData
from genlab.data.scenes import Scenes
from genlab.evaluation.given import given_for
from genlab.evaluation.reranking import Ranking, best_of
from genlab.evaluation.score import score
from genlab.families.contrastive import Contrastive, retrieval
from genlab.losses.contrastive import Near, Pairs, info_nce, matched, near_captions
from genlab.metrics.base import SampleMetric
from genlab.networks.autoencoder import ConvEncoder
from genlab.networks.sentence_encoder import SentenceEncoder
from genlab.shapes import DataSpec, to_levels

VOCABULARY = '{"pad": 0}'
SPEC = DataSpec("captioned", (1, 8, 8), source=DataSpec("captions", (6,), levels=9, vocabulary=VOCABULARY))
ENCODERS = (
    partial(ConvEncoder, base_channels=4),
    partial(SentenceEncoder, num_layers=1, num_heads=2, width=8),
)
ONE = torch.ones(())


def model_of(spec=SPEC, width=16, **options):
    torch.manual_seed(0)
    return Contrastive(spec, *ENCODERS, partial(torch.optim.Adam, lr=1e-2), width=width, **options)


def batch_of(num=6):
    draw = torch.Generator().manual_seed(0)
    image, source = torch.randn(num, 1, 8, 8, generator=draw), torch.randint(1, 9, (num, 6), generator=draw)
    return {"image": image, "source": source, "index": torch.arange(num)}


def pairs_of(source, width=5):
    draw = torch.Generator().manual_seed(1)
    images, captions = (
        normalize(torch.randn(len(source), width, generator=draw).double(), dim=1) for _ in range(2)
    )
    tokens = torch.tensor([[2, number] for number in source])  # no two captions differ in all of their tokens
    return Pairs(images, captions, tokens)


# The loss


def plain(pairs, scale):
    """The loss and both shares, one pair and one candidate after the other."""
    num, right = len(pairs.source), lambda i, j: bool((pairs.source[i] == pairs.source[j]).all())
    total, hits = 0.0, [0, 0]
    for way, (own, others) in enumerate(((pairs.images, pairs.captions), (pairs.captions, pairs.images))):
        for i in range(num):
            logits = [scale * float(own[i] @ others[j]) for j in range(num)]
            partition = math.log(sum(map(math.exp, logits)))
            partners = [j for j in range(num) if right(i, j)]
            total -= sum(logits[j] - partition for j in partners) / len(partners)
            hits[way] += right(i, max(range(num), key=logits.__getitem__))
    return {"loss": total / (2 * num), "image_to_text": hits[0] / num, "text_to_image": hits[1] / num}


@pytest.mark.parametrize("source", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 0, 1], [0] * 6])
def test_the_loss_is_that_of_a_plain_loop_over_pairs(source):
    pairs = pairs_of(source)
    found = matched(pairs, pairs, torch.tensor(4.0).double())
    assert {name: float(value) for name, value in found.items()} == pytest.approx(plain(pairs, 4.0))


def test_equal_captions_share_what_is_right_and_none_is_pushed_away_from_another():
    logits = torch.zeros(3, 3).requires_grad_()
    partners = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    info_nce(logits, partners).backward()
    assert torch.allclose(3 * logits.grad[0], torch.tensor([1 / 3 - 1 / 2, 1 / 3 - 1 / 2, 1 / 3]))
    certain = torch.where(partners, 50.0, -50.0)  # nothing is left but which of the equal ones it is
    assert info_nce(certain, partners).item() == pytest.approx(2 / 3 * math.log(2))
    assert info_nce(torch.zeros(4, 7), torch.eye(4, 7).bool()).item() == pytest.approx(math.log(7))


def test_untrained_encoders_find_a_partner_as_by_chance():
    losses = model_of(width=512).losses(batch_of(64))
    assert losses["loss"].item() == pytest.approx(math.log(64), rel=0.15)
    assert losses["temperature"].item() == pytest.approx(0.07)


def test_two_processes_have_the_loss_and_the_gradients_of_one_on_the_joined_batch(two_learners):
    alone = learning_processes.learn_matches()
    for learner in two_learners:
        assert alone.keys() == learner["matches"].keys()
        for name, value in alone.items():
            torch.testing.assert_close(learner["matches"][name], value, rtol=1e-5, atol=1e-6)


def test_near_captions_are_further_candidates_of_their_own_image_alone():
    pairs, scale = pairs_of([0, 1, 2]), torch.tensor(4.0).double()
    without = matched(pairs, pairs, scale)
    vectors = normalize(torch.ones(3, 2, 5).double(), dim=2)
    vectors[1, 0] = pairs.images[1]  # nearer than its own caption
    other = torch.tensor([[True, True], [True, False], [False, False]])
    found = matched(pairs, pairs, scale, Near(vectors, other))
    added = 0.0
    for i in range(3):
        own = [float(scale * pairs.images[i] @ caption) for caption in pairs.captions]
        near = [float(scale * pairs.images[i] @ vectors[i, j]) for j in range(2) if other[i, j]]
        added += math.log(sum(map(math.exp, own + near)) / sum(map(math.exp, own))) / 6
    assert float(found["loss"] - without["loss"]) == pytest.approx(added) and added > 0.1
    hits = (pairs.images @ pairs.captions.T).argmax(dim=1) == torch.arange(3)
    hits[1] = False
    hits[0] &= pairs.images[0] @ pairs.captions[0] > pairs.images[0] @ vectors[0, 0]
    assert float(found["image_to_text"]) == pytest.approx(hits.double().mean())


def test_near_captions_are_the_caption_with_two_tokens_exchanged_or_one_replaced():
    source = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 0, 0, 0]])
    words = torch.cat([source, torch.tensor([[4, 6, 7, 0, 0, 0], [8, 8, 8, 8, 8, 0], [1, 8, 7, 8, 0, 0]])])
    u = torch.rand(2, 4000, 3, generator=torch.Generator().manual_seed(0))
    near = near_captions(source, u, 0, words)
    exchanged, replaced = near[:, ::2], near[:, 1::2]
    assert torch.equal(exchanged.sort(dim=2).values, source[:, None].sort(dim=2).values.expand_as(exchanged))
    for row, length in ((0, 4), (1, 3)):
        assert len(exchanged[row].unique(dim=0)) == 1 + math.comb(length, 2)
        places = exchanged[row] != source[row]
        assert set(places.sum(dim=1).tolist()) == {0, 2}
        assert places[:, :length].float().mean() == pytest.approx(2 * (1 - 1 / length) / length, abs=0.03)
        places = replaced[row] != source[row]
        assert set(places.sum(dim=1).tolist()) <= {0, 1} and not places[:, length:].any()
        others = {0: {(1, 8), (2, 7), (3, 8)}, 1: {(0, 4)}}[row]  # of its length, where they differ
        assert {(p, int(replaced[row, n, p])) for n, p in places.nonzero().tolist()} == others
        share = {0: 3 / 4 / 2, 1: 1 / 3 / 2}[row]
        assert places.any(dim=1).float().mean() == pytest.approx(share, abs=0.03)
    assert torch.equal(source[0], torch.tensor([1, 2, 3, 4, 0, 0]))  # as it was


def test_near_captions_teach_what_stands_where_in_a_caption():
    batch = {"image": torch.zeros(2, 1, 8, 8), "source": torch.tensor([[1, 2, 3, 0, 0, 0]] * 2)}
    for num_near, is_taught in ((0, False), (4, True)):
        model = model_of(num_near=num_near).train()
        model.losses(batch)["loss"].backward()
        taught = model.network.caption.output.weight.grad
        assert bool(taught.abs().max() > 1e-6) == is_taught  # one caption alone has nothing to differ from
        assert model.eval().losses(batch)["loss"].item() == pytest.approx(math.log(2), abs=1e-5)


# The family


def test_the_gradient_reaches_both_encoders_and_the_scale():
    model = model_of().train()
    model.losses(batch_of())["loss"].backward()
    for network in (model.network.image, model.network.caption):
        assert sum(float(p.grad.abs().sum()) for p in network.parameters()) > 0
    assert model.network.log_scale.grad.abs() > 0


def test_a_scale_above_100_is_brought_back_after_each_step_and_can_fall_from_there():
    model, seen = model_of(half_life=8), []
    with torch.no_grad():
        model.network.log_scale.fill_(5.0)

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, model, optimizer):
            model.network.log_scale.grad.fill_(-1.0 if len(seen) < 2 else 1.0)

        def on_train_batch_end(self, trainer, model, *_):
            seen.append(model.network.scale.item())

    data = RandomData(**SPEC.to_dict(), num_train=32, num_test=16, batch_size=8)
    train(model, data, 8, callbacks=[Watch()])
    assert seen[:2] == pytest.approx([100.0, 100.0], rel=1e-6) and seen[-1] < 99.0
    assert model.answering_network.scale <= 100.001


def test_padding_changes_no_vector_and_an_empty_sentence_has_one():
    torch.manual_seed(0)
    encoder, sentence = ENCODERS[1](SPEC.source, 16).eval(), torch.tensor([[3, 1, 4]])
    vectors = [encoder(torch.nn.functional.pad(sentence, (0, more))) for more in (0, 1, 3)]
    for vector in vectors[1:]:
        torch.testing.assert_close(vector, vectors[0], rtol=0, atol=1e-6)
    assert encoder(torch.zeros(1, 6, dtype=torch.int64)).isfinite().all()
    assert not torch.allclose(encoder(torch.tensor([[1, 3, 4]])), vectors[0], atol=1e-3)  # hears the order


def test_similarity_is_the_cosine_of_what_is_encoded_and_asks_for_a_caption():
    model, batch = model_of().eval(), batch_of()
    vectors = model.encode(batch["image"])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(6))
    captions = model.network(batch["image"], batch["source"])[1]
    found = model.similarity(batch["image"], source=batch["source"])
    assert found.shape == (6,) and torch.allclose(found, (vectors * captions).sum(dim=1))
    with pytest.raises(ValueError, match="compares images with their source, but got nothing"):
        model.similarity(batch["image"])


def test_similarity_comes_from_the_averaged_encoders():
    model, batch = model_of(half_life=8), batch_of()
    found = model.similarity(batch["image"], source=batch["source"])
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(1.0)
    assert torch.equal(model.similarity(batch["image"], source=batch["source"]), found)


def test_images_without_captions_are_refused():
    with pytest.raises(ValueError, match="compares images with captions, and plain has none"):
        model_of(DataSpec("plain", (1, 8, 8)))


@pytest.mark.parametrize("patch", [1, 2])
def test_patches_leave_every_pixel_its_part_in_the_vector(patch):
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    ConvEncoder(SPEC, 3, base_channels=4, patch=patch)(x).sum().backward()
    assert (x.grad != 0).all()


def test_patches_that_do_not_fill_an_image_are_refused():
    with pytest.raises(ValueError, match=r"patch must divide the sides of captioned, \(8, 8\), got 3"):
        ConvEncoder(SPEC, 3, patch=3)


# Its evaluation


def test_groups_are_evenly_spread_and_of_one_size():
    number = torch.arange(23)
    found = retrieval(Pairs(torch.eye(23), torch.eye(23), number[:, None]), ONE, 10)
    assert found.keys() == {"loss", "image_to_text@10", "text_to_image@10"}
    assert found["image_to_text@10"] == found["text_to_image@10"] == 1.0
    assert found["loss"].item() == pytest.approx(math.log(math.e + 9) - 1, abs=1e-6)
    folder = (number[:20] > 9).long()  # one after the other: five of each are in every group
    halves = retrieval(Pairs(torch.eye(2)[folder], torch.eye(2)[folder], folder[:, None]), ONE, 10)
    assert halves["loss"].item() == pytest.approx(math.log(5 * math.e + 5) - 1, abs=1e-6)
    assert "text_to_image@7" in retrieval(Pairs(torch.eye(7), torch.eye(7), number[:7, None]), ONE, 10)


def test_a_caption_that_several_images_have_is_right_for_each():
    images, captions = torch.eye(4), torch.eye(4)[[1, 0, 3, 2]]
    for source, expected in (([5, 5, 6, 6], (1.0, 1.0)), ([5, 5, 6, 7], (0.5, 0.5))):
        found = retrieval(Pairs(images, captions, torch.tensor(source)[:, None]), ONE)
        assert (found["image_to_text@4"].item(), found["text_to_image@4"].item()) == expected


def test_captions_of_unseen_pairs_are_measured_among_themselves():
    data = Scenes(48, num_train=40, num_test=12, num_zero_shot=6, eval_batch_size=5)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.test(model_of(data.spec), data, verbose=False)
    shares = ("image_to_text", "text_to_image")
    assert trainer.callback_metrics.keys() == {
        *("test/loss", "test/zero_shot_loss"),
        *(f"test/{name}@12" for name in shares),
        *(f"test/zero_shot_{name}@6" for name in shares),
    }


# The best of several samples


class Painter:
    """Sample i of a seed is grey, and another grey for each; white of a seed and number that is chosen."""

    spec, given = SPEC, ["source"]

    def sample(self, index, seed=0, **given):
        draws = torch.stack([torch.rand((), generator=self.generator(i, seed)) for i in index.tolist()])
        return draws[:, None, None, None].expand(-1, 1, 8, 8) + 0.0 * given["source"][:, :1, None, None]

    def generator(self, number, seed):
        return torch.Generator().manual_seed(hash((number, seed)) % 2**31)


class Likes(torch.nn.Module):
    """An image is the better the nearer its grey is to what its caption says."""

    spec = SPEC

    def similarity(self, x, *, source):
        return -(x[:, 0, 0, 0] - source[:, 0] / 10).abs()


INDEX, GIVEN = torch.tensor([4, 0, 7, 2, 9]), {"source": torch.arange(1, 6)[:, None].expand(5, 6)}


def test_one_candidate_is_the_plain_sample_bit_for_bit():
    plain = Painter().sample(INDEX, 3, **GIVEN)
    assert torch.equal(best_of(Painter(), Likes(), INDEX, GIVEN, 1, 3), plain)


def test_the_most_similar_candidate_is_kept_whatever_the_batch():
    drawn = []

    class Noted(Painter):
        def sample(self, index, seed=0, **given):
            drawn.append(super().sample(index, seed, **given))
            return drawn[-1]

    best = best_of(Noted(), Likes(), INDEX, GIVEN, 6, 3)
    candidates = torch.stack(drawn)  # (6, 5, 1, 8, 8)
    similar = torch.stack([Likes().similarity(x, **GIVEN) for x in drawn])
    assert len(drawn) == 6 and len({float(x[0, 0, 0, 0]) for x in drawn}) == 6
    assert torch.equal(best, candidates[similar.argmax(dim=0), torch.arange(5)])
    assert len(similar.argmax(dim=0).unique()) > 1
    for rows in (slice(0, 2), slice(2, 5)):
        part = {"source": GIVEN["source"][rows]}
        assert torch.equal(best_of(Painter(), Likes(), INDEX[rows], part, 6, 3), best[rows])
    best = best_of(Painter(), Likes(), INDEX, GIVEN, 3, 3)  # of the first three of the six
    assert torch.equal(Likes().similarity(best, **GIVEN), similar[:3].amax(dim=0))


def test_models_of_other_captions_and_no_candidates_are_refused():
    stranger = SimpleNamespace(spec=DataSpec("others", (1, 8, 8)), similarity=print)
    with pytest.raises(ValueError, match="train both on the same data"):
        best_of(Painter(), stranger, INDEX, GIVEN, 2)
    with pytest.raises(ValueError, match="Painter does not tell which image fits"):
        best_of(Painter(), Painter(), INDEX, GIVEN, 2)
    with pytest.raises(ValueError, match="Likes draws no images of captions"):
        best_of(Likes(), Likes(), INDEX, GIVEN, 2)
    with pytest.raises(ValueError, match="num_candidates must be at least 1, got 0"):
        best_of(Painter(), Likes(), INDEX, GIVEN, 0)


def options_of(*arguments):
    return parser().parse_args(["run", *arguments])


def test_the_command_line_keeps_the_best_of_as_many_as_are_asked_for():
    drawn = draw(Painter(), INDEX, GIVEN, options_of("--best_of", "6", "--seed", "3"), Likes())
    assert torch.equal(drawn, best_of(Painter(), Likes(), INDEX, GIVEN, 6, 3))


@pytest.mark.parametrize("alone", [("--best_of", "2"), ("--ranker", "run")])
def test_how_many_and_who_chooses_are_given_together(alone):
    with pytest.raises(ValueError, match="give both"):
        ranker_of(options_of(*alone))
    assert ranker_of(options_of()) is None
    key, value = alone[0].removeprefix("--"), alone[1]
    with pytest.raises(ValueError, match="give both"):
        Drawing(**{key: int(value) if key == "best_of" else value})
    assert Drawing().ranking is None


class Keeps(SampleMetric):
    """What it was given."""

    def update(self, drawn):
        self.index.append(drawn.index)
        self.images = drawn.x

    def compute(self):
        return {}

    def protocol(self):
        return {}


def test_scores_are_of_the_chosen_samples_and_their_protocol_says_who_chose(tmp_path):
    source = {"name": "captions", "shape": [6], "levels": 9, "vocabulary": VOCABULARY}
    data = RandomData((1, 8, 8), source=source, num_test=12)
    data.setup("test")

    class Scored(Painter):
        spec = seen_spec = data.spec
        device, sampling_weights = torch.device("cpu"), "own"

        def given_of(self, batch):
            return {"source": batch["source"]}

    likes = Likes()
    likes.spec = data.spec
    found, metric = {}, Keeps()
    for name, ranking in (("plain", None), ("best", Ranking(likes, 4))):
        protocol = score(Scored(), data, None, [metric], 12, seed=3, ranking=ranking).protocol
        found[name] = metric.images, protocol
    index = torch.arange(12)
    given = given_for(Scored(), index, data, "test")
    assert torch.equal(found["best"][0], to_levels(best_of(Scored(), likes, index, given, 4, 3)))
    assert not torch.equal(found["best"][0], found["plain"][0])
    added = {name: value for name, value in found["best"][1].items() if name not in found["plain"][1]}
    assert added == {"best_of": 4, "ranker_digest": Ranking(likes, 4).protocol()["ranker_digest"]}
    assert len(added["ranker_digest"]) == 16
    run, options = SimpleNamespace(config=tmp_path / "none.yaml"), options_of("--seed", "3")
    told = made_of(model_of(), run, options, [], likes)
    assert told["ranker"][:16] == added["ranker_digest"] and told["model"] != told["ranker"]
