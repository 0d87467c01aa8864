"""What a latent space holds: what codes know of the images, and how smoothly images follow them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from genlab.data.base import DataModule
from genlab.evaluation.disentanglement import dci, mutual_information_gap
from genlab.evaluation.given import given_for
from genlab.evaluation.latents import slerp
from genlab.families.capabilities import HasLatent, HasPosterior, Reconstructs, can
from genlab.metrics.features import Extractor
from genlab.metrics.posterior import ACTIVE_VARIANCE
from genlab.shapes import observed, to_levels

NUM_CODES = 5_000
"""Most training images whose codes are looked at."""

MANY_PASSES = 8
"""Network passes for one image from which on encoding and decoding count as slow."""

FEW = 256
"""Images that are enough for a slow one."""

NUM_PAIRS = 64
NUM_POINTS = 11


@dataclass
class Codes:
    """The codes of a split's images, with what came back of the images.

    Attributes:
        labels, factors: What the data set knows of the images; None where it does not.
        mse: Mean squared error of a number in [-1, 1] after encoding and decoding; None where not decoded.

    Shapes:
        z: (n, d), float; labels: (n,); factors: (n, k).
    """

    z: Tensor
    labels: Tensor | None
    factors: Tensor | None
    mse: float | None


@torch.no_grad()
def encode_split(
    model: Any, data: DataModule, split: str, max_items: int, batch_size: int, back: bool = False
) -> Codes:
    """Returns the codes of images all over a split, fewer of them where encoding takes many passes.

    Codes that are numbers of a codebook become indicators of each place and number.

    Args:
        model: Has the capability `Reconstructs`.
        data: Holds the split.
        split: Name of the split.
        max_items: Most images.
        batch_size: Images at a time.
        back: Decode the codes too.
    """
    passes = model.encoding_passes + (model.decoding_passes if back else 0)
    num = FEW if passes > MANY_PASSES else max_items
    codes, labels, index, squares, numbers = [], [], [], [], 0
    for batch in data.loader(split, batch_size=min(batch_size, num, FEW), at_most=min(num, max_items)):
        batch = data.to_device_batch(batch, model.device)
        x, label, given = observed(batch), batch.get("label"), model.given_of(batch)
        z = model.encode(x, **given)
        if back:
            squares.append((model.decode(z, **given) - x).double().square().sum().cpu())
            numbers += x.numel()
        codes.append(z.cpu())
        labels.append(label.cpu() if label is not None else None)
        index.append(batch["index"].cpu())
    known = data.split(split).get("factors")
    return Codes(
        z=torch.cat(codes),
        labels=torch.cat(labels) if labels[0] is not None else None,  # type: ignore[arg-type]
        factors=None if known is None else torch.as_tensor(known)[torch.cat(index)],
        mse=float(sum(squares)) / numbers if numbers else None,
    )


def describe_latent(model: Any, data: DataModule | None = None) -> dict[str, Any]:
    """Returns the form of a model's latent, `type` and `dim`; nothing where it has none."""
    if can(model, HasLatent):
        z = model.draw_latent(torch.arange(1, device=model.device))
    elif can_encode(model):
        first = torch.arange(1, device=model.device)
        z = model.encode(
            torch.zeros(1, *model.spec.shape, device=model.device), **given_for(model, first, data)
        )
    else:
        return {}
    return {"type": model.latent_type, "dim": math.prod(z.shape[1:])}


