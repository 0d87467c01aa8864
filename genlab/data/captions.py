"""Images with sentences that say what is on them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genlab import randomness
from genlab.data.folder import ImageFolder
from genlab.data.image_tables import read_captions
from genlab.data.loading import Items
from genlab.data.packed import Packed, Rows
from genlab.data.sentences import sentence_spec, sources
from genlab.data.tokenizers import Tokenizer, TokenizerKind, trained
from genlab.shapes import DataSpec


class CaptionedImages(ImageFolder):
    """Images of a folder, a zip or a tar with a table of captions: batch["source"] is a caption.

    The table is captions.tsv, metadata.csv or metadata.jsonl (see `image_tables`), in the folder or beside
    the archive. Every image needs captions, one or several, and every caption an image. Training takes one,
    drawn anew in each epoch from (seed, epoch); scoring takes the first. The vocabulary is made of the
    captions of the training images alone. Rows of tokens are as those of `sentences.PairData`.

    Args:
        path: Folder, zip or tar of the images; nothing is unpacked.
        image_size: Side of the images in pixels.
        tokenizer: "characters", "bytes" or "bpe".
        vocabulary_size: Number of tokens of "bpe", at least 259.
        length: Tokens of a caption with its end; longer ones are cut.
        caption_column: The column of metadata.csv or metadata.jsonl that holds the captions.
        base: Arguments of a folder of images and of every data set.

    Shapes:
        batch["image"]: (batch, channels, image_size, image_size).
        batch["source"]: (batch, length), int64.
    """

    def __init__(
        self,
        path: str = "",
        image_size: int = 64,
        tokenizer: TokenizerKind = "bpe",
        vocabulary_size: int = 1024,
        length: int = 32,
        caption_column: str = "text",
        **base: Any,
    ) -> None:
        super().__init__(path, image_size, labelled=False, **base)
        if length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {length}.")
        self.kind, self.vocabulary_size, self.length = tokenizer, vocabulary_size, length
        self.caption_column = caption_column

    @property
    def spec(self) -> DataSpec:
        source = sentence_spec(f"{Path(self.path).stem} caption", self.tokenizer, self.length)
        return DataSpec(Path(self.path).stem, super().spec.shape, source=source)

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each image, in the order of the images."""
        return read_captions(self.source, self.caption_column)

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The numbers of the images of each split, of the training split before `fraction`."""
        number = np.arange(len(self.source))
        splits = self.validated(self.split_images(Packed({"image": self.images, "factors": number[:, None]})))
        return {name: np.asarray(part["factors"])[:, 0] for name, part in splits.items()}

    @cached_property
    def images(self) -> np.ndarray | Rows:
        """All images, packed."""
        return self.pixels(Path(self.path).stem)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary, learnt from the training images' captions."""
        text = "\n".join(caption for row in self.rows["train"] for caption in self.captions[row])
        return trained(self.kind, text, self.vocabulary_size, marks=True)

    @cached_property
    def encoded(self) -> list[np.ndarray]:
        """The captions of each image as rows of tokens, (captions of the image, length)."""
        encode = self.tokenizer.encode
        return [sources([encode(text) for text in texts], self.length) for texts in self.captions]

    def load(self) -> dict[str, Packed]:
        number = np.arange(len(self.source))
        first = np.stack([rows[0] for rows in self.encoded])
        whole = Packed({"image": self.images, "source": first, "factors": number[:, None]})
        return {name: whole.take(rows) for name, rows in self.rows.items()}

    def training_items(self, epoch: int) -> Items:
        train = self.split("train")
        number = np.asarray(train["factors"])[:, 0]
        address = randomness.key(self.drawing_seed, "captions", epoch)
        draw = randomness.uniform(address, torch.from_numpy(number), 1)[:, 0].tolist()
        rows = [self.encoded[n] for n in number]
        chosen = np.stack([row[int(u * len(row))] for row, u in zip(rows, draw, strict=True)])
        image = self.cropped(train, epoch)["image"]
        return Items(Packed({"image": image, "source": chosen}), self.moves(len(train), epoch))

    def preprocessing(self) -> dict[str, Any]:
        num = sum(map(len, self.captions))
        cut = sum(int((rows[:, -1] > 2).sum()) for rows in self.encoded)
        told = {"tokenizer": self.kind, "length": self.length, "captions": num, "cut": cut}
        return {**super().preprocessing(), **told}
