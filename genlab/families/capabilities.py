"""What a model may be able to do: small protocols that commands, callbacks and metrics ask for.

What a model cannot do is an empty cell in a table, not an exception. Whatever a model is told (`given`: a
class, a source) is passed by name and has one row for each row of the first argument; `evaluation.given`
makes one.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from genlab.shapes import DataSpec


@runtime_checkable
class Samples(Protocol):
    """Can draw from the model."""

    def sample(self, index: Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample number i for every i in index, floats in [-1, 1] for images.

        Sample i depends on (seed, i) and on what it is told alone, not on the batch that it is drawn in.
        """


@runtime_checkable
class HasLatent(Protocol):
    """Has a latent space that can be walked through; `Model.latent_type` says what it is."""

    def draw_latent(self, index: Tensor, seed: int = 0) -> Tensor: ...

    def decode(self, z: Tensor, **given: Any) -> Tensor: ...


@runtime_checkable
class Reconstructs(Protocol):
    """Can find the latent of a given item and return."""

    def encode(self, x: Tensor, **given: Any) -> Tensor: ...

    def decode(self, z: Tensor, **given: Any) -> Tensor: ...


@runtime_checkable
class HasCode(Protocol):
    """Stands between data and a second stage, which learns how its codes are distributed: a first stage.

    Van den Oord et al. 2017 (arXiv:1711.00937), section 3.3; Rombach et al. 2022 (arXiv:2112.10752).
    """

    code_spec: DataSpec
    """The codes: (height, width) of numbers, `levels` of them, or (channels, height, width) of floats."""

    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the code of each item, (batch, *code_spec.shape), the same each time."""

    def decode(self, z: Tensor, **given: Any) -> Tensor: ...


@runtime_checkable
class HasVectors(HasCode, Protocol):
    """A first stage of code numbers, each of which stands for a vector that the decoder takes."""

    vector_spec: DataSpec
    """The vectors: (channels, height, width) of floats."""

    def vectors(self, index: Tensor) -> Tensor:
        """Returns the vectors of code numbers, (batch, *vector_spec.shape)."""

    def nearest(self, z: Tensor) -> Tensor:
        """Returns the code number next to each vector, (batch, *code_spec.shape)."""

    def decoded(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class HasFirstStage(Protocol):
    """Is a prior of the codes of another model, which decodes what the prior draws."""

    first_stage: Any
    """`families.codes.FirstStage`."""

    prior: Any
    code_spec: DataSpec

    def to_codes(self, x: Tensor) -> Tensor: ...

    def to_images(self, z: Tensor) -> Tensor: ...


@runtime_checkable
class Encodes(Protocol):
    """Can say in a vector what an item is, whether or not there is a way back."""

    def encode(self, x: Tensor, **given: Any) -> Tensor: ...


@runtime_checkable
class HasPosterior(Protocol):
    """Gives each item a distribution of its latent, whose mean `encode` returns."""

    latent_dim: int

    def posterior(self, x: Tensor, **given: Any) -> Any: ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Can say how probable an item is."""

    likelihood_kind: str
    """"exact", or "<=" where log_prob is a lower bound and bits per dimension an upper one."""

    likelihood_estimator: str
    """How it is computed, such as "importance-weighted, k = 64"."""

    def log_prob(self, x: Tensor, **given: Any) -> Tensor:
        """Returns log p(x) in nats, one number an item; images as probabilities of their discrete levels."""


@runtime_checkable
class Denoises(Protocol):
    """Walks from noise to data, so that any sampler can be put in, one that agrees with a picture too."""

    process: Any
    """How data become noise (`processes.base.Process`)."""

    sampler: Any
    """How samples are drawn (`samplers.base.Sampler`)."""

    sampling_network: Any
    """The network that is asked at every step, averaged where there is an average."""

    space: Any
    """Where it walks (`samplers.conditioning.Space`): in images, or in their codes."""

    def sample_with(
        self, sampler: Any, index: int | Tensor, seed: int = 0, clip: bool | None = None, **given: Any
    ) -> Tensor:
        """Returns samples by another sampler than the model's own; clip overrides the model's."""


@runtime_checkable
class HasScore(Protocol):
    """Knows the direction in which noised data become more probable."""

    process: Any

    def score(self, x_t: Tensor, level: Any, **given: Any) -> Tensor: ...


@runtime_checkable
class Predicts(Protocol):
    """Is made of what it says of each part of an item, those before it being known."""

    def predict(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the network's numbers for each part, such as logits."""


@runtime_checkable
class Completes(Protocol):
    """Can go on from a beginning, token by token."""

    sampler: Any
    """How the next token is drawn (`samplers.tokens.TokenSampler`)."""

    def complete(
        self, start: Tensor, num_tokens: int, index: Tensor, seed: int = 0, sampler: Any = None, **given: Any
    ) -> Any:
        """Yields (batch,) tokens, one step at a time; those of sample i depend on (seed, i) and the start."""


@runtime_checkable
class Attends(Protocol):
    """Writes with an eye on a source, and can say where it looked."""

    def attention(self, x: Tensor, **given: Any) -> Tensor | None:
        """Returns the weight of each token of the source for each token of x, None where there is none."""


@runtime_checkable
class CompletesImages(Protocol):
    """Can draw the rest of an image whose first pixels are given."""

    temperature: float
    """Of its samples."""

    def complete(
        self,
        start: Tensor,
        num_known: int,
        index: Tensor,
        seed: int = 0,
        temperature: float | None = None,
        **given: Any,
    ) -> Tensor:
        """Returns images that keep the first num_known pixels, in the order of reading."""


@runtime_checkable
class TranslatesBack(Protocol):
    """Translates images to and fro."""

    def reversed(self) -> Any:
        """Returns the same weights as a model that makes sources of images, with its `spec` turned round."""


@runtime_checkable
class TellsReal(Protocol):
    """Has a discriminator whose answer may be a probability."""

    def probability_real(self, x: Tensor, **given: Any) -> Tensor | None: ...


@runtime_checkable
class TellsMatch(Protocol):
    """Says how well images go with what they come with: how samples can be ranked."""

    def similarity(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the cosine of the angle between each image and its source, (batch,)."""


@runtime_checkable
class Classifies(Protocol):
    """Has a network whose features can measure images of its domain."""

    extractor_network: Any


def can(model: Any, capability: Any) -> bool:
    """Returns whether a model has one of these capabilities."""
    return isinstance(model, capability)


def can_be_sampled(model: Any) -> bool:
    """Returns whether a model has the capability `Samples`."""
    return isinstance(model, Samples)
