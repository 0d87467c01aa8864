"""In which order items are read, by which process, and where a stopped run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from genlab import randomness
from genlab.data.packed import Packed
from genlab.distributed import timeout
from genlab.errors import DataError, is_of_readers
from genlab.shapes import Batch


class Items(Dataset[Batch]):
    """The items of a split, read in whole batches by one indexing a column; not changed once it is made.

    Numbers of a vocabulary and labels come as int64, whatever type they are kept in.

    Args:
        packed: The columns; all are read but `factors`.
        moves: What is done to each item on the device, by `Batch`'s names: `flip`, `shift`.
        binarize: Address of the draw that makes each byte b of an image a 1 with probability b / 255; None
            keeps bytes.
    """

    def __init__(
        self, packed: Packed, moves: Mapping[str, Tensor] | None = None, binarize: int | None = None
    ) -> None:
        self.packed, self.moves, self.binarize = packed, moves or {}, binarize

    def __len__(self) -> int:
        return len(self.packed)

    def __getitems__(self, rows: Tensor) -> Batch:
        index = rows.numpy()
        columns = {name: values[index] for name, values in self.packed.columns.items() if name != "factors"}
        batch: dict[str, Any] = {name: _tensor(values) for name, values in columns.items()}
        batch["index"] = rows
        if self.binarize is not None:
            batch["image"] = binarized(batch["image"], self.binarize, rows)
        batch |= {name: values[rows] for name, values in self.moves.items()}
        return batch  # type: ignore[return-value]


def _tensor(values: np.ndarray) -> Tensor:
    """Returns images, which alone have four axes, and floats as they are, and other numbers as int64."""
    is_kept = values.ndim == 4 or values.dtype.kind == "f"
    return torch.from_numpy(values if is_kept else values.astype(np.int64, copy=False))


def binarized(images: Tensor, address: int, rows: Tensor) -> Tensor:
    """Returns levels 0 and 1: byte b becomes 1 with probability b / 255, by the draw of (address, row)."""
    draw = randomness.uniform(address, rows, images[0].numel()).reshape(images.shape)
    return (255.0 * draw < images).to(torch.uint8)


class Order:
    """Which items come in which order: a permutation that is a function of (seed, epoch) alone.

    The position is counted in items of the joined batches of all processes, so that it means the same to
    every process and after a change of their number.

    Args:
        num_items: Items of the split.
        joined: Items that all processes together read in one step; the rest of an epoch is dropped.
        seed: Chooses the permutations.
    """

    def __init__(self, num_items: int, joined: int, seed: int) -> None:
        self.num_items, self.joined, self.seed = num_items, joined, seed
        self.epoch = self.position = 0
        self._told: int | None = None

    @property
    def num_batches(self) -> int:
        return self.num_items // self.joined

    def set_epoch(self, epoch: int) -> None:
        """Follows the trainer's epoch number: another one than last time begins a new epoch here.

        An epoch of which nothing was read is not left: after a checkpoint of an epoch's very end Lightning
        announces one epoch, reads nothing, and announces the next.
        """
        if self._told is None:
            self.epoch, self.position = epoch, 0
        elif self.position > 0 and epoch != self._told:
            self.epoch, self.position = self.epoch + epoch - self._told, 0
        self._told = epoch

    def rest_of_epoch(self) -> list[Tensor]:
        """Returns the joined batches that are still to come; after the last one, those of the next epoch."""
        if self.position + self.joined > self.num_items:
            self.epoch, self.position = self.epoch + 1, 0
        batches = self.numbers()[self.position :].split(self.joined)
        return [batch for batch in batches if len(batch) == self.joined]

    def numbers(self) -> Tensor:
        """Returns the items of the epoch in their order."""
        return permutation(self.num_items, self.seed, self.epoch)

    def state_dict(self) -> dict[str, int]:
        told = self.epoch if self._told is None else self._told
        return {"epoch": self.epoch, "position": self.position, "told": told}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position, self._told = state["epoch"], state["position"], state["told"]


class StreamOrder(Order):
    """The items of a text in as many streams as a joined batch has rows: row j reads one stretch to its end.

    What row j of one batch is followed by in the text is row j of the next one.
    """

    def numbers(self) -> Tensor:
        return torch.arange(self.joined * self.num_batches).reshape(self.joined, -1).T.flatten()


class LengthOrder(Order):
    """Items of like length in one batch, so that little of it is filling: the order of random batches else.

    An epoch's permutation is cut into pools of so many joined batches; a pool is sorted by length, and its
    batches come in drawn order. What the permutation drops at the end of an epoch is of any length.

    Args:
        num_items, joined, seed: As in `Order`.
        lengths: Of each item.
        pool: Joined batches that are sorted together: at 1, batches are those of `Order`.

    Shapes:
        lengths: (items,), int64.
    """

    def __init__(self, num_items: int, joined: int, seed: int, lengths: Tensor, pool: int) -> None:
        super().__init__(num_items, joined, seed)
        self.lengths, self.pool = lengths, pool

    def numbers(self) -> Tensor:
        drawn = super().numbers()[: self.num_batches * self.joined]
        pools = drawn.split(self.joined * self.pool)
        sorted_ = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        batches = sorted_.reshape(self.num_batches, self.joined)
        places = [
            start + permutation(min(self.pool, self.num_batches - start), self.seed, self.epoch)
            for start in range(0, self.num_batches, self.pool)
        ]
        return batches[torch.cat(places)].flatten()


class ChunkOrder(Order):
    """Items of a few chunks at a time, mixed: what is read from a disk or from afar is read once an epoch.

    The chunks come in drawn order, and a window of so many of them is permuted as a whole. With a window of
    all chunks this is the order of `Order`.

    Args:
        num_items, joined, seed: As in `Order`.
        places: The chunk of each item.
        window: Chunks whose items are mixed.

    Shapes:
        places: (items,), int64.
    """

    def __init__(self, num_items: int, joined: int, seed: int, places: Tensor, window: int) -> None:
        super().__init__(num_items, joined, seed)
        self.places, self.window = places.unique(return_inverse=True)[1], window

    def numbers(self) -> Tensor:
        drawn = super().numbers()
        turns = permutation(int(self.places.max()) + 1, self.seed, self.epoch).argsort() // self.window
        return drawn[turns[self.places[drawn]].argsort(stable=True)]


def permutation(num_items: int, seed: int, epoch: int) -> Tensor:
    """Returns the numbers 0 ... num_items - 1 in the order of epoch `epoch`."""
    draws = randomness.uniform(randomness.key(seed, "order", epoch), torch.arange(num_items), 1)
    return draws[:, 0].argsort(stable=True)


class TrainLoader:
    """Endless training epochs whose state can be saved after any batch and continued to the bit.

    Lightning stores the state with its checkpoints, and tells `sampler` the epoch. Row j on rank r of w is
    row r + w j of the joined batch: w processes see together what one process sees with the w-fold batch.

    Args:
        items: Returns the items of an epoch, given its number.
        order: Knows what comes next.
        rank: Number of this process.
        world_size: Number of processes.
        num_workers: Reading processes; 0 reads in this one, which whole-batch indexing makes fast enough.
    """

    def __init__(self, items: Any, order: Order, rank: int, world_size: int, num_workers: int = 0) -> None:
        self.items, self.sampler = items, order
        self.rank, self.world_size, self.num_workers = rank, world_size, num_workers

    def __len__(self) -> int:
        return self.sampler.num_batches

    def __iter__(self) -> Iterator[Batch]:
        # Runs from the first `next` on, when Lightning has restored the state and set the epoch.
        order = self.sampler
        mine = [batch[self.rank :: self.world_size] for batch in order.rest_of_epoch()]
        epoch, start = order.epoch, order.position
        for number, batch in enumerate(read(self.items(epoch), mine, self.num_workers), start=1):
            # Counts what was handed out, not what reading processes hold ready.
            order.epoch, order.position = epoch, start + number * order.joined
            yield batch

    def state_dict(self) -> dict[str, int]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.sampler.load_state_dict(state)


class ScoringLoader:
    """Every item exactly once over all processes, in order, without padding.

    Rank r of w takes the items r, r + w, ... Every rank has the same number of batches, and none is empty as
    long as there are w items: a last joined batch of fewer than w items is joined to the one before.

    Args:
        items: The split.
        batch_size: Items a batch and process; the last one may hold one more or some less.
        rank: Number of this process.
        world_size: Number of processes.
        num_workers: Reading processes.
        at_most: Only so many items, see `spread`; None for all.
        first: So many of them that stand for all come before the others, for who stops early.
    """

    def __init__(
        self,
        items: Items,
        batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int = 0,
        at_most: int | None = None,
        first: int | None = None,
    ) -> None:
        self.items, self.num_workers = items, num_workers
        chosen = spread(len(items), at_most)
        early = torch.zeros(len(chosen), dtype=torch.bool)
        early[spread(len(chosen), first)] = True
        chosen = torch.cat([chosen[early], chosen[~early]])
        starts = list(range(0, len(chosen), batch_size * world_size))
        if len(starts) > 1 and len(chosen) - starts[-1] < world_size:
            starts.pop()
        ends = [*starts[1:], len(chosen)]
        self.batches = [
            chosen[start + rank : end : world_size] for start, end in zip(starts, ends, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from read(self.items, self.batches, self.num_workers)


def spread(num: int, at_most: int | None) -> Tensor:
    """Returns which of num items stand for all: at_most of them, evenly spaced.

    Folders hold one class after the other, so that the first ones would stand for one class.
    """
    if at_most is None or at_most >= num:
        return torch.arange(num)
    return torch.arange(at_most) * num // at_most


def read(items: Items, batches: list[Tensor], num_workers: int) -> Iterator[Batch]:
    """Returns the named batches of a split, read by torch's DataLoader in this or in other processes."""
    loader: DataLoader[Batch] = DataLoader(
        items,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=num_workers,
        timeout=timeout() if num_workers else 0.0,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, or every pass would draw a seed from the training's numbers
    )
    return _ended_together(iter(loader)) if num_workers else iter(loader)


