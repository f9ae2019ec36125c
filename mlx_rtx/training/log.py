"""Output of a run: a progress bar on a terminal, otherwise plain lines, and the append-only log ``metrics.jsonl``.

A resumed run repeats the steps that it had not saved. A line of the log is therefore superseded by a later line of an
earlier step, and by a later line of the same step that reports that the validation there is repeated; `read_lines`
skips superseded lines. Each line ends with a checksum of the text before it.
"""

import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlx_rtx.support.json_lines import append_line, parse_table, read_json_lines, require_appendable
from mlx_rtx.support.typed import fits
from mlx_rtx.tasks import Sequences
from mlx_rtx.training.bar import Bar, in_words
from mlx_rtx.training.tracking import Tracker, numbers

NEEDED: dict[str, dict[str, Any]] = {  # required fields: of all lines (""), and by kind
    "": {"kind": str, "step": int},
    "train": {"samples": int, "loss": float, "length": int, "alpha": list[float]},
    "validation": {"samples": int, "loss": float, "accuracy": float},
    "stage": {"samples": int, "next_noise": int},
    "final": {"samples": int},
    "resume": {"validated": bool, "environment": dict},
}
SHOWN = ("loss", "accuracy", "noise", "alpha", "lr", "tokens_per_s", "peak_gb")  # fields on the bar, as far as they fit
CHECKSUM = ', "crc32": "'  # start of a line's last field; lines of older versions have none


class RunLog:
    """Writes events to ``metrics.jsonl`` and to standard output.

    Args:
        path: path of ``metrics.jsonl``.
        samples: number of samples of the whole run, for the bar.
        seen: number of samples already done.
    """

    def __init__(self, path: Path, samples: int, seen: int = 0):
        require_appendable(path)
        self.path = path
        self.tracker: Tracker | None = None  # experiment tracker that receives the same events
        self.lost = False  # whether writing to standard output has failed
        self._held: list[tuple[str, str, dict[str, Any]]] | None = None  # events held back by `all_or_none`
        self._bar = Bar(samples, seen) if sys.stdout.isatty() else None
        self._scored: dict[str, int] = {}  # number of sequences by kind of scoring

    def report(self, left: float | None = None, stages: tuple[int, int] = (1, 1), **fields: Any) -> None:
        """Log a progress report, and update the bar or print a line.

        Args:
            left: seconds to the end, if all samples are used and all remaining ones have full length.
            stages: number of the current stage, and number of stages.
            fields: fields of the report.
        """
        self.note("train", **fields)
        if self._bar is None:
            return self.say(line(fields))
        words = [] if left is None else [f"{'≤ ' if stages[1] > 1 else ''}{in_words(left)} left"]
        shown = [
            line({name: fields[name]}).replace("=", " ") for name in SHOWN if name in fields and fields[name] != []
        ]
        words += [shown[0], *([f"stage {stages[0]} of {stages[1]}"] if stages[1] > 1 else []), *shown[1:]]
        return self._bar.show(fields["samples"], words)

    def scoring(self, kind: str, sequences: Iterable[Sequences]) -> Iterator[Sequences]:
        """Yield ``sequences`` and show progress on the bar; their total number is known from the previous scoring."""
        if self._bar is not None:
            sequences = self._bar.within(kind, sequences, self._scored.get(kind))
        done = 0
        for batch in sequences:
            yield batch
            done += len(batch.targets)
        self._scored[kind] = done

    def event(self, kind: str, text: str, **fields: Any) -> None:
        """Log an event, and print ``text``."""
        if self._held is not None:
            self._held.append((kind, text, fields))
            return
        self.note(kind, **fields)
        self.say(text)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Return a context that holds events back; they are logged at its end, or dropped if it raises."""
        self._held = []
        try:
            yield
            held = self._held
        finally:
            self._held = None
        for kind, text, fields in held:
            self.event(kind, text, **fields)

    def note(self, kind: str, **fields: Any) -> None:
        """Log an event without printing anything."""
        text = json.dumps({"kind": kind, **fields})[:-1]
        append_line(self.path, f'{text}{CHECKSUM}{_checksum(text.encode())}"}}')
        if self.tracker and (values := numbers(kind, fields)):
            self._call_tracker(lambda tracker: tracker.log(values, fields["step"]))

    def _call_tracker(self, function: Callable[[Tracker], Any]) -> None:
        """Call ``function`` with the tracker; if it raises, warn and drop the tracker, so that training continues."""
        tracker, self.tracker = self.tracker, None
        assert tracker is not None
        try:
            function(tracker)
            self.tracker = tracker
        except Exception as error:
            self.say(f"warning: the tracker failed ({type(error).__name__}: {error}) and is no longer used")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.lost:
            return
        try:
            if self._bar is None:
                print(text, flush=True)
            else:
                self._bar.write(text)
        except OSError:  # e.g. a closed pipe: the trainer stops at the next opportunity, not in the middle of a step
            self.lost = True

    def close(self) -> None:
        """Close the bar and the tracker."""
        if self._bar is not None:
            self._bar.close()
        if self.tracker:
            self._call_tracker(lambda tracker: tracker.close())


def line(fields: dict[str, Any]) -> str:
    """Format fields as ``name=value`` pairs, numbers to four significant digits, without empty lists.

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
    """Return the lines of a ``metrics.jsonl`` that no later line supersedes; see `read_json_lines`."""
    found: list[dict] = []
    for event in read_json_lines(path, _parse):
        while found and _supersedes(event, found[-1]):
            found.pop()
        found.append(event)
    return found


def _supersedes(event: dict, before: dict) -> bool:
    """Return whether the step or validation of an earlier line was repeated, according to a later one."""
    if event["step"] != before["step"]:
        return event["step"] < before["step"]
    return event["kind"] == "resume" and not event["validated"] and before["kind"] not in ("train", "resume")


def _parse(text: bytes) -> dict | None:
    """Parse a line and remove its checksum; return None if the line is invalid."""
    before, _, after = text.rstrip(b"\n").rpartition(CHECKSUM.encode())
    if before and after != _checksum(before).encode() + b'"}':
        return None
    event = parse_table(before + b"}" if before else text)
    if event is None:
        return None
    needed = NEEDED[""] | NEEDED.get(str(event.get("kind")), {})
    return event if all(fits(event.get(name), kind) for name, kind in needed.items()) else None


def _checksum(text: bytes) -> str:
    return f"{zlib.crc32(text):08x}"
