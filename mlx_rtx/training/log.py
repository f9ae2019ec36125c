"""What a run says: a bar on a terminal, plain lines elsewhere, and always ``metrics.jsonl``."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_rtx.support.errors import UserError
from mlx_rtx.support.files import write_whole

from tqdm import tqdm


class RunLog:
    """Writes events to a file and to a person.

    Args:
        path: ``metrics.jsonl``; lines of steps after ``step`` are dropped (a resumed run repeats them).
        samples: samples of the whole run, for the bar.
        step, seen: steps and samples done before.
        validated: whether a validation after ``step`` is done; else what it said is dropped as well.
    """

    def __init__(self, path: Path, samples: int, step: int = 0, seen: int = 0, validated: bool = True):
        self.path = path
        self.lost = False  # whether nobody can read what is said any more
        self._held: list[tuple[str, str, dict[str, Any]]] | None = None  # events that wait for others
        done = (line for line in read_lines(path) if line["step"] <= step)
        kept = "".join(
            json.dumps(line) + "\n" for line in done if validated or line["step"] < step or line["kind"] == "train"
        )
        write_whole(path, lambda temporary: temporary.write_text(kept))
        self._bar = None
        if sys.stdout.isatty():
            self._bar = tqdm(total=samples, initial=seen, unit="sample", file=sys.stdout, dynamic_ncols=True)

    def report(self, **fields: Any) -> None:
        """A progress report: the bar moves, or a line is printed."""
        self._record("train", fields)
        if self._bar is None:
            self.say(line(fields))
        else:
            self._bar.update(fields["samples"] - self._bar.n)
            shown = ("loss", "accuracy", "alpha", "noise", "lr", "tokens_per_s", "peak_gb")
            self._bar.set_postfix_str(line({name: fields[name] for name in shown if name in fields}))

    def event(self, kind: str, text: str, **fields: Any) -> None:
        """Something worth a line of its own."""
        if self._held is not None:
            self._held.append((kind, text, fields))
            return
        self._record(kind, fields)
        self.say(text)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Hold events back, and let them go when no exception has come between."""
        self._held = []
        try:
            yield
            held = self._held
        finally:
            self._held = None
        for kind, text, fields in held:
            self.event(kind, text, **fields)

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.lost:
            return
        try:
            if self._bar is None:
                print(text, flush=True)
            else:
                self._bar.write(text, file=sys.stdout)
        except OSError:  # the training must not end on it in the middle of something
            self.lost = True

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _record(self, kind: str, fields: dict[str, Any]) -> None:
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"kind": kind, **fields}) + "\n")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); free some space") from None


def line(fields: dict[str, Any]) -> str:
    """``name=value`` pairs, numbers to four significant digits, empty lists left out.

    Example:
        >>> line({"step": 12345, "loss": 0.123456, "alpha": [0.5]})
        'step=12345 loss=0.1235 alpha=0.5'
    """
    return " ".join(f"{name}={_short(value)}" for name, value in fields.items() if value != [])


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a ``metrics.jsonl``; a last one cut off by a crash is left out."""
    found = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(text))
        except ValueError:
            break
    return found
