"""Text task (paper §6.3): predict each next token of tiny Shakespeare, or of any text.

Tokens are characters, or subwords of any tokenizer. By default, the last tenth of the text is held out. Validation
covers all of it, in consecutive windows of L tokens (each held-out token except the first is predicted once).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from mlx_rtx.model.config import Architecture, ModelKind
from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.files import sha256
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks import text_file
from mlx_rtx.tasks.encoding import encode_part
from mlx_rtx.tasks.sources import HUB, absolute
from mlx_rtx.tasks.subwords import find_tokenizer, train_tokenizer
from mlx_rtx.tasks.task import (
    Batch,
    Data,
    Sequences,
    Shape,
    StoredTask,
    check_draw,
    check_held_out,
    check_step,
    columns,
)
from mlx_rtx.tasks.text_file import Text
from mlx_rtx.tasks.vocabulary import Characters, Vocabulary
from mlx_rtx.tasks.windows import Reading, Windows

import mlx.core as mx
import numpy as np
import tyro

HELD_OUT = 0.1  # fraction of the text


@dataclass(frozen=True, kw_only=True)
class TextTask(StoredTask):
    """Predict the next token."""

    summary = "Predict the next character of tiny Shakespeare, or the next token of any text (paper §6.3)."

    column: str = "text"
    """Column or JSON field of the text, in data sets of the hub (--data hf:NAME or hf:NAME:CONFIG) and .jsonl files."""
    documents: int | None = None
    """Read only this many documents, from the first; None: all."""
    validation: float | str = HELD_OUT
    """Validation set: a fraction of the text, from its end; or another text, given like --data.
    If --data is a data set of the hub: the name of a split."""
    tokenizer: str | None = None
    """Use subwords of this tokenizer instead of characters: a tokenizer.json, or a model on the Hugging Face hub."""
    vocab_size: int | None = None
    """Use this many subwords instead of characters: byte-level BPE, trained on the training text."""
    length: int = 256
    """Length L of a training sequence in tokens (characters or subwords)."""
    stateful: bool = False
    """Train on consecutive windows: each row of a batch continues that of the previous step, with its state.
    Works best with --alpha 0."""
    without_replacement: Annotated[bool, tyro.conf.arg(aliases=("--once",))] = False
    """Train on non-overlapping windows in random order, each once per epoch.
    Otherwise windows are drawn at random positions, with replacement."""
    characters: int | None = None
    """Train only on this many characters, from the first, with the same validation set; None: on all."""
    sample: int = 160
    """Number of tokens to generate and print at each validation; 0: none."""

    def __post_init__(self):
        require_types(self)
        require_positive(self, "length")
        require(self.sample >= 0, f"sample={self.sample}: must be 0 (off) or above")
        require_at_most(self, length=2**31 - 1, sample=2**20, vocab_size=2**24)
        for name in ("characters", "documents"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: must be at least 1")
        share = self.validation
        inside = isinstance(share, str) or 0 < share < 1
        require(inside, f"validation={share}: must lie between 0 and 1, e.g. 0.1, or name a file")
        require(
            self.tokenizer is None or self.vocab_size is None,
            f"vocab_size={self.vocab_size}: is for a tokenizer that is trained here; drop it, or --tokenizer",
        )
        require(
            not (self.stateful and self.without_replacement),
            "without_replacement: stateful training reads windows in order; drop one of the two",
        )

    @property
    def shape(self) -> Shape:
        """Shape of the sequences, with a target at every position; characters are assumed to be tiny Shakespeare's."""
        V = self.vocab_size or (len(find_tokenizer(self.tokenizer)) if self.tokenizer else text_file.CHARACTERS)
        return Shape(V, self.length, self.length)

    def load(self, vocabulary: Vocabulary | None = None) -> "TextData":
        """Read and check the text; see `mlx_rtx.tasks.text_file.find`."""
        text = text_file.find(self.data, self.column, documents=self.documents)
        if not isinstance(self.validation, str):
            return TextData(self, text, vocabulary=vocabulary)
        named, data = self.validation, self.data
        if data and data.startswith(HUB) and not named.startswith(HUB) and not Path(named).exists():
            return TextData(self, text, text_file.find(data, self.column, named, self.documents), vocabulary)
        return TextData(self, text, text_file.find(named, self.column, flag="--validation"), vocabulary)

    def with_absolute_paths(self) -> "TextTask":
        """Return the settings with absolute paths; see `Task.with_absolute_paths`."""
        validation = absolute(self.validation) if isinstance(self.validation, str) else self.validation
        tokenizer = self.tokenizer and absolute(self.tokenizer)
        return replace(self, data=self.data and absolute(self.data), validation=validation, tokenizer=tokenizer)

    def check_model(self, kind: ModelKind, architecture: Architecture) -> None:
        """Check that stateful training has a recurrent model, positions without a limit, and whole blocks."""
        if not self.stateful:
            return
        K, L = architecture.block, self.length
        require(kind == "recurrent", f"model={kind}: has no state for stateful training to carry")
        require(
            not architecture.has_limit,
            f"positions={architecture.positions!r}: limit the length, stateful training has no limit; "
            "use --positions block",
        )
        require(L % K == 0, f"length={L}: stateful training needs whole blocks, a multiple of block={K}")

    def advise(self, kind: ModelKind, architecture: Architecture) -> Iterator[str]:
        """Advise --alpha 0 for stateful training."""
        if self.stateful and architecture.alpha > 0:
            yield f"with --stateful an alpha of {architecture.alpha} may grow to 1 and stay there; use --alpha 0"

    @property
    def reading(self) -> Reading:
        """Order of the windows."""
        return "contiguous" if self.stateful else "without_replacement" if self.without_replacement else "drawn"


