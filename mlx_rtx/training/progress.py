"""Where training stands by its validations: the best weights, the learning rate, and a collapse.

Pure bookkeeping on validation losses: no arrays, and its whole state is a small dict.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from mlx_rtx.support.errors import require_choices, require_positive


@dataclass(frozen=True, kw_only=True)
class ProgressConfig:
    """What validations decide."""

    lr_decay: Literal["none", "cosine"] = "none"
    """Learning rate over the samples of the run: as it is, or down to a tenth along a half cosine."""
    collapse_patience: int = 8
    """Validations in a row above half of a guess's loss, none the lowest, that count as a collapse."""

    def __post_init__(self):
        require_positive(self, "collapse_patience")
        require_choices(self)


class Verdict(Enum):
    """What a validation means for training."""

    GOING = "going"
    BEST = "best"  # the best weights of this stage so far
    ADVANCED = "advanced"  # they also end the stage
    COLLAPSED = "collapsed"  # go back to the best weights; the learning rate is halved


class Progress:
    """Training with one stage.

    Args:
        config: thresholds and rules.
        lr: learning rate at the start.
        chance: loss of a guess, in nats.

    Example:
        >>> progress = Progress(ProgressConfig(), lr=1e-3, chance=2.3)
        >>> progress.observe(2.0), progress.observe(2.1)
        (<Verdict.BEST: 'best'>, <Verdict.GOING: 'going'>)
    """

    STATE: tuple[str, ...] = ("base_lr", "lr", "best", "stage", "lowest", "stale")

    def __init__(self, config: ProgressConfig, lr: float, chance: float):
        self.config, self.chance = config, chance
        self.base_lr = self.lr = lr
        self.best = math.inf  # loss of this stage's best validation
        self.stage = 0  # stages passed
        self.lowest = math.inf  # loss since the stage began or training collapsed
        self.stale = 0  # validations in a row that neither lowered it nor were any good

    @property
    def final_samples(self) -> int | None:
        """Held-out sequences that score the run at its end; None for all there are."""
        return None

    @property
    def goal(self) -> str:
        """What may end the run before its samples do, in words before their number."""
        return ""

    @property
    def where(self) -> dict:
        """What tells this stage from others, for reports."""
        return {}

    def rate(self, done: float) -> float:
        """Learning rate when a share ``done`` in [0, 1] of the run's samples is used."""
        return self.lr * (0.55 + 0.45 * math.cos(math.pi * done)) if self.config.lr_decay == "cosine" else self.lr

    def observe(self, loss: float) -> Verdict:
        """Take a validation loss; say what it means."""
        good = loss < self.chance / 2  # it does the task, if not well
        self.stale = 0 if good or loss < self.lowest else self.stale + 1
        self.lowest = min(loss, self.lowest)
        began_good = self.stage > 0 or self.best < self.chance / 2
        if not math.isfinite(loss) or (began_good and self.stale >= self.config.collapse_patience):
            self.lowest, self.stale = math.inf, 0
            self.base_lr, self.lr = self.base_lr / 2, self.lr / 2
            return Verdict.COLLAPSED
        if loss < self.best and (good or self.stage == 0):  # else the weights the stage began with are better
            self.best = loss
            return Verdict.BEST
        return Verdict.GOING

    def solved(self, loss: float, sequence_accuracy: float) -> bool:
        """Whether the scores of a validation give reason to end before all samples are used."""
        return False

    def state(self) -> dict:
        """All that `restore` needs, ready for JSON."""
        return {name: getattr(self, name) for name in self.STATE}

    def restore(self, state: dict) -> None:
        """Continue from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)
