"""Decisions based on validation losses: which weights are best, the learning rate, collapse, early stopping.

Holds no arrays; its whole state is a small dict.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.typed import fits, require_types, shown


@dataclass(frozen=True, kw_only=True)
class ProgressConfig:
    """Learning-rate decay, early stopping and recovery from collapse."""

    lr_decay: Literal["none", "cosine", "linear"] = "none"
    """Learning-rate decay over the run: none, half a cosine, or linear, down to --lr-floor times the rate."""
    lr_floor: float = 0.1
    """Fraction of the learning rate at which the decay ends."""
    collapse_patience: int = 8
    """Consecutive validations above half the loss of random guessing, after one below it, that count as a collapse.
    Training then returns to the best weights with half the learning rate."""
    patience: int | None = None
    """Early stopping: end after this many consecutive validations without better weights, and keep the best ones.
    None: use all samples."""
    test_samples: int | None = None
    """Held-out sequences on which the best weights are scored at the end; None: all of them."""

    def __post_init__(self):
        require_positive(self, "collapse_patience")
        require(self.patience is None or self.patience >= 1, f"patience={self.patience}: must be at least 1")
        least = self.test_samples is None or self.test_samples >= 1
        require(least, f"test_samples={self.test_samples}: must be at least 1")
        require_at_most(self, test_samples=2**26)
        require(0 <= self.lr_floor <= 1, f"lr_floor={self.lr_floor}: must lie in [0, 1]")
        require_types(self)


STORED = {"passed": "stage"}  # attributes that have another name in run folders


class Verdict(Enum):
    """Result of a validation."""

    GOING = "going"  # no better weights
    BEST = "best"  # the best weights of this stage so far
    ADVANCED = "advanced"  # the stage is passed
    COLLAPSED = "collapsed"  # return to the best weights; the learning rate was halved


class Progress:
    """Progress of a training with a single stage.

    Args:
        config: thresholds and rules.
        lr: learning rate at the start.
        chance: loss of random guessing, in nats.

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
        self.keeps = False  # whether the weights validated last are to be kept
        self.passed = 0  # stages passed
        self.lowest = math.inf  # lowest loss since the stage began or training collapsed
        self.stale = 0  # consecutive validations that neither lowered it nor were below half of chance
        self.waited = 0  # consecutive validations without better weights

    @property
    def stop_condition(self) -> str:
        """Text of the conditions that may end the run early; it precedes the number of samples in the "until:" line."""
        return f"{self.config.patience} validations without better weights, at most " if self.config.patience else ""

    @property
    def exhausted(self) -> bool:
        """Whether early stopping ends the run now."""
        return self.config.patience is not None and self.waited >= self.config.patience

    @property
    def stage(self) -> dict[str, int]:
        """Current stage, as `Data.at_stage` takes it."""
        return {}

    @property
    def place(self) -> tuple[int, int]:
        """Number of the current stage, and number of stages."""
        return 1, 1

    def drawn_stage(self, seed: int, step: int) -> dict[str, int]:
        """Return the stage on which a step trains: the current one, or an earlier one drawn from (seed, step)."""
        return self.stage

    def rate(self, done: float) -> float:
        """Return the learning rate after a fraction ``done`` in [0, 1] of the run's samples."""
        floor, half = self.config.lr_floor, (1 - self.config.lr_floor) / 2
        if self.config.lr_decay == "cosine":
            return self.lr * (floor + half + half * math.cos(math.pi * done))
        if self.config.lr_decay == "linear":
            return self.lr * (1 - (1 - floor) * done)
        return self.lr

    def observe(self, loss: float, averaged: float = math.inf) -> Verdict:
        """Record a validation loss, set `keeps`, and return the verdict.

        Args:
            loss: validation loss of the trained weights, which decides about collapse and the end of a stage.
            averaged: validation loss of the moving average of the weights, which may be the better of the two.
        """
        lowest = min(loss, averaged) if math.isfinite(loss) else averaged
        # in later stages, keep the weights of the previous stage until new ones are below half of chance
        self.keeps = lowest < self.best and (lowest < self.chance / 2 or self.passed == 0)
        self.waited = 0 if self.keeps else self.waited + 1
        good = loss < self.chance / 2
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
        """Return whether these validation scores end the run before all samples are used."""
        return False

    def state(self) -> dict:
        """Return the state as a dict that can be written as JSON, for `restore`."""
        return {STORED.get(name, name): getattr(self, name) for name in self.STATE}

    def restore(self, state: dict) -> None:
        """Restore a `state`.

        Raises:
            UserError: a value has the wrong type.
        """
        for name in self.STATE:
            before, key = getattr(self, name), STORED.get(name, name)
            value = state.get(key, before)  # runs of older versions lack some keys
            require(fits(value, type(before)), f"{key}={shown(value)}: is not of type {type(before).__name__}")
            setattr(self, name, value)
