"""What every family must share: one list, and each property as one test over it.

A new family joins by one line in `FAMILIES`. The models are trained for two steps from weights that are all
moved a little, so that no branch is still at zero; the tests share them and leave them as they are.
"""

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from short_training import train
from test_resume import differences

from genlab.bijections.densities import StandardLogistic
from genlab.bijections.flows import CouplingFlow, Glow, RealNVP
from genlab.callbacks.divergence import not_finite
from genlab.data.random_data import RandomData
from genlab.data.random_images import RandomImages
from genlab.data.toy import TwoMoons
from genlab.evaluation.functions import functions_of
from genlab.evaluation.given import TellingSample, given_for, item_batch
from genlab.families import capabilities
from genlab.families.autoencoder import Autoencoder
from genlab.families.autoregressive import Autoregressive, AutoregressiveImages, AutoregressiveMaps
from genlab.families.base import Schedule
from genlab.families.capabilities import can
from genlab.families.classifier import Classifier
from genlab.families.codes import FirstStage
from genlab.families.compiling import learning_networks
from genlab.families.contrastive import Contrastive
from genlab.families.cut import CUT
from genlab.families.cyclegan import CycleGAN
from genlab.families.dalle import DALLE
from genlab.families.diffusion import Diffusion, Guidance, Objective
from genlab.families.dvae import DiscreteVAE, Relaxation
from genlab.families.electra import Electra
from genlab.families.flow import Flow
from genlab.families.gan import GAN
from genlab.families.kl_autoencoder import AdversarialKLAutoencoder, Adversary, KLAutoencoder
from genlab.families.latent import Latent, LatentDiffusion
from genlab.families.maskgit import CodeGuidance, MaskGIT
from genlab.families.pix2pix import Pix2Pix
from genlab.families.players import Balance
from genlab.families.regression import ImageRegression
from genlab.families.srgan import SRGAN
from genlab.families.vae import VAE, Augmentation, Bound
from genlab.families.vqvae import VQVAE
from genlab.losses.adversarial import Hinge, NonSaturating
from genlab.losses.distances import AbsoluteError
from genlab.losses.likelihoods import CoupledLogistics, DiscretizedLogistic, Gaussian
from genlab.losses.penalties import R1
from genlab.losses.perceptual import DiscriminatorFeatures, Pixels
from genlab.networks.augment import AffineAugment, DiffAugment
from genlab.networks.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    ConvMapDecoder,
    ConvMapEncoder,
    MLPDecoder,
    MLPEncoder,
)
from genlab.networks.classifier import ConvClassifier
from genlab.networks.conditioner import ConvConditioner, MLPConditioner
from genlab.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from genlab.networks.dit import MLPDenoiser
from genlab.networks.encoder_decoder import EncoderDecoderTransformer
from genlab.networks.image_to_image import PatchDiscriminator, UNetGenerator
from genlab.networks.masked_transformer import MaskedTransformer
from genlab.networks.mlp import MLPDiscriminator, MLPGenerator
from genlab.networks.pixelcnn import GatedPixelCNN, PixelCNN
from genlab.networks.pixelcnnpp import PixelCNNpp
from genlab.networks.pixelrnn import DiagonalBiLSTM, RowLSTM
from genlab.networks.quantizer import FSQ, EMACodebook, LearnedCodebook
from genlab.networks.resnet_generator import PatchHeads, ResNetGenerator
from genlab.networks.rnn import CausalRNN
from genlab.networks.sentence_encoder import SentenceEncoder
from genlab.networks.srresnet import SRResNet, VGGDiscriminator
from genlab.networks.text_reader import TextReader
from genlab.networks.transformer import BidirectionalTransformer, CausalTransformer
from genlab.networks.unet import UNet
from genlab.processes.chain import DiscreteChain
from genlab.processes.grids import UniformGrid
from genlab.processes.likelihood import VariationalBound
from genlab.processes.prediction import MinSNR, PredictVelocity
from genlab.processes.sde import VPSDE, RectifiedFlow
from genlab.samplers.ancestral import DDIM, Ancestral
from genlab.samplers.codes import MixtureOfCodes
from genlab.samplers.masked import HaltonOrder, MaskedSampler, RandomOrder
from genlab.samplers.ode import Euler
from genlab.shapes import DataSpec, observed

ADAM = partial(torch.optim.Adam, lr=1e-2)
LABEL = ["label"]
PROTOCOLS = (
    *("Samples", "HasLatent", "Reconstructs", "HasPosterior", "HasLikelihood"),
    *("Denoises", "HasScore", "Completes", "TellsReal", "TranslatesBack", "Classifies", "HasCode"),
    "TellsMatch",
)


def images(num_classes=3, batch_size=8):
    """Four batches an epoch, so that two steps end within one."""
    return RandomImages((1, 8, 8), num_classes, 17, num_train=32, num_test=16, batch_size=batch_size)


def texts(batch_size=8):
    return RandomData((6,), levels=5, num_train=32, num_test=16, batch_size=batch_size)


def sentences(batch_size=8):
    source = DataSpec("sources", (6,), levels=5)
    return RandomData((6,), 0, 5, source.to_dict(), num_train=32, num_test=16, batch_size=batch_size)


def code_maps(batch_size=8, num_classes=0, source=None):
    return RandomData((4, 4), num_classes, 5, source, num_train=32, num_test=16, batch_size=batch_size)


def codes(batch_size=8):
    return RandomData((4, 5), 3, 9, num_train=32, num_test=16, batch_size=batch_size)


def captioned_codes(batch_size=8):
    source = DataSpec("captions", (4,), levels=6, vocabulary='{"pad": 0}')
    return RandomData((2, 3), 0, 5, source.to_dict(), num_train=32, num_test=16, batch_size=batch_size)


