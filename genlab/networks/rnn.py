"""A recurrent language model, and the state that it carries through a text."""

from __future__ import annotations

import sys
from typing import Literal

import torch
from torch import Tensor, nn

from genlab.networks.conditioning import required
from genlab.networks.transformer import require_text
from genlab.shapes import DataSpec


class CausalRNN(nn.Module):
    """Layers of LSTMs or GRUs that read a text token by token: p(x_i | x_0 ... x_{i-1}) at every i.

    LSTM: Hochreiter and Schmidhuber 1997, whose forget gates begin open (Jozefowicz et al. 2015); GRU: Cho et
    al. 2014 (arXiv:1406.1078). Dropout is where nothing recurs (Zaremba et al. 2014,
    arXiv:1409.2329): of the vectors read, between layers, and of the last layer's.

    The state is all that is known of what was read: a text may be longer than those of training, and given a
    `State`, a call goes on where the one before it stopped.

    Args:
        spec: The texts, of as many tokens as `levels`; with classes, the network needs a label.
        cell: "lstm" or "gru".
        num_layers: Number of layers.
        width: Length of a token's vector and of a layer's state.
        dropout: Share of numbers set to 0 in training.
        tied: Whether one matrix reads tokens and scores them (Press and Wolf 2017, arXiv:1608.05859).

    Attributes:
        context: Unbounded; what a sampler looks back on.
        carries_state: In training, texts that go on do so from the state that the batch before left.

    Shapes:
        tokens: (batch, length), int64; label: (batch,). Returns logits, (batch, length, vocabulary): those at
        position i are of token i + 1.

    Raises:
        ValueError: If the data are not texts.
    """

    context = sys.maxsize
    carries_state = True

    def __init__(
        self,
        spec: DataSpec,
        cell: Literal["lstm", "gru"] = "lstm",
        num_layers: int = 2,
        width: int = 256,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        require_text(spec, "CausalRNN")
        self.num_classes = spec.num_classes
        self.token = nn.Embedding(spec.levels, width)
        self.label = nn.Embedding(spec.num_classes, width) if spec.num_classes else None
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        between = dropout if num_layers > 1 else 0.0
        self.recurrent = kind(width, width, num_layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, spec.levels)
        self._initialise(cell, tied)

    def forward(self, tokens: Tensor, label: Tensor | None = None, cache: State | None = None) -> Tensor:
        h = self.token(tokens)
        if self.label is not None:
            h = h + self.label(required(label, self.num_classes))[:, None]
        h, state = self.recurrent(self.dropout(h), None if cache is None else cache.value)
        if cache is not None:
            cache.value = state
        return self.output(self.dropout(h))

    @property
    def output_weight(self) -> Tensor:
        """The matrix that scores tokens, (vocabulary, width)."""
        return self.output.weight

    def new_cache(self) -> State:
        """Returns the state before a text, to be given to each call that reads on in the same texts."""
        return State()

    def _initialise(self, cell: str, tied: bool) -> None:
        width = self.token.embedding_dim
        nn.init.normal_(self.output.weight, std=width**-0.5)
        nn.init.zeros_(self.output.bias)
        if tied:
            self.token.weight = self.output.weight
        if cell == "lstm":
            for name, bias in self.recurrent.named_parameters():
                if name.startswith("bias_ih"):  # the gates: input, forget, cell, output
                    nn.init.constant_(bias[width : 2 * width], 1.0)


class State:
    """What a recurrent network knows of the texts that it has read, without the way there.

    Gradients end at it: back-propagation through time is truncated where a state is handed on.

    Shapes:
        tensors: (layers, batch, width) each; none before a text.
    """

    is_full = False
    """There is always a place for another token."""

    def __init__(self) -> None:
        self.tensors: tuple[Tensor, ...] = ()

    @property
    def value(self) -> Tensor | tuple[Tensor, ...] | None:
        """In the form of torch's recurrent layers: a tensor of a GRU, two of an LSTM, None before a text."""
        if not self.tensors:
            return None
        return self.tensors[0] if len(self.tensors) == 1 else self.tensors

    @value.setter
    def value(self, state: Tensor | tuple[Tensor, ...]) -> None:
        self.tensors = tuple(x.detach() for x in ((state,) if isinstance(state, Tensor) else state))

    def clear(self) -> None:
        """Forgets the texts."""
        self.tensors = ()

    def keep(self, rows: Tensor) -> None:
        """Forgets all rows but those that are True, (batch,): they begin another text."""
        self.tensors = tuple(torch.where(rows[:, None], x, 0.0) for x in self.tensors)

    def take(self, rows: Tensor) -> None:
        """Takes rows of these numbers in place of all, as a beam search does."""
        self.tensors = tuple(x.index_select(1, rows) for x in self.tensors)
