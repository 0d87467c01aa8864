"""Collapse is seen while it happens: what a falling loss does not show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pytorch_lightning.callbacks import Callback

from genlab.callbacks.measured import measured
from genlab.callbacks.record import find_recorder, say
from genlab.runs.headline import named


class Health(Callback):
    """Watches the scores of each evaluation for a collapse and flags the run.

    A flag is raised when
      - recall has fallen below `recall_share` of its best value so far (modes are lost),
      - the share of near-duplicates among the samples exceeds `max_duplicates` (real images: about 0.01),
      - the discriminator is right about `max_accuracy` of real and of generated images (it has won, and its
        gradient says little),
      - a flow's inverse misses the data by more than `max_inverse_error` (invertible on paper only),
      - translated images are bright where their sources are dark (CycleGAN can learn to invert colours)

    in two evaluations in a row, since an untrained generator shows all of it for a while, and at once if

      - the loss, a mean over the data's units, exceeds `max_loss`: it has exploded.

    Flags are kept in `run.json` under `health`, with the images seen when they were raised; the run goes on.

    Args:
        recall_share: Smallest share of the best recall that counts as healthy.
        max_duplicates: Largest healthy share of near-duplicate samples.
        max_accuracy: Largest healthy accuracy of a discriminator.
        max_inverse_error: Largest healthy distance between an item and what decoding its latent returns;
            0.001 of the range of a pixel is a quarter of a level of 256.
        max_loss: Largest healthy absolute validation loss.
    """

    def __init__(
        self,
        recall_share: float = 0.5,
        max_duplicates: float = 0.25,
        max_accuracy: float = 0.98,
        max_inverse_error: float = 1e-3,
        max_loss: float = 1e6,
    ) -> None:
        self.recall_share = recall_share
        self.max_duplicates = max_duplicates
        self.max_accuracy = max_accuracy
        self.max_inverse_error = max_inverse_error
        self.max_loss = max_loss
        self.best_recall = 0.0
        self.flags: list[dict[str, Any]] = []
        self.trend: list[dict[str, float]] = []
        self._suspicions: set[str] = set()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or trainer.fast_dev_run:
            return
        values = measured(trainer)
        signs = self.signs(values, pl_module.signs)
        exploded = self._exploded(values.get("val/loss", 0.0))
        if not signs and not exploded:
            return
        if signs:
            self.trend.append({"examples_seen": pl_module.examples_seen, **signs})
        problems = self.problems(signs)
        confirmed = [text for kind, text in problems.items() if kind in self._suspicions] + exploded
        self._suspicions = set(problems)
        for problem in confirmed:
            self.flags.append({"examples_seen": pl_module.examples_seen, "problem": problem})
            say(trainer, f"Health after {pl_module.examples_seen:,} {pl_module.spec.unit}: {problem}.")
        recorder = find_recorder(trainer)
        if recorder is not None and trainer.is_global_zero:
            recorder.run.update(health={"ok": not self.flags, "flags": self.flags, "trend": self.trend})

    def signs(self, values: dict[str, float], of_model: Sequence[str]) -> dict[str, float]:
        """Returns recall, duplicates and the model's own signs, as far as they were measured."""
        found = {name: named(name).found_in(values) for name in ("recall", "duplicates")}
        signs = {name: pair[1] for name, pair in found.items() if pair is not None}
        for name in of_model:
            if f"val/{name}" in values:
                signs[name] = values[f"val/{name}"]
        return signs

    def problems(self, signs: dict[str, float]) -> dict[str, str]:
        """Returns what is wrong, by its kind and in words; remembers the best recall."""
        problems = {}
        recall = signs.get("recall")
        if recall is not None:
            if recall < self.recall_share * self.best_recall:
                problems["recall"] = (
                    f"recall fell to {recall:.2f} from {self.best_recall:.2f}: modes of the data are lost"
                )
            self.best_recall = max(self.best_recall, recall)
        if signs.get("duplicates", 0.0) > self.max_duplicates:
            problems["duplicates"] = (
                f"{signs['duplicates']:.0%} of the samples are near-duplicates of each other"
            )
        accuracies = [signs.get("accuracy_real", 0.0), signs.get("accuracy_fake", 0.0)]
        if min(accuracies) > self.max_accuracy:
            problems["discriminator"] = (
                f"the discriminator is right about {min(accuracies):.0%} of both real and generated images: "
                f"it has won, and the generator learns little from it"
            )
        if signs.get("inverse_error", 0.0) > self.max_inverse_error:
            problems["inverse"] = (
                f"the inverse misses the data by {signs['inverse_error']:.2g}: a smaller bound of the "
                f"transform or learning rate keeps a flow invertible in its number format"
            )
        if signs.get("luminance_correlation", 0.0) < 0.0:
            problems["inverted"] = (
                f"translations are bright where their sources are dark (luminances correlate by "
                f"{signs['luminance_correlation']:.2f}): colours are inverted, and another seed or a larger "
                f"identity weight is the usual remedy"
            )
        return problems

    def _exploded(self, loss: float) -> list[str]:
        if abs(loss) <= self.max_loss:
            return []
        return [f"the loss is {loss:.2g}: it has exploded, and a smaller learning rate is the usual remedy"]

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_recall": self.best_recall,
            "flags": self.flags,
            "trend": self.trend,
            "suspicions": sorted(self._suspicions),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_recall = state_dict["best_recall"]
        self.flags = state_dict["flags"]
        self.trend = state_dict["trend"]
        self._suspicions = set(state_dict["suspicions"])
