"""Where training stands by its validations: best weights, learning rate, collapse, and the stages of a curriculum.

Pure bookkeeping on validation losses: no arrays, and its whole state is a small dict.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from mlx_rtx.support.errors import require, require_choices, require_positive
from mlx_rtx.support.randomness import step_generator
from mlx_rtx.support.typed import fits, shown


@dataclass(frozen=True, kw_only=True)
class ProgressConfig:
    """What validations decide."""

    lr_decay: Literal["none", "cosine", "linear"] = "none"
    """Learning rate over the samples of the run: as it is, or down to --lr-floor along a half cosine or a line."""
    lr_floor: float = 0.1
    """Share of the learning rate at which a decay ends."""
    collapse_patience: int = 8
    """Validations in a row above half of a guess's loss, none the lowest, that count as a collapse."""
    test_samples: int | None = None
    """Held-out sequences that score the best weights at the end; all there are if not given."""

    def __post_init__(self):
        require_positive(self, "collapse_patience")
        least = self.test_samples is None or self.test_samples >= 1
        require(least, f"test_samples={self.test_samples}: must be at least 1")
        require(0 <= self.lr_floor <= 1, f"lr_floor={self.lr_floor}: must lie in [0, 1]")
        require_choices(self)


STORED = {"passed": "stage"}  # names in run folders that differ
PLATEAU_NOISE = 128  # noise up to which the plateau rule leaves the learning rate as it is
PLATEAU_GAIN = 0.03  # share by which a loss must fall to count
SPIKE, SPIKE_LEAST, SPIKE_PATIENCE = 1.6, 0.05, 3  # far above: this times the level and more, so many times in a row


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

    STATE: tuple[str, ...] = ("base_lr", "lr", "best", "passed", "lowest", "stale")

    def __init__(self, config: ProgressConfig, lr: float, chance: float):
        self.config, self.chance = config, chance
        self.base_lr = self.lr = lr
        self.best = math.inf  # loss of this stage's best validation
        self.keeps = False  # whether what was validated last is to be kept
        self.passed = 0  # stages
        self.lowest = math.inf  # loss since the stage began or training collapsed
        self.stale = 0  # validations in a row that neither lowered it nor were any good

    @property
    def stop_condition(self) -> str:
        """What may end the run before its samples do, in words before their number."""
        return ""

    @property
    def stage(self) -> dict[str, int]:
        """The stage that training is in, as `Data.at_stage` takes it."""
        return {}

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
        good = loss < self.chance / 2  # it does the task, if not well
        self.stale = 0 if good or loss < self.lowest else self.stale + 1
        self.lowest = min(loss, self.lowest)
        began_good = self.passed > 0 or self.best < self.chance / 2
        if not math.isfinite(loss) or (began_good and self.stale >= self.config.collapse_patience):
            self.lowest, self.stale = math.inf, 0
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
        return f"validation at noise {self.last_noise} is all right (loss ≤ {stop}), at most " if stop else ""

    @property
    def stage(self) -> dict[str, int]:
        """The noise of this stage."""
        return {"noise": self.noise}

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
        self.best, self.lowest, self.stale, self.passed = math.inf, math.inf, 0, self.passed + 1
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
