"""What a run says: a bar on a terminal, plain lines elsewhere, and ``metrics.jsonl``, to which lines are only added.

A run that resumes repeats what it had not saved. So a line tells of what came of the run only while no later line is of
an earlier step, nor is one of its own step that says that the validation there is repeated; `read_lines` leaves out the
others. Each line ends with a checksum of what stands before.
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

NEEDED: dict[str, dict[str, Any]] = {  # what readers need of lines, of all and by kind
    "": {"kind": str, "step": int},
    "train": {"samples": int, "loss": float, "length": int, "alpha": list[float]},
    "validation": {"samples": int, "loss": float, "accuracy": float},
    "stage": {"samples": int, "next_noise": int},
    "final": {"samples": int},
    "resume": {"validated": bool, "environment": dict},
}
SHOWN = ("loss", "accuracy", "noise", "alpha", "lr", "tokens_per_s", "peak_gb")  # on a bar, as far as there is room
CHECKSUM = ', "crc32": "'  # what begins a line's last field; older lines have none


class RunLog:
    """Writes events to a file and to a person.

    Args:
        path: ``metrics.jsonl``.
        samples: samples of the whole run, for the bar.
        seen: samples done before.
    """

    def __init__(self, path: Path, samples: int, seen: int = 0):
        require_appendable(path)
        self.path = path
        self.tracker: Tracker | None = None  # another program that is told the same
        self.lost = False  # whether nobody can read what is said any more
        self._held: list[tuple[str, str, dict[str, Any]]] | None = None  # events that wait for others
        self._bar = Bar(samples, seen) if sys.stdout.isatty() else None
        self._scored: dict[str, int] = {}  # sequences of each kind of scores

    def report(self, left: float | None = None, stages: tuple[int, int] = (1, 1), **fields: Any) -> None:
        """A progress report: the bar moves, or a line is printed.

        Args:
            left: seconds to the end, if all samples are used and all that are left are of full length.
            stages: number of the present one, and of all.
            fields: what is reported.
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
        """Pass sequences on, and show how far their scoring is; how many there are is known from the last time."""
        if self._bar is not None:
            sequences = self._bar.within(kind, sequences, self._scored.get(kind))
        done = 0
        for batch in sequences:
            yield batch
            done += len(batch.targets)
        self._scored[kind] = done

    def event(self, kind: str, text: str, **fields: Any) -> None:
        """Something worth a line of its own."""
        if self._held is not None:
            self._held.append((kind, text, fields))
            return
        self.note(kind, **fields)
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

    def note(self, kind: str, **fields: Any) -> None:
        """Something for the file alone."""
        text = json.dumps({"kind": kind, **fields})[:-1]
        append_line(self.path, f'{text}{CHECKSUM}{_checksum(text.encode())}"}}')
        if self.tracker and (values := numbers(kind, fields)):
            self._tell(lambda tracker: tracker.log(values, fields["step"]))

    def _tell(self, what: Callable[[Tracker], Any]) -> None:
        """Have a tracker do something; whatever goes wrong there, the training does not."""
        tracker, self.tracker = self.tracker, None
        assert tracker is not None
        try:
            what(tracker)
            self.tracker = tracker
        except Exception as error:
            self.say(f"warning: the tracker failed ({type(error).__name__}: {error}) and is told no more")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self.lost:
            return
        try:
            if self._bar is None:
                print(text, flush=True)
            else:
                self._bar.write(text)
        except OSError:  # the training must not end on it in the middle of something
            self.lost = True

    def close(self) -> None:
        """End the bar, and what follows the run."""
        if self._bar is not None:
            self._bar.close()
        if self.tracker:
            self._tell(lambda tracker: tracker.close())


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
    """The lines of a ``metrics.jsonl`` that tell of the run as it went on in the end; see `read_json_lines`."""
    found: list[dict] = []
    for said in read_json_lines(path, _parse):
        while found and _supersedes(said, found[-1]):
            found.pop()
        found.append(said)
    return found


def _supersedes(said: dict, before: dict) -> bool:
    """Whether a line tells that what one before it told was done anew."""
    if said["step"] != before["step"]:
        return said["step"] < before["step"]
    return said["kind"] == "resume" and not said["validated"] and before["kind"] not in ("train", "resume")


def _parse(text: bytes) -> dict | None:
    """A line, if it is one, without its checksum."""
    before, _, after = text.rstrip(b"\n").rpartition(CHECKSUM.encode())
    if before and after != _checksum(before).encode() + b'"}':
        return None
    said = parse_table(before + b"}" if before else text)
    if said is None:
        return None
    needed = NEEDED[""] | NEEDED.get(str(said.get("kind")), {})
    return said if all(fits(said.get(name), kind) for name, kind in needed.items()) else None


def _checksum(text: bytes) -> str:
    return f"{zlib.crc32(text):08x}"
