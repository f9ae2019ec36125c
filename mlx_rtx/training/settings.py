"""Settings of a training run: one dataclass per concern, the only source of defaults, flags and ``--help`` texts."""

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
    """Maximum number of samples to train on."""
    batch: int
    """Sequences per step, or per part of a step with --accumulate."""
    accumulate: int = 1
    """Gradient accumulation: parts per step, each of --batch sequences, whose gradients are averaged.
    Memory is that of one part."""
    segment: int | None = 8
    """Gradient checkpointing: blocks per recomputed segment, with which memory grows.
    None: no checkpointing, the whole sequence is one segment."""
    detach: int | None = None
    """Truncated backpropagation: stop the gradient every this many segments; None: exact gradient."""
    validate_every: int = 15
    """Steps between validations; each validation saves a checkpoint."""
    validate_samples: int | None = 64
    """Sequences per validation; None: all held-out sequences."""
    report_every: int = 5
    """Steps between progress lines."""
    tracker: TrackerName | None = None
    """Also send the metrics to an experiment tracker: tensorboard (files in the run folder), wandb or trackio."""
    seed: int = 0
    """Random seed of initial weights, data and dropout."""

    def __post_init__(self):
        require_types(self)
        require_positive(self, "samples", "batch", "accumulate", "validate_every", "report_every")
        require_at_most(self, samples=2**50, batch=2**20, accumulate=2**20, validate_samples=2**26)
        for name in ("segment", "detach", "validate_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: must be at least 1, or None")
        require(self.samples >= self.rows, f"samples={self.samples}: must be at least one batch, {self.rows}")
        require(0 <= self.seed < 2**31, f"seed={self.seed}: must lie in 0 … 2147483647")

    @property
    def rows(self) -> int:
        """Number of sequences per step."""
        return self.batch * self.accumulate


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a run, one part per concern."""

    task: Task
    model: ModelKind = "recurrent"
    """The paper's recurrent transformer, or the regular transformer it is compared with."""
    architecture: Architecture
    progress: ProgressConfig
    optimizer: OptimizerConfig
    training: LoopConfig

    def __post_init__(self):
        require_types(self)
        self.task.check_model(self.model, self.architecture)

    def model_config(self, data: Data | Shape) -> ModelConfig:
        """Return the model's configuration: the architecture plus vocabulary, length and output size of the data."""
        return ModelConfig(
            **asdict(self.architecture), vocab_size=data.vocab_size, max_len=data.length, out_size=data.out_size
        )
