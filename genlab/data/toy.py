"""Densities in one and two dimensions that can be drawn from and written down."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab import randomness
from genlab.data.base import MADE_HERE, DataModule
from genlab.data.loading import Items
from genlab.data.packed import Packed
from genlab.data.splits import require_counts
from genlab.shapes import DataSpec


class PointData(DataModule):
    """Points of a density that is known exactly; batches hold "point" instead of "image".

    Args:
        num_train: Points an epoch.
        num_test: Points to score on, and as many others for validation, the same for every seed.
        fresh: Draw new points in each epoch, so that no point is seen twice; False repeats the first epoch's.
        base: Arguments that every data set has.

    Shapes:
        batch["point"]: (batch, dimensions), float32.
    """

    things = "points"
    licence = MADE_HERE
    dimensions = 2

    def __init__(
        self, num_train: int = 10_000, num_test: int = 2_000, fresh: bool = True, **base: Any
    ) -> None:
        super().__init__(**base)
        require_counts(num_train, num_test)
        if fresh and self.fraction < 1.0:
            raise ValueError(
                f"fraction {self.fraction} means few data, but fresh draws new ones in each epoch; "
                "use --data.fresh false."
            )
        self.num_train, self.num_test, self.fresh = num_train, num_test, fresh

    @abstractmethod
    def draw(self, address: int, index: Tensor) -> Tensor:
        """Returns point number i for every i in index, (len(index), dimensions), float64."""

    @abstractmethod
    def log_density(self, x: Tensor) -> Tensor:
        """Returns log p(x) in nats for points (n, dimensions), as (n,)."""

    @property
    def spec(self) -> DataSpec:
        return DataSpec(type(self).__name__.lower(), (self.dimensions,), levels=0)

    def load(self) -> dict[str, Packed]:
        return {
            "train": self._points(self.num_train, self.seed, "train", 0),
            "val": self._points(self.num_test, "val"),
            "test": self._points(self.num_test, "test"),
        }

    def training_items(self, epoch: int) -> Items:
        if not self.fresh:
            return super().training_items(epoch)
        return Items(self._points(self.num_train, self.drawing_seed, "train", epoch))

    def _points(self, num: int, *address: int | str) -> Packed:
        points = self.draw(randomness.key("toy", *address), torch.arange(num))
        return Packed({"point": points.float().numpy()})


class Gaussian1D(PointData):
    """The normal distribution N(mean, std^2) of the 2014 paper's teaching picture.

    Args:
        mean: Where it lies.
        std: How wide it is.
        base: Arguments of every toy density and of every data set.
    """

    dimensions = 1

    def __init__(self, mean: float = 0.0, std: float = 1.0, **base: Any) -> None:
        super().__init__(**base)
        _require_positive("std", std)
        self.mean, self.std = mean, std

    def draw(self, address: int, index: Tensor) -> Tensor:
        return self.mean + self.std * randomness.normal(address, index, (1,), torch.float64)

    def log_density(self, x: Tensor) -> Tensor:
        return _log_normal(x - self.mean, self.std)


class Gaussian2D(PointData):
    """A tilted normal distribution, small enough to draw every score of its noised versions.

    Args:
        mean: Where it lies.
        std: Its width in both directions.
        correlation: Between -1 and 1; how far it is tilted.
        base: Arguments of every toy density and of every data set.
    """

    def __init__(
        self,
        mean: tuple[float, float] = (0.5, -0.5),
        std: tuple[float, float] = (1.0, 0.5),
        correlation: float = 0.8,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        for width in std:
            _require_positive("std", width)
        if not -1.0 < correlation < 1.0:
            raise ValueError(f"correlation must be in (-1, 1), got {correlation}.")
        self.mean = torch.tensor(mean, dtype=torch.float64)
        (a, b), off = std, correlation * std[0] * std[1]
        self.covariance = torch.tensor([[a * a, off], [off, b * b]], dtype=torch.float64)

    def draw(self, address: int, index: Tensor) -> Tensor:
        return self.mean + _noise(address, index) @ torch.linalg.cholesky(self.covariance).T

    def log_density(self, x: Tensor) -> Tensor:
        return self.noised_log_density(x, 1.0, 0.0)

    def noised_log_density(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Returns the log density of alpha x + sigma eps, normal as well."""
        covariance = alpha**2 * self.covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(alpha * self.mean, covariance)
        return normal.log_prob(x.double()).to(x)


