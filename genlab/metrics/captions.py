"""How many images show what their captions say, where that can be known without a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genlab.metrics.base import Drawn, SampleMetric
from genlab.shapes import DataSpec, Judge, levels_to_bytes


class RightCaptions(SampleMetric):
    """The shares of images that are as their captions say, by the data's own judge. Higher is better.

    `right`: in all that is said. `right_colour` and so on: in this attribute, among the captions that say
    something of it. These are of captions whose parts were met together in training; of those that combine
    what never was, the shares are `zero_shot`, `zero_shot_colour` and so on. Shares of nothing are left out.

    Shapes:
        drawn.x: (batch, channels, height, width), levels as uint8; drawn.source: (batch, ...), the captions.
    """

    higher_is_better = True
    needs = frozenset({"pixels", "source"})
    marks: list[Tensor]
    unseen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        for name in ("marks", "unseen"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def set_data(
        self,
        spec: DataSpec,
        decode: Callable[[Tensor], list[str]] | None = None,
        judge: Judge | None = None,
    ) -> None:
        """Says what the samples are; see `SampleMetric.set_data`.

        Raises:
            ValueError: Nothing knows what is right.
        """
        if judge is None:
            raise ValueError(
                f"RightCaptions knows no right answer to the sources of {spec.name}: leave it out of "
                "evaluate.metrics, or take data that have a judge, such as Scenes."
            )
        super().set_data(spec, decode, judge)

    def update(self, drawn: Drawn) -> None:
        if self._judge is None or self._spec is None or drawn.source is None:
            raise ValueError("RightCaptions compares images with their captions, and there are none.")
        found = self._judge.marks(levels_to_bytes(drawn.x, self._spec.levels), drawn.source)
        self.names = list(found)
        self.marks.append(torch.stack(list(found.values()), dim=1).to(drawn.x.device))
        self.unseen.append(self._judge.is_unseen(drawn.source).to(drawn.x.device))
        self.index.append(drawn.index.to(drawn.x.device))

    def compute(self) -> dict[str, float]:
        marks, unseen = self.in_order(self.marks), self.in_order(self.unseen)
        return {**self._shares("right", marks[~unseen]), **self._shares("zero_shot", marks[unseen])}

    def protocol(self) -> dict[str, Any]:
        return {} if self._judge is None else self._judge.protocol()

    def _shares(self, title: str, marks: Tensor) -> dict[str, float]:
        """Returns the share that is right of what is said, by attribute."""
        columns = {name: column[column >= 0] for name, column in zip(self.names, marks.T, strict=True)}
        return {
            title if name == "all" else f"{title}_{name}": float(said.double().mean())
            for name, said in columns.items()
            if len(said)
        }
