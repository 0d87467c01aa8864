"""Pictures of a model of points beside the density that the points come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback

from genlab.callbacks.record import log_image
from genlab.evaluation.pictures import new_figure, rendered
from genlab.evaluation.score import sample_levels
from genlab.families.capabilities import HasLatent, HasLikelihood, TellsReal, can, can_be_sampled

LEAST_DENSITY = 0.05  # share of the peak; below it a batch holds too few real points to teach anything


class DensityPlot(Callback):
    """Draws the data's density, the model's samples and, for a GAN, what its discriminator says where.

    In two dimensions a model with a likelihood also shows its own density, and one whose latent is as wide as
    the data, such as a flow, what it makes of a square grid of latents.

    At the optimum of the game the discriminator says 1/2 wherever the data has mass (Goodfellow et al. 2014,
    proposition 1); the largest deviation from it, where the density is at least 5 % of its peak, is logged
    as `val/discriminator_gap`.

    Args:
        num: Samples in the picture.
        num_places: Places at which the curves are computed.
        seed: Seed of the samples.
    """

    def __init__(self, num: int = 10_000, num_places: int = 400, seed: int = 0) -> None:
        self.num = num
        self.num_places = num_places
        self.seed = seed

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if not pl_module.examples_seen:
            self._draw(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        gap = self.discriminator_gap(trainer.datamodule, pl_module)
        if gap is not None:
            pl_module.log("val/discriminator_gap", gap, logger=False, rank_zero_only=False)
        self._draw(trainer, pl_module)

    @torch.no_grad()
    def discriminator_gap(self, data: Any, model: Any) -> float | None:
        """Returns the largest |D(x) - 1/2| where the data has mass; None without a discriminator in 1-D."""
        if not can(model, TellsReal) or data.spec.shape != (1,):
            return None
        places = self._places(data)
        density = data.log_density(places).exp()
        probability = model.probability_real(places.to(model.device))
        if probability is None:
            return None
        has_mass = (density >= LEAST_DENSITY * density.max()).flatten()
        return float((probability.cpu().flatten() - 0.5).abs()[has_mass].max())

    def _places(self, data: Any) -> torch.Tensor:
        real = torch.as_tensor(data.split("val").x).float()
        low, high = real.min(), real.max()
        margin = 0.15 * (high - low)
        return torch.linspace(float(low - margin), float(high + margin), self.num_places)[:, None]

    @torch.no_grad()
    def _draw(self, trainer: Any, model: Any) -> None:
        if not trainer.is_global_zero or not can_be_sampled(model) or trainer.fast_dev_run:
            return
        data = trainer.datamodule
        samples = sample_levels(model, torch.arange(self.num), self.seed).cpu()
        picture = self._one_dimension if samples.shape[1] == 1 else self._two_dimensions
        log_image(trainer, "density", picture(data, model, samples), model.examples_seen)

    def _one_dimension(self, data: Any, model: Any, samples: torch.Tensor) -> np.ndarray:
        places = self._places(data)
        figure, axes = new_figure()
        span = (float(places[0]), float(places[-1]))
        edges = np.linspace(*span, 101)
        # Weights instead of density=True, which divides by zero while all samples lie elsewhere.
        weights = np.full(len(samples), 1 / (len(samples) * (edges[1] - edges[0])))
        axes.hist(samples[:, 0].numpy(), edges, weights=weights, color="#8ecae6", label="p_g (samples)")
        axes.plot(places, data.log_density(places).exp(), color="#1d3557", label="p_data")
        if can(model, TellsReal):
            probability = model.probability_real(places.to(model.device))
            if probability is not None:
                axes.plot(places, probability.cpu(), color="#e63946", label="D(x)")
                axes.axhline(0.5, color="#e63946", linewidth=0.5, linestyle="--")
        axes.set(xlabel="x", title=f"{model.examples_seen:,} points seen", ylim=(0, None))
        axes.legend(loc="upper right")
        return rendered(figure)

    def _two_dimensions(self, data: Any, model: Any, samples: torch.Tensor) -> np.ndarray:
        real = torch.as_tensor(data.split("val").x).float()
        low, high = (real.min(0).values - 0.5).tolist(), (real.max(0).values + 0.5).tolist()
        places = [torch.linspace(low[i], high[i], 200) for i in range(2)]
        x, y = torch.meshgrid(*places, indexing="xy")
        points = torch.stack([x.flatten(), y.flatten()], dim=1)
        pictures = self._pictures(data, model, points, samples)
        figure, all_axes = new_figure(6 * len(pictures), 6, len(pictures))
        for axes, (title, density, draw) in zip(all_axes, pictures, strict=True):
            if density is not None:
                axes.contourf(x, y, density.reshape(x.shape), levels=20, cmap="Blues")
            draw(axes)
            axes.set(title=title, xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        return rendered(figure)

    def _pictures(self, data: Any, model: Any, points: torch.Tensor, samples: torch.Tensor) -> list[Any]:
        """Returns (title, density to colour, what to draw on it) for each picture."""
        red, device = {"color": "#e63946"}, model.device
        pictures: list[Any] = [
            (
                f"{model.examples_seen:,} points seen",
                data.log_density(points).exp(),
                lambda axes: axes.scatter(*samples[:2_000].T, s=2, linewidths=0, **red),
            )
        ]
        if isinstance(model, HasLikelihood):
            log_prob = model.log_prob(points.to(device)).cpu()
            # Untrained densities can be so peaked that colours of anything else vanish.
            pictures.append(("density of the model", log_prob.exp().clamp_max(1e4), lambda axes: None))
        if isinstance(model, HasLatent) and model.draw_latent(torch.arange(1)).shape[1:] == (2,):
            lines = warped_grid(model)
            pictures.append(
                ("a square grid of latents", None, lambda axes: axes.plot(*lines, linewidth=0.5, **red))
            )
        return pictures


@torch.no_grad()
def warped_grid(
    model: Any, num_lines: int = 25, num_places: int = 200, side: float = 3.0
) -> list[np.ndarray]:
    """Returns what a model decodes the lines of a square grid to, as (x, y), one column a line.

    Args:
        model: Decodes two-dimensional latents.
        num_lines: Lines in each direction.
        num_places: Points on a line.
        side: The grid covers the latents in [-side, side]^2, three deviations of a standard normal.
    """
    along, across = torch.linspace(-side, side, num_places), torch.linspace(-side, side, num_lines)
    a, b = torch.meshgrid(along, across, indexing="ij")
    lines = torch.cat([torch.stack([a, b], dim=2), torch.stack([b, a], dim=2)], dim=1)
    decoded = model.decode(lines.reshape(-1, 2).to(model.device)).cpu().reshape(lines.shape)
    return [decoded[..., 0].numpy(), decoded[..., 1].numpy()]
