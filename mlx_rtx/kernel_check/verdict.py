"""Verdicts on kernels, and the questions they answer, stored as files in the user's cache.

Before a check starts anything that might crash the machine, it writes the stage to the file and syncs it to disk. If a
file names a stage but no check is running, that check has crashed: the kernels count as failed and are not tried again.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlx_rtx.kernels import FORMS, Form
from mlx_rtx.model.config import Architecture
from mlx_rtx.support import backend
from mlx_rtx.support.cache import cache_folder
from mlx_rtx.support.errors import require
from mlx_rtx.support.files import sha256
from mlx_rtx.support.typed import fits, make

OPTIONS = ("dim", "block", "heads", "history", "activation", "state_norm", "qk_norm", "attention_dropout")


@dataclass(frozen=True)
class Question:
    """Conditions for which a verdict is valid; if any of them differs, a new verdict is needed."""

    chip: str
    system: str
    """Version of the operating system, which contains the compiler of the kernels."""
    mlx: str
    sources: str
    """Hash of all source files of `mlx_rtx.kernels`."""
    tf32: str
    options: dict[str, Any]
    """Settings of an `Architecture` for which kernels are compiled."""
    batch: int

    @property
    def key(self) -> str:
        """Short hash that identifies the question."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())[:16]


@dataclass(frozen=True)
class Trial:
    """Results of checking one form of the kernels."""

    form: Form
    error: float | None = None
    """Largest deviation of the loss or a gradient from plain operations, relative to its largest absolute value."""
    failure: str | None = None
    """Why the form must not be used; None if it is correct."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Median time of a gradient computation (forward and backward scan), by number of windows."""


@dataclass(frozen=True)
class Verdict:
    """Results of a check, complete or in progress."""

    question: Question
    stage: str | None = None
    """Stage in progress; None if there is none."""
    failure: str | None = None
    """Why no kernels may be used at all; None if they may."""
    trials: tuple[Trial, ...] = ()
    plain: dict[int, float] | None = None
    """Times of plain operations, measured alternately with the forms; None if not timed or too variable."""
    untimed: str = "the forms were not timed"
    """Why ``plain`` is None."""
    form: Form | None = None
    """Form to use; None for plain operations."""
    took: float = 0.0
    """Duration of the check in seconds."""

    @property
    def complete(self) -> bool:
        """Whether the check is finished."""
        none_is_correct = bool(self.trials) and not self.correct
        return self.stage is None and (self.failure is not None or self.plain is not None or none_is_correct)

    @property
    def correct(self) -> list[Trial]:
        """Trials of the forms that were found correct."""
        return [trial for trial in self.trials if trial.failure is None]

    @property
    def ratio(self) -> float | None:
        """Time of the fastest correct form divided by that of plain operations, at the largest number of windows."""
        if self.plain is None or not self.correct:
            return None
        return min(trial.seconds[max(self.plain)] for trial in self.correct) / self.plain[max(self.plain)]


def ask(architecture: Architecture, batch: int) -> Question:
    """Return the question for these settings on this machine."""
    package = sorted(files("mlx_rtx.kernels").iterdir(), key=lambda file: file.name)
    sources = (file.read_bytes() for file in package if file.name.endswith((".py", ".h")))
    versions = backend.environment()
    options = {name: getattr(architecture, name) for name in OPTIONS} | {"dropout": architecture.dropout > 0}
    system = f"{platform.platform()}, {os.uname().version}"
    return Question(
        versions["device_name"] or "",
        system,
        versions["versions"]["mlx"],
        sha256(*sources),
        versions["tf32"],
        options,
        batch,
    )


class VerdictFile:
    """File at ``path`` that stores the verdict on a question."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def named(cls, key: str) -> "VerdictFile":
        """Return the file in the user's cache for the question with this key."""
        return cls(cache_folder("kernels") / f"{key}.json")

    def read(self) -> Verdict | None:
        """Return the verdict, or None if the file is missing, damaged, or written by another version."""
        try:
            stored = json.loads(self.path.read_text())
            question, trials, plain, form = (stored.pop(name) for name in ("question", "trials", "plain", "form"))
            made: dict[str, Any] = {
                "question": make(Question, question),
                "trials": tuple(
                    make(Trial, {**each, "form": _form(each["form"]), "seconds": _by_windows(each["seconds"])})
                    for each in trials
                ),
                "plain": None if plain is None else _by_windows(plain),
                "form": None if form is None else _form(form),
            }
            verdict = make(Verdict, stored | made)
            _ = verdict.ratio  # raises if times are missing
            return verdict
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            return None

    def write(self, verdict: Verdict) -> Verdict:
        """Write the verdict to disk with an atomic rename and fsync, and return it."""
        temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("w") as file:
            json.dump(asdict(verdict), file, indent=1)
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            _sync(folder)
        finally:
            os.close(folder)
        return verdict

    @contextmanager
    def lock(self) -> Iterator[int | None]:
        """Context manager: lock so that one process of this user checks at a time; yield None if it is already locked.

        The lock belongs to an open file description, which is yielded: it is held as long as this process or a child
        that inherits the descriptor is alive.
        """
        with self.path.with_name("lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()


def _sync(descriptor: int) -> None:
    """Flush written data to the disk itself; on macOS fsync does not suffice."""
    if command := getattr(fcntl, "F_FULLFSYNC", None):
        fcntl.fcntl(descriptor, command)
    else:
        os.fsync(descriptor)


def _form(stored: list) -> Form:
    """Return the form that JSON stores as a list."""
    form = Form(*stored)
    require(form._replace(windows=None) in FORMS and fits(form.windows, int | None), "form: unknown")
    return form


def _by_windows(seconds: dict[str, float]) -> dict[int, float]:
    """Return times by number of windows, which JSON stores as text."""
    return {int(windows): value for windows, value in seconds.items()}
