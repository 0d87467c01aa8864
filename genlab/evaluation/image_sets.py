"""Images from anywhere, as a score takes them: of a folder, an archive, an array, a split, a model."""

from __future__ import annotations

import ast
import hashlib
import math
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from genlab.colour import luminance
from genlab.data.base import DataModule
from genlab.data.decode import Policy, decode
from genlab.data.sources import Source
from genlab.errors import DataError
from genlab.evaluation.given import given_for
from genlab.evaluation.score import reference_of, sample_levels
from genlab.families.base import Model
from genlab.files import digest
from genlab.metrics.base import Reference
from genlab.metrics.features import Extractor
from genlab.metrics.reference import NUM_KEPT, cached_reference, collect
from genlab.progress import watched
from genlab.shapes import bytes_to_levels, levels_to_bytes, observed, to_levels

LARGEST = 64_000_000
"""Most numbers of one image, as of a picture that is decoded."""

_DAMAGED = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, SyntaxError)


class ImageSet(ABC):
    """Numbered images, each of which is looked at once.

    Args:
        name: What a protocol calls them.
        levels: How many they were made of; 256 for bytes.
    """

    def __init__(self, name: str, levels: int = 256) -> None:
        self.name, self.levels = name, levels

    @abstractmethod
    def __len__(self) -> int:
        """Returns how many there are."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a hash that changes when the images change."""

    @abstractmethod
    def read(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields numbers, (n,), and images of one size, (n, channels, height, width), bytes or in [-1, 1]."""

    def protocol(self) -> dict[str, Any]:
        """Returns how they were made, where that is known."""
        return {}

    def batches(
        self, batch_size: int, num_levels: int = 256, channels: int = 3, title: str = "images"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields numbers, and images as a ruler takes them: uint8, of so many levels.

        Args:
            batch_size: Images at a time.
            num_levels: Levels of the data that they are compared with: what others have drawn is rounded to
                these, as the samples of a model of the data are.
            channels: 1 for a ruler of grey images, which sees the luminance of colours; 3.
            title: What the progress bar says.
        """
        parts = self.read(batch_size)
        for index, x in watched(parts, title, len(self), "image", lambda part: len(part[0])):
            yield index, as_levels(x, num_levels, channels)

    def statistics(
        self,
        extractor: Extractor,
        batch_size: int,
        device: torch.device,
        num_levels: int = 256,
        num_kept: int = NUM_KEPT,
    ) -> Reference:
        """Returns the statistics of the images' features, kept on disk for the next time.

        Args:
            extractor: Computes the features, on the device.
            batch_size: Images at a time.
            device: Where it is.
            num_levels: See `batches`.
            num_kept: Images whose features are kept one by one.
        """
        batches = self.batches(batch_size, num_levels, channels_of(extractor), f"features of {self.name}")
        return cached_reference(
            *("images", self.fingerprint(), extractor.digest, extractor.resize, num_levels, num_kept),
            build=lambda: collect(
                ((x.to(device), index) for index, x in batches), extractor, num_levels, num_kept
            ),
        )


def channels_of(extractor: Extractor) -> int:
    """Returns how many channels an extractor reads at most."""
    return getattr(extractor, "shape", (3,))[0]


def as_levels(x: Tensor, num_levels: int, channels: int) -> Tensor:
    """Returns images, bytes or floats in [-1, 1], as levels, in so many channels."""
    if channels == 1 and x.shape[1] == 3:
        grey = luminance(x)
        x = grey if x.is_floating_point() else grey.round().to(torch.uint8)
    levels = to_levels(x, num_levels) if x.is_floating_point() else bytes_to_levels(x, num_levels)
    return levels.expand(-1, channels, -1, -1)


class Pictures(ImageSet):
    """The pictures of a folder, a zip or a tar, whole and in their own sizes.

    Args:
        source: Where they lie. The grid that `genlab sample` puts beside its samples is none of them.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source.path.name)
        self.source = source
        grid = [name for name in source.names if name == "grid.png" and "000000.png" in source.names]
        self.numbers = [n for n in source.reading_order() if source.names[n] not in grid]

    def __len__(self) -> int:
        return len(self.numbers)

    def fingerprint(self) -> str:
        return self.source.fingerprint()

    def read(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        # Read in order by one thread, since archives have one position; Pillow decodes beside it.
        with ThreadPoolExecutor() as threads:
            for start in range(0, len(self), batch_size):
                numbers = self.numbers[start : start + batch_size]
                pixels = list(threads.map(self._decoded, numbers, map(self.source.read, numbers)))
                yield from _of_one_size(numbers, pixels)

    def _decoded(self, number: int, content: bytes) -> np.ndarray:
        return decode(content, self.source.names[number], Policy(None)).pixels


def _of_one_size(numbers: Sequence[int], pixels: Sequence[np.ndarray]) -> Iterator[tuple[Tensor, Tensor]]:
    for _, group in groupby(zip(numbers, pixels, strict=True), key=lambda pair: pair[1].shape):
        index, images = zip(*group, strict=True)
        yield torch.tensor(index), torch.from_numpy(np.stack(images))


class Arrays(ImageSet):
    """Images in memory.

    Args:
        images: uint8, or floats in [-1, 1] as models draw them; (n, channels, height, width),
            (n, height, width, channels) or (n, height, width), with 1 or 3 channels. Where both of the first
            would do, tensors have the channels first and arrays have them last.
        name: What a protocol calls them.

    Raises:
        DataError: They are something else.
    """

    def __init__(self, images: Tensor | np.ndarray, name: str = "array") -> None:
        super().__init__(name)
        first = isinstance(images, Tensor)
        x = images.detach().cpu() if isinstance(images, Tensor) else torch.from_numpy(np.asarray(images))
        self.x = _channels_first(x, first)
        if self.x.dtype == torch.uint8:
            return
        if not self.x.is_floating_point():
            raise DataError(f"Images are uint8, or floats in [-1, 1]; got {self.x.dtype}.")
        if not bool((self.x.abs() <= 1.0).all()):
            lowest, highest = float(self.x.min()), float(self.x.max())
            raise DataError(f"Images of floats lie in [-1, 1]; these lie in [{lowest:.4g}, {highest:.4g}].")

    def __len__(self) -> int:
        return len(self.x)

    def fingerprint(self) -> str:
        about = repr((tuple(self.x.shape), str(self.x.dtype))).encode()
        sha = hashlib.sha256(about)
        for part in self.x.split(1024):
            sha.update(part.contiguous().numpy().tobytes())
        return sha.hexdigest()

    def read(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        numbers = torch.arange(len(self))
        yield from zip(numbers.split(batch_size), self.x.split(batch_size), strict=True)


def _channels_first(x: Tensor, first: bool) -> Tensor:
    x = x[:, None] if x.ndim == 3 else x
    if x.ndim == 4:
        is_first, is_last = x.shape[1] in (1, 3), x.shape[3] in (1, 3)
        if is_first and (first or not is_last):
            return x
        if is_last:
            return x.permute(0, 3, 1, 2)
    raise DataError(
        f"Images are (n, channels, height, width) or (n, height, width, channels) with 1 or 3 channels, got "
        f"{tuple(x.shape)}."
    )


class ArrayFile(ImageSet):
    """Images of an .npz, as published samples come, or of an .npy, read from front to back.

    uint8, (n, height, width, 1 or 3), in an .npz under the name `arr_0`.

    Args:
        path: The file.

    Raises:
        DataError: It is damaged, or holds something else.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.name)
        self.path = path
        with self._damage_named(), self._stream() as stream:
            self.shape = self._header(stream)

    def __len__(self) -> int:
        return self.shape[0]

    def fingerprint(self) -> str:
        return digest(self.path)

    def read(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = math.prod(self.shape[1:])
        with self._damage_named(), self._stream() as stream:
            self._header(stream)
            for numbers in torch.arange(len(self)).split(batch_size):
                content = bytearray(_exactly(stream, len(numbers) * size))
                x = torch.frombuffer(content, dtype=torch.uint8).view(len(numbers), *self.shape[1:])
                yield numbers, x.permute(0, 3, 1, 2)

    @contextmanager
    def _stream(self) -> Iterator[IO[bytes]]:
        if not zipfile.is_zipfile(self.path):
            with self.path.open("rb") as file:
                yield file
            return
        with zipfile.ZipFile(self.path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if "arr_0" not in names:
                held = ", ".join(names[:5]) or "nothing"
                raise DataError(f"{self.path} holds {held} and no arr_0, under which samples are published.")
            with archive.open("arr_0.npy") as file:
                yield file

    def _header(self, stream: IO[bytes]) -> tuple[int, ...]:
        if _exactly(stream, 6) != b"\x93NUMPY":
            raise DataError(f"{self.path} is neither an .npz nor an .npy.")
        major = _exactly(stream, 2)[0]
        length = int.from_bytes(_exactly(stream, 2 if major == 1 else 4), "little")
        about = ast.literal_eval(_exactly(stream, min(length, 10_000)).decode("latin1"))
        shape, dtype = tuple(about["shape"]), str(about["descr"])
        is_images = len(shape) == 4 and shape[3] in (1, 3) and 0 < math.prod(shape[1:]) <= LARGEST
        if dtype not in ("|u1", "u1") or not is_images or about["fortran_order"]:
            raise DataError(
                f"{self.path} holds {dtype} of {shape}; samples are uint8 of (n, height, width, 1 or 3)."
            )
        return shape

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (*_DAMAGED, KeyError, TypeError) as error:
            raise DataError(f"{self.path} is damaged ({error}); fetch or make it again.") from None


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise EOFError("it ends too early")
    return content


class SplitImages(ImageSet):
    """The real images of a split, measured and kept as `genlab test` does.

    Args:
        data: Holds the split.
        split: Its name.
    """

    def __init__(self, data: DataModule, split: str) -> None:
        super().__init__(data.spec.name, data.spec.levels)
        self.data, self.split = data, split

    def __len__(self) -> int:
        return len(self.data.items(self.split))

    def fingerprint(self) -> str:
        return self.data.fingerprint(self.split)

    def protocol(self) -> dict[str, Any]:
        return {"split": self.split}

    def read(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.data.loader(self.split, batch_size=batch_size):
            yield batch["index"], levels_to_bytes(observed(batch), self.levels)

    def statistics(
        self,
        extractor: Extractor,
        batch_size: int,
        device: torch.device,
        num_levels: int = 256,
        num_kept: int = NUM_KEPT,
    ) -> Reference:
        if num_levels != self.levels:
            return super().statistics(extractor, batch_size, device, num_levels, num_kept)
        return reference_of(self.data, extractor, self.split, batch_size, device, num_kept)


class ModelSamples(ImageSet):
    """Samples of a model, drawn as they are read: the same as `genlab sample` writes.

    Args:
        model: Has the capability `Samples`.
        num: How many; of a model that is told a source, at most one for each item of the test split.
        seed: Theirs.
        data: Holds the sources, where the model is told one.
        name: What a protocol calls them.
    """

    def __init__(
        self, model: Model, num: int, seed: int = 0, data: DataModule | None = None, name: str = "samples"
    ) -> None:
        super().__init__(name, model.spec.levels)
        self.model, self.seed, self.data = model, seed, data
        self.num = num if data is None else min(num, len(data.items("test")))

    def __len__(self) -> int:
        return self.num

    def fingerprint(self) -> str:
        sha = hashlib.sha256()
        for _, x in self.read(100):
            sha.update(x.contiguous().cpu().numpy().tobytes())
        return sha.hexdigest()

    def protocol(self) -> dict[str, Any]:
        return {"seed": self.seed, "weights": self.model.sampling_weights}

    def read(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.arange(self.num).split(batch_size):
            given = given_for(self.model, index, self.data)
            x = sample_levels(self.model, index, self.seed, given)
            yield index, levels_to_bytes(x, self.levels)