def pairs(batch_size=8, channels=2, side=8):
    source = DataSpec("sources", (channels, side, side), levels=256)
    return RandomData((1, 8, 8), 0, 17, source.to_dict(), num_train=32, num_test=16, batch_size=batch_size)


def captioned_grids(batch_size=8):
    source = DataSpec("captions", (5,), levels=6, vocabulary='{"pad": 0}')
    return RandomData((2, 4, 4), 3, 0, source.to_dict(), num_train=32, num_test=16, batch_size=batch_size)


small_sources = partial(pairs, side=4)


def captioned(batch_size=8):
    source = DataSpec("captions", (6,), levels=5)
    return RandomData((1, 8, 8), 0, 17, source.to_dict(), num_train=32, num_test=16, batch_size=batch_size)


def points(batch_size=8):
    return TwoMoons(num_train=32, num_test=16, batch_size=batch_size)


# The list

MLP_PLAYERS = (partial(MLPGenerator, latent_dim=4, hidden=[8]), partial(MLPDiscriminator, hidden=[8]))
CONV_PLAYERS = (
    partial(DCGANGenerator, latent_dim=4, base_channels=4),
    partial(DCGANDiscriminator, base_channels=4),
)
SPECTRAL_PLAYERS = (CONV_PLAYERS[0], partial(DCGANDiscriminator, base_channels=4, spectral_norm=True))
MLP_CODING = (partial(MLPEncoder, hidden=[8]), partial(MLPDecoder, hidden=[8]))
CONV_CODING = (partial(ConvEncoder, base_channels=4), partial(ConvDecoder, base_channels=4))
MAP_CODING = (
    partial(ConvMapEncoder, num_halvings=1, base_channels=4),
    partial(ConvMapDecoder, num_halvings=1, base_channels=4),
)
TINY_UNET = partial(UNet, channels=(4, 8), num_blocks=1, attention=(4,), num_groups=2)
TINY_LATENT_UNET = partial(UNet, channels=(4,), num_blocks=1, attention=(), num_groups=2)
READER = partial(TextReader, num_layers=1, num_heads=2, width=8)
TINY_DENOISER = partial(MLPDenoiser, hidden=(8, 8), time_dim=8)
TINY_CONDITIONER = partial(ConvConditioner, hidden_channels=4)
REALNVP = partial(RealNVP, network=TINY_CONDITIONER, num_couplings=2)
RUNNING_MEANS = partial(EMACodebook, num_codes=8, reset_below=0.9)
PIXELCNN = partial(PixelCNN, features=4, num_blocks=1, first_size=3)
GATED = partial(GatedPixelCNN, features=4, num_layers=2, first_size=3)
PLUS_PLUS = partial(PixelCNNpp, features=4, num_blocks=1, num_scales=2)
ROWS = partial(RowLSTM, features=4, num_layers=1, first_size=3)
DIAGONALS = partial(DiagonalBiLSTM, features=4, num_layers=1, first_size=3)
WALK, BITS = UniformGrid(4), VariationalBound(UniformGrid(3))


def gan(spec, networks=MLP_PLAYERS, loss=NonSaturating, **options):
    generator, discriminator = networks
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    return GAN(spec, generator=generator, discriminator=discriminator, loss=loss(), **optimizers, **options)


def diffusion(spec, network=TINY_DENOISER, process=DiscreteChain, **options):
    options = {"sampler": DDIM(WALK), "likelihood": BITS, **options}
    return Diffusion(spec, network, process(), ADAM, **options)


def flow(spec, bijection=REALNVP, **options):
    return Flow(spec, bijection, ADAM, **options)


def vae(spec, networks=MLP_CODING, **options):
    options = {"bound": Bound(num_test_samples=3), **options}
    return VAE(spec, *networks, DiscretizedLogistic, ADAM, latent_dim=4, **options)


def autoencoder(spec, **options):
    sampler = partial(MixtureOfCodes, num_components=2)
    return Autoencoder(spec, *CONV_CODING, ADAM, latent_dim=3, sampler=sampler, **options)


def vqvae(spec, codebook=RUNNING_MEANS, **options):
    return VQVAE(spec, *MAP_CODING, codebook, ADAM, code_dim=3, **options)


def dvae(spec, **options):
    options = {"num_codes": 8, "relaxation": Relaxation(examples=64), **options}
    return DiscreteVAE(spec, *MAP_CODING, DiscretizedLogistic, ADAM, **options)


def kl_autoencoder(spec, **options):
    return KLAutoencoder(spec, *MAP_CODING, ADAM, latent_channels=2, kl_weight=0.1, **options)


def adversarial_kl_autoencoder(spec, **options):
    discriminator = partial(PatchDiscriminator, base_channels=4, num_layers=1, norm="none")
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    options = {"latent_channels": 2, "kl_weight": 0.1, "loss": NonSaturating(), **options}
    return AdversarialKLAutoencoder(spec, *MAP_CODING, discriminator, **optimizers, **options)


def classifier(spec, **options):
    return Classifier(spec, partial(ConvClassifier, num_features=4, base_channels=4), ADAM, **options)


def contrastive(spec, **options):
    encoders = CONV_CODING[0], partial(SentenceEncoder, num_layers=1, num_heads=2, width=8)
    return Contrastive(spec, *encoders, ADAM, width=8, **options)


GPT = partial(CausalTransformer, num_layers=1, num_heads=2, width=8)
TRANSLATOR = partial(EncoderDecoderTransformer, num_layers=1, num_heads=2, width=8, dropout=0.0)


@cache
def first_stage(spec, build):
    """An untrained first stage whose codes differ from item to item."""
    torch.manual_seed(1)
    return FirstStage(build(spec.unconditional()).eval())


