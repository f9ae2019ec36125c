"""Text (paper §6.3): predict each next character of tiny Shakespeare, or of any text.

Tokens are characters. The first 90 % of the text train, the rest is held out; validation is over all of
it, in windows of L characters side by side (every held-out character but the first is predicted once).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from mlx_rtx.model.config import Architecture, ModelKind
from mlx_rtx.support.errors import require, require_positive
from mlx_rtx.support.files import sha256
from mlx_rtx.tasks import text_file
from mlx_rtx.tasks.task import Batch, Data, Sequences, Shape, StoredTask, columns
from mlx_rtx.tasks.vocabulary import Characters

import mlx.core as mx
import numpy as np
import tyro

TRAIN = 0.9  # share of the text


@dataclass(frozen=True, kw_only=True)
class TextTask(StoredTask):
    """Predict the next character."""

    summary = "Predict the next character of tiny Shakespeare, or of any text (paper §6.3)."

    length: int = 256
    """Characters L of a training sequence."""
    stateful: bool = False
    """Read the text on: a sequence begins where the one before it in the same row ended, with its state.
    Best with --alpha 0."""
    without_replacement: Annotated[bool, tyro.conf.arg(aliases=("--once",))] = False
    """Read the text in windows side by side, in random order, each one once before any comes again; else windows are
    drawn from anywhere, with replacement."""
    characters: int | None = None
    """Train on the first so many characters only; what is held out stays the same. All that train, if not given."""
    sample: int = 160
    """Characters to write at each validation, to look at; 0 for none."""

    def __post_init__(self):
        require_positive(self, "length")
        require(self.sample >= 0, f"sample={self.sample}: must be 0 (off) or above")
        require(self.characters is None or self.characters >= 1, f"characters={self.characters}: must be at least 1")
        require(
            not (self.stateful and self.without_replacement),
            "without_replacement: a stateful run reads the text on; drop one of the two",
        )

    @property
    def shape(self) -> Shape:
        """Every position is read; the vocabulary is tiny Shakespeare's."""
        return Shape(text_file.CHARACTERS, self.length, self.length)

    def load(self, vocabulary: Characters | None = None) -> "TextData":
        """Read and check the text; see `mlx_rtx.tasks.text_file.load`."""
        text, path = text_file.load(self.data)
        return TextData(self, text, path.name, vocabulary)

    def check_model(self, kind: ModelKind, architecture: Architecture) -> None:
        """A stateful run needs a state, positions without an end, and whole blocks."""
        if not self.stateful:
            return
        K, L = architecture.block, self.length
        require(kind == "recurrent", f"model={kind}: has no state for stateful training to carry")
        require(
            not architecture.has_limit,
            f"positions={architecture.positions!r}: end with a sequence, stateful training goes on; "
            "use --positions block",
        )
        require(L % K == 0, f"length={L}: stateful training needs whole blocks, a multiple of block={K}")

    def advise(self, kind: ModelKind, architecture: Architecture) -> Iterator[str]:
        """A stateful run trains best where α starts at 0."""
        if self.stateful and architecture.alpha > 0:
            yield f"with --stateful an alpha of {architecture.alpha} may run off to 1 and stay there; --alpha 0 trains"


