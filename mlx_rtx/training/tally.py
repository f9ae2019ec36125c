"""Statistics of the steps since the last report and since the last validation; they are saved in checkpoints."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_rtx.training.step import StepResult

import mlx.core as mx


@dataclass(kw_only=True)
class Tally:
    """Collects the results of steps, and waits for them only when a report or the state is requested.

    Example:
        >>> tally = Tally()
        >>> tally.add(step(tokens, targets, lr=1e-3), length=160)
        >>> tally.report()["steps"]
        1
    """

    losses: list[float] = field(default_factory=list)
    """Losses of the steps on the current stage since the last report."""
    lengths: list[int] = field(default_factory=list)
    """Sequence lengths of all steps since the last report."""
    seconds: float = 0.0
    """Duration of these steps when the tally was saved."""
    reported: list[float] = field(default_factory=list)
    """Losses reported since the last validation."""
    skipped: int = 0
    """Number of steps since the last validation that were skipped because gradient or weights would not be finite."""
    spikes: int = 0
    """Number of steps since the last validation that were skipped because the gradient was too large."""
    accuracy: float | None = None
    """Accuracy of the last validation."""

    def __post_init__(self):
        self._clock = time.perf_counter() - self.seconds
        self._waiting: list[tuple[StepResult, bool]] = []

    def add(self, result: StepResult, length: int, counts: bool = True) -> None:
        """Add a step on sequences of a given length; ``counts`` tells whether it trained on the current stage."""
        self.lengths.append(length)
        self._waiting.append((result._replace(carry=None), counts))

    def settle(self) -> None:
        """Wait for the steps, and count those that were skipped."""
        if self._waiting:
            results = [result for result, _ in self._waiting]
            finite = int(float(mx.isfinite(mx.stack([result.norm for result in results])).sum()))
            self.skipped += len(results) - finite
            self.spikes += finite - int(float(mx.stack([result.taken for result in results]).sum()))
            self.losses += [float(result.loss) for result, counts in self._waiting if counts]
            self._waiting = []

    def report(self) -> dict[str, Any] | None:
        """Return loss, mean length, steps and seconds since the last report, and reset them; None without losses."""
        self.settle()
        if not self.losses:
            return None
        steps, seconds = len(self.lengths), time.perf_counter() - self._clock
        loss = float(mx.array(self.losses).mean())
        length = round(sum(self.lengths) / steps)
        self.reported.append(loss)
        self.begin_report()
        return {"loss": loss, "length": length, "steps": steps, "seconds": seconds}

    @property
    def untaken(self) -> int:
        """Number of settled steps since the last validation that were skipped."""
        return self.skipped + self.spikes

    def warnings(self, limit: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield warnings about skipped steps, as text and as fields of an event; ``limit`` is ``skip_above``."""
        for skipped, reason, mark in (
            (self.skipped, "or weights that would not be finite", {}),
            (self.spikes, f"more than {limit:g} times as large as usual", {"above": limit}),
        ):
            if skipped:
                yield f"warning: skipped {skipped} steps with a gradient {reason}", {"skipped": skipped, **mark}

    def begin_report(self) -> None:
        """Reset the statistics of the next report."""
        self._waiting, self.losses, self.lengths = [], [], []
        self._clock = time.perf_counter()

    def begin_validation(self, accuracy: float) -> None:
        """Reset all statistics, and record the accuracy of the validation that just ended."""
        self.reported, self.skipped, self.spikes, self.accuracy = [], 0, 0, accuracy
        self.begin_report()

    def state(self) -> dict[str, Any]:
        """Return the tally as a dict that can be written as JSON; `mlx_rtx.support.typed.make` restores it."""
        self.settle()
        self.seconds = time.perf_counter() - self._clock if self.lengths else 0.0
        return asdict(self)
