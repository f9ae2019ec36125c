"""All settings of a training run: one dataclass a concern, the only home of its defaults, flags and help."""

from dataclasses import asdict, dataclass

from mlx_rtx.model.config import Architecture, ModelConfig, ModelKind
from mlx_rtx.support.errors import require, require_at_most, require_positive
from mlx_rtx.support.typed import require_types
from mlx_rtx.tasks import Data, Shape, Task
from mlx_rtx.training.optimizer import OptimizerConfig
from mlx_rtx.training.progress import ProgressConfig
from mlx_rtx.training.tracking import TrackerName


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """The training loop."""

    samples: int
    """Samples to train on at most."""
    batch: int
    """Sequences to a step, or to each part of one."""
    accumulate: int = 1
    """Parts of a step, of --batch sequences each, whose gradients are averaged: large batches in the memory of one."""
    segment: int | None = 8
    """Blocks to a segment of the gradient: memory grows with it; None for the whole sequence."""
    detach: int | None = None
    """Truncated backpropagation: cut the gradient at every so many segments."""
    validate_every: int = 15
    """Steps from validation to validation; each one saves a checkpoint."""
    validate_samples: int | None = 64
    """Sequences of a validation; None for all that are held out."""
    report_every: int = 5
    """Steps from one reported line to the next."""
    tracker: TrackerName | None = None
    """Tell another program what metrics.jsonl says: TensorBoard, by files in the run folder, or wandb or trackio."""
    seed: int = 0
    """Fixes initial weights, data and dropout."""

    def __post_init__(self):
        require_types(self)
        require_positive(self, "samples", "batch", "accumulate", "validate_every", "report_every")
        require_at_most(self, samples=2**50, batch=2**20, accumulate=2**20, validate_samples=2**26)
        for name in ("segment", "detach", "validate_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: must be at least 1, or None")
        require(self.samples >= self.rows, f"samples={self.samples}: less than one batch of {self.rows}")
        require(0 <= self.seed < 2**31, f"seed={self.seed}: must lie in 0 … 2147483647")

    @property
    def rows(self) -> int:
        """Sequences to a step."""
        return self.batch * self.accumulate


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run, one part a concern."""

    task: Task
    model: ModelKind = "recurrent"
    """The paper's model, or the regular transformer that it is compared with."""
    architecture: Architecture
    progress: ProgressConfig
    optimizer: OptimizerConfig
    training: LoopConfig

    def __post_init__(self):
        require_types(self)
        self.task.check_model(self.model, self.architecture)

    def model_config(self, data: Data | Shape) -> ModelConfig:
        """The model's settings, completed by what the data dictates."""
        return ModelConfig(
            **asdict(self.architecture), vocab_size=data.vocab_size, max_len=data.length, out_size=data.out_size
        )
