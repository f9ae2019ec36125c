"""Image task (paper §6.1): classify CIFAR-10 images, read as sequences of 1,024 grey levels.

Vocabulary V = 256 levels, L = 1,024 pixels row by row, 10 classes at the last position. The last 5,000 of the 50,000
training images are the validation set; the test set is used by `evaluate` only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mlx_rtx.support.files import sha256
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks import cifar
from mlx_rtx.tasks.cifar import Images
from mlx_rtx.tasks.task import Data, Sequences, Shape, StoredTask, check_draw, check_held_out, columns
from mlx_rtx.tasks.vocabulary import Vocabulary

import mlx.core as mx
import numpy as np

SET_ASIDE = 0.1  # fraction of the training images used for validation


@dataclass(frozen=True, kw_only=True)
class ImageTask(StoredTask):
    """Classify CIFAR-10 images in greyscale."""

    summary = "Classify CIFAR-10 images from 1,024 grey levels read one by one (paper §6.1)."

    validate_on: Literal["held-out", "test"] = "held-out"
    """Validation set.
    held-out: 5,000 of the training images;
    test: the test set, as in the paper: training uses all 50,000 images, and test scores are biased upwards."""

    mirror: bool = False
    """Flip each training image horizontally with probability 1/2."""

    def __post_init__(self):
        require_types(self)

    @property
    def shape(self) -> Shape:
        """Shape of the sequences: 1,024 tokens, and one class at the end."""
        return Shape(ImageData.vocab_size, ImageData.length, 1, ImageData.out_size)

    def load(self, vocabulary: Vocabulary | None = None) -> "ImageData":
        """Read and check the images; see `mlx_rtx.tasks.cifar.load`."""
        splits, path = cifar.load(self.data)
        return ImageData(splits, path.name, self.validate_on == "test", self.mirror)


class ImageData(Data):
    """Images in memory.

    Args:
        splits: ``train`` and ``test``.
        source: name of the file they were read from.
        on_test: whether to validate on the test set, and train on all other images.
        mirror: whether to flip training images horizontally with probability 1/2.
    """

    splits = ("validation", "test")
    out_size = cifar.CLASSES
    vocab_size, length, targets, chance = 256, cifar.PIXELS, 1, math.log(cifar.CLASSES)

    def __init__(self, splits: dict[str, Images], source: str, on_test: bool, mirror: bool = False):
        for name in cifar.COUNTS:
            cifar.check_values(name, splits.get(name), source)
        train, test = splits["train"], splits["test"]
        kept = len(train.labels) - (0 if on_test else round(SET_ASIDE * len(train.labels)))
        aside = Images(train.pixels[kept:], train.labels[kept:])
        self._held_out = {"validation": test if on_test else aside, "test": test}
        self._pixels, self._labels = mx.array(train.pixels[:kept]), mx.array(train.labels[:kept])
        self._mirror = mirror
        self._described = {
            "length": self.length,
            "train": kept,
            "validation": "the test set" if on_test else len(aside.labels),
            "source": source,
        }
        self.fingerprint = sha256(train.pixels, train.labels, test.pixels, test.labels)

    def describe(self) -> dict:
        """Return the number of images per split, and their source."""
        return self._described

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return grey levels (size, 1024) and classes (size, 1) of training images drawn with replacement."""
        check_draw(key, size)
        rows = mx.random.randint(0, len(self._labels), (size,), key=key)
        pixels = self._pixels[rows].astype(mx.int32)
        if self._mirror:
            mirrored = mx.random.bernoulli(0.5, (size, 1), key=mx.random.split(key)[1])
            pixels = mx.where(mirrored, _mirrored(pixels), pixels)
        return pixels, self._labels[rows][:, None].astype(mx.int32)

    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Yield the images of a split in order, all or the first ``samples`` of them."""
        check_held_out(self, split, samples, batch)
        images = self._held_out[split]
        count = min(samples or len(images.labels), len(images.labels))
        for start in range(0, count, batch):
            rows = slice(start, min(start + batch, count))
            targets = mx.array(images.labels[rows, None].astype(np.int32))
            yield Sequences(self.length, partial(columns, images.pixels[rows]), targets)


def _mirrored(pixels: mx.array) -> mx.array:
    """Flip images (B, 1024), stored row by row, horizontally."""
    side = math.isqrt(cifar.PIXELS)
    return pixels.reshape(-1, side, side)[:, :, ::-1].reshape(pixels.shape)
