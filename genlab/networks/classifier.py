"""A small convolutional classifier, whose features also measure the quality of generated images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu

from genlab.shapes import DataSpec


class ConvClassifier(nn.Module):
    """Residual stages that halve the image down to about 4 pixels, then features averaged over positions.

    He et al. 2016 (arXiv:1512.03385), with one block a stage.

    Args:
        spec: The images and the number of classes.
        num_features: Length of the feature vector; a covariance of it needs several times as many images.
        base_channels: Channels of the first stage; each halving doubles them, up to eight times.

    Shapes:
        x: (batch, channels, height, width). Returns logits, (batch, num_classes).

    Raises:
        ValueError: If the data are not images with labels.
    """

    def __init__(self, spec: DataSpec, num_features: int = 64, base_channels: int = 32) -> None:
        super().__init__()
        if not spec.is_grid or spec.num_classes < 2:
            raise ValueError(
                f"A classifier needs images of at least 2 classes, but {spec.name} has shape {spec.shape} "
                f"and {spec.num_classes} classes; choose a labelled data set."
            )
        self.spec = spec
        self.num_features = num_features
        self.base_channels = base_channels
        stages: list[nn.Module] = [
            _normed(spec.shape[0], base_channels, 3),
            nn.ReLU(),
            ResidualBlock(base_channels),
        ]
        width = base_channels
        for level in range(max(1, (min(spec.shape[1:]) // 4).bit_length() - 1)):
            wider = base_channels * min(2 ** (level + 1), 8)
            stages += [_normed(width, wider, 3, stride=2), nn.ReLU(), ResidualBlock(wider)]
            width = wider
        self.stages = nn.Sequential(*stages, _normed(width, num_features, 1), nn.ReLU())
        self.head = nn.Linear(num_features, spec.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Returns the vectors that the last layer sees, (batch, num_features)."""
        return self.stages(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity: relu(x + f(x)).

    Args:
        width: Number of channels, in and out.

    Shapes:
        x: (batch, width, height, width of the image). Returns the same.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(_normed(width, width, 3), nn.ReLU(), _normed(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return relu(x + self.residual(x))


def _normed(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))
