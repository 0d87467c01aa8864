"""The usual benchmarks, read from the layout that torchvision leaves on disk."""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from genlab import randomness
from genlab.data.base import DataModule
from genlab.data.folder import ImageFolder
from genlab.data.loading import Items
from genlab.data.packed import Packed
from genlab.data.sources import MAX_FILE_BYTES, BadSource, Source, open_source, read_file
from genlab.data.utf8 import read_utf8
from genlab.files import cache_folder
from genlab.shapes import DataSpec


def find(
    name: str, patterns: list[str], path: str | None, download: bool, fetch: Callable[[str], object]
) -> Path:
    """Returns the first file or folder that matches one of the patterns, fetching it first where asked.

    Args:
        name: The data set's name in messages.
        patterns: Where the data lie inside the searched folder, most usual first.
        path: The folder to search; None means ./data and the cache.
        download: Call `fetch` where nothing is found.
        fetch: Torchvision's downloader, given a folder.

    Raises:
        BadSource: Where nothing is found; says where it was looked for and the ways to get the data.
    """
    places = [Path(path).expanduser()] if path else [Path("data"), cache_folder("torchvision")]
    found = _first(places, patterns)
    if found is None and download:
        _download(name, fetch, places[-1])
        found = _first(places, patterns)
    if found is None:
        looked = " or ".join(str(place) for place in places)
        raise BadSource(
            f"{name} is not there: looked for {', '.join(patterns)} in {looked}; "
            "use --data.download true (torchvision's downloader) or say where it is with --data.path"
        )
    return found


def _first(places: list[Path], patterns: list[str]) -> Path | None:
    matches = (match for place in places for pattern in patterns for match in sorted(place.glob(pattern)))
    return next(matches, None)


def _download(name: str, fetch: Callable[[str], object], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fetch(str(folder))
    except Exception as error:  # torchvision, urllib and gdown each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadSource(
            f"{name} could not be downloaded to {folder} ({reason}); fetch it elsewhere and say where it is "
            "with --data.path"
        ) from None