class EightGaussians(PointData):
    """Eight equal normal distributions on a circle: whoever drops a mode is seen at once.

    Args:
        radius: Of the circle of their means.
        std: Of each.
        base: Arguments of every toy density and of every data set.
    """

    def __init__(self, radius: float = 2.0, std: float = 0.15, **base: Any) -> None:
        super().__init__(**base)
        _require_positive("std", std)
        self.std = std
        angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
        self.means = radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def draw(self, address: int, index: Tensor) -> Tensor:
        mode = _choice(address, index, 8)
        return self.means[mode] + self.std * _noise(address, index)

    def log_density(self, x: Tensor) -> Tensor:
        return self.noised_log_density(x, 1.0, 0.0)

    def noised_log_density(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Returns the log density of alpha x + sigma eps: each of the eight is normal as before."""
        offsets = x[:, None, :] - alpha * self.means.to(x)
        return _log_normal(offsets, math.hypot(alpha * self.std, sigma)).logsumexp(1) - math.log(8)


class TwoMoons(PointData):
    """Two half circles in each other with normal noise: the density of scikit-learn's `make_moons`.

        p(x) = 1/2 sum_k (1/pi) int_0^pi N(x; arc_k(theta), std^2) dtheta

    The integral along each arc is a Gauss-Legendre sum; at the default width it is exact to 1e-12.

    Args:
        std: Of the noise around the arcs, which have radius 1; at least 0.05.
        base: Arguments of every toy density and of every data set.
    """

    _NODES = 128  # resolves a normal of std 0.05 along an arc of length pi to rounding error

    def __init__(self, std: float = 0.1, **base: Any) -> None:
        super().__init__(**base)
        if std < 0.05:
            raise ValueError(f"std must be at least 0.05 for the density to be exact, got {std}.")
        self.std = std

    def draw(self, address: int, index: Tensor) -> Tensor:
        angle = math.pi * randomness.uniform(randomness.key(address, "angle"), index, 1)[:, 0]
        upper, lower = _moons(angle)
        first = (_choice(address, index, 2) == 0)[:, None]
        return torch.where(first, upper, lower) + self.std * _noise(address, index)

    def log_density(self, x: Tensor) -> Tensor:
        nodes, weights = np.polynomial.legendre.leggauss(self._NODES)
        arcs = torch.cat(_moons(torch.from_numpy((nodes + 1) * (math.pi / 2)))).to(x)
        # The weights sum to 2, and so do those of the two moons: 1/2 of 1/2 is left for each.
        log_weights = torch.from_numpy(np.log(np.tile(weights, 2) / 4)).to(x)
        return (_log_normal(x[:, None, :] - arcs, self.std) + log_weights).logsumexp(1)


class Checkerboard(PointData):
    """The uniform distribution on the eight dark fields of a 4x4 board.

    Args:
        half_width: The board covers [-half_width, half_width] in both directions.
        base: Arguments of every toy density and of every data set.
    """

    def __init__(self, half_width: float = 2.0, **base: Any) -> None:
        super().__init__(**base)
        _require_positive("half_width", half_width)
        self.half_width = half_width

    def draw(self, address: int, index: Tensor) -> Tensor:
        field = _choice(address, index, 8)
        row = field // 2
        column = 2 * (field % 2) + row % 2
        inside = randomness.uniform(randomness.key(address, "inside"), index, 2)
        return (torch.stack([column, row], dim=1) + inside) * (self.half_width / 2) - self.half_width

    def log_density(self, x: Tensor) -> Tensor:
        field = ((x + self.half_width) / (self.half_width / 2)).floor()
        on_board = ((field >= 0) & (field < 4)).all(1)
        dark = field.sum(1).remainder(2) == 0
        height = -math.log(8 * (self.half_width / 2) ** 2)
        return torch.where(on_board & dark, height, -math.inf).to(x)


class Pinwheel(PointData):
    """Five long normal distributions around the centre, twisted by an angle that grows with the radius.

        x = R(2 pi k / 5 + twist |u|) u,    u ~ N((radius, 0), diag(radial_std^2, tangential_std^2))

    A turn by an angle that depends on |u| alone keeps areas and |u|, so that the density of x is that of the
    u which it came from, averaged over the arms.

    Args:
        radius: Distance of the arms' middles from the centre.
        radial_std: Half length of the arms.
        tangential_std: Half width of the arms.
        twist: Radians of turn for each unit of radius.
        base: Arguments of every toy density and of every data set.
    """

    _ARMS = 5

    def __init__(
        self,
        radius: float = 1.4,
        radial_std: float = 0.4,
        tangential_std: float = 0.1,
        twist: float = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        _require_positive("radial_std", radial_std)
        _require_positive("tangential_std", tangential_std)
        self.twist = twist
        self.mean = torch.tensor([radius, 0.0], dtype=torch.float64)
        self.stds = torch.tensor([radial_std, tangential_std], dtype=torch.float64)

    def draw(self, address: int, index: Tensor) -> Tensor:
        u = self.mean + self.stds * _noise(address, index)
        arm = _choice(address, index, self._ARMS)
        return _turned(u, self._angle(u, arm))

    def log_density(self, x: Tensor) -> Tensor:
        arms = torch.arange(self._ARMS, device=x.device)[:, None]
        u = _turned(x.expand(self._ARMS, *x.shape), -self._angle(x, arms))
        standard = _log_normal((u - self.mean.to(x)) / self.stds.to(x), 1.0)
        return standard.logsumexp(0) - math.log(self._ARMS) - float(self.stds.log().sum())

    def _angle(self, x: Tensor, arm: Tensor) -> Tensor:
        return arm * (2 * math.pi / self._ARMS) + self.twist * x.norm(dim=-1)


def _moons(angle: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin], dim=-1), torch.stack([1 - cos, 0.5 - sin], dim=-1)


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x[..., 0] - sin * x[..., 1], sin * x[..., 0] + cos * x[..., 1]], dim=-1)


def _log_normal(offset: Tensor, std: float) -> Tensor:
    """Returns log N(offset; 0, std^2 I), summed over the last dimension."""
    size = offset.shape[-1]
    return -0.5 * (offset / std).square().sum(-1) - size * (math.log(std) + 0.5 * math.log(2 * math.pi))


def _choice(address: int, index: Tensor, num: int) -> Tensor:
    draw = randomness.uniform(randomness.key(address, "choice"), index, 1)[:, 0]
    return (draw * num).long()


def _noise(address: int, index: Tensor) -> Tensor:
    return randomness.normal(randomness.key(address, "noise"), index, (2,), torch.float64)


def _require_positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise ValueError(f"{name} must be positive, got {value}.")
