"""Curriculum over the number of noise tokens: when a stage ends, and the learning rate of each stage."""

import math
from dataclasses import dataclass
from typing import Literal

from mlx_rtx.support.errors import require, require_positive
from mlx_rtx.support.randomness import step_generator
from mlx_rtx.training.progress import Progress, ProgressConfig, Verdict

PLATEAU_NOISE = 128  # noise up to which the plateau rule does not lower the learning rate
PLATEAU_GAIN = 0.03  # relative decrease of the loss that counts as an improvement
SPIKE, SPIKE_LEAST, SPIKE_PATIENCE = 1.6, 0.05, 3  # a spike: this many consecutive losses > SPIKE · level + SPIKE_LEAST


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(ProgressConfig):
    """Stages of the curriculum, the learning rate of each stage, and when the task counts as solved."""

    start_noise: int = 128
    """Noise tokens of the first stage, at most --noise."""
    growth: int = 2
    """Factor by which the noise grows from one stage to the next, up to --noise."""
    mix: float = 0.0
    """Fraction of steps that train on a uniformly drawn earlier stage, so that shorter lengths are not forgotten."""
    advance_below: float = 0.3
    """Validation loss below which a stage ends."""
    lr_rule: Literal["constant", "settle", "paper", "plateau"] = "settle"
    """How the learning rate depends on the stage's noise N.
    constant: not at all;
    paper: multiply it by 1 - N/(2 N_max) each time N grows, and at N = N_max by 1 - e^-loss, never raising it;
    settle: only the latter factor, at least 0.3;
    plateau: multiply it by √(128/N) if N > 128, and halve it if the loss stalls (--plateau-patience)."""
    plateau_patience: int = 8
    """With --lr-rule plateau: validations without a 3 % lower loss after which the rate is halved.
    After 3 consecutive losses above 1.6 times the best plus 0.05 the best weights are restored as well."""
    stop_loss: float = 0.015
    """End when, at full noise, the validation loss is at most this and every sequence is right.
    A second validation, on --test-samples sequences, must also have every sequence right. 0: use all samples."""
    test_samples: int = 256
    """Fresh sequences for the validation that confirms the end, and as many others for the final scores."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "start_noise", "plateau_patience")
        require(self.growth >= 2, f"growth={self.growth}: must be at least 2")
        require(0 <= self.mix < 1, f"mix={self.mix}: must be 0 (off) or below 1, e.g. 0.2")
        require(self.advance_below > 0, f"advance_below={self.advance_below}: must be above 0")
        require(self.stop_loss >= 0, f"stop_loss={self.stop_loss}: must be 0 or above")


class Curriculum(Progress):
    """Progress of a training whose noise grows from stage to stage.

    Args:
        config: thresholds and rules.
        noise: N_max, the noise of the last stage.
        lr: learning rate of the first stage.
        chance: loss of random guessing, in nats.

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
        """Restore a `state`; see `Progress.restore`."""
        super().restore(state)
        require(self.noise in self._stages(self.last_noise), f"noise={self.noise}: is not a stage of this run")

    def _begin_stage(self) -> None:
        """Reset the plateau rule's state, which belongs to one stage."""
        self.cut = 1.0  # factor on the stage's learning rate
        self.level = math.inf  # loss at the last improvement by 3 %
        self.flat = 0  # validations since then
        self.worse = 0  # consecutive validations far above it

    def rate(self, done: float) -> float:
        """Return the learning rate; with the plateau rule it falls with the noise and with each plateau."""
        rate = super().rate(done)
        if self.config.lr_rule != "plateau":
            return rate
        return rate * self.cut * math.sqrt(min(1.0, PLATEAU_NOISE / self.noise))

    def _watch_plateau(self, loss: float) -> bool:
        """Apply the plateau rule to a validation loss; return whether to return to the best weights."""
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
        """Text of the conditions that end the run early."""
        stop = self.config.stop_loss
        solved = f"every sequence right at noise {self.last_noise} and validation loss ≤ {stop}, " if stop else ""
        return solved + (super().stop_condition or (solved and "at most "))

    @property
    def stage(self) -> dict[str, int]:
        """Noise of the current stage."""
        return {"noise": self.noise}

    @property
    def place(self) -> tuple[int, int]:
        """Number of the current stage, and number of stages."""
        return len(self._stages(self.noise)), len(self._stages(self.last_noise))

    def drawn_stage(self, seed: int, step: int) -> dict[str, int]:
        """Return the current stage, or with probability ``mix`` an earlier one."""
        if not self.config.mix or not (earlier := self._stages(self.noise)[:-1]):
            return self.stage
        generator = step_generator(seed, step)
        return {"noise": int(generator.choice(earlier))} if generator.random() < self.config.mix else self.stage

    def _stages(self, noise: int) -> list[int]:
        """Return the noise of each stage up to the one with ``noise``."""
        stages = [min(self.config.start_noise, self.last_noise)]
        while stages[-1] < noise:
            stages.append(self._following(stages[-1]))
        return stages

    def _following(self, noise: int) -> int:
        """Return the noise of the stage after the one with ``noise``."""
        return min(noise * self.config.growth, self.last_noise)

    def observe(self, loss: float, averaged: float = math.inf) -> Verdict:
        """Record a validation loss at the current noise, and begin the next stage if this one is passed."""
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
        self.keeps = self.keeps or math.isinf(self.best)  # a passed stage always keeps weights
        self.noise = self._following(self.noise)
        if self.config.lr_rule == "paper":
            self.base_lr *= 1 - 0.5 * self.noise / self.last_noise
            self.lr = self.base_lr
        self.best, self.lowest, self.stale, self.waited, self.passed = math.inf, math.inf, 0, 0, self.passed + 1
        self._begin_stage()
        return Verdict.ADVANCED

    def solved(self, loss: float, sequence_accuracy: float) -> bool:
        """Return whether these validation scores solve the task: full noise, low loss, every sequence right."""
        return self.final and 0 < self.config.stop_loss >= loss and sequence_accuracy == 1


def make_progress(config: ProgressConfig, stage: dict[str, int], lr: float, chance: float) -> Progress:
    """Return the progress of a new run; ``stage`` is its last stage."""
    if isinstance(config, CurriculumConfig):
        return Curriculum(config, stage["noise"], lr, chance)
    return Progress(config, lr, chance)