class MNIST(DataModule):
    """60,000 + 10,000 handwritten digits of 28x28 (LeCun et al. 1998), from the original IDX files.

    They are looked for in MNIST/raw, raw, and the folder itself, packed (.gz) or not, or each below its own
    name. The validation split is cut from the 60,000, the same for every `seed`.

    Args:
        path: Folder to search; None means ./data and the cache.
        download: Let torchvision fetch what is missing.
        image_size: 28; more for a black border, such as the 32 of many networks; 14 or 7 for the means of
            blocks of 2x2 or 4x4 pixels, which train in a fraction of the time.
        binarize: Make pixels 0 or 1, a pixel's brightness being its probability of a 1, anew in each epoch
            (Salakhutdinov and Murray 2008); the draw that is scored on is fixed, the same for all models.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, 1, image_size, image_size).
    """

    licence = "not named by its authors; passed on by others as CC BY-SA 3.0"

    def __init__(
        self,
        path: str | None = None,
        download: bool = False,
        image_size: int = 28,
        binarize: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if image_size < 28 and image_size not in (7, 14):
            raise ValueError(
                f"image_size must be 7 or 14 (blocks are averaged), or 28 or more (a border is added), "
                f"got {image_size}."
            )
        self.path, self.download, self.image_size = path, download, image_size
        self.binarize = binarize

    @property
    def spec(self) -> DataSpec:
        shape, levels = (1, self.image_size, self.image_size), 2 if self.binarize else 256
        return DataSpec(type(self).__name__.lower(), shape, num_classes=10, levels=levels)

    def items(self, split: str) -> Items:
        draw = randomness.key("binarize", split) if self.binarize else None
        return Items(self.split(split), binarize=draw)

    def training_items(self, epoch: int) -> Items:
        train = self.split("train")
        draw = randomness.key(self.drawing_seed, "binarize", epoch) if self.binarize else None
        return Items(train, self.moves(len(train), epoch), draw)

    def load(self) -> dict[str, Packed]:
        name = type(self).__name__
        patterns = [f"{folder}train-images?idx3-ubyte*" for folder in (f"{name}/raw/", "raw/", "")]
        folder = find(name, patterns, self.path, self.download, self._fetch).parent
        return {"train": self._read(folder, "train"), "test": self._read(folder, "t10k")}

    def preprocessing(self) -> dict[str, Any]:
        binarized = {"binarized": "anew in each epoch"} if self.binarize else {}
        shrunk = {"mean_of_blocks": 28 // self.image_size} if self.image_size < 28 else {}
        return {"border": max(0, self.image_size - 28) // 2, **shrunk, **binarized}

    def _read(self, folder: Path, prefix: str) -> Packed:
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte").astype(np.int64)
        return Packed({"image": _resized(images, self.image_size)[:, None], "label": labels})

    def _fetch(self, folder: str) -> object:
        from torchvision import datasets

        return getattr(datasets, type(self).__name__)(folder, download=True)


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """Returns images of side 28 with a black border, or with blocks averaged, (num, size, size)."""
    if size < 28:
        block = 28 // size
        blocks = images.reshape(-1, size, block, size, block)
        return (blocks.mean(axis=(2, 4), dtype=np.float32) + 0.5).astype(np.uint8)
    before = (size - 28) // 2
    border = (before, size - 28 - before)
    return np.pad(images, ((0, 0), border, border))


class FashionMNIST(MNIST):
    """60,000 + 10,000 pictures of clothes (Xiao et al. 2017) in MNIST's format, below FashionMNIST/raw."""

    licence = "MIT"


def read_idx(file: Path) -> np.ndarray:
    """Returns the uint8 array of an IDX file, packed by gzip or not, or in a folder of its own name.

    Raises:
        BadSource: Where the file is missing, damaged or of another kind.
    """
    found = _idx_file(file)
    try:
        data = read_file(found, MAX_FILE_BYTES)
        if found.suffix == ".gz":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_FILE_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise BadSource(f"{found} cannot be read ({error}); fetch it again") from None
    num_dims = data[3] if data[:3] == b"\x00\x00\x08" else 0
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", num_dims, 4))
    if num_dims == 0 or len(data) != 4 + 4 * num_dims + int(np.prod(shape)):
        raise BadSource(f"{found} is not a whole IDX file of bytes; fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def _idx_file(file: Path) -> Path:
    """Returns the file as it lies there: with a dot for the last dash, packed, or below its own name."""
    dotted = file.with_name(file.name.replace("-idx", ".idx"))
    plain = [place for name in (file, dotted) for place in (name, name / file.name, name / dotted.name)]
    packed = [place.with_name(place.name + ".gz") for place in plain]
    return next((place for place in (*plain, *packed) if place.is_file()), packed[0])


class CIFAR10(DataModule):
    """50,000 + 10,000 photographs of 32x32 in ten classes (Krizhevsky 2009).

    Reads torchvision's cifar-10-batches-py. Also reads sheets: one lossless picture a class, train/3_cat.webp
    or .png, with the class's images side by side in full rows; the number before the underscore is the label.
    The validation split is cut from the 50,000, the same for every `seed`.

    Args:
        path: Folder to search; None means ./data and the cache.
        download: Let torchvision fetch what is missing.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, 3, 32, 32).
    """

    licence = "not named by its authors, who collected photographs of the web and ask to cite Krizhevsky 2009"

    def __init__(self, path: str | None = None, download: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.path, self.download = path, download

    @property
    def spec(self) -> DataSpec:
        return DataSpec("cifar10", (3, 32, 32), num_classes=10)

    def load(self) -> dict[str, Packed]:
        patterns = ["cifar-10-batches-py/data_batch_1", "data_batch_1", "train/0_*", "cifar10/train/0_*"]
        first = find("CIFAR10", patterns, self.path, self.download, self._fetch)
        if first.name == "data_batch_1":
            train = [first.parent / f"data_batch_{number}" for number in range(1, 6)]
            return {"train": _join(map(_batch, train)), "test": _batch(first.parent / "test_batch")}
        root = first.parent.parent
        return {name: _join(map(_sheet, sorted((root / name).glob("[0-9]_*")))) for name in ("train", "test")}

    def _fetch(self, folder: str) -> object:
        from torchvision import datasets

        return datasets.CIFAR10(folder, download=True)


def _batch(file: Path) -> Packed:
    try:
        content = _ArraysOnly(io.BytesIO(read_file(file)), encoding="latin1").load()
        images = np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32)
        return Packed({"image": images, "label": np.asarray(content["labels"], np.int64)})
    except (OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise BadSource(f"{file} is not a whole batch of CIFAR-10 ({error}); fetch it again") from None


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled arrays and plain containers, and refuses to call anything else."""

    allowed = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] not in ("numpy", "_codecs") or name not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def _sheet(file: Path) -> Packed:
    try:
        pixels = np.asarray(Image.open(io.BytesIO(read_file(file))).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadSource(f"{file} is no sheet ({error}); fetch it again") from None
    if pixels.shape[0] % 32 or pixels.shape[1] % 32:
        raise BadSource(f"{file} is no sheet: {pixels.shape[1]}x{pixels.shape[0]} is not a multiple of 32")
    rows, columns = pixels.shape[0] // 32, pixels.shape[1] // 32
    tiles = pixels.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32)
    labels = np.full(len(tiles), int(file.name.split("_")[0]), np.int64)
    return Packed({"image": np.ascontiguousarray(tiles), "label": labels})


def _join(parts: Iterator[Packed]) -> Packed:
    columns = [part.columns for part in parts]
    return Packed({name: np.concatenate([column[name] for column in columns]) for name in columns[0]})


class CelebA(ImageFolder):
    """202,599 aligned faces of celebrities (Liu et al. 2015), cut to the centred square and resized.

    Of the 178x218 pixels the middle 178x178 remain; half-size copies (89x109) are cut alike. Reads
    torchvision's celeba/img_align_celeba, packed as .zip or not, or any folder, zip or tar of the images that
    `path` names. With list_eval_partition.txt (Kaggle's: .csv) beside the images or in Eval the official
    splits are used; without it the test split is drawn by `seed`.

    Args:
        path: Folder to search, or the images themselves; None means ./data and the cache.
        image_size: Side of the images in pixels.
        download: Let torchvision fetch what is missing.
        num_test: Images kept for the test without the partition file; None means test_fraction of all.
        test_fraction: Share kept for the test without the partition file.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, 3, image_size, image_size).
    """

    licence = "non-commercial research only; its authors do not own the photographs"

    def __init__(
        self,
        path: str | None = None,
        image_size: int = 64,
        download: bool = False,
        num_test: int | None = None,
        test_fraction: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(
            path or "",
            image_size=image_size,
            num_test=num_test,
            test_fraction=test_fraction,
            labelled=False,
            **base,
        )
        self.download = download

    @property
    def spec(self) -> DataSpec:
        return DataSpec("celeba", (3, self.image_size, self.image_size))

    def load(self) -> dict[str, Packed]:
        packed = Packed({"image": self.pixels("celeba")})
        if self._partition_file is None:
            return self.drawn_split(packed)
        part = _partition(self._partition_file, self.source.names)
        return {
            name: packed.take(np.flatnonzero(part == k)) for k, name in enumerate(("train", "val", "test"))
        }

    def open(self) -> Source:
        nested = "img_align_celeba/img_align_celeba"  # as Kaggle packs it
        patterns = ["celeba/img_align_celeba", nested, "img_align_celeba"]
        patterns += [f"{folder}img_align_celeba.zip" for folder in ("celeba/", "", "Img/")]
        place = Path(self.path).expanduser()
        if self.path and place.exists() and _first([place], patterns) is None:
            return open_source(self.path)
        return open_source(find("CelebA", patterns, self.path or None, self.download, self._fetch))

    @property
    def _partition_file(self) -> Path | None:
        """The official split where it lies beside the images or, as first published, in Eval."""
        folder = self.source.path.parent
        places = [folder, folder.parent, folder.parent / "Eval"]
        files = [place / f"list_eval_partition.{ending}" for place in places for ending in ("txt", "csv")]
        return next((file for file in files if file.is_file()), None)

    def _fetch(self, folder: str) -> object:
        from torchvision import datasets

        return datasets.CelebA(folder, download=True)


def _partition(file: Path, names: list[str]) -> np.ndarray:
    """Returns 0, 1 or 2 (train, val, test) for each image."""
    rows = [line.replace(",", " ").split() for line in read_utf8(file).splitlines()]
    part = {row[0]: row[1] for row in rows if len(row) == 2 and row[1] in ("0", "1", "2")}
    missing = [name for name in names if Path(name).name not in part]
    if missing:
        raise BadSource(f"{file} does not list {len(missing)} of {len(names)} images, such as {missing[0]}")
    return np.array([int(part[Path(name).name]) for name in names])