class TextData(Data):
    """A tokenized text.

    Args:
        task: settings.
        text: training text; includes the held-out text if ``validation`` is a fraction.
        held_out: held-out text, otherwise.
        vocabulary: see `Task.load`.
    """

    splits = ("stream", "validation")
    long_range = False

    def __init__(self, task: TextTask, text: Text, held_out: Text | None = None, vocabulary: Vocabulary | None = None):
        self.task, self.stateful = task, task.stateful
        whole, source = text.survey, text.name
        require(whole.characters > 0, f"{source}: is empty; give a text")
        share = task.validation if isinstance(task.validation, float) else 0.0
        cut = whole.characters if held_out else int((1 - share) * whole.characters)
        read = cut if task.characters is None else task.characters
        require(read <= cut, f"characters={read}: {source} has only {cut:,} characters for training")
        self.vocabulary: Vocabulary = vocabulary or self._make_vocabulary(text, read, held_out)
        unit, V = self.vocabulary.unit, self.vocabulary
        train = encode_part(text, 0, read, V, sized=False).tokens
        other = held_out or text
        self._tokens, self._sizes = encode_part(other, 0 if held_out else cut, other.survey.characters, V)
        found = len(train) + (0 if held_out else len(self._tokens))
        require(
            read < cut or (len(train) > task.length and len(self._tokens) > 1),
            f"{source}: {found:,} {unit}s are too few for sequences of {task.length}; "
            "give a longer text or a smaller --length",
        )
        require(len(train) > task.length, f"characters={read}: too few for sequences of {task.length}; use more")
        require(len(self._tokens) > 1, f"{other.name}: there is nothing to score; give more than one {unit}")
        self._windows = Windows(train, task.length, task.reading)
        self.fingerprint = whole.sha256
        if held_out or share != HELD_OUT:
            cut_off = held_out.survey.sha256 if held_out else share
            self.fingerprint = sha256(f"{whole.sha256} {cut_off}".encode())
        counted = ("bits_per_character",) if isinstance(V, Characters) else ()
        self.metrics = ("loss", *counted, "bits_per_byte", "accuracy")
        self._described = {
            "length": task.length,
            f"{unit}s": len(V),
            "train": len(train),
            "validation": len(self._tokens),
            "source": source,
        }

    def _make_vocabulary(self, text: Text, read: int, held_out: Text | None) -> Vocabulary:
        """Return the vocabulary: subwords are trained on the training text only, characters are those of all text."""
        if self.task.tokenizer:
            return find_tokenizer(self.task.tokenizer)
        if self.task.vocab_size:
            return train_tokenizer(filter(None, text.part(0, read)), self.task.vocab_size)
        return Characters(text.known + (held_out.known if held_out else ""))

    @property
    def vocab_size(self) -> int:
        """Vocabulary size V."""
        return len(self.vocabulary)

    @property
    def length(self) -> int:
        """Length L of a training sequence in tokens."""
        return self.task.length

    @property
    def chance(self) -> float:
        """Loss of guessing uniformly among the tokens, ln V nats."""
        return math.log(self.vocab_size)

    def describe(self) -> dict:
        """Return length, vocabulary size, sizes of both splits, and source."""
        return self._described

    def draw(self, key: mx.array, size: int) -> tuple[mx.array, mx.array]:
        """Return tokens (size, L) at positions drawn with replacement, and the tokens after them (size, L)."""
        check_draw(key, size)
        return self._windows.draw(key, size)

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """Return the windows of a training step, in the order that the task's settings determine."""
        check_step(seed, step, size)
        return self._windows.batch(seed, step, size)

    def held_out(self, split: str, samples: int | None, batch: int, key: mx.array) -> Iterator[Sequences]:
        """Yield the held-out text in windows (``validation``), or as a single sequence (``stream``).

        With ``stateful``, ``validation`` consists of ``batch`` long windows that cover the text. If ``samples`` is less
        than the number of windows, those used are spread evenly over the text. The last window is padded at its start
        with preceding text, which is not scored again.
        """
        check_held_out(self, split, samples, batch)
        last = len(self._tokens) - 1  # number of targets
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
            places = begins[:, None] + np.arange(length + 1)
            rows, sizes = self._tokens[places], self._sizes[places[:, -scored:]].sum(axis=1)
            targets = mx.array(rows[:, -scored:].astype(np.int32))
            yield Sequences(length, partial(columns, rows), targets, sizes)

    def illustrate(self, write: Callable[[str, int], str]) -> str | None:
        """Return text that the model generates after a line break."""
        return write(self.vocabulary.opening, self.task.sample) if self.task.sample else None
