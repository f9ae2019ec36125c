"""Where training stands by its validations: best weights, learning rate, collapse.

Pure bookkeeping on validation losses: no arrays, and its whole state is a small dict.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.typed import fits, require_types, shown


@dataclass(frozen=True, kw_only=True)
class ProgressConfig:
    """What validations decide."""

    lr_decay: Literal["none", "cosine", "linear"] = "none"
    """Learning rate over the samples of the run: as it is, or down to --lr-floor along a half cosine or a line."""
    lr_floor: float = 0.1
    """Share of the learning rate at which a decay ends."""
    collapse_patience: int = 8
    """Validations in a row above half of a guess's loss, none the lowest, that count as a collapse."""
    patience: int | None = None
    """End early, when so many validations in a row bring no better weights; the best ones are kept. If not given, all
    samples are used."""
    test_samples: int | None = None
    """Held-out sequences that score the best weights at the end; all there are if not given."""

    def __post_init__(self):
        require_positive(self, "collapse_patience")
        require(self.patience is None or self.patience >= 1, f"patience={self.patience}: must be at least 1")
        least = self.test_samples is None or self.test_samples >= 1
        require(least, f"test_samples={self.test_samples}: must be at least 1")
        require_at_most(self, test_samples=2**26)
        require(0 <= self.lr_floor <= 1, f"lr_floor={self.lr_floor}: must lie in [0, 1]")
        require_types(self)


STORED = {"passed": "stage"}  # names in run folders that differ


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

    STATE: tuple[str, ...] = ("base_lr", "lr", "best", "passed", "lowest", "stale", "waited")

    def __init__(self, config: ProgressConfig, lr: float, chance: float):
        self.config, self.chance = config, chance
        self.base_lr = self.lr = lr
        self.best = math.inf  # loss of this stage's best validation
        self.keeps = False  # whether what was validated last is to be kept
        self.passed = 0  # stages
        self.lowest = math.inf  # loss since the stage began or training collapsed
        self.stale = 0  # validations in a row that neither lowered it nor were any good
        self.waited = 0  # validations in a row that brought no better weights

    @property
    def stop_condition(self) -> str:
        """What may end the run before its samples do, in words before their number."""
        return f"{self.config.patience} validations without better weights, at most " if self.config.patience else ""

    @property
    def exhausted(self) -> bool:
        """Whether waiting for better weights has lasted long enough to end the run."""
        return self.config.patience is not None and self.waited >= self.config.patience

    @property
    def stage(self) -> dict[str, int]:
        """The stage that training is in, as `Data.at_stage` takes it."""
        return {}

    @property
    def place(self) -> tuple[int, int]:
        """Number of the present stage, and of all stages."""
        return 1, 1

    def drawn_stage(self, seed: int, step: int) -> dict[str, int]:
        """The stage whose sequences a step trains on: this one, or by a draw that seed and step fix, an earlier one."""
        return self.stage

    def rate(self, done: float) -> float:
        """Learning rate when a share ``done`` in [0, 1] of the run's samples is used."""
        floor, half = self.config.lr_floor, (1 - self.config.lr_floor) / 2
        if self.config.lr_decay == "cosine":
            return self.lr * (floor + half + half * math.cos(math.pi * done))
        if self.config.lr_decay == "linear":
            return self.lr * (1 - (1 - floor) * done)
        return self.lr

    def observe(self, loss: float, averaged: float = math.inf) -> Verdict:
        """Take a validation loss; say what it means, and in `keeps` whether to keep the weights.

        Args:
            loss: of the weights that are trained; it decides.
            averaged: of their average, which may be what is best.
        """
        lowest = min(loss, averaged) if math.isfinite(loss) else averaged
        # while no weights of a later stage do its task, those that it began with are better
        self.keeps = lowest < self.best and (lowest < self.chance / 2 or self.passed == 0)
        self.waited = 0 if self.keeps else self.waited + 1
        good = loss < self.chance / 2  # it does the task, if not well
        self.stale = 0 if good or loss < self.lowest else self.stale + 1
        self.lowest = min(loss, self.lowest)
        began_good = self.passed > 0 or self.best < self.chance / 2
        if not math.isfinite(loss) or (began_good and self.stale >= self.config.collapse_patience):
            self.lowest, self.stale, self.waited = math.inf, 0, 0
            self.base_lr, self.lr = self.base_lr / 2, self.lr / 2
            self.best = lowest if self.keeps else self.best
            return Verdict.COLLAPSED
        if self.keeps:
            self.best = lowest
            return Verdict.BEST
        return Verdict.GOING

    def solved(self, loss: float, sequence_accuracy: float) -> bool:
        """Whether the scores of a validation give reason to end before all samples are used."""
        return False

    def state(self) -> dict:
        """All that `restore` needs, ready for JSON."""
        return {STORED.get(name, name): getattr(self, name) for name in self.STATE}

    def restore(self, state: dict) -> None:
        """Continue from a `state`.

        Raises:
            UserError: it is none.
        """
        for name in self.STATE:
            before, key = getattr(self, name), STORED.get(name, name)
            value = state.get(key, before)  # older runs lack some
            require(fits(value, type(before)), f"{key}={shown(value)}: is no {type(before).__name__}")
            setattr(self, name, value)