class TextData(Data):
    """A text in memory, as tokens.

    Args:
        task: settings.
        text: the whole text.
        source: name of what it came from.
        vocabulary: see `Task.load`.
    """

    metrics = ("loss", "bits_per_character", "accuracy")
    splits = ("stream", "validation")
    long_range = False

    def __init__(self, task: TextTask, text: str, source: str, vocabulary: Characters | None):
        self.task, self.stateful = task, task.stateful
        self.vocabulary: Characters = vocabulary or Characters(text)
        tokens = self.vocabulary.encode(text, source) if text else np.zeros(0, np.int32)
        cut = int(TRAIN * len(tokens))
        read = cut if task.characters is None else task.characters
        require(read <= cut, f"characters={read}: only {cut:,} characters of {source} train")
        self._train, self._held_out = mx.array(tokens[:read]), tokens[cut:]
        require(
            cut > task.length and len(self._held_out) > 1,
            f"{source}: {len(tokens):,} characters are too few for sequences of {task.length}; "
            "give a longer text or a smaller --length",
        )
        require(read > task.length, f"characters={read}: too few for sequences of {task.length}; use more")
        self.fingerprint = sha256(text.encode("utf-8"))
        self._described = {
            "length": task.length,
            "characters": len(self.vocabulary),
            "train": read,
            "validation": len(self._held_out),
            "source": source,
        }

    @property
    def vocab_size(self) -> int:
        """Number of different characters V."""
        return len(self.vocabulary)

    @property
    def length(self) -> int:
        """Characters L of a training sequence."""
        return self.task.length

    @property
    def chance(self) -> float:
        """Loss of a uniform guess among the characters, ln V nats."""
        return math.log(self.vocab_size)

    def describe(self) -> dict:
        """Sizes and source."""
        return self._described

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Characters (size, L) from places drawn with replacement, and those that follow them (size, L)."""
        starts = mx.random.randint(0, len(self._train) - self.length, (size, 1), key=key)
        return self._cut(starts)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Windows drawn with replacement, without, or contiguous ones, as the task says."""
        if self.stateful:
            return self._contiguous(mx.random.key(seed), step, size)
        if self.task.without_replacement:
            return self._without_replacement(mx.random.key(seed), step, size)
        return super().batch(seed, step, size)

    def _without_replacement(self, key: mx.array, step: int, size: int) -> Batch:
        """The ``step``-th batch when windows side by side come in random order, each once before any comes again.

        ``key`` fixes the order, another one each epoch, and where the first window begins.
        """
        L, usable = self.length, len(self._train) - 1
        batches = usable // L // size
        require(batches >= 1, f"batch={size}: the text has not so many windows of {L}; use a smaller --batch")
        epoch, at = divmod(step, batches)
        order, begin = mx.random.split(mx.random.split(key, epoch + 1)[epoch])
        windows = mx.random.permutation(usable // L, key=order)[at * size : (at + 1) * size]
        return Batch(*self._cut(mx.random.randint(0, usable % L + 1, key=begin) + L * windows[:, None]))

    def _contiguous(self, key: mx.array, step: int, size: int) -> Batch:
        """The ``step``-th batch when ``size`` rows read the text on side by side, and again from the start.

        ``key`` fixes where reading begins each epoch.
        """
        usable, L = len(self._train) - 1, self.length
        chunks = usable // (size * L)
        require(chunks >= 1, f"batch={size}: the text is too short for so many rows of {L}; use a smaller --batch")
        epoch, chunk = divmod(step, chunks)
        spare = usable - size * chunks * L
        begin = mx.random.randint(0, spare + 1, key=mx.random.split(key, epoch + 1)[epoch])
        starts = begin + L * (chunk + chunks * mx.arange(size)[:, None])
        return Batch(*self._cut(starts), continues=chunk > 0)

    def _cut(self, starts: mx.array) -> tuple[mx.array, mx.array]:
        places = starts + mx.arange(self.length)
        return self._train[places], self._train[places + 1]

    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """The held-out text in windows (``validation``), or on end (``stream``).

        A stateful run validates in ``batch`` windows as long as they need be. ``samples`` windows are
        spread evenly over the text. The last window is filled up with text from before it, not scored twice.
        """
        last = len(self._held_out) - 1  # number of targets
        length = self.length
        if split == "stream" or self.task.stateful:
            length = -(-last // (1 if split == "stream" else batch))
        length = min(length, last)
        whole = last // length
        starts = np.arange(whole) * length
        if samples is not None and samples < whole:
            starts = starts[np.linspace(0, whole - 1, samples).round().astype(int)]
        windows = [(starts[i : i + batch], length) for i in range(0, len(starts), batch)]
        if last % length and len(starts) == whole:
            windows.append((np.array([last - length]), last % length))
        for begins, scored in windows:
            rows = self._held_out[begins[:, None] + np.arange(length + 1)]
            yield Sequences(length, partial(columns, rows), mx.array(rows[:, -scored:]))

    def illustrate(self, write: Callable[[str, int], str]) -> str | None:
        """Characters that the model writes after a line break."""
        if not self.task.sample:
            return None
        known = self.vocabulary.characters
        return write("\n" if "\n" in known else known[0], self.task.sample)
