"""Images a second of the packed pipeline against the usual per-item torchvision transforms, and of streaming.

    python tests/bench_data.py        prints two tables
    pytest -m bench tests/bench_data.py

Both pipelines read the same files, give batches of 128 normalised float images with random flips, and run in
turns; a round is one epoch from the second one on, and the medians of the rounds are compared. The usual one
has two processes besides its own, the packed one has none; tensors are computed by one thread in each.
"""

from __future__ import annotations

import os
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

from genlab.data.base import DataModule
from genlab.data.chunk_writer import write
from genlab.data.decode import Policy
from genlab.data.folder import ImageFolder
from genlab.data.sources import open_source
from genlab.data.torchvision_sets import MNIST

BATCH = 128
WORKERS = 2
ROUNDS = 5
REQUIRED = 5.0


def mnist_files(root: Path, num: int = 12_000) -> None:
    """Writes random images in MNIST's layout."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", num), ("t10k", 100)):
        images = rng.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = rng.integers(0, 10, count).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 2051, count, 28, 28) + images.tobytes()
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">2i", 2049, count) + labels.tobytes()
        )


def jpeg_files(root: Path, num: int = 1_500) -> None:
    """Writes smooth random photographs of 178x218 pixels as JPEG, in two class folders."""
    rng = np.random.default_rng(0)
    for number in range(num):
        coarse = rng.integers(0, 256, (14, 11, 3)).astype(np.uint8)
        folder = root / "faces" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((178, 218), Image.Resampling.BICUBIC).save(
            folder / f"{number}.jpg", quality=90
        )


def per_item(dataset: Dataset) -> Iterable[torch.Tensor]:
    """Returns the usual loader; its processes stay alive between epochs."""
    return DataLoader(
        dataset, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )


def usual_mnist(root: Path) -> Iterable[torch.Tensor]:
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    return per_item(datasets.MNIST(root, train=True, transform=transforms.Compose(steps)))


def usual_jpeg(root: Path) -> Iterable[torch.Tensor]:
    steps = [
        transforms.Resize(64),
        transforms.CenterCrop(64),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize((0.5,) * 3, (0.5,) * 3),
    ]
    return per_item(datasets.ImageFolder(str(root / "faces"), transform=transforms.Compose(steps)))


def usual_epoch(loader: Iterable[torch.Tensor]) -> int:
    return sum(len(images) for images, _ in loader)


def packed_epoch(data: DataModule, loader: Iterable) -> int:
    return sum(len(data.to_device_batch(batch, "cpu")["image"]) for batch in loader)


CASES: dict[str, tuple[Callable, Callable, Callable]] = {
    "MNIST-size, 28x28 grey": (
        mnist_files,
        usual_mnist,
        lambda root: MNIST(str(root), batch_size=BATCH, flip=True),
    ),
    "178x218 JPEG to 64x64": (
        jpeg_files,
        usual_jpeg,
        lambda root: ImageFolder(str(root / "faces"), image_size=64, num_test=2, batch_size=BATCH, flip=True),
    ),
}


def rate(epoch: Callable[[], int]) -> float:
    start = time.perf_counter()
    return epoch() / (time.perf_counter() - start)


def measure(name: str) -> tuple[float, float, float]:
    """Returns images/s of the usual and of the packed pipeline, and the seconds that packing took once."""
    write, usual, ours = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.set_num_threads(1)
        os.environ["GENLAB_CACHE"] = str(root / "cache")
        write(root)
        usual_loader, data = usual(root), ours(root)
        start = time.perf_counter()
        loader = data.train_dataloader()
        packing = time.perf_counter() - start
        epochs = (lambda: usual_epoch(usual_loader), lambda: packed_epoch(data, loader))
        rounds = [[rate(epoch) for epoch in epochs] for _ in range(ROUNDS + 1)][1:]
    per_item_rate, packed_rate = (statistics.median(column) for column in zip(*rounds, strict=True))
    return per_item_rate, packed_rate, packing


@pytest.mark.bench
@pytest.mark.parametrize("name", CASES)
def test_packed_images_are_read_five_times_as_fast_as_by_per_item_transforms(name):
    usual, ours, _ = measure(name)
    assert ours / usual >= REQUIRED


def streamed(num: int = 12_000) -> tuple[float, float]:
    """Returns images/s of 64x64 images in an array and in chunks, read and made floats by one process."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        torch.set_num_threads(1)
        os.environ["GENLAB_CACHE"] = str(root / "cache")
        (root / "images").mkdir()
        rng = np.random.default_rng(0)
        for number in range(num):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(root / "images" / f"{number:05}.bmp")
        write(open_source(root / "images"), Policy(64), root / "pack", chunk_mib=4)
        sets = [
            ImageFolder(str(root / "pack"), 64, stream=stream, batch_size=BATCH) for stream in (False, True)
        ]
        epochs = [partial(packed_epoch, data, data.train_dataloader()) for data in sets]
        rounds = [[rate(epoch) for epoch in epochs] for _ in range(ROUNDS + 1)][1:]
    array, chunks = (statistics.median(column) for column in zip(*rounds, strict=True))
    return array, chunks


@pytest.mark.bench
def test_streamed_images_are_read_at_half_the_speed_of_an_array_at_least() -> None:
    array, chunks = streamed()
    assert chunks / array >= 0.5


def main() -> None:
    title = f"images/s, median of {ROUNDS}"
    print(f"{title:30}{'per item':>12}{'packed':>12}{'ratio':>8}{'packing':>15}")
    for name in CASES:
        usual, ours, packing = measure(name)
        print(f"{name:30}{usual:12,.0f}{ours:12,.0f}{ours / usual:8.1f}{packing:13.1f} s")
    array, chunks = streamed()
    print(f"\n{title:30}{'array':>12}{'streamed':>12}{'ratio':>8}")
    print(f"{'64x64 colour, 36 chunks':30}{array:12,.0f}{chunks:12,.0f}{chunks / array:8.2f}")


if __name__ == "__main__":
    main()
