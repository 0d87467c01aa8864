"""From images to feature vectors: what every metric compares instead of pixels."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genlab.errors import MetricError


class Features(NamedTuple):
    """What an extractor says of a batch of images.

    Shapes:
        pool: (batch, num_features), float32.
        logits: (batch, num_classes), float32; None where the extractor is no classifier.
    """

    pool: Tensor
    logits: Tensor | None = None


class MissingWeights(MetricError):  # noqa: N818 -- a state of affairs, not a fault
    """The weights of an extractor cannot be had; the message says where they were sought and the remedy."""


class Extractor(nn.Module):
    """A fixed network from images to features; scores of different extractors are different quantities.

    Its arithmetic is float32 throughout, whatever autocast and TF32 are outside: half precision moves
    a Frechet distance by per cents. It stays in evaluation mode and has no gradients.

    Args:
        name: What tables call it.
        num_features: Length of a feature vector.
        num_classes: Number of logits, 0 for none.
        resize: How images of another size reach the network's size, as one word.
        digest: SHA-256 of the weights, the architecture and the resizing; see `extractor_digest`.

    Shapes:
        levels: (batch, channels, height, width), uint8 from 0 to num_levels - 1. Returns `Features`.
    """

    def __init__(self, name: str, num_features: int, num_classes: int, resize: str, digest: str) -> None:
        super().__init__()
        self.name = name
        self.num_features = num_features
        self.num_classes = num_classes
        self.resize = resize
        self.digest = digest

    @abstractmethod
    def extract(self, levels: Tensor, num_levels: int) -> Features:
        """Returns the features of checked images; `forward` has set precision and gradients."""

    @torch.no_grad()
    def forward(self, levels: Tensor, num_levels: int = 256) -> Features:
        check_levels(levels, num_levels)
        with full_precision(levels.device):
            return self.extract(levels, num_levels)

    def train(self, mode: bool = True) -> Extractor:
        """Stays in evaluation mode: a trainer switches whatever it finds, a ruler does not change."""
        return super().train(False)


class Identity(Extractor):
    """Points as their own features, for the toy densities.

    Shapes:
        levels: (batch, dimensions), floats.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__("identity", num_features, 0, "none", extractor_digest({}, "identity"))

    def extract(self, levels: Tensor, num_levels: int) -> Features:
        return Features(levels.float())

    def forward(self, levels: Tensor, num_levels: int = 0) -> Features:
        return self.extract(levels, num_levels)


def check_levels(levels: Tensor, num_levels: int) -> None:
    """Refuses what is not a batch of images of the declared levels."""
    if levels.dtype != torch.uint8:
        raise ValueError(f"Extractors read uint8 levels, got {levels.dtype}; see genlab.shapes.to_levels.")
    if levels.ndim != 4:
        raise ValueError(f"Extractors read (batch, channels, height, width), got {tuple(levels.shape)}.")
    if num_levels < 256 and levels.numel() and int(levels.max()) >= num_levels:
        raise ValueError(
            f"An image holds level {int(levels.max())} but num_levels is {num_levels}; "
            "give the data's own number of levels."
        )


def extractor_digest(weights: Mapping[str, Tensor], *words: str) -> str:
    """Returns the SHA-256 of tensors, in the order of their names, and of words on how they are used.

    That of a model is `genlab.families.codes.weights_digest`. Both are kept in files, and so neither can
    become the other.
    """
    digest = hashlib.sha256("\x1f".join(words).encode())
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"\x1e{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1f".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Computes in IEEE float32 inside; autocast and the precision switches return to what they were."""
    switches = _precision_switches()
    before = [read() for read, _, _ in switches]
    try:
        for _, write, exact in switches:
            write(exact)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for (_, write, _), value in zip(switches, before, strict=True):
            write(value)


def _precision_switches() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Returns how to read and write each switch, and its exact position."""
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        modules = [backends.cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv]
        return [
            (partial(getattr, module, "fp32_precision"), partial(setattr, module, "fp32_precision"), "ieee")
            for module in modules
        ]
    # torch 2.8: its matrix products have three positions, of which allow_tf32 would restore only two.
    cudnn = partial(getattr, backends.cudnn, "allow_tf32"), partial(setattr, backends.cudnn, "allow_tf32")
    return [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (*cudnn, False),
    ]
