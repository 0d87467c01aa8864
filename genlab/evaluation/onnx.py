"""A trained model's functions as ONNX graphs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genlab.evaluation.functions import AT_A_TIME, Function, header, require_equal
from genlab.extras import require
from genlab.families.base import Model
from genlab.files import replacing
from genlab.text import shortened


def require_onnx() -> None:
    """Refuses where the packages are missing that write and read ONNX files."""
    require("--to onnx", "onnx", "onnxruntime", "onnxscript", extra="onnx", otherwise="use --to safetensors")


def export_onnx(function: Function, model: Model, target: Path) -> float:
    """Writes one function as an ONNX graph; returns the largest difference over `NUM_COMPARED` inputs.

    The first axis of each input and output is free, and so are those that the function names.

    Args:
        function: Of the model.
        model: Holds its weights.
        target: An .onnx file; replaced in one step, once onnxruntime has given the model's outputs.

    Raises:
        ValueError: The network does something that ONNX has no word for.
        CheckpointError: The file gives other outputs than the model.
    """
    axes = [{0: "batch", **function.free.get(name, {})} for name in function.inputs]
    example = function.other_inputs() or function.inputs
    graph = _Graph(model, function)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph,
                tuple(x[:2] for x in example.values()),
                input_names=list(function.inputs),
                output_names=["output"],
                dynamic_shapes={"inputs": tuple(axes)},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter's own, torch's tracer's and whatever a layer raises on the way
        reason = shortened(" ".join(str(_root(error)).split()))
        raise ValueError(
            f"The {function.name} of this {type(model).__name__} has no ONNX form ({reason}): use --to "
            "safetensors."
        ) from error
    assert program is not None
    program.model.metadata_props.update(header(model.spec))
    with replacing(target) as file:
        program.save(file)
        what = f"The {function.name} that was written"
        worst = require_equal(_run(file, function.inputs), function.outputs(), what)
        if function.free:
            longer = function.other_inputs()
            assert longer is not None
            found = _run(file, longer)
            worst = max(worst, require_equal(found, function.outputs(longer), f"{what}, of another size,"))
    return worst


def _root(error: BaseException) -> BaseException:
    """Returns what an error goes back to: exporters wrap the layer's own in advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class _Graph(nn.Module):
    """A function with its inputs by place, as exporters want it."""

    def __init__(self, model: Model, function: Function) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function.call(**dict(zip(self.function.inputs, inputs, strict=True)))


def _run(file: Path, inputs: Mapping[str, Tensor]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    known = {each.name for each in session.get_inputs()}
    parts: Sequence[dict[str, Any]] = [
        dict(zip(inputs, rows, strict=True))
        for rows in zip(*(x.split(AT_A_TIME) for x in inputs.values()), strict=True)
    ]
    return torch.cat(
        [
            torch.from_numpy(session.run(None, {n: x.numpy() for n, x in part.items() if n in known})[0])
            for part in parts
        ]
    )