def _ended_together(batches: Any) -> Iterator[Batch]:
    """Ends all reading processes with the first that is lost: one that hears nothing would be waited for."""
    try:
        yield from _with_losses_named(batches)
    except DataError as error:
        # It comes behind the reading process's traceback.
        raise DataError(str(error).rstrip().splitlines()[-1].removeprefix(_KIND)) from None
    except RuntimeError as error:
        if is_of_readers(error):
            batches._shutdown_workers()  # also ends the watch that would raise for each that is killed here
            for process in batches._workers:
                process.kill()
                process.join()
        raise


def _with_losses_named(batches: Any) -> Iterator[Batch]:
    """Raises what torch does of a lost reading process also where it was lost while it handed over a batch.

    Torch asks then whether the process lives, and passes on an error of the connection where it is told yes:
    the connection ends before the process.
    """
    try:
        yield from batches
    except (ConnectionError, EOFError) as error:
        ended = wait([process.sentinel for process in batches._workers], timeout=_LAST_BREATH)
        if not ended:
            raise
        lost = ", ".join(str(process.pid) for process in batches._workers if process.sentinel in ended)
        raise RuntimeError(f"DataLoader worker (pid(s) {lost}) exited unexpectedly") from error


_LAST_BREATH = 5.0  # seconds between the end of a process's connections and its own
_KIND = f"{DataError.__module__}.{DataError.__qualname__}: "


def _as_it_is(batch: Any) -> Any:
    return batch
