"""Recurrent encoder-decoders: a sentence is read, and another one written from what is known of it."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from genlab.networks.transformer import require_text
from genlab.shapes import DataSpec


class _EncoderDecoder(nn.Module):
    """Vectors of the tokens that are read and written; whoever extends it adds the rest and `output`."""

    context = sys.maxsize
    output: nn.Linear

    def __init__(self, spec: DataSpec, width: int, dropout: float) -> None:
        super().__init__()
        source = source_of(spec, type(self).__name__)
        self.pad = source.padding
        self.source_token = nn.Embedding(source.levels, width)
        self.token = nn.Embedding(spec.levels, width)
        self.dropout = nn.Dropout(dropout)

    def initialise(self) -> None:
        """Gives vectors and the output small first weights, so that at the start all tokens are as likely."""
        for table in (self.source_token, self.token):
            nn.init.normal_(table.weight, std=0.1)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    @property
    def output_weight(self) -> Tensor:
        """The matrix that scores tokens, (vocabulary, width)."""
        return self.output.weight

    def new_cache(self) -> Reading:
        """Returns what is to be given to each call that reads on in the same texts."""
        return Reading()


class EncoderDecoderGRU(_EncoderDecoder):
    """A GRU that reads the source to one vector, and a GRU that writes from it: p(y_i | y_0 ... y_{i-1}, x).

    Cho et al. 2014 (arXiv:1406.1078): the context vector c, the encoder's state after the source, begins the
    decoder's state, and is told to each of its steps and to its output beside y_{i-1}.

    Args:
        spec: The pairs: sentences of tokens with a source of tokens.
        width: Length of a token's vector and of a state.
        dropout: Share of numbers set to 0 in training: of the vectors read and of the output's input.

    Attributes:
        context: Unbounded; what a sampler looks back on.

    Shapes:
        tokens: (batch, length), source: (batch, source length), int64. Returns logits, (batch, length,
        vocabulary): those at position i are of token i + 1. A source ends where its padding begins.

    Raises:
        ValueError: If the data are not pairs of sentences.
    """

    def __init__(self, spec: DataSpec, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__(spec, width, dropout)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(2 * width, width, batch_first=True)
        self.output = nn.Linear(3 * width, spec.levels)
        self.initialise()

    def forward(self, tokens: Tensor, source: Tensor, cache: Reading | None = None) -> Tensor:
        reading = Reading() if cache is None else cache
        if not reading.tensors:
            context = self.encode(source)
            reading.tensors = {"context": context, "state": context}
        context = reading.tensors["context"]
        y = self.dropout(self.token(tokens))
        c = context[:, None].expand(-1, tokens.shape[1], -1)
        h, state = self.decoder(torch.cat([y, c], dim=2), reading.tensors["state"][None].contiguous())
        reading.tensors["state"] = state[0]
        return self.output(self.dropout(torch.cat([y, h, c], dim=2)))

    def encode(self, source: Tensor) -> Tensor:
        """Returns the state after the last token of each source, (batch, width)."""
        states, _ = self.encoder(self.dropout(self.source_token(source)))
        return states[torch.arange(len(source), device=source.device), lengths(source, self.pad) - 1]


class AttentionGRU(_EncoderDecoder):
    """A GRU that writes and, before each token, looks over the whole source: p(y_i | y_0 ... y_{i-1}, x).

        e_ij = v^T tanh(W s_{i-1} + U h_j),   a_i = softmax(e_i),   c_i = sum_j a_ij h_j,
        s_i = GRU(s_{i-1}, [y_{i-1}, c_i]),   p(y_i) = softmax(V [y_{i-1}, s_i, c_i])

    Bahdanau et al. 2015 (arXiv:1409.0473), with one linear map at the end in place of a layer of maxout. h_j
    holds the states of a GRU that has read the source up to j and of another that has read it from the end;
    the decoder begins at s_0 = tanh(W_0 of the second one's last).

    Args:
        spec: The pairs: sentences of tokens with a source of tokens.
        width: Length of a token's vector and of a state.
        dropout: Share of numbers set to 0 in training: of the vectors read and of the output's input.

    Attributes:
        context: Unbounded; what a sampler looks back on.

    Shapes:
        tokens: (batch, length), source: (batch, source length), int64. Returns logits, (batch, length,
        vocabulary): those at position i are of token i + 1. Padding of a source gets exactly no attention.

    Raises:
        ValueError: If the data are not pairs of sentences.
    """

    def __init__(self, spec: DataSpec, width: int = 256, dropout: float = 0.0) -> None:
        super().__init__(spec, width, dropout)
        self.forward_encoder = nn.GRU(width, width, batch_first=True)
        self.backward_encoder = nn.GRU(width, width, batch_first=True)
        self.first_state = nn.Linear(width, width)
        self.attention = AdditiveAttention(width, 2 * width, width)
        self.decoder = nn.GRUCell(3 * width, width)
        self.output = nn.Linear(4 * width, spec.levels)
        self.initialise()

    def forward(self, tokens: Tensor, source: Tensor, cache: Reading | None = None) -> Tensor:
        return self._written(tokens, source, Reading() if cache is None else cache)[0]

    @torch.no_grad()
    def maps(self, tokens: Tensor, source: Tensor) -> Tensor:
        """Returns how much each token looked at each of the source, (batch, length, source length)."""
        return self._written(tokens, source, Reading())[1]

    def _written(self, tokens: Tensor, source: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
        """Returns the logits, and the attention that led to each."""
        if not reading.tensors:
            reading.tensors = self._read(source)
        held, y = reading.tensors, self.dropout(self.token(tokens))
        state, states, contexts, maps = held["state"], [], [], []
        for step in y.unbind(1):
            weights = self.attention(state, held["keys"], held["seen"])
            context = (weights[:, None] @ held["annotations"])[:, 0]
            state = self.decoder(torch.cat([step, context], dim=1), state)
            states.append(state)
            contexts.append(context)
            maps.append(weights)
        held["state"] = state
        features = [y, torch.stack(states, dim=1), torch.stack(contexts, dim=1)]
        return self.output(self.dropout(torch.cat(features, dim=2))), torch.stack(maps, dim=1)

    def _read(self, source: Tensor) -> dict[str, Tensor]:
        """Returns what is known of a source before anything is written."""
        x, num = self.dropout(self.source_token(source)), lengths(source, self.pad)
        there, _ = self.forward_encoder(x)
        back, _ = self.backward_encoder(reversed_within(x, num))
        back = reversed_within(back, num)
        annotations = torch.cat([there, back], dim=2)
        return {
            "annotations": annotations,
            "keys": self.attention.keys(annotations),
            "seen": source != self.pad,
            "state": torch.tanh(self.first_state(back[:, 0])),
        }


class AdditiveAttention(nn.Module):
    """Scores each place of a source by a perceptron of one hidden layer: softmax of v^T tanh(W s + U h_j).

    Args:
        query_width: Length of s.
        source_width: Length of h_j.
        width: Of the hidden layer.

    Shapes:
        query: (batch, query_width); keys: (batch, length, width), of `keys`; seen: (batch, length). Returns
        weights, (batch, length), exactly 0 where nothing is to be seen.
    """

    def __init__(self, query_width: int, source_width: int, width: int) -> None:
        super().__init__()
        self.to_query = nn.Linear(query_width, width, bias=False)
        self.keys = nn.Linear(source_width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.to_query(query)[:, None] + keys))[..., 0]
        return scores.masked_fill(~seen, -torch.inf).softmax(dim=1)


class Reading:
    """What an encoder-decoder knows of its sources and of what it has written.

    Shapes:
        tensors: (batch, ...) each; none before anything was read.
    """

    is_full = False
    """There is always a place for another token."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forgets all."""
        self.tensors = {}

    def take(self, rows: Tensor) -> None:
        """Takes rows of these numbers in place of all, as a beam search does."""
        self.tensors = {name: x[rows] for name, x in self.tensors.items()}


def source_of(spec: DataSpec, name: str) -> DataSpec:
    """Returns what sentences come with, or refuses the data of a network of a name."""
    require_text(spec, name)
    if spec.source is None or spec.source.kind != "tokens":
        raise ValueError(
            f"{name} needs sentences with a source, and {spec.name} has none here: give pairs such as "
            "SentencePairs, and model.given [source]."
        )
    return spec.source


def lengths(source: Tensor, pad: int) -> Tensor:
    """Returns how many tokens of each row are no padding, at least 1, (batch,)."""
    return (source != pad).sum(dim=1).clamp_min(1)


def reversed_within(x: Tensor, num: Tensor) -> Tensor:
    """Returns rows with their first `num` places in the opposite order and the others as they are.

    Shapes:
        x: (batch, length, width); num: (batch,).
    """
    place = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    turned = torch.where(place < num[:, None], num[:, None] - 1 - place, place)
    return x.gather(1, turned[..., None].expand_as(x))
