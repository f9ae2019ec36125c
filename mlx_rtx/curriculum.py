"""Curriculum over noise lengths (paper §6.2), and what to do when a step up breaks the model.

Pure bookkeeping on validation losses: no arrays, and its whole state is a small dict.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from mlx_rtx.errors import require, require_choices, require_positive


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig:
    """When noise grows and how the learning rate follows."""

    start_noise: int = 128
    """Noise tokens of the first stage; the task's own noise if that is less."""
    growth: int = 2
    """Factor from stage to stage, up to the task's noise."""
    advance_below: float = 0.3
    """Validation loss that ends a stage."""
    lr_rule: Literal["constant", "settle", "paper"] = "settle"
    """paper: times 1 - N/2·N_max a stage, at N_max at most lr (1 - e^-loss); settle: the latter, to 0.3 lr."""
    collapse_patience: int = 8
    """Validations in a row above half of a guess's loss, none the lowest, that count as a collapse."""

    def __post_init__(self):
        require_positive(self, "start_noise", "collapse_patience")
        require(self.growth >= 2, f"growth={self.growth}: must be at least 2")
        require(self.advance_below > 0, f"advance_below={self.advance_below}: must be above 0")
        require_choices(self)


class Verdict(Enum):
    """What a validation means for training."""

    GOING = "going"
    BEST = "best"  # the best weights of this stage so far
    ADVANCED = "advanced"  # they also end the stage: noise has grown
    COLLAPSED = "collapsed"  # go back to the best weights; the learning rate is halved


class Curriculum:
    """The stage that training is in.

    Args:
        config: thresholds and rules.
        noise: N_max, the noise of the last stage.
        lr: learning rate of the first stage.
        chance: loss of a guess, in nats.

    Example:
        >>> curriculum = Curriculum(CurriculumConfig(), noise=256, lr=1e-3, chance=2.6)
        >>> curriculum.observe(0.2), curriculum.noise
        (<Verdict.ADVANCED: 'advanced'>, 256)
    """

    def __init__(self, config: CurriculumConfig, noise: int, lr: float, chance: float):
        self.config, self.last_noise, self.chance = config, noise, chance
        self.noise = min(config.start_noise, noise)
        self.base_lr = self.lr = lr
        self.best = math.inf  # loss of this stage's best validation
        self.stage = 0  # stages passed
        self.lowest = math.inf  # loss since the stage began or training collapsed
        self.stale = 0  # validations in a row that neither lowered it nor were any good

    @property
    def final(self) -> bool:
        """Whether this is the last stage."""
        return self.noise == self.last_noise

    def observe(self, loss: float) -> Verdict:
        """Take a validation loss at the present noise; move on, or say what to do."""
        good = loss < self.chance / 2  # it does the task, if not well
        self.stale = 0 if good or loss < self.lowest else self.stale + 1
        self.lowest = min(loss, self.lowest)
        began_good = self.stage > 0 or self.best < self.chance / 2
        if not math.isfinite(loss) or (began_good and self.stale >= self.config.collapse_patience):
            self.lowest, self.stale = math.inf, 0
            self.base_lr, self.lr = self.base_lr / 2, self.lr / 2
            return Verdict.COLLAPSED
        better = loss < self.best and (good or self.stage == 0)  # else the weights the stage began with are better
        if better:
            self.best = loss
        if self.final:
            least = {"constant": 1.0, "settle": 0.3, "paper": 0.0}[self.config.lr_rule]
            self.lr = min(self.lr, self.base_lr * max(least, -math.expm1(-loss)))
        elif loss < self.config.advance_below:
            self.noise = min(self.noise * self.config.growth, self.last_noise)
            if self.config.lr_rule == "paper":
                self.base_lr *= 1 - 0.5 * self.noise / self.last_noise
                self.lr = self.base_lr
            self.best, self.lowest, self.stale, self.stage = math.inf, math.inf, 0, self.stage + 1
            return Verdict.ADVANCED
        return Verdict.BEST if better else Verdict.GOING

    def state(self) -> dict:
        """All that `restore` needs, ready for JSON."""
        names = ("noise", "base_lr", "lr", "best", "stage", "lowest", "stale")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict) -> None:
        """Continue from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)
