"""What was found about kernels on this machine, and for what it holds: a file of the user's cache.

Whoever begins something that could take the machine down writes so first, through to the disk. A file whose check has
begun and which nobody works on any more says that it did: the kernels count as failed then, and are never tried again.
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
    """What a verdict holds for: where any of it differs, another one is needed."""

    chip: str
    system: str
    """Build of the operating system, whose compiler makes the kernels."""
    mlx: str
    sources: str
    """Hash of all files of `mlx_rtx.kernels`."""
    tf32: str
    options: dict[str, Any]
    """Those settings of an `Architecture` that kernels are compiled for."""
    batch: int

    @property
    def key(self) -> str:
        """A short name for it."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode())[:16]


@dataclass(frozen=True)
class Trial:
    """What was found about one form of the kernels."""

    form: Form
    error: float | None = None
    """Largest deviation from plain operations of a loss or gradient, in parts of its largest number."""
    failure: str | None = None
    seconds: dict[int, float] = field(default_factory=dict)
    """Median time of a gradient of two segments, by the windows of each."""


@dataclass(frozen=True)
class Verdict:
    """What is known so far."""

    question: Question
    stage: str | None = None
    """What is being tried; None where nothing is."""
    failure: str | None = None
    """Why kernels are not to be used at all."""
    trials: tuple[Trial, ...] = ()
    plain: dict[int, float] | None = None
    """Times of plain operations, taken in turn with those of the forms; None before, and where they meant nothing."""
    untimed: str = "the forms were not timed"
    """Why not, where there are no times."""
    form: Form | None = None
    """What to use."""
    took: float = 0.0
    """Seconds."""

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to find out."""
        none_is_right = bool(self.trials) and not self.right
        return self.stage is None and (self.failure is not None or self.plain is not None or none_is_right)

    @property
    def right(self) -> list[Trial]:
        """The forms that were found right."""
        return [trial for trial in self.trials if trial.failure is None]

    @property
    def ratio(self) -> float | None:
        """Time of the fastest right form over that of plain operations, at the most windows."""
        if self.plain is None or not self.right:
            return None
        return min(trial.seconds[max(self.plain)] for trial in self.right) / self.plain[max(self.plain)]


def ask(architecture: Architecture, batch: int) -> Question:
    """The question for this machine."""
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
    """The file at ``path`` with the verdict on a question."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def named(cls, key: str) -> "VerdictFile":
        """That of the user's cache for the question of that key."""
        return cls(cache_folder("kernels") / f"{key}.json")

    def read(self) -> Verdict | None:
        """What it holds; None if it is missing, damaged, or written by another version."""
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
            _ = verdict.ratio  # which needs its times
            return verdict
        except (OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            return None

    def write(self, verdict: Verdict) -> Verdict:
        """Put it on the disk before going on."""
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
        """The right to check: one process of this user has it at a time; None for the others.

        It belongs to an open file, which a process that inherits it has as well: as long as either lives it is taken.
        """
        with self.path.with_name("lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()


def _sync(descriptor: int) -> None:
    """Have what was written on the disk itself, which on macOS takes more than fsync."""
    if command := getattr(fcntl, "F_FULLFSYNC", None):
        fcntl.fcntl(descriptor, command)
    else:
        os.fsync(descriptor)


def _form(stored: list) -> Form:
    """A form, which JSON has as a list."""
    form = Form(*stored)
    require(form._replace(windows=None) in FORMS and fits(form.windows, int | None), "form: there is none like it")
    return form


def _by_windows(seconds: dict[str, float]) -> dict[int, float]:
    """Times by the number that JSON has as a text."""
    return {int(windows): value for windows, value in seconds.items()}
