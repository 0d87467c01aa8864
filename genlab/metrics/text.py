"""How near a translated sentence comes to the one that it should be."""

from __future__ import annotations

from typing import Any

import torch
from sacrebleu.metrics import bleu
from torch import Tensor

from genlab.metrics.base import Drawn, SampleMetric

ORDER = 4
"""Length of the longest word sequences that are compared."""


class BLEU(SampleMetric):
    """BLEU of all sentences together, in per cent. Higher is better.

        BLEU = 100 min(1, exp(1 - r / c)) (p_1 p_2 p_3 p_4)^(1/4)

    with p_n the share of the samples' sequences of n words that the targets have too, c and r the numbers of
    words of samples and targets. Papineni et al. 2002 (P02-1040), as sacrebleu computes it (Post 2018,
    arXiv:1804.08771), whose signature is in the protocol. Counts add up, so it depends on no order.

    Args:
        tokenize: How sacrebleu cuts texts into words: "13a", "intl", "char", "zh", ...
        lowercase: Compare without capitals.

    Shapes:
        drawn.x, drawn.target: (batch, length), tokens; decoded before they are compared.
    """

    higher_is_better = True
    needs = frozenset({"tokens", "target"})
    counts: Tensor

    def __init__(self, tokenize: str = "13a", lowercase: bool = False) -> None:
        super().__init__()
        self.bleu = bleu.BLEU(tokenize=tokenize, lowercase=lowercase, max_ngram_order=ORDER)
        self.bleu.corpus_score(
            [""], [[""]]
        )  # only then is there a signature, which each process is asked for
        self.add_state("counts", torch.zeros(2 + 2 * ORDER, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, drawn: Drawn) -> None:
        if drawn.target is None or self._decode is None:
            raise ValueError("BLEU compares texts with targets: the data must have sentences and sources.")
        self.index.append(drawn.index.to(self.counts.device))
        if len(drawn.x):
            found = self.bleu.corpus_score(self._decode(drawn.x), [self._decode(drawn.target)])
            counts = [found.sys_len, found.ref_len, *found.counts, *found.totals]
            self.counts += torch.tensor(counts, device=self.counts.device)

    def compute(self) -> dict[str, float]:
        self.numbers()
        words, target_words, *counts = self.counts.tolist()
        found = bleu.BLEU.compute_bleu(
            counts[:ORDER],
            counts[ORDER:],
            words,
            target_words,
            smooth_method=self.bleu.smooth_method,
            smooth_value=self.bleu.smooth_value,
            max_ngram_order=ORDER,
        )
        return {"bleu": found.score}

    def protocol(self) -> dict[str, Any]:
        return {"signature": str(self.bleu.get_signature())}


class ExactMatch(SampleMetric):
    """The share of sentences that are the target, character by character. Higher is better.

    Its value is called `accuracy`: for pairs with one right answer, such as numbers and their digits.

    Shapes:
        drawn.x, drawn.target: (batch, length), tokens; decoded before they are compared.
    """

    higher_is_better = True
    needs = frozenset({"tokens", "target"})
    num_right: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("num_right", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, drawn: Drawn) -> None:
        if drawn.target is None or self._decode is None:
            raise ValueError(
                "ExactMatch compares texts with targets: the data must have sentences and sources."
            )
        self.index.append(drawn.index.to(self.num_right.device))
        pairs = zip(self._decode(drawn.x), self._decode(drawn.target), strict=True)
        self.num_right += sum(found == target for found, target in pairs)

    def compute(self) -> dict[str, float]:
        return {"accuracy": float(self.num_right) / max(1, len(self.numbers()))}

    def protocol(self) -> dict[str, Any]:
        return {}
