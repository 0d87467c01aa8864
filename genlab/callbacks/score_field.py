"""Pictures of what a diffusion model of points learned, over the score that is known exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from genlab import randomness
from genlab.callbacks.record import log_image
from genlab.evaluation.pictures import new_figure, rendered
from genlab.families.capabilities import HasScore, can


class ScoreField(Callback):
    """Draws the model's score at some noise levels over the analytic one, and logs how far apart they are.

        val/score_error@r = sqrt(E || s_model - s ||^2 / E || s ||^2),    x_t ~ p_t,  sigma / alpha = r

    For two-dimensional data whose noised density is known (`noised_log_density`); s is its gradient.

    Args:
        ratios: sigma / alpha of the levels.
        num: Points over which the error is averaged.
        num_arrows: Arrows on a side of each picture.
    """

    def __init__(
        self, ratios: Sequence[float] = (0.1, 0.5, 2.0), num: int = 2_000, num_arrows: int = 14
    ) -> None:
        self.ratios, self.num, self.num_arrows = list(ratios), num, num_arrows

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        data = trainer.datamodule
        known = hasattr(data, "noised_log_density") and can(pl_module, HasScore)
        if trainer.sanity_checking or not known or data.spec.shape != (2,):
            return
        errors = {ratio: self.error(data, pl_module, ratio) for ratio in self.ratios}
        names = {f"val/score_error@{ratio:g}": error for ratio, error in errors.items()}
        pl_module.log_dict(names, logger=False, rank_zero_only=False)
        if trainer.is_global_zero and trainer.state.fn == "fit" and not trainer.fast_dev_run:
            log_image(trainer, "score", self._picture(data, pl_module, errors), pl_module.examples_seen)

    def error(self, data: Any, model: Any, ratio: float) -> float:
        """Returns the relative error of the model's score over the noised validation data."""
        level = model.process.level_of(ratio)
        x = torch.as_tensor(data.split("val").x[: self.num]).float()
        noise = randomness.normal(randomness.key("score error"), torch.arange(len(x)), (2,))
        x_t = level.alpha * x + level.sigma * noise
        exact = exact_score(data, x_t, level)
        found = model.score(x_t.to(model.device), level).cpu()
        return float(((found - exact).square().sum() / exact.square().sum()).sqrt())

    def _picture(self, data: Any, model: Any, errors: dict[float, float]) -> np.ndarray:
        figure, all_axes = new_figure(6 * len(errors), 6, len(errors))
        for axes, (ratio, error) in zip(all_axes, errors.items(), strict=True):
            level = model.process.level_of(ratio)
            reach = 3.0 * max(level.alpha * float(np.abs(data.split("val").x).std()), level.sigma)
            fine, coarse = plane(reach, 120), plane(reach, self.num_arrows)
            density = data.noised_log_density(fine, level.alpha, level.sigma).exp().reshape(120, 120)
            side = torch.linspace(-reach, reach, 120)
            axes.contourf(side, side, density, levels=20, cmap="Blues")
            model_score = model.score(coarse.to(model.device), level).cpu()
            exact = exact_score(data, coarse, level)
            style = {"angles": "xy", "scale": float(exact.norm(dim=1).max()) * self.num_arrows / 1.5}
            axes.quiver(*coarse.T, *exact.T, color="#1d3557", width=0.006, label="analytic", **style)
            axes.quiver(*coarse.T, *model_score.T, color="#e63946", width=0.003, label="model", **style)
            axes.set(title=f"sigma / alpha = {ratio:g}: relative error {error:.3f}")
            axes.legend(loc="upper right")
        return rendered(figure)


def exact_score(data: Any, x_t: Tensor, level: Any) -> Tensor:
    """Returns the gradient of the noised data's log density."""
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(data.noised_log_density(x_t, level.alpha, level.sigma).sum(), x_t)
    return gradient


def plane(reach: float, num: int) -> Tensor:
    """Returns a square of num x num points in [-reach, reach]^2, row by row: (num^2, 2)."""
    side = torch.linspace(-reach, reach, num)
    x, y = torch.meshgrid(side, side, indexing="xy")
    return torch.stack([x.flatten(), y.flatten()], dim=1)
