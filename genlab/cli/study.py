"""What a sweep tries next: Optuna's ask and tell, kept in a file that outlives whoever asks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genlab.configuration.keys import value_at
from genlab.files import digest
from genlab.runs.ranges import Range
from genlab.runs.sweep import Sweep

_OWN = "own"  # the mark of the trial of the experiment's own settings


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: From 0 on.
        values: By the keys of their settings.
        cost: What it was told to cost, infinity if it diverged; 0 before.
        is_own: Whether its values are the experiment's own.
    """

    number: int
    values: dict[str, Any]
    cost: float = 0.0
    is_own: bool = False


class Study:
    """The trials of a sweep. What is asked depends on the seed, the trial's number and what was told before.

    The first trial has the experiment's own settings where these lie in the ranges: the best is no worse.

    Args:
        plan: What is searched.
    """

    def __init__(self, plan: Sweep) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.plan = plan
        self._ranges = {".".join(place): found for place, found in plan.ranges.items()}
        journal = plan.folder / "journal.log"
        drop_half_line(journal)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        self._study = optuna.create_study(storage=storage, study_name=plan.folder.name, load_if_exists=True)
        if not self._study.get_trials(deepcopy=False) and (own := self._own_values()):
            self._study.enqueue_trial(own, user_attrs={_OWN: True})

    def batch(self, size: int, most: int, without: Collection[Trial] = ()) -> list[Trial]:
        """Returns the trials that have no end yet, after asking for more where a batch is over or incomplete.

        Args:
            size: Trials in a batch.
            most: Trials altogether.
            without: Those that are left for another time.
        """
        left = {trial.number for trial in without}
        number, is_open = len(self.trials()), bool(self._open(left))
        while number < most and (number % size or not is_open):
            self._ask(number)
            number, is_open = number + 1, True
        return self._open(left)

    def tell(self, trial: Trial, cost: float) -> None:
        """Keeps what a trial cost."""
        self._study.tell(trial.number, cost)

    def trials(self) -> list[Trial]:
        """Returns every trial that was asked for, in order."""
        return self._in_state("RUNNING", "COMPLETE")

    def ended(self) -> list[Trial]:
        """Returns the trials that were told."""
        return self._in_state("COMPLETE")

    def importances(self) -> dict[str, float]:
        """Returns each setting's share of the score's variance (fANOVA, Hutter et al. 2014).

        The largest comes first; {} where the scores do not tell.
        """
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances

        finite = {trial.cost for trial in self.ended() if trial.cost < float("inf")}
        if len(finite) < 2:
            return {}
        return get_param_importances(self._study, evaluator=FanovaImportanceEvaluator(seed=self.plan.seed))

    def _open(self, without: Collection[int]) -> list[Trial]:
        return [trial for trial in self._in_state("RUNNING") if trial.number not in without]

    def _in_state(self, *names: str) -> list[Trial]:
        found = self._study.get_trials(deepcopy=False)
        return [
            Trial(trial.number, dict(trial.params), trial.value or 0.0, bool(trial.user_attrs.get(_OWN)))
            for trial in found
            if trial.state.name in names
        ]

    def _ask(self, number: int) -> None:
        from optuna.samplers import TPESampler

        # A new one for each trial: the state of one that lived on would be lost with its process.
        self._study.sampler = TPESampler(seed=int(digest(f"{self.plan.seed}/{number}", 8), 16))
        self._study.ask({key: _distribution(found) for key, found in self._ranges.items()})

    def _own_values(self) -> dict[str, Any]:
        """Returns the experiment's own settings, {} if one of them lies outside of its range."""
        own = {
            ".".join(place): found.value_of(value_at(place, self.plan.resolved))
            for place, found in self.plan.ranges.items()
        }
        return {} if None in own.values() else own


def drop_half_line(journal: Path) -> None:
    """Removes what a killed process has written of a line: the next one would be joined to it."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        journal.write_bytes(whole)


def _distribution(found: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if found.kind == "choice":
        return CategoricalDistribution(found.choices)
    if found.kind == "int":
        return IntDistribution(int(found.low), int(found.high))
    return FloatDistribution(found.low, found.high, log=found.kind == "log")
