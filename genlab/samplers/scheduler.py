"""A chain's own way back as the settings of diffusers' DDPMScheduler."""

from __future__ import annotations

from typing import Any

from genlab.processes.base import Process
from genlab.processes.chain import DiscreteChain
from genlab.processes.prediction import PredictData, Prediction, PredictNoise, PredictV
from genlab.samplers.ancestral import Ancestral
from genlab.samplers.base import Sampler

NUM_STEPS = 1000
"""Steps of a chain whose network is told the number of the step itself, as diffusers tells it."""

_PREDICTIONS: dict[type[Prediction], str] = {
    PredictNoise: "epsilon",
    PredictData: "sample",
    PredictV: "v_prediction",
}


def scheduler_settings(
    process: Process, prediction: Prediction, sampler: Sampler, clip: bool, learned_variance: bool
) -> dict[str, Any]:
    """Returns the arguments of a DDPMScheduler that walks the whole chain as `Ancestral` does.

    Args:
        process: How data become noise.
        prediction: What the network says.
        sampler: The model's own; only a wide variance of `Ancestral` is taken from it.
        clip: Keep the estimates in [-1, 1].
        learned_variance: Whether the network also returns the variance.

    Raises:
        ValueError: There is none; the message names what has no counterpart.
    """
    if type(process) is not DiscreteChain:
        raise _no_counterpart(f"the process {type(process).__name__}")
    if process.num_steps != NUM_STEPS:
        raise _no_counterpart(f"a chain of {process.num_steps} steps, only of {NUM_STEPS:,}")
    if type(prediction) not in _PREDICTIONS:
        raise _no_counterpart(f"the prediction {type(prediction).__name__}")
    wide = isinstance(sampler, Ancestral) and sampler.wide
    variance = "learned_range" if learned_variance else "fixed_large" if wide else "fixed_small"
    return {
        "num_train_timesteps": process.num_steps,
        "trained_betas": process.betas.tolist(),
        "prediction_type": _PREDICTIONS[type(prediction)],
        "variance_type": variance,
        "clip_sample": clip,
    }


def _no_counterpart(what: str) -> ValueError:
    return ValueError(f"diffusers' DDPMScheduler has no counterpart of {what}: use --to safetensors.")
