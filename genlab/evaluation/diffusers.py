"""A trained chain of denoising as a folder that diffusers' DDPMPipeline reads."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from genlab.evaluation.functions import Function, functions_of, require_equal
from genlab.extras import require
from genlab.families.base import Model
from genlab.families.capabilities import Denoises, HasFirstStage, can
from genlab.files import making
from genlab.samplers.scheduler import scheduler_settings

Counterpart: TypeAlias = Callable[[nn.Module, Sequence[int]], tuple[dict[str, Any], dict[str, Tensor]]]
"""From a network and the shape of its images to the arguments and the weights of a UNet2DModel."""


def require_diffusers() -> None:
    """Refuses where the package is missing that writes and reads the folder."""
    require("--to diffusers", "diffusers", extra="diffusers", otherwise="use --to safetensors")


def export_pipeline(model: Model, as_unet2d: Counterpart, target: Path) -> float:
    """Writes a DDPMPipeline: the averaged network as a UNet2DModel, the chain's way back as a DDPMScheduler.

    Args:
        model: A `Diffusion` of images that is told nothing.
        as_unet2d: Finds the network's counterpart; `genlab.networks.unet2d` has it.
        target: A folder that is not there, or is empty; there once it has been loaded and compared.

    Returns:
        The largest difference of the network over `NUM_COMPARED` inputs.

    Raises:
        ValueError: A part of the model has no counterpart in diffusers; the message names it.
        CheckpointError: What was written gives other outputs than the model.
    """
    arguments, weights = as_unet2d(_network(model), model.spec.shape)
    settings = _settings(model, arguments["out_channels"] > arguments["in_channels"])
    (function,) = functions_of(model)
    diffusers: Any = importlib.import_module("diffusers")  # whose classes type checkers do not see
    unet = diffusers.UNet2DModel(**arguments)
    unet.load_state_dict({name: value.detach().cpu() for name, value in weights.items()})
    with making(target) as folder:
        scheduler = diffusers.DDPMScheduler(**settings)
        diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
        written = diffusers.UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).eval()
        again = Function("denoiser", lambda x, t: written(x, t).sample, function.inputs)
        return require_equal(again.outputs(), function.outputs(), "The denoiser that was written")


def _network(model: Any) -> nn.Module:
    """Returns the network that a model samples with, without what averages it."""
    if can(model, HasFirstStage) or not can(model, Denoises) or model.spec.kind != "image":
        raise ValueError(
            f"diffusers' DDPMPipeline removes noise from images, and a {type(model).__name__} of "
            f"{model.spec.name} does not: use --to safetensors."
        )
    return model.network if model.average is None else model.average.module


def _settings(model: Any, learned_variance: bool) -> dict[str, Any]:
    if model.guidance.scale != 1.0:
        raise ValueError(
            "diffusers' DDPMPipeline has no counterpart of a guidance.scale: use --to safetensors."
        )
    return scheduler_settings(model.process, model.prediction, model.sampler, model.clip, learned_variance)
