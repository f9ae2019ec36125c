"""What steps came to since the last report, and since the last validation; a run that resumes goes on with it."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_rtx.training.step import StepResult

import mlx.core as mx


@dataclass(kw_only=True)
class Tally:
    """Takes steps in without waiting for them, until it is asked for what they came to.

    Example:
        >>> tally = Tally()
        >>> tally.add(step(tokens, targets, lr=1e-3), length=160)
        >>> tally.report()["steps"]
        1
    """

    losses: list[float] = field(default_factory=list)
    """Of the steps since the last report that were on the present stage."""
    lengths: list[int] = field(default_factory=list)
    """Of the sequences of all steps since the last report."""
    seconds: float = 0.0
    """That these took, when the tally was stored."""
    reported: list[float] = field(default_factory=list)
    """Losses reported since the last validation."""
    skipped: int = 0
    """Steps since the last validation that were not taken, for gradients or weights that would not be finite."""
    spikes: int = 0
    """The same for one that was too large."""
    accuracy: float | None = None
    """That of the last validation."""

    def __post_init__(self):
        self._clock = time.perf_counter() - self.seconds
        self._waiting: list[tuple[StepResult, bool]] = []

    def add(self, result: StepResult, length: int, counts: bool = True) -> None:
        """Take in a step on sequences of a length; ``counts`` says whether its loss is of the present stage."""
        self.lengths.append(length)
        self._waiting.append((result._replace(carry=None), counts))

    def settle(self) -> None:
        """Wait for the steps, and count those that were not taken."""
        if self._waiting:
            results = [result for result, _ in self._waiting]
            finite = int(float(mx.isfinite(mx.stack([result.norm for result in results])).sum()))
            self.skipped += len(results) - finite
            self.spikes += finite - int(float(mx.stack([result.taken for result in results]).sum()))
            self.losses += [float(result.loss) for result, counts in self._waiting if counts]
            self._waiting = []

    def report(self) -> dict[str, Any] | None:
        """Loss, mean length, steps and seconds since the last report, which ends here; None while no loss counts."""
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
        """Steps since the last validation that were not taken, as far as they are settled."""
        return self.skipped + self.spikes

    def warnings(self, limit: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """What to say of steps that were not taken, in words and as fields; ``limit`` is what was too large."""
        for skipped, reason, mark in (
            (self.skipped, "or weights that would not be finite", {}),
            (self.spikes, f"more than {limit:g} times as large as usual", {"above": limit}),
        ):
            if skipped:
                yield f"warning: {skipped} steps with a gradient {reason} were not taken", {"skipped": skipped, **mark}

    def begin_report(self) -> None:
        """Forget the steps and the time that the next report would tell of."""
        self._waiting, self.losses, self.lengths = [], [], []
        self._clock = time.perf_counter()

    def begin_validation(self, accuracy: float) -> None:
        """Forget all but what the last validation came to."""
        self.reported, self.skipped, self.spikes, self.accuracy = [], 0, 0, accuracy
        self.begin_report()

    def state(self) -> dict[str, Any]:
        """All of it, ready for JSON; `make` of `mlx_rtx.support.typed` goes on from there."""
        self.settle()
        self.seconds = time.perf_counter() - self._clock if self.lengths else 0.0
        return asdict(self)
