"""What first stages share: how a second one gets them, the form of their codes, how many are in use."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from genlab.families.base import Model
from genlab.families.weights import evaluating
from genlab.shapes import DataSpec

NEEDS_PRIOR = "its codes need a prior, which is trained on top of it"


class FirstStage:
    """A trained model of codes, as a model of its codes is given it.

    Args:
        model: Encodes and decodes; its `code_spec` says what codes are.
    """

    model: Any

    def __init__(self, model: Model) -> None:
        self.model = model

    @cached_property
    def digest(self) -> str:
        """`weights_digest` of the model: other codes have another one."""
        return weights_digest(self.model)


def weights_digest(model: nn.Module) -> str:
    """Returns the SHA-256 of a model's weights and class: what checkpoints and protocols know it by."""
    digest = hashlib.sha256(type(model).__name__.encode())
    for name, value in sorted(model.state_dict().items()):
        values = value.detach().cpu().contiguous()
        digest.update(repr((name, tuple(values.shape), str(values.dtype))).encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()


class CodeNumbers(Model):
    """A model whose code is a map of numbers, such as those of a codebook.

    Each validation and test logs `code_perplexity` and the share of `dead_codes` over the whole split: a
    first stage whose codes have collapsed to a few shows it there, while its loss falls all the same. The
    more codes are in use the better; `perplexity` of a language model is another thing, better when lower.

    Attributes:
        code_spec: The codes; `levels` is their number.
    """

    conditions = ()
    cannot_sample = NEEDS_PRIOR
    code_spec: DataSpec

    _used: Tensor | None = None

    def usage(self, counts: Tensor) -> dict[str, Tensor]:
        """Returns in training the perplexity of a batch's codes; an evaluation keeps their counts.

        Args:
            counts: How often each code was used, over all devices, (code_spec.levels,).
        """
        # A mean over batches understates the usage of a split, which `_log_usage` measures.
        if self.training:
            return {"code_perplexity": perplexity(counts)}
        self._used = counts if self._used is None else self._used + counts
        return {}

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_usage("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._log_usage("test")

    def _log_usage(self, stage: str) -> None:
        used, self._used = self._used, None
        if used is None or self.trainer.sanity_checking:
            return
        values = {"code_perplexity": perplexity(used), "dead_codes": (used == 0).float().mean()}
        self.log_dict({f"{stage}/{name}": float(v) for name, v in values.items()}, logger=False)


@torch.no_grad()
def code_shape(encoder: nn.Module, spec: DataSpec) -> torch.Size:
    """Returns the shape of what an encoder makes of an item, (channels, height, width).

    Raises:
        ValueError: It makes no map.
    """
    with evaluating(encoder):
        shape = encoder(torch.zeros(1, *spec.shape)).shape[1:]
    if len(shape) != 3:
        raise ValueError(
            f"{type(encoder).__name__} makes no map of its items, but {tuple(shape)}: use ConvMapEncoder."
        )
    return shape


def one_hot_map(index: Tensor, num_codes: int) -> Tensor:
    """Returns code numbers as indicators, (batch, height, width) to (batch, num_codes, height, width)."""
    return one_hot(index, num_codes).movedim(-1, 1).float()


def perplexity(counts: Tensor) -> Tensor:
    """Returns exp of the entropy of the codes' usage: the number of codes in use, were they used alike."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
