"""All settings of a training run, and the recipes that fill them in."""

from dataclasses import asdict, dataclass, fields, replace

from mlx_rtx.config import Architecture, ModelConfig
from mlx_rtx.curriculum import CurriculumConfig
from mlx_rtx.errors import UserError, require, require_positive
from mlx_rtx.optimizer import OptimizerConfig
from mlx_rtx.tasks import CopyTask, SelectiveCopyTask


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training loop."""

    samples: int
    """Samples to train on at most."""
    batch: int
    """Sequences to a step."""
    segment: int = 8
    """Blocks to a segment of the gradient: memory grows with it."""
    detach: int | None = None
    """Truncated backpropagation: cut the gradient at every so many segments."""
    stop_loss: float = 0.015
    """End when a validation at full noise is at most this with every sequence right, and a second,
    of --test-samples, confirms it; 0 to use all samples."""
    validate_every: int = 15
    """Steps from validation to validation; each one saves a checkpoint."""
    validate_samples: int = 64
    """Sequences of a validation."""
    test_samples: int = 256
    """Fresh sequences that confirm the end, and as many others that score the best weights then."""
    report_every: int = 5
    """Steps from one reported line to the next."""
    seed: int = 0
    """Fixes initial weights, data and dropout."""

    def __post_init__(self):
        counts = "samples batch segment validate_every validate_samples test_samples report_every"
        require_positive(self, *counts.split())
        require(self.samples >= self.batch, f"samples={self.samples}: less than one batch of {self.batch}")
        require(self.detach is None or self.detach >= 1, f"detach={self.detach}: must be at least 1, or None")
        require(self.stop_loss >= 0, f"stop_loss={self.stop_loss}: must be 0 or above")
        require(0 <= self.seed < 2**31, f"seed={self.seed}: must lie in 0 … 2147483647")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run, one part a concern."""

    task: CopyTask
    model: Architecture
    curriculum: CurriculumConfig
    optimizer: OptimizerConfig
    training: TrainingConfig

    def model_config(self) -> ModelConfig:
        """The model's settings, completed by what the task dictates."""
        return ModelConfig(**asdict(self.model), vocab_size=self.task.vocab_size, max_len=self.task.length)


COPY = TrainConfig(
    task=CopyTask(),
    model=Architecture(dim=96, heads=6, block=32, positions="block", history="output"),
    curriculum=CurriculumConfig(),
    optimizer=OptimizerConfig(lr=1e-3, clip=1.0),
    training=TrainingConfig(samples=20_000, batch=32),
)
COPY_PAPER = TrainConfig(
    task=CopyTask(),
    model=Architecture(dim=96, heads=6, block=32, dropout=0.05, history="output"),
    curriculum=CurriculumConfig(lr_rule="paper"),
    optimizer=OptimizerConfig(lr=5e-4, clip=0),
    training=TrainingConfig(samples=60_000, batch=64, validate_every=50),
)
SELECTIVE_COPY_PAPER = replace(
    COPY_PAPER,
    task=SelectiveCopyTask(),
    curriculum=replace(COPY_PAPER.curriculum, start_noise=32),
    training=replace(COPY_PAPER.training, samples=1_200_000),
)
SELECTIVE_COPY = replace(SELECTIVE_COPY_PAPER, optimizer=OptimizerConfig(lr=1e-3, clip=1.0))

RECIPES = {
    "copy": {"default": COPY, "paper": COPY_PAPER},
    "selective-copy": {"default": SELECTIVE_COPY, "paper": SELECTIVE_COPY_PAPER},
}


def to_stored(task: str, config: TrainConfig) -> dict:
    """The settings as a run folder's ``config.json`` keeps them."""
    parts = asdict(config)
    del parts["model"]
    return {"task": task, "model": asdict(config.model_config()), "settings": parts}


def from_stored(stored: dict) -> tuple[str, TrainConfig]:
    """The task's name and the settings that `to_stored` wrote.

    Raises:
        UserError: they do not fit this version.
    """
    try:
        recipe = RECIPES[stored["task"]]["default"]
        parts = stored["settings"] | {"model": {f.name: stored["model"][f.name] for f in fields(Architecture)}}
        made = {f.name: type(getattr(recipe, f.name))(**parts[f.name]) for f in fields(TrainConfig)}
    except (KeyError, TypeError) as error:
        raise UserError(f"config.json: its settings do not fit this mlx_rtx ({error})") from None
    return stored["task"], TrainConfig(**made)
