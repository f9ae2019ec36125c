"""Mixture of language modelling and copying in one model and one vocabulary.

A fraction of the rows of a batch are copy problems (`mlx_rtx.tasks.copying`), the others windows of a text
(`mlx_rtx.tasks.text`) of the same length, with every next character as a target. The vocabulary consists of the text's
characters followed by the copy problems' symbols. Held-out splits are ``text``, ``copy``, and ``validation`` with both,
which is used during training.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_rtx.support.errors import require, require_at_most
from mlx_rtx.support.inputs import IGNORED
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks import text_file
from mlx_rtx.tasks.copying import CopyTask
from mlx_rtx.tasks.task import Data, Sequences, Shape, StoredTask, check_draw, check_held_out
from mlx_rtx.tasks.text import TextData, TextTask
from mlx_rtx.tasks.vocabulary import Vocabulary

import mlx.core as mx


@dataclass(frozen=True, kw_only=True)
class MixtureTask(StoredTask):
    """Predict the next character of a text, and recall the payload of copy problems."""

    summary = "Predict the next character of tiny Shakespeare, and recall 16 tokens after noise, in one model."

    length: int = 256
    """Length L of both kinds of sequences in tokens."""
    payload: int = 16
    """Number of tokens P to recall, after L - 2P tokens of noise."""
    alphabet: int = 16
    """Number of symbols of copy problems: noise, payload symbols, marker."""
    copy_share: float = 0.5
    """Fraction of the rows of a batch that are copy problems."""

    def __post_init__(self):
        require_types(self)
        require_at_most(self, length=2**20)
        share, P = self.copy_share, self.payload
        require(0 < share < 1, f"copy_share={share}: must lie between 0 and 1, e.g. 0.5")
        require(self.length > 2 * P, f"length={self.length}: must be above {2 * P}, for payload={P} and noise")
        assert self.copy  # CopyTask checks payload and alphabet

    @property
    def copy(self) -> CopyTask:
        """Task of the copy problems."""
        return CopyTask(noise=self.length - 2 * self.payload, payload=self.payload, alphabet=self.alphabet)

    @property
    def shape(self) -> Shape:
        """Shape of the sequences, with a target at every position and the characters of tiny Shakespeare."""
        return Shape(text_file.CHARACTERS + self.alphabet, self.length, self.length)

    def load(self, vocabulary: Vocabulary | None = None) -> "MixtureData":
        """Read and check the text."""
        return MixtureData(self, TextTask(data=self.data, length=self.length, sample=0).load(vocabulary), self.copy)


class MixtureData(Data):
    """Data of a text and copy problems.

    Args:
        task: settings.
        text: data of the text.
        copy: copy problems to score, with any noise; those for training have the length of the text's windows.
    """

    metrics = ("loss", "accuracy")
    splits = ("text", "copy", "validation")
    masked = True

    def __init__(self, task: MixtureTask, text: TextData, copy: CopyTask):
        self.task, self.text, self.copy = task, text, copy
        self.fingerprint = text.fingerprint

    @property
    def vocab_size(self) -> int:
        """Vocabulary size: characters of the text, and symbols of copy problems."""
        return self.text.vocab_size + self.copy.vocab_size

    @property
    def length(self) -> int:
        """Length L of a training sequence in tokens."""
        return self.text.length

    @property
    def chance(self) -> float:
        """Loss in nats of guessing uniformly among the characters, which most targets are."""
        return self.text.chance

    @property
    def stage(self) -> dict[str, int]:
        """Noise of the copy problems to score."""
        return self.copy.stage

    def at_stage(self, stage: dict[str, int]) -> "MixtureData":
        """Return the data with another noise of the copy problems to score."""
        return MixtureData(self.task, self.text, self.copy.at_stage(stage)) if stage else self

    def describe(self) -> dict[str, Any]:
        """Return the description of the text, and the noise."""
        return {**self.text.describe(), **self.stage}

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens and targets, both (size, L): rows of copy problems, then of text."""
        check_draw(key, size)
        for_copy, for_text = mx.random.split(key)
        count = min(max(round(self.task.copy_share * size), 1), size - 1) if size > 1 else 0
        parts = [self.text.draw(for_text, size - count)]
        if count:
            tokens, payload = self.task.copy.make(for_copy, count)
            parts.insert(0, (self._shifted(tokens), self._targets(payload)))
        tokens, targets = (mx.concatenate(list(both)) for both in zip(*parts, strict=True))
        return tokens, targets

    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Yield windows of the held-out text (``text``), fresh copy problems (``copy``), or both (``validation``)."""
        check_held_out(self, split, samples, batch)
        text = self.text.held_out("validation", samples, batch, key)
        if split == "text":
            return text
        problems = self._problems(256 if samples is None else samples, batch, key)
        return problems if split == "copy" else itertools.chain(problems, text)

    def _problems(self, samples: int, batch: int, key: mx.array) -> Iterator[Sequences]:
        for part in self.copy.held_out("fresh", samples, batch, key):

            def read(start: int, end: int, tokens: Any = part.read_tokens) -> mx.array:
                return self._shifted(tokens(start, end))

            yield part._replace(read_tokens=read, targets=self._shifted(part.targets))

    def _shifted(self, symbols: mx.array) -> mx.array:
        """Convert symbols of copy problems to tokens of the joint vocabulary."""
        return symbols + self.text.vocab_size

    def _targets(self, payload: mx.array) -> mx.array:
        """Return targets (B, L) of copy problems, `IGNORED` except for the last P."""
        return mx.pad(self._shifted(payload), [(0, 0), (self.length - payload.shape[1], 0)], constant_values=IGNORED)
