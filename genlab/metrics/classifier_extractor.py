"""A classifier of one's own domain as the ruler: its last features and its logits."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from genlab.errors import MetricError
from genlab.files import parse_json, replacing
from genlab.metrics.features import Extractor, Features, MissingWeights, extractor_digest
from genlab.shapes import DataSpec, to_float
from genlab.text import shortened

_HEADER = "genlab"
_ALLOWED = "genlab.networks."
_FIELDS = {"network": str, "spec": dict, "init_args": dict, "name": str}
_MISFIT = (TypeError, RuntimeError, ValueError, LookupError, ArithmeticError, AttributeError, SafetensorError)
"""What anybody's header and weights can lead a network to."""


class ClassifierExtractor(Extractor):
    """Features of a classifier trained on the same kind of images.

    Images of another size are resized with antialiased bilinear interpolation; grey images are
    repeated for a network that reads colours.

    Args:
        network: Has `features(x)`, `head(features)` and `num_features`; x is float in [-1, 1].
        spec: The data that the network was built for.
        name: What tables call it.
        architecture: Text that tells networks apart that share weights' names and shapes.
    """

    def __init__(self, network: nn.Module, spec: DataSpec, name: str, architecture: str) -> None:
        channels, height, width = spec.shape
        resize = f"bilinear-antialias-{channels}x{height}x{width}"
        digest = extractor_digest(network.state_dict(), architecture, resize)
        super().__init__(name, int(network.num_features), spec.num_classes, resize, digest)  # type: ignore[arg-type]
        self.shape = spec.shape
        self.network = network.float().eval().requires_grad_(False)

    def extract(self, levels: Tensor, num_levels: int) -> Features:
        pool = self.network.features(self._fit(to_float(levels, num_levels)))  # type: ignore[operator]
        return Features(pool.float(), self.network.head(pool).float())  # type: ignore[operator]

    def _fit(self, x: Tensor) -> Tensor:
        channels, *size = self.shape
        if x.shape[1] not in (1, channels):
            raise ValueError(f"The extractor {self.name} reads {channels} channels, got {x.shape[1]}.")
        if list(x.shape[2:]) != size:
            x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
        return x.expand(-1, channels, -1, -1)


def save_extractor(
    path: str | Path, network: nn.Module, spec: DataSpec, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a classifier of `genlab.networks` as an extractor that `load_extractor` reads.

    Args:
        path: A .safetensors file; replaced in one step.
        network: The trained network.
        spec: The data that it was built for.
        metadata: Plain values: "init_args" (the network's arguments besides the spec), "command" (what
            made it), "name", and whatever else should travel with the file.
    """
    class_path = f"{type(network).__module__}.{type(network).__qualname__}"
    _network_class(class_path)
    header = {
        "name": Path(path).stem,
        "init_args": {},
        **(metadata or {}),
        "network": class_path,
        "spec": spec.to_dict(),
        "num_features": network.num_features,
        "num_classes": spec.num_classes,
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(Path(path)) as file:
        save_file(weights, file, metadata={_HEADER: json.dumps(header, sort_keys=True)})


def load_classifier_extractor(path: Path) -> ClassifierExtractor:
    """Returns the extractor in a file written by `save_extractor`.

    Raises:
        MetricError: The file is damaged, or is none; see also `read_header`.
    """
    header = read_header(path)
    network_class = _network_class(header["network"])
    try:
        spec = DataSpec(**header["spec"])
        network = network_class(spec, **header["init_args"])
        network.load_state_dict(load_file(path))
    except _MISFIT as error:
        reason = shortened(" ".join(str(error).split()), 200)
        raise MetricError(f"{path} does not fit its network {header['network']}: {reason}") from None
    architecture = json.dumps([header["network"], header["init_args"]], sort_keys=True)
    return ClassifierExtractor(network, spec, header["name"], architecture)


def read_header(path: Path) -> dict[str, Any]:
    """Returns what an extractor's file says of itself.

    Raises:
        MissingWeights: The file is not there, is damaged, or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json(file.metadata()[_HEADER])
        wrong = [name for name, kind in _FIELDS.items() if not isinstance(header[name], kind)]
    except FileNotFoundError:
        raise MissingWeights(
            f"The extractor's file {path} is missing; reinstall, or train it again."
        ) from None
    except (SafetensorError, KeyError, TypeError, ValueError, OSError):
        raise MissingWeights(f"{path} is damaged or is not an extractor written by genlab.") from None
    if wrong:
        raise MissingWeights(f"{path} is not an extractor written by genlab: it names no {', '.join(wrong)}.")
    return header


def _network_class(path: str) -> type[nn.Module]:
    # A file from elsewhere must not choose what code runs.
    module, _, name = path.rpartition(".")
    if not f"{module}.".startswith(_ALLOWED):
        raise MetricError(f"An extractor's network must be a class under genlab.networks, got {path}.")
    try:
        network = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise MetricError(f"There is no network {path} in this version of genlab.") from None
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise MetricError(f"{path} is not a network.")
    return network