def latent(spec, build=kl_autoencoder, prior=diffusion, family=LatentDiffusion, **options):
    stage = first_stage(spec, build)
    torch.manual_seed(2)  # whether the stage was there already or is made now
    return family(spec, stage, partial(prior, **options))


def autoregressive(spec, network=GPT, **options):
    return Autoregressive(spec, network, ADAM, **options)


def electra(spec, **options):
    network = partial(BidirectionalTransformer, num_layers=1, num_heads=2, width=8)
    return Electra(spec, network, network, ADAM, masked=0.5, **options)


def maskgit(spec, **options):
    network = partial(MaskedTransformer, num_layers=1, num_heads=2, width=8)
    return MaskGIT(spec, network, ADAM, **options)


def dalle(spec, **options):
    return DALLE(spec, GPT, ADAM, given=["source"], **options)


def pixels(spec, network=PIXELCNN, family=AutoregressiveImages, **options):
    model = family(spec, network, ADAM, **options)
    for name, parameter in model.named_parameters():
        if name.endswith("outputs.weight"):  # begins at 0, which would hear of nothing
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def pix2pix(spec, **options):
    networks = {
        "generator": partial(UNetGenerator, base_channels=4, norm="instance"),
        "discriminator": partial(PatchDiscriminator, base_channels=4, num_layers=1, norm="instance"),
    }
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    return Pix2Pix(spec, l1_weight=10.0, loss=NonSaturating(), **networks, **optimizers, **options)


def unpaired(spec, family=CycleGAN, **options):
    networks = {
        "generator": partial(ResNetGenerator, base_channels=4, num_blocks=2),
        "discriminator": partial(PatchDiscriminator, base_channels=4, num_layers=1, norm="instance"),
    }
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    return family(spec, loss=NonSaturating(), given=["source"], **networks, **optimizers, **options)


def regression(spec, **options):
    network = partial(SRResNet, features=4, num_blocks=1, kernel_size=3)
    return ImageRegression(spec, network, AbsoluteError(), ADAM, given=["source"], **options)


def srgan(spec, norm="batch", content=DiscriminatorFeatures, **options):
    networks = {
        "generator": partial(SRResNet, features=4, num_blocks=1, kernel_size=3, norm=norm),
        "discriminator": partial(VGGDiscriminator, base_channels=4, num_layers=1, hidden=4, norm=norm),
    }
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    game = {"content": content(), "loss": NonSaturating(), "given": ["source"]}
    return SRGAN(spec, **networks, **optimizers, **game, **options)


@dataclass(frozen=True)
class Family:
    """One row of the list.

    Attributes:
        build: Makes the model of a spec; told `half_life`, where it averages.
        can: Its capabilities.
        data: The data module that it is tried with.
        batchwise: Validation losses that are made of a batch as a whole, and so depend on its size.
        trainer: Options of the trainer.
        is_random: Whether samples differ by their seed, and not by what they are told alone.
        draws: Whether its losses hold random numbers.
    """

    build: Callable
    can: str
    data: Callable = images
    batchwise: tuple[str, ...] = ()
    trainer: dict = field(default_factory=dict)
    is_random: bool = True
    draws: bool = True

    def given(self, model, index):
        return given_for(model, index, self.data())

    def model(self, data=None, **options):
        """A model whose weights are all moved a little from their first values."""
        torch.manual_seed(0)
        model = self.build((data or self.data()).spec, **options)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model

    @property
    def options(self):
        return getattr(self.build, "keywords", {})

    @property
    def is_told(self):
        return self.options.get("given") == LABEL

    @property
    def averages(self):
        return "half_life" in self.options


PLAYERS = "Samples HasLatent TellsReal"
WALKER = "Samples HasLatent Reconstructs HasLikelihood Denoises HasScore"
BIJECTION = "Samples HasLatent Reconstructs HasLikelihood"
NUMBERS, MAPS = "Reconstructs HasCode", "Reconstructs HasPosterior HasCode"
BOUNDED = "Samples HasLatent Reconstructs HasPosterior HasLikelihood"
PIXEL_BY_PIXEL = "Samples HasLikelihood CompletesImages"
GUIDED = {"given": LABEL, "guidance": Guidance(2.0, 0.2)}
VECTOR = partial(CouplingFlow, network=partial(MLPConditioner, hidden=[8]), num_couplings=2)
GLOW = partial(Glow, network=TINY_CONDITIONER, num_levels=2, num_steps=1)
VELOCITY = {"process": RectifiedFlow, "objective": Objective(PredictVelocity()), "sampler": Euler(WALK)}

