"""Curriculum over noise lengths (paper §6.2): stages, each of more noise than the one before."""

import math
from dataclasses import dataclass
from typing import Literal

from mlx_rtx.support.errors import require, require_positive
from mlx_rtx.training.progress import Progress, ProgressConfig, Verdict


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(ProgressConfig):
    """When noise grows, how the learning rate follows, and when the task is solved."""

    start_noise: int = 128
    """Noise tokens of the first stage; the task's own noise if that is less."""
    growth: int = 2
    """Factor from stage to stage, up to the task's noise."""
    advance_below: float = 0.3
    """Validation loss that ends a stage."""
    lr_rule: Literal["constant", "settle", "paper"] = "settle"
    """paper: times 1 - N/2·N_max a stage, at N_max at most lr (1 - e^-loss); settle: the latter, to 0.3 lr."""
    stop_loss: float = 0.015
    """End when a validation at full noise is at most this with every sequence right, and a second,
    of --test-samples, confirms it; 0 to use all samples."""
    test_samples: int = 256
    """Fresh sequences that confirm the end, and as many others that score the best weights then."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "start_noise", "test_samples")
        require(self.growth >= 2, f"growth={self.growth}: must be at least 2")
        require(self.advance_below > 0, f"advance_below={self.advance_below}: must be above 0")
        require(self.stop_loss >= 0, f"stop_loss={self.stop_loss}: must be 0 or above")


class Curriculum(Progress):
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

    STATE = ("noise", *Progress.STATE)
    config: CurriculumConfig

    def __init__(self, config: CurriculumConfig, noise: int, lr: float, chance: float):
        super().__init__(config, lr, chance)
        self.last_noise = noise
        self.noise = min(config.start_noise, noise)

    @property
    def final(self) -> bool:
        """Whether this is the last stage."""
        return self.noise == self.last_noise

    @property
    def final_samples(self) -> int:
        """Fresh sequences that confirm the end, and that score the run."""
        return self.config.test_samples

    @property
    def goal(self) -> str:
        """What a validation must show to end the run."""
        stop = self.config.stop_loss
        return f"validation at noise {self.last_noise} is all right (loss ≤ {stop}), at most " if stop else ""

    @property
    def where(self) -> dict:
        """The noise of this stage."""
        return {"noise": self.noise}

    def observe(self, loss: float) -> Verdict:
        """Take a validation loss at the present noise; move on, or say what to do."""
        verdict = super().observe(loss)
        if verdict is Verdict.COLLAPSED:
            return verdict
        if self.final:
            least = {"constant": 1.0, "settle": 0.3, "paper": 0.0}[self.config.lr_rule]
            self.lr = min(self.lr, self.base_lr * max(least, -math.expm1(-loss)))
            return verdict
        if loss >= self.config.advance_below:
            return verdict
        self.noise = min(self.noise * self.config.growth, self.last_noise)
        if self.config.lr_rule == "paper":
            self.base_lr *= 1 - 0.5 * self.noise / self.last_noise
            self.lr = self.base_lr
        self.best, self.lowest, self.stale, self.stage = math.inf, math.inf, 0, self.stage + 1
        return Verdict.ADVANCED

    def solved(self, loss: float, sequence_accuracy: float) -> bool:
        """Whether a validation of this stage found the task done at full noise."""
        return self.final and loss <= self.config.stop_loss and sequence_accuracy == 1