def measure_latent(
    model: Any, data: DataModule, extractor: Extractor | None, batch_size: int = 100, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what can be measured of a model's latent space, and the reconstruction error with its protocol.

    `linear_probe` is the share of unseen images whose label a linear map of the code tells, see
    `linear_probe`; `active_units` the dimensions that say something (Burda et al. 2016); `path_length` the
    detour of interpolations, see `path_length`; `disentanglement` MIG and DCI where the data know what the
    images were made from.

    Args:
        model: Any model; it is asked for its capabilities.
        data: Its data.
        extractor: In whose features interpolations are measured.
        batch_size: Images at a time.
        seed: Of the latents.
    """
    latent, reconstruction = describe_latent(model, data), {}
    if can(model, HasLatent) and extractor is not None and model.spec.kind == "image":
        latent["path_length"] = path_length(model, extractor, seed, data=data)
    if can_encode(model):
        test = encode_split(model, data, "test", 10_000, batch_size, back=True)
        train = encode_split(model, data, "train", NUM_CODES, batch_size)
        reconstruction = {"mse": test.mse, "num": len(test.z), "split": "test"}
        latent |= {"num_codes": [len(train.z), len(test.z)], **knowledge(train, test)}
        if can(model, HasPosterior):
            latent["active_units"] = int((test.z.double().var(dim=0, correction=0) > ACTIVE_VARIANCE).sum())
    return latent, reconstruction


def knowledge(train: Codes, test: Codes) -> dict[str, Any]:
    """Returns what codes tell of labels and factors, learned from the first and asked of the second."""
    found: dict[str, Any] = {}
    if train.labels is not None and test.labels is not None:
        codes, unseen_codes = indicators(train.z, test.z)
        found["linear_probe"] = linear_probe(codes, train.labels, unseen_codes, test.labels)
    if train.factors is not None and test.factors is not None and train.z.is_floating_point():
        z, factors = train.z.flatten(1).numpy(), train.factors.numpy()
        unseen, unseen_factors = test.z.flatten(1).numpy(), test.factors.numpy()
        found["disentanglement"] = {
            "mig": mutual_information_gap(z, factors),
            **dci(z, factors, unseen, unseen_factors),
        }
    return found


def indicators(*codes: Tensor) -> tuple[Tensor, ...]:
    """Returns codes as rows of numbers; numbers of a codebook as indicators of each place and number."""
    if codes[0].is_floating_point():
        return tuple(z.flatten(1) for z in codes)
    num = max(int(z.max()) for z in codes) + 1
    return tuple(one_hot(z.flatten(1), num).flatten(1).float() for z in codes)


def linear_probe(z: Tensor, labels: Tensor, unseen: Tensor, unseen_labels: Tensor) -> float:
    """Returns the share of unseen codes whose label a linear map tells: the one with the largest output.

    Codes are centred and in units of their standard deviation. The map is a ridge regression of the labels'
    indicators, whose strength is, of 13 powers of ten times the largest eigenvalue of Z Z^T, the one with
    the smallest squared error when each row in turn is predicted by a map fitted without it.

    Shapes:
        z: (n, d), unseen: (m, d); labels: (n,), unseen_labels: (m,).
    """
    from sklearn.linear_model import RidgeClassifierCV

    mean, std = z.double().mean(dim=0), z.double().std(dim=0)
    scale = torch.where(std > 1e-9 * std.max(), std, torch.inf)  # a constant dimension says nothing
    z, unseen = (z.double() - mean) / scale, (unseen.double() - mean) / scale
    largest = max(float(torch.linalg.matrix_norm(z, 2)) ** 2, 1e-12)
    probe = RidgeClassifierCV([10.0**power * largest for power in range(-9, 4)])
    probe.fit(z.numpy(), labels.numpy())
    return float((probe.predict(unseen.numpy()) == unseen_labels.numpy()).mean())


@torch.no_grad()
def path_length(
    model: Any,
    extractor: Extractor,
    seed: int = 0,
    num_pairs: int = NUM_PAIRS,
    data: DataModule | None = None,
) -> float | None:
    """Returns how much longer the way between two samples is in features than the straight line.

        mean over pairs of  sum_k |f(x_(k+1)) - f(x_k)|   /   mean over pairs of  |f(x_10) - f(x_0)|

    where x_k decodes the k-th of 11 points on the arc between two latents, and f are the extractor's
    features; at least 1, and None where all ends are one. A relative of the perceptual path length (Karras et
    al. 2019, arXiv:1812.04948, section 4.1) with finite steps, since features see images of whole levels, and
    free of the features' scale. Where decoding takes many passes an eighth of the pairs is taken.

    Args:
        model: Has the capability `HasLatent`.
        extractor: Gives f.
        seed: Of the latents; those of samples 0 ... 2 num_pairs - 1.
        num_pairs: Pairs of latents.
        data: Holds the sources of a model that is told one.
    """
    device, num = (
        model.device,
        num_pairs if model.decoding_passes <= MANY_PASSES else math.ceil(num_pairs / 8),
    )
    z = model.draw_latent(torch.arange(2 * num_pairs, device=device), seed).unflatten(0, (num_pairs, 2))
    features: list[Tensor] = []
    for numbers in torch.arange(num).split(8):
        points = torch.cat([slerp(z[number, 0], z[number, 1], NUM_POINTS) for number in numbers])
        x = model.decode(points, **given_for(model, numbers.repeat_interleave(NUM_POINTS), data))
        found = extractor(to_levels(x, model.spec.levels), model.spec.levels).pool.double()
        features += found.unflatten(0, (len(numbers), NUM_POINTS))
    f = torch.stack(features)
    ways = (f[:, 1:] - f[:, :-1]).norm(dim=2).sum(dim=1)
    straight = (f[:, -1] - f[:, 0]).norm(dim=1)
    return float(ways.mean() / straight.mean()) if straight.any() else None


def can_encode(model: Any) -> bool:
    """Returns whether a model finds codes of images or points."""
    return can(model, Reconstructs) and model.spec.kind != "tokens"