FAMILIES = {
    "gan": Family(partial(gan, half_life=4), PLAYERS),
    "gan of convolutions": Family(partial(gan, networks=CONV_PLAYERS, half_life=4), PLAYERS),
    "conditional gan": Family(partial(gan, given=LABEL), PLAYERS),
    "ddpm": Family(partial(diffusion, sampler=Ancestral(WALK), half_life=4), WALKER),
    "flow matching": Family(partial(diffusion, **VELOCITY, half_life=4), WALKER),
    "guided diffusion": Family(partial(diffusion, **GUIDED), WALKER),
    "diffusion told a text": Family(
        partial(
            diffusion,
            network=partial(TINY_LATENT_UNET, text=READER),
            process=VPSDE,
            given=["label", "source"],
            guidance=Guidance(2.0, 0.2, interval=(0.1, 50.0)),
        ),
        WALKER,
        captioned_grids,
    ),
    "diffusion of points": Family(partial(diffusion, process=VPSDE), WALKER, points),
    "flow of vectors": Family(
        partial(flow, bijection=VECTOR, base=StandardLogistic(), half_life=4), BIJECTION, points, draws=False
    ),
    "realnvp": Family(partial(flow, half_life=4), BIJECTION),
    "conditional glow": Family(partial(flow, bijection=GLOW, given=LABEL), BIJECTION),
    "vae": Family(vae, BOUNDED),
    "conditional vae": Family(partial(vae, networks=CONV_CODING, given=LABEL), BOUNDED),
    "autoencoder": Family(
        partial(autoencoder, noise_std=0.2), "Samples HasLatent Reconstructs", batchwise=("code_variance",)
    ),
    "vqvae": Family(vqvae, NUMBERS, draws=False),
    "vqvae of scalar codes": Family(
        partial(vqvae, codebook=partial(FSQ, levels=[3, 4, 5])), NUMBERS, draws=False
    ),
    "dvae": Family(dvae, NUMBERS),
    "kl autoencoder": Family(partial(kl_autoencoder, half_life=4), MAPS),
    "adversarial kl autoencoder": Family(adversarial_kl_autoencoder, f"{MAPS} TellsReal"),
    "latent diffusion": Family(
        partial(latent, given=LABEL, network=TINY_LATENT_UNET, **VELOCITY, half_life=4),
        "Samples Reconstructs Denoises HasCode",
    ),
    "latent score model": Family(
        partial(latent, network=TINY_LATENT_UNET, process=VPSDE, objective=Objective(weighting=MinSNR())),
        "Samples Reconstructs Denoises HasCode",
    ),
    "classifier": Family(classifier, "Classifies", draws=False),
    "contrastive": Family(partial(contrastive, half_life=4), "TellsMatch", captioned, draws=False),
    "gpt": Family(
        partial(autoregressive, half_life=24), "Samples HasLikelihood Completes", texts, draws=False
    ),
    "lstm": Family(
        partial(autoregressive, network=partial(CausalRNN, num_layers=1, width=8)),
        "Samples HasLikelihood Completes",
        texts,
        draws=False,
    ),
    "translator": Family(
        partial(autoregressive, network=TRANSLATOR, given=["source"]),
        "Samples HasLikelihood Completes",
        sentences,
        draws=False,
    ),
    "autoregressive over codes": Family(
        partial(autoregressive, given=LABEL), "Samples HasLikelihood Completes", codes, draws=False
    ),
    "pixelcnn over codes": Family(
        partial(pixels, network=GATED, family=AutoregressiveMaps, given=LABEL),
        "Samples HasLikelihood",
        codes,
        draws=False,
    ),
    "dalle": Family(
        partial(dalle, text_dropout=0.5, guidance=2.0, half_life=4), "Samples HasLikelihood", captioned_codes
    ),
    "electra": Family(electra, "", texts),
    "maskgit": Family(partial(maskgit, label_smoothing=0.1, half_life=4), "Samples", code_maps),
    "guided maskgit": Family(
        partial(
            maskgit, given=LABEL, guidance=CodeGuidance(2.0, 0.2), sampler=MaskedSampler(4, HaltonOrder())
        ),
        "Samples",
        partial(code_maps, num_classes=3),
    ),
    "maskgit told a text": Family(
        partial(
            maskgit,
            given=["source"],
            guidance=CodeGuidance(2.0, 0.2),
            sampler=MaskedSampler(4, RandomOrder()),
        ),
        "Samples",
        partial(code_maps, source=DataSpec("captions", (6,), levels=5).to_dict()),
    ),
    "pixelcnn": Family(partial(pixels, half_life=4), PIXEL_BY_PIXEL, draws=False),
    "conditional gated pixelcnn": Family(
        partial(pixels, network=GATED, given=LABEL), PIXEL_BY_PIXEL, draws=False
    ),
    "pixelcnn++": Family(
        partial(pixels, network=PLUS_PLUS, likelihood=partial(CoupledLogistics, num_components=2)),
        PIXEL_BY_PIXEL,
        draws=False,
    ),
    "row lstm": Family(partial(pixels, network=ROWS), PIXEL_BY_PIXEL, draws=False),
    "diagonal bilstm": Family(partial(pixels, network=DIAGONALS), PIXEL_BY_PIXEL, draws=False),
    "pix2pix": Family(
        partial(pix2pix, given=["source"], half_life=4),
        "Samples TellsReal",
        pairs,
        is_random=False,
        draws=False,
    ),
    "cyclegan": Family(
        partial(unpaired, pool_size=5, half_life=4),
        "Samples TellsReal TranslatesBack",
        partial(pairs, channels=1),
        is_random=False,
        draws=False,
    ),
    "cut": Family(
        partial(unpaired, family=CUT, heads=partial(PatchHeads, width=4), num_patches=9, half_life=4),
        "Samples TellsReal",
        partial(pairs, channels=1),
        is_random=False,
    ),
    "image regression": Family(
        partial(regression, half_life=4), "Samples", small_sources, is_random=False, draws=False
    ),
    "srgan": Family(
        partial(srgan, half_life=4),
        "Samples TellsReal",
        small_sources,
        is_random=False,
        draws=False,
    ),
}


def those(condition=lambda family: True):
    """Parametrises a test by the families that satisfy a condition."""
    return pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if condition(family)])


ALL = those()
SAMPLED = those(lambda family: "Samples" in family.can)
TOLD = those(lambda family: family.is_told)
AVERAGED = those(lambda family: family.averages)


# What is asked of a model


def with_average(model):
    """The part of a model that may keep an average, and may be compiled."""
    return getattr(model, "prior", model)


def train_steps(family, model, steps=2, **options):
    """Trains for some steps; returns the trainer, which the model forgets."""
    trainer = train(model, family.data(), steps, **{**family.trainer, **options})
    model.trainer = None
    return trainer


@pytest.fixture(scope="module")
def trained():
    """Models after two steps; read them only."""
    models = {}

    def get(name):
        if name not in models:
            models[name] = FAMILIES[name].model()
            train_steps(FAMILIES[name], models[name])
        return models[name].eval()

    return get


