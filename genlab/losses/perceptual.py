"""How far an image is from the one that it should be, as features see it: the content of SRGAN's loss."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from genlab.files import digest
from genlab.losses.distances import AbsoluteError, Distance, SquaredError
from genlab.losses.precision import at_least_float32
from genlab.text import shortened


class ContentLoss(ABC):
    """A distance of generated images from the true ones, without parameters that learn.

    Shapes:
        x, target: (batch, 1 or 3, height, width) in [-1, 1].
    """

    def require(self, discriminator: nn.Module) -> None:
        """Refuses before training what would be missing in it.

        Raises:
            ValueError: What is missing, and what to do.
        """
        return

    @abstractmethod
    def __call__(self, x: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
        """Returns the scalar distance, differentiable by x; the run's own discriminator may see both."""


class Pixels(ContentLoss):
    """The distance of the images themselves: SRGAN-MSE of the paper (arXiv:1609.04802, equation 4).

    Args:
        distance: Of the pixels.
    """

    def __init__(self, distance: Distance | None = None) -> None:
        self.distance = distance or SquaredError()

    def __call__(self, x: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
        return self.distance(x, target)


class DiscriminatorFeatures(ContentLoss):
    """The mean distance of the features in each layer of the run's own discriminator.

    Feature matching (Wang et al. 2018, arXiv:1711.11585, equation 4): needs no weights from elsewhere, and
    its features are of the very domain, but of an untrained network at first.

    Args:
        distance: Of the features.
    """

    def __init__(self, distance: Distance | None = None) -> None:
        self.distance = distance or AbsoluteError()

    def require(self, discriminator: nn.Module) -> None:
        if not isinstance(getattr(discriminator, "features", None), nn.Sequential):
            raise ValueError(
                f"DiscriminatorFeatures compares what the layers of a discriminator see, and those of a "
                f"{type(discriminator).__name__} cannot be had; take VGGDiscriminator or PatchDiscriminator."
            )

    def __call__(self, x: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
        layers: nn.Sequential = discriminator.features  # type: ignore[assignment]
        distances = []
        for layer in layers:
            x = layer(x)
            with torch.no_grad():
                target = layer(target)
            distances.append(self.distance(x, target))
        return torch.stack(distances).mean()


class VGGFeatures(ContentLoss):
    """The distance of features of VGG19 that was trained on ImageNet, a mean over layers.

    Ledig et al. 2017 (arXiv:1609.04802), equation 5, with features divided by 12.75 as there; Johnson et al.
    2016 (arXiv:1603.08155). `relu5_4` is the paper's phi_5,4 after its activation, which describes content;
    `relu2_2` is its phi_2,2; `conv5_4` is before the activation (Wang et al. 2018, arXiv:1809.00219, section
    3.3). Nothing is ever downloaded, and no checkpoint holds these weights.

    Args:
        weights: File of the weights, as torchvision publishes them: vgg19-dcbb9e9d.pth, or its tensors as
            safetensors.
        sha256: Digits that the file's SHA-256 begins with, eight or more.
        layers: Names of the layers, conv or relu with the number of the block, and the one in it.
        distance: Of the features.

    Raises:
        ValueError: For a layer that VGG19 does not have; when it is first needed, for a file that is missing
            or another one than sha256 says.
    """

    def __init__(
        self,
        weights: str,
        sha256: str = "dcbb9e9d",
        layers: Sequence[str] = ("relu5_4",),
        distance: Distance | None = None,
    ) -> None:
        unknown = sorted(set(layers) - set(VGG19_LAYERS))
        if unknown or not layers:
            raise ValueError(
                f"layers of VGG19 are {VGG19_LAYERS[0]}, {VGG19_LAYERS[1]} ... {VGG19_LAYERS[-1]}, got "
                f"{', '.join(unknown) or 'none'}."
            )
        if len(sha256) < _LEAST_DIGITS:
            raise ValueError(f"sha256 must have at least {_LEAST_DIGITS} digits, got {sha256!r}.")
        self.weights, self.sha256, self.layers = weights, sha256.lower(), tuple(layers)
        self.distance = distance or SquaredError()

    @cached_property
    def network(self) -> nn.Sequential:
        """The layers up to the deepest one that is asked for, with their weights."""
        network = vgg19_features(1 + max(VGG19_LAYERS.index(name) for name in self.layers))
        network.load_state_dict(self._checked_weights(network))
        return network.requires_grad_(False).eval()

    def require(self, discriminator: nn.Module) -> None:
        _ = self.network

    def __call__(self, x: Tensor, target: Tensor, discriminator: nn.Module) -> Tensor:
        self.network.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            found = self.features(x)
            with torch.no_grad():
                wanted = self.features(target)
            return torch.stack([self.distance(a, b) for a, b in zip(found, wanted, strict=True)]).mean()

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the asked layers' features of images, in the network's order."""
        h = imagenet_normalised(x)
        found = []
        for name, layer in zip(_modules_of_vgg19(), self.network, strict=False):
            h = layer(h)
            if name in self.layers:
                found.append(h / _FEATURE_SCALE)
        return found

    def _checked_weights(self, network: nn.Module) -> dict[str, Tensor]:
        file = Path(self.weights).expanduser()
        if not file.is_file():
            raise ValueError(
                f"The weights of VGG19 are not at {shortened(str(file))}: put torchvision's "
                "vgg19-dcbb9e9d.pth there, or take content: DiscriminatorFeatures or Pixels, which need none."
            )
        found = digest(file)
        if not found.startswith(self.sha256):
            raise ValueError(
                f"The SHA-256 of {shortened(str(file))} is {found[:16]}... and not {self.sha256[:16]}...: it "
                "is another file, or damaged; fetch it again, or give its own sha256 if you trust it."
            )
        loaded = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        try:
            return {name: loaded[f"features.{name}"] for name in network.state_dict()}
        except (KeyError, TypeError):
            raise ValueError(f"{shortened(str(file))} holds no weights of VGG19's features.") from None


_LEAST_DIGITS = 8
_FEATURE_SCALE = 12.75
_BLOCKS = ((1, 2, 64), (2, 2, 128), (3, 4, 256), (4, 4, 512), (5, 4, 512))
"""Number, convolutions and channels of each block of VGG19 (Simonyan and Zisserman 2015, arXiv:1409.1556)."""


def _modules_of_vgg19() -> list[str]:
    """Returns the names of the modules in their order; pooling stands after each block."""
    return [
        name
        for block, num, _ in _BLOCKS
        for name in (
            *(f"{kind}{block}_{i}" for i in range(1, num + 1) for kind in ("conv", "relu")),
            f"pool{block}",
        )
    ]


VGG19_LAYERS = tuple(name for name in _modules_of_vgg19() if not name.startswith("pool"))


def vgg19_features(num: int | None = None) -> nn.Sequential:
    """Returns the convolutional part of VGG19 up to layer number `num`, numbered as torchvision's.

    Args:
        num: How many of `VGG19_LAYERS`; None for all modules, the last pooling included.
    """
    names, layers = _modules_of_vgg19(), list[nn.Module]()
    last = len(names) if num is None else 1 + names.index(VGG19_LAYERS[num - 1])
    channels = {block: width for block, _, width in _BLOCKS}
    inputs = 3
    for name in itertools.islice(names, last):
        width = channels[int(name[4])]
        if name.startswith("conv"):
            layers.append(nn.Conv2d(inputs, width, 3, padding=1))
            inputs = width
        else:
            layers.append(nn.ReLU() if name.startswith("relu") else nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def imagenet_normalised(x: Tensor) -> Tensor:
    """Returns images in [-1, 1] with ImageNet's mean and deviation taken out, grey ones in three channels."""
    mean, std = (
        torch.tensor(v, device=x.device)[:, None, None]
        for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return ((at_least_float32(x) + 1.0) / 2.0 - mean) / std
