"""The stages of a curriculum: when noise grows, and how the learning rate follows, by validations."""

import math
from dataclasses import dataclass
from typing import Literal

from mlx_rtx.support.errors import require, require_positive
from mlx_rtx.support.randomness import step_generator
from mlx_rtx.training.progress import Progress, ProgressConfig, Verdict

PLATEAU_NOISE = 128  # noise up to which the plateau rule leaves the learning rate as it is
PLATEAU_GAIN = 0.03  # share by which a loss must fall to count
SPIKE, SPIKE_LEAST, SPIKE_PATIENCE = 1.6, 0.05, 3  # far above: this times the level and more, so many times in a row


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(ProgressConfig):
    """When noise grows, how the learning rate follows, and when the task is solved."""

    start_noise: int = 128
    """Noise tokens of the first stage; the task's own noise if that is less."""
    growth: int = 2
    """Factor from stage to stage, up to the task's noise."""
    mix: float = 0.0
    """Share of steps that train on an earlier stage, drawn uniformly, so that shorter lengths are not unlearned."""
    advance_below: float = 0.3
    """Validation loss that ends a stage."""
    lr_rule: Literal["constant", "settle", "paper", "plateau"] = "settle"
    """paper: times 1 - N/2·N_max a stage, at N_max at most lr (1 - e^-loss); settle: the latter, to 0.3 lr; plateau:
    times √(128/N), and halved within a stage when the loss stands still for --plateau-patience validations."""
    plateau_patience: int = 8
    """Validations in a row that do not lower a stage's loss by 3 % before plateau halves the rate. Three in a row far
    above the best also go back to the best weights."""
    stop_loss: float = 0.015
    """End when a validation at full noise is at most this with every sequence right, and a second,
    of --test-samples, confirms it; 0 to use all samples."""
    test_samples: int = 256
    """Fresh sequences that confirm the end, and as many others that score the best weights then."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "start_noise", "plateau_patience")
        require(self.growth >= 2, f"growth={self.growth}: must be at least 2")
        require(0 <= self.mix < 1, f"mix={self.mix}: must be 0 (off) or below 1, e.g. 0.2")
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

    STATE = ("noise", *Progress.STATE, "cut", "level", "flat", "worse")
    config: CurriculumConfig

    def __init__(self, config: CurriculumConfig, noise: int, lr: float, chance: float):
        super().__init__(config, lr, chance)
        self.last_noise = noise
        self._begin_stage()
        self.noise = min(config.start_noise, noise)

    def restore(self, state: dict) -> None:
        """Continue from a `state`; see `Progress.restore`."""
        super().restore(state)
        require(self.noise in self._stages(self.last_noise), f"noise={self.noise}: is no stage of this run")

    def _begin_stage(self) -> None:
        """What the plateau rule knows of a stage."""
        self.cut = 1.0  # of the stage's learning rate
        self.level = math.inf  # loss that was last lowered by 3 %
        self.flat = 0  # validations since then
        self.worse = 0  # validations in a row far above it

    def rate(self, done: float) -> float:
        """Learning rate; the plateau rule's falls with the length and with each plateau."""
        rate = super().rate(done)
        if self.config.lr_rule != "plateau":
            return rate
        return rate * self.cut * math.sqrt(min(1.0, PLATEAU_NOISE / self.noise))

    def _watch_plateau(self, loss: float) -> bool:
        """Take a loss by the plateau rule; say whether to go back to the best weights."""
        if loss < (1 - PLATEAU_GAIN) * self.level:
            self.level, self.flat, self.worse = loss, 0, 0
            return False
        self.flat += 1
        self.worse = self.worse + 1 if loss > SPIKE * self.level + SPIKE_LEAST else 0
        back = self.worse >= SPIKE_PATIENCE
        if back or self.flat >= self.config.plateau_patience:
            self.cut, self.flat, self.worse = self.cut / 2, 0, 0
        return back

    @property
    def final(self) -> bool:
        """Whether this is the last stage."""
        return self.noise == self.last_noise

    @property
    def stop_condition(self) -> str:
        """What a validation must show to end the run."""
        stop = self.config.stop_loss
        solved = f"validation at noise {self.last_noise} is all right (loss ≤ {stop}), " if stop else ""
        return solved + (super().stop_condition or (solved and "at most "))

    @property
    def stage(self) -> dict[str, int]:
        """The noise of this stage."""
        return {"noise": self.noise}

    @property
    def place(self) -> tuple[int, int]:
        """Number of the present stage, and of all stages."""
        return len(self._stages(self.noise)), len(self._stages(self.last_noise))

    def drawn_stage(self, seed: int, step: int) -> dict[str, int]:
        """This stage, or with probability ``mix`` one of those before it."""
        if not self.config.mix or not (earlier := self._stages(self.noise)[:-1]):
            return self.stage
        generator = step_generator(seed, step)
        return {"noise": int(generator.choice(earlier))} if generator.random() < self.config.mix else self.stage

    def _stages(self, noise: int) -> list[int]:
        """The noise of each stage up to that of so much."""
        stages = [min(self.config.start_noise, self.last_noise)]
        while stages[-1] < noise:
            stages.append(self._following(stages[-1]))
        return stages

    def _following(self, noise: int) -> int:
        """The noise of the stage after one with so much."""
        return min(noise * self.config.growth, self.last_noise)

    def observe(self, loss: float, averaged: float = math.inf) -> Verdict:
        """Take a validation loss at the present noise; move on, or say what to do."""
        verdict = super().observe(loss, averaged)
        if verdict is Verdict.COLLAPSED:
            return verdict
        if self.config.lr_rule == "plateau" and self._watch_plateau(loss):
            return Verdict.COLLAPSED
        if self.final:
            least = {"constant": 1.0, "settle": 0.3, "paper": 0.0, "plateau": 1.0}[self.config.lr_rule]
            self.lr = min(self.lr, self.base_lr * max(least, -math.expm1(-loss)))
            return verdict
        if loss >= self.config.advance_below:
            return verdict
        self.keeps = self.keeps or math.isinf(self.best)  # a stage that passes leaves weights of its own
        self.noise = self._following(self.noise)
        if self.config.lr_rule == "paper":
            self.base_lr *= 1 - 0.5 * self.noise / self.last_noise
            self.lr = self.base_lr
        self.best, self.lowest, self.stale, self.waited, self.passed = math.inf, math.inf, 0, 0, self.passed + 1
        self._begin_stage()
        return Verdict.ADVANCED

    def solved(self, loss: float, sequence_accuracy: float) -> bool:
        """Whether a validation of this stage found the task done at full noise."""
        return self.final and 0 < self.config.stop_loss >= loss and sequence_accuracy == 1


def make_progress(config: ProgressConfig, stage: dict[str, int], lr: float, chance: float) -> Progress:
    """The progress of a run before its first step; ``stage`` is the one that it is to reach."""
    if isinstance(config, CurriculumConfig):
        return Curriculum(config, stage["noise"], lr, chance)
    return Progress(config, lr, chance)