def a_batch(family, num=8):
    data = family.data()
    return data.to_device_batch(next(iter(data.loader("test", batch_size=num))), "cpu")


def questions(model, batch):
    """Everything that a model can be asked about a batch, as functions of what it is told."""
    x, index = observed(batch), batch["index"]
    z = model.draw_latent(index, 1) if can(model, capabilities.HasLatent) else None
    asked = {
        "Samples": {"sample": partial(model.sample, index, 1)} if can(model, capabilities.Samples) else {},
        "HasLatent": {"decode": lambda **told: model.decode(z, **told)},
        "Encodes": {"encode": lambda **told: model.encode(x, **told)},
        "HasPosterior": {"posterior": lambda **told: model.posterior(x, **told).mean},
        "HasLikelihood": {"log_prob": lambda **told: model.log_prob(x, **told)},
        "TellsReal": {"probability_real": lambda **told: model.probability_real(x, **told)},
    }
    if can(model, capabilities.HasScore):
        level = model.process.level_of(0.5)
        asked["HasScore"] = {"score": lambda **told: model.score(x, level, **told)}
    held = [found for name, found in asked.items() if can(model, getattr(capabilities, name))]
    return {name: question for found in held for name, question in found.items()}


def answers(model, batch, label=None):
    """What a model says of a batch: all that it can be asked in few steps, and its losses."""
    batch = batch if label is None else {**batch, "label": label}
    told, asked = model.given_of(batch), questions(model, batch)
    if can(model, capabilities.Denoises):
        del asked["encode"]  # 50 steps of the network that `score` asks once
    with torch.no_grad(), model.numbered(batch["index"]):
        found = {name: ask(**told) for name, ask in asked.items()}
        return {**found, "loss": model.losses(batch)["loss"]}


def alike(a, b):
    """Nearly equal nearly everywhere: a sum in another order may move a value over the edge of a level."""
    return torch.isclose(a.double(), b.double(), rtol=1e-4, atol=1e-4).double().mean() > 0.99


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What it can do and what it is told


@pytest.mark.parametrize(
    "name, axis", [("autoregressive over codes", 3), ("dalle", 3), ("pixelcnn over codes", 1)]
)
def test_what_is_exported_of_a_model_of_codes_says_how_likely_they_are(name, axis, trained):
    model, (function,) = trained(name), functions_of(trained(name))
    x, told = function.inputs["x"], {each: function.inputs[each] for each in model.given}
    log_p = function.outputs().log_softmax(dim=axis).gather(axis, x.unsqueeze(axis)).flatten(1).sum(dim=1)
    torch.testing.assert_close(log_p, model.log_prob(x, **told))


@ALL
def test_a_family_has_the_capabilities_of_its_row_and_no_other(name, trained):
    found = [each for each in PROTOCOLS if can(trained(name), getattr(capabilities, each))]
    assert found == [each for each in PROTOCOLS if each in FAMILIES[name].can.split()]


@ALL
def test_training_alone_calls_every_network_that_learns_compiled(name, trained, monkeypatch):
    family, calls = FAMILIES[name], []

    def compiled(forward):
        return lambda *args, **kwargs: calls.append(id(forward.__self__)) or forward(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compiled)
    model = family.model(compile=True)
    train_steps(family, model)
    learners = list(learning_networks(with_average(model)))
    assert learners and {*calls} == {id(network) for network in learners}
    # Nothing else learns but single parameters: what is called is compiled with all that is in it.
    inside = {id(p) for network in learners for p in network.parameters()}
    alone = {id(p) for p in with_average(model).parameters(recurse=False)}
    assert {id(p) for p in with_average(model).parameters() if p.requires_grad} <= inside | alone
    assert same_bits(model.state_dict(), trained(name).state_dict())
    num_calls = len(calls)
    answers(model.eval(), a_batch(family))
    assert len(calls) == num_calls
    copied = list(learning_networks(with_average(copy.deepcopy(model))))
    assert all(network.forward.network is network for network in copied)


