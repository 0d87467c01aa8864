r"""An own network: here of a diffusion model, which asks it for (x, t) and what the model is told.

genlab fit --config ddpm_digits --allow genlab.cli.templates \
    --model.network genlab.cli.templates.network.NewNetwork
"""

from __future__ import annotations

from torch import Tensor, nn

from genlab.networks.embeddings import ConditionEmbedding
from genlab.shapes import DataSpec


class NewNetwork(nn.Module):
    """Residual convolutions at the image's own size, each told the noise level and the label.

    Args:
        spec: The images; the family fills it in. With classes the network needs a label.
        width: Channels inside.
        depth: Residual blocks; each sees two pixels further.

    Shapes:
        x: (batch, channels, height, width); t: (batch,), about 0 ... 1,000; label: (batch,). Returns x's.

    Raises:
        ValueError: If the data are no images.
    """

    def __init__(self, spec: DataSpec, width: int = 64, depth: int = 6) -> None:
        super().__init__()
        if not spec.is_grid:
            raise ValueError(f"NewNetwork convolves images, and {spec.name} has the shape {spec.shape}.")
        channels = spec.shape[0]
        self.condition = ConditionEmbedding(width, width, spec.num_classes)
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.output = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        told = self.condition(t, label)[:, :, None, None]
        h = self.input(x)
        for block in self.blocks:
            h = h + block(h + told)
        return self.output(h)


class Block(nn.Sequential):
    """A residual branch that begins at zero: He et al. 2016 (arXiv:1603.05027), De and Smith 2020.

    Args:
        width: Channels.

    Shapes:
        h: (batch, width, height, width). Returns h's.
    """

    def __init__(self, width: int) -> None:
        last = nn.Conv2d(width, width, 3, padding=1)
        for weights in last.parameters():
            nn.init.zeros_(weights)
        super().__init__(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), last)
