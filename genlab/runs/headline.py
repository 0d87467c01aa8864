"""The score that speaks for a run: what lists, checkpoints, trials and comparisons lead with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genlab.runs.metrics_file import short_name


@dataclass(frozen=True)
class Headline:
    """A score that can speak for a run.

    Attributes:
        key: Its short name, such as `fid` for `val/fid@797`.
        title: As people write it.
        lower_is_better: Its direction.
        is_logarithmic: Whether it is positive and spreads by factors: its logarithms are then nearer to
            normal, intervals are theirs and two models are told apart by their ratio. Else by the difference.
        unit: Of a difference, where that is not the score itself.
        has_direction: Whether it is known which side is better; where not, `lower_is_better` only sorts.
    """

    key: str
    title: str
    lower_is_better: bool = True
    is_logarithmic: bool = False
    unit: str = ""
    has_direction: bool = True

    @property
    def label(self) -> str:
        """As it stands above a column or beside an axis, with its unit."""
        return f"{self.title} {self.unit}".strip()

    @property
    def best_is(self) -> str:
        """Where the best is found: "lowest" or "highest"."""
        return "lowest" if self.lower_is_better else "highest"

    @property
    def better(self) -> str:
        """Which side of another value is better: "lower" or "higher"."""
        return "lower" if self.lower_is_better else "higher"

    @property
    def worse(self) -> str:
        """The other side."""
        return "higher" if self.lower_is_better else "lower"

    def found_in(self, scores: Mapping[str, Any]) -> tuple[str, float] | None:
        """Returns the full name and value of this score, None where it is absent or not finite."""
        for name, value in scores.items():
            if short_name(name) == self.key and _is_finite(value):
                return name, float(value)
        return None

    def cost(self, value: float) -> float:
        """Returns a number that is the lower the better, for whatever sorts; infinity if it is not finite."""
        if not math.isfinite(value):
            return math.inf
        return value if self.lower_is_better else -value

    def best(self, values: Sequence[float]) -> float:
        """Returns the best of some values."""
        return min(values, key=self.cost)

    def times_worse(self, value: float, than: float) -> float:
        """Returns by which factor a value is worse than another one, 1 where that one is not positive."""
        if than <= 0:
            return 1.0
        if self.lower_is_better:
            return value / than
        return than / value if value > 0 else math.inf


SCORES = (
    Headline("fid", "FID", is_logarithmic=True),
    Headline("bits_per_byte", "bits/byte"),
    Headline("bleu", "BLEU", lower_is_better=False),
    Headline("psnr", "PSNR", lower_is_better=False, unit="dB"),
    Headline("psnr_y", "PSNR on Y", lower_is_better=False, unit="dB"),
    Headline("psnr_rgb", "PSNR on RGB", lower_is_better=False, unit="dB"),
    Headline("accuracy", "accuracy", lower_is_better=False),
    Headline("wasserstein", "Wasserstein", is_logarithmic=True),
    Headline("bits_per_dim", "bits/dim"),
    Headline("perplexity", "perplexity", is_logarithmic=True),
)
"""The scores that models can be compared by, the one to lead with first.

FID leads where it is measured: all that draws samples has it, whatever was learned. Bits per byte come first
of what texts have, since they do not depend on the vocabulary, and perplexity last, since it does. BLEU, PSNR
and accuracy need a right answer, and a model that has one is rarely judged by anything else. Wasserstein's
distance is of one dimension at a time, and a likelihood says little of samples: they lead where there is no
other.
"""

LOSS = Headline("loss", "loss")
"""What a run is trained by: tells its states apart, but not two models, whose losses are different things."""

HEADLINES = (*SCORES, LOSS)

_HIGHER = (
    *("is", "precision", "recall", "ssim", "ssim_y", "ssim_rgb", "right", "zero_shot", "code_perplexity"),
    *("image_to_text", "text_to_image"),
)
_LOWER = (
    *("kid", "nll", "nll_per_token", "mse", "reconstruction_mse", "duplicates", "collapsed", "inverted"),
    *("dead_codes", "zero_shot_loss"),
)
_SHARES = ("right_", "zero_shot_")  # of what is right, by attribute: which there are is up to the data


def headline_of(*measured: Iterable[str], among: Sequence[Headline] = HEADLINES) -> Headline | None:
    """Returns the first headline that all of some measurements have, None where they share none.

    A name decides, not its value: a run whose score is not finite has a bad score and not another one.

    Args:
        measured: The names of each measurement's scores, with or without stage and counts.
        among: The headlines to choose from, in order.
    """
    return next(iter(headlines_of(*measured, among=among)), None)


def headlines_of(*measured: Iterable[str], among: Sequence[Headline] = HEADLINES) -> list[Headline]:
    """Returns all headlines that all of some measurements have, in order; see `headline_of`."""
    names = [{short_name(name) for name in one} for one in measured]
    return [headline for headline in among if names and all(headline.key in one for one in names)]


def named(key: str) -> Headline:
    """Returns the headline of a score's short name, also of one that leads nowhere, with what is known of it.

    The one place that knows which side of a score is better: columns, lists and checkpoints ask here.
    """
    for headline in HEADLINES:
        if headline.key == key:
            return headline
    is_lower = key in _LOWER
    is_higher = not is_lower and (key in _HIGHER or key.startswith(_SHARES))
    return Headline(key, key, not is_higher, has_direction=is_lower or is_higher)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