def compiled_alike(name, backend, monkeypatch, trained):
    """Whether two steps that are compiled by a backend are nearly those that are not."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    family = FAMILIES[name]
    model = family.model(compile=True)
    train_steps(family, model)
    state, expected = model.state_dict(), trained(name).state_dict()
    assert state.keys() == expected.keys()
    plain = family.model()
    plain.load_state_dict(state)  # no prefix of a compiler's
    return {k: (state[k], expected[k]) for k in state if not alike(state[k], expected[k])}


@pytest.mark.slow
@ALL
def test_two_compiled_steps_are_those_that_are_not(name, trained, monkeypatch):
    assert not compiled_alike(name, "aot_eager", monkeypatch, trained)


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_two_compiled_steps_of_some_families_are_those_that_are_not(name, trained, monkeypatch):
    assert not compiled_alike(name, "aot_eager", monkeypatch, trained)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gan", "vae"])
def test_a_compiler_of_machine_code_changes_nothing_either(name, trained, monkeypatch):
    assert not compiled_alike(name, "inductor", monkeypatch, trained)


@SAMPLED
def test_sample_i_is_the_same_in_any_batch_and_leaves_the_random_state_alone(name, trained):
    model, index = trained(name), torch.arange(7)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    given = partial(FAMILIES[name].given, model)
    whole = model.sample(index, 3, **given(index))
    assert torch.equal(torch.get_rng_state(), state)
    parts = [model.sample(part, 3, **given(part)) for part in index.split(3)]
    assert whole.shape == (7, *model.spec.shape) and whole.isfinite().all()
    assert alike(whole, torch.cat(parts))
    assert not alike(whole[1:], whole[:-1])
    assert model.spec.kind != "image" or whole.abs().max() <= 1


@SAMPLED
def test_samples_of_two_seeds_differ_and_those_of_one_are_repeated(name, trained):
    model, index = trained(name), torch.arange(4)
    given = FAMILIES[name].given(model, index)
    first, again, other = (model.sample(index, seed, **given) for seed in (3, 3, 4))
    assert torch.equal(first, again) and alike(first, other) != FAMILIES[name].is_random


@SAMPLED
def test_what_nobody_says_is_told_in_turn_and_what_is_said_is_told(name, trained):
    family, model, index = FAMILIES[name], trained(name), torch.arange(5)
    data = family.data()
    sample = TellingSample(model, lambda: data)
    told = given_for(model, index, data)
    expected = model.sample(index, 3, **told)
    assert alike(sample(5, seed=3), expected) and alike(sample(index, 3, **told), expected)
    backwards = {name: value.flip(0) for name, value in told.items()}
    assert alike(sample(index, 3, **backwards), model.sample(index, 3, **backwards))
    assert copy.deepcopy(sample).model is not model


@TOLD
def test_classes_go_round_and_reach_whatever_the_model_says(name, trained):
    model, batch = trained(name), a_batch(FAMILIES[name])
    label = given_for(model, torch.arange(8))["label"]
    assert label.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and model.uses_labels
    first, other = (answers(model, batch, classes) for classes in (label, (label + 1) % 3))
    heard = {question for question in first if not alike(first[question], other[question])}
    # The mean over a batch can hide what its rows hear less than 1 in 10,000.
    assert heard | {"loss"} == first.keys() and first["loss"] != other["loss"]


@ALL
def test_what_a_model_is_not_told_or_is_told_too_much_is_refused(name, trained):
    model, batch = trained(name), a_batch(FAMILIES[name])
    wrong = {} if model.given else {"label": torch.arange(8) % 3}
    told = ", ".join(model.given)
    expected = f"is told {told}, but got nothing" if told else "is told nothing, but got label"
    for ask in questions(model, batch).values():
        with pytest.raises(ValueError, match=expected):
            ask(**wrong)


@TOLD
def test_labels_are_refused_where_the_data_have_none(name):
    with pytest.raises(ValueError, match=r"needs labels, and (codes of )?random has none"):
        FAMILIES[name].model(SimpleNamespace(spec=FAMILIES[name].data().spec.unconditional()))


# Losses


@ALL
def test_losses_are_finite_and_their_gradient_reaches_every_parameter(name):
    family = FAMILIES[name]
    model, batch = family.model().train(), a_batch(family)
    with model.numbered(batch["index"]):
        losses = model.losses(batch)
    assert all(value.isfinite() and value.dim() == 0 for value in losses.values())
    taught = {"loss": model}
    if model.alternating:
        taught = {"loss": model.generator, "discriminator": model.discriminator}
    for loss, network in taught.items():
        learners = {name: p for name, p in network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(losses[loss], learners.values(), retain_graph=True, allow_unused=True)
        missed = [
            name
            for name, gradient in zip(learners, found, strict=True)
            if gradient is None or not gradient.any()
        ]
        assert learners and missed == []


@ALL
def test_validation_losses_do_not_depend_on_the_batch_size(name, trained):
    family, found = FAMILIES[name], []
    for batch_size in (5, 16):
        options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
        trainer = pl.Trainer(**options, enable_checkpointing=False, enable_model_summary=False)
        trainer.validate(copy.deepcopy(trained(name)), family.data(batch_size=batch_size), verbose=False)
        found.append({key: float(value) for key, value in trainer.callback_metrics.items()})
    a, b = found
    assert a.keys() == b.keys() and "val/loss" in a
    for key in a.keys() - {f"val/{each}" for each in family.batchwise}:
        assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), key


@ALL
def test_two_halves_of_a_batch_draw_as_two_processes_what_one_draws_for_all(name):
    family = FAMILIES[name]
    model, batch, drawn = family.model().train(), a_batch(family), {}
    normal, uniform = model.step_noise.normal, model.step_noise.uniform
    for kind, draw in (("normal", normal), ("uniform", uniform)):
        noted = lambda stream, *more, kind=kind, draw=draw: drawn.setdefault(  # noqa: E731
            (kind, stream), draw(stream, *more)
        )
        setattr(model.step_noise, kind, noted)

    def step(rank, world_size):
        drawn.clear()
        model.examples_seen = 40
        model._trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        part = {key: value[rank::world_size] for key, value in batch.items()}
        model.on_train_batch_start(part, 0)
        model.losses(part)
        assert model.examples_seen == 40 + 8 * model.spec.units
        return dict(drawn)

    whole, *halves = step(0, 1), step(0, 2), step(1, 2)
    for stream, numbers in whole.items():
        assert all(torch.equal(numbers[rank::2], halves[rank][stream]) for rank in range(2))
    assert bool(whole) == family.draws


# Averages, copies, checkpoints


@pytest.mark.parametrize("batches", [1, 2])
@AVERAGED
def test_averaged_weights_follow_the_half_life_whatever_the_accumulation(name, batches):
    family, seen = FAMILIES[name], []
    players = can(family.model(), capabilities.TellsReal)
    model = family.model(**({"balance": Balance(batches)} if players else {}))
    examples = 8 * batches * model.spec.units

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, model, *_):
            if trainer.global_step > len(seen):
                seen.append([p.detach().clone() for p in with_average(model)._averages[0].parameters()])

    options = {} if players else {"accumulate_grad_batches": batches}
    train_steps(family, model, 4, callbacks=[Watch()], **options)
    half_life, average = with_average(model).half_life, with_average(model).average
    expected, counted = seen[0], 0.5 ** (examples / half_life)
    for number, weights in enumerate(seen[1:], 1):
        decay = min(counted, (1 + number) / (10 + number))
        pairs = zip(expected, weights, strict=True)
        expected = [decay * old + (1 - decay) * new for old, new in pairs]
    found = list(average.module.parameters())
    assert len(seen) == 4 == average.num_updates and model.examples_seen == 4 * examples
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert model.sampling_weights == "ema" and not any(p.requires_grad for p in found)


@ALL
def test_samples_and_scores_come_from_the_average_where_there_is_one(name, trained):
    model, batch = copy.deepcopy(trained(name)), a_batch(FAMILIES[name])
    before = answers(model, batch)
    is_averaged = FAMILIES[name].averages
    network = with_average(model)._averages[0] if is_averaged else model
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = answers(model, batch)
    if model.alternating:  # the judge has no average, and the loss may be that of the weights that learn
        ways = ("sample", "encode", "decode")
        before, after = ({way: each[way] for way in ways if way in each} for each in (before, after))
    assert same_bits(before, after) == is_averaged
    assert model.sampling_weights == ("ema" if is_averaged else "raw")


@ALL
def test_a_copy_answers_alike_and_knows_nothing_of_the_original(name, trained):
    model, batch = copy.deepcopy(trained(name)), a_batch(FAMILIES[name])
    twin, before = copy.deepcopy(model), answers(model, batch)
    assert same_bits(answers(twin, batch), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.examples_seen += 100
    model.update_average()
    assert same_bits(answers(twin, batch), before) and twin.examples_seen == model.examples_seen - 100
    if with_average(twin).average is not None:
        with torch.no_grad():
            for parameter in with_average(twin)._averages[0].parameters():
                parameter.add_(1.0)
        twin.update_average()
        assert not same_bits(answers(twin, batch), before)


@pytest.mark.fault(21)
@ALL
def test_all_that_a_checkpoint_keeps_is_finite(name, trained):
    assert not_finite(trained(name)) == ""


@ALL
def test_a_checkpoint_restores_answers_and_counts(name, trained):
    family, model, file, kept = FAMILIES[name], trained(name), io.BytesIO(), {}
    model.on_save_checkpoint(kept)
    torch.save({"state_dict": model.state_dict(), **kept}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    restored = family.model()
    restored.setup("test")  # the memory layout, without which bits may differ
    restored.load_state_dict(loaded["state_dict"])
    restored.on_load_checkpoint(loaded)
    batch = a_batch(family)
    assert same_bits(answers(restored.eval(), batch), answers(model, batch))
    assert restored.examples_seen == model.examples_seen == 16 * model.spec.units
    assert restored.latest.keys() == model.latest.keys() and "loss" in restored.latest
    again = {}
    restored.on_save_checkpoint(again)
    assert differences(kept, again) == []


HARD = {
    "gan with all options": Family(
        partial(
            gan, networks=SPECTRAL_PLAYERS, loss=Hinge, given=LABEL, half_life=4,
            balance=Balance(2, penalty=R1(every=2), augment=DiffAugment(), clip=1.0),
        ),
        PLAYERS,
    ),
    "gan in bfloat16": Family(
        partial(gan, networks=CONV_PLAYERS), PLAYERS, trainer={"precision": "bf16-mixed"}
    ),
    "diffusion with all options": Family(
        partial(
            diffusion, network=partial(TINY_UNET, dropout=0.1), process=VPSDE, half_life=4, **GUIDED,
            objective=Objective(weighting=MinSNR(), dequantise=True), schedule=Schedule(32, 64),
        ),
        WALKER, trainer={"accumulate_grad_batches": 2},
    ),
    "diffusion stopped before its guide is taken": Family(
        partial(diffusion, half_life=4, guidance=Guidance(2.0, guide_after=16)), WALKER
    ),
    "diffusion stopped after its guide is taken": Family(
        partial(diffusion, guidance=Guidance(2.0, guide_after=8)), WALKER
    ),
    "augmented importance-weighted vae": Family(
        partial(vae, bound=Bound(num_train_samples=3), augmentation=Augmentation(AffineAugment())), BOUNDED
    ),
    "vae with warm-up and free bits": Family(partial(vae, bound=Bound(2.0, 0.1, warmup=40)), BOUNDED),
    "srgan stopped after its pretraining": Family(
        partial(srgan, pretraining=8, half_life=4, pixel_weight=1.0), "Samples TellsReal", small_sources
    ),
    "srgan stopped in its pretraining": Family(
        partial(srgan, pretraining=16, content=Pixels, norm="none"), "Samples TellsReal", small_sources
    ),
    "dvae of hard draws with warm-up": Family(
        partial(dvae, kl_warmup=40, relaxation=Relaxation(examples=20, hard=True)), NUMBERS
    ),
    "adversarial kl autoencoder stopped before its discriminator plays": Family(
        partial(
            adversarial_kl_autoencoder, half_life=4,
            adversary=Adversary(adversarial_after=16, discriminator_after=8, ramp=16),
        ),
        f"{MAPS} TellsReal",
    ),
    "vqvae of learned codes": Family(partial(vqvae, codebook=partial(LearnedCodebook, num_codes=8)), NUMBERS),
}  # fmt: skip


class Keep(pl.Callback):
    """Writes a checkpoint after each of some batches; nothing may change once it is written."""

    def __init__(self, folder, *batches):
        self.folder, self.batches, self.left = folder, batches, None

    def on_train_batch_end(self, trainer, model, *_):
        batch = trainer.fit_loop.total_batch_idx + 1
        if batch in self.batches:
            trainer.save_checkpoint(self.folder / f"{batch}.ckpt")
        self.left = self.state(trainer, model)

    def on_train_batch_start(self, trainer, model, *_):
        if self.left is not None:
            assert differences(self.left, self.state(trainer, model)) == []

    def state(self, trainer, model):
        optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        schedulers = [each.scheduler.state_dict() for each in trainer.lr_scheduler_configs]
        kept = {"counts": (model.examples_seen, model._averaged_at), "latest": model.latest}
        return copy.deepcopy([model.state_dict(), optimizers, schedulers, kept])


@pytest.mark.fault(11)
@pytest.mark.parametrize("name", [*FAMILIES, *HARD])
def test_stopped_and_resumed_equals_never_stopped_to_the_bit(name, tmp_path, record_property):
    """On one machine, in one layout and with the same kernels, so that bits are equal.

    Where a step has two batches, or a player two of its own, it is stopped in the middle of one.
    """
    family = (FAMILIES | HARD)[name]
    per_step = family.trainer.get("accumulate_grad_batches", 1) * family.model().batches_per_step
    stop, end = 2 * per_step - 1, 3 * per_step
    for folder, batches, start in (("whole", (stop, end), None), ("parts", (end,), f"whole/{stop}.ckpt")):
        (tmp_path / folder).mkdir()
        start = start and tmp_path / start
        train_steps(family, family.model(), 3, callbacks=[Keep(tmp_path / folder, *batches)], start=start)
    first, whole, parts = (
        torch.load(tmp_path / path, weights_only=True)
        for path in (f"whole/{stop}.ckpt", f"whole/{end}.ckpt", f"parts/{end}.ckpt")
    )
    found = differences(whole, parts)
    record_property("table", ("resume, tensors and counts", name, f"{len(found)} differ"))
    assert found == []
    assert whole["examples_seen"] * stop == first["examples_seen"] * end and differences(whole, first) != []
    assert bool(first["gradients"]) == ("accumulate_grad_batches" in family.trainer)


# What may be the prior of codes

PRIORS = {
    Diffusion: (kl_autoencoder, FAMILIES["flow matching"].build),
    Flow: (kl_autoencoder, FAMILIES["flow of vectors"].build),
    VAE: (kl_autoencoder, lambda spec: VAE(spec, *MLP_CODING, Gaussian, ADAM, latent_dim=4)),
    Autoencoder: (kl_autoencoder, FAMILIES["autoencoder"].build),
    Autoregressive: (dvae, FAMILIES["autoregressive over codes"].build),
    AutoregressiveMaps: (dvae, FAMILIES["pixelcnn over codes"].build),
    DALLE: (dvae, FAMILIES["dalle"].build),
    MaskGIT: (dvae, FAMILIES["guided maskgit"].build),
}
"""Families of one loss, with the first stage that they can learn the codes of."""
OF_IMAGES = (LatentDiffusion, AutoregressiveImages, ImageRegression)
"""Families of one loss that take images and nothing else."""
OF_LATENTS = ("on_train_start", "on_train_batch_start", "on_validation_epoch_end", "on_test_epoch_end")
"""Hooks of every model, which of two stages the outer one follows."""


def captioned_images(batch_size=8):
    source = DataSpec("captions", (5,), levels=6, vocabulary='{"pad": 0}')
    return RandomData((1, 8, 8), 3, 17, source.to_dict(), num_train=32, num_test=16, batch_size=batch_size)


def prior_of_codes(family):
    stage, prior = PRIORS[family]
    spec = captioned_images().spec
    return Latent(spec, first_stage(spec, stage), prior)


def test_every_family_of_one_loss_that_can_be_drawn_is_tried_as_a_prior():
    models = [family.model() for family in FAMILIES.values() if "Samples" in family.can]
    assert {type(model) for model in models if not model.alternating} == {*PRIORS, *OF_IMAGES}


@pytest.mark.parametrize("family", PRIORS)
def test_a_prior_of_any_family_learns_is_evaluated_saved_and_drawn_from(family, tmp_path):
    model, data = prior_of_codes(family), captioned_images()
    trainer = train(model, data, 1, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=0)
    assert trainer.callback_metrics["val/loss"].isfinite()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    again = prior_of_codes(family)
    again.load_state_dict(checkpoint["state_dict"])
    again.on_load_checkpoint(checkpoint)
    index = torch.arange(4)
    x, y = (each.eval().sample(index, 1, **given_for(each, index, data)) for each in (model, again))
    assert x.shape == (4, 1, 8, 8) and x.isfinite().all()
    torch.testing.assert_close(x, y)  # a trained model has another layout in memory


@pytest.mark.parametrize("family", PRIORS)
def test_a_prior_is_told_of_every_moment_that_its_family_waits_for(family):
    kinds = family.__mro__[: family.__mro__.index(pl.LightningModule)]
    hooks = {name for kind in kinds for name in vars(kind) if name.startswith("on_")}
    assert hooks - set(OF_LATENTS) <= vars(Latent).keys()


def test_a_prior_s_codes_are_fitted_before_an_evaluation():
    model, data, fitted = prior_of_codes(Autoencoder), captioned_images(), []
    step = model.validation_step
    model.validation_step = lambda *batch: fitted.append(model.prior.sampler.means.clone()) or step(*batch)
    train(model, data, 1, limit_val_batches=1, val_check_interval=1, num_sanity_val_steps=0)
    batch = item_batch(data, "train", torch.arange(32), torch.device("cpu"))
    codes = model.prior.encode(model.to_codes(batch["image"]))
    weights = model.prior.sampler.weights
    assert torch.allclose(weights @ fitted[0], codes.mean(dim=0), atol=1e-4) and codes.std() > 0.1


def test_a_prior_that_ends_too_early_for_its_guidance_says_so():
    spec = captioned_images().spec
    prior = partial(diffusion, **VELOCITY, guidance=Guidance(2.0, guide_after=1000))
    model = Latent(spec, first_stage(spec, kl_autoencoder), prior)
    with pytest.warns(UserWarning, match="before guidance.guide_after 1,000: samples are not guided"):
        train(model, captioned_images(), 1)
