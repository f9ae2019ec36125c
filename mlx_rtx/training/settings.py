"""All settings of a training run, and the recipes that fill them in."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from mlx_rtx.model.config import Architecture, ModelConfig
from mlx_rtx.support.errors import UserError, require, require_choices, require_positive
from mlx_rtx.tasks import CopyTask, Data, ImageTask, SelectiveCopyTask, Shape, Task, TextTask
from mlx_rtx.training.curriculum import CurriculumConfig, ProgressConfig
from mlx_rtx.training.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training loop."""

    samples: int
    """Samples to train on at most."""
    batch: int
    """Sequences to a step."""
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
    seed: int = 0
    """Fixes initial weights, data and dropout."""

    def __post_init__(self):
        require_positive(self, "samples", "batch", "validate_every", "report_every")
        for name in ("segment", "detach", "validate_samples"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name}={value}: must be at least 1, or None")
        require(self.samples >= self.batch, f"samples={self.samples}: less than one batch of {self.batch}")
        require(0 <= self.seed < 2**31, f"seed={self.seed}: must lie in 0 … 2147483647")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of a run, one part a concern."""

    task: Task
    model: Literal["recurrent", "regular"] = "recurrent"
    """The paper's model, or the regular transformer that it is compared with."""
    architecture: Architecture
    progress: ProgressConfig
    optimizer: OptimizerConfig
    training: TrainingConfig

    def __post_init__(self):
        require_choices(self)
        if isinstance(self.task, TextTask) and self.task.stateful:
            K, L = self.architecture.block, self.task.length
            require(self.model == "recurrent", f"model={self.model}: has no state for stateful training to carry")
            require(
                self.architecture.positions != "absolute",
                "positions='absolute': end with a sequence, stateful training goes on; use --positions block",
            )
            require(L % K == 0, f"length={L}: stateful training needs whole blocks, a multiple of block={K}")

    def model_config(self, data: Data | Shape) -> ModelConfig:
        """The model's settings, completed by what the data dictates."""
        return ModelConfig(
            **asdict(self.architecture), vocab_size=data.vocab_size, max_len=data.length, out_size=data.out_size
        )


COPY = TrainConfig(
    task=CopyTask(),
    architecture=Architecture(dim=96, heads=6, block=32, positions="block", history="output"),
    progress=CurriculumConfig(),
    optimizer=OptimizerConfig(lr=1e-3, clip=1.0),
    training=TrainingConfig(samples=20_000, batch=32),
)
COPY_PAPER = TrainConfig(
    task=CopyTask(),
    architecture=Architecture(dim=96, heads=6, block=32, dropout=0.05, history="output"),
    progress=CurriculumConfig(lr_rule="paper"),
    optimizer=OptimizerConfig(lr=5e-4, clip=0),
    training=TrainingConfig(samples=60_000, batch=64, validate_every=50),
)
SELECTIVE_COPY_PAPER = replace(
    COPY_PAPER,
    task=SelectiveCopyTask(),
    progress=CurriculumConfig(lr_rule="paper", start_noise=32),
    training=replace(COPY_PAPER.training, samples=1_200_000),
)
SELECTIVE_COPY = replace(SELECTIVE_COPY_PAPER, optimizer=OptimizerConfig(lr=1e-3, clip=1.0))
IMAGE_PAPER = TrainConfig(
    task=ImageTask(validate_on="test"),
    architecture=Architecture(dim=32, heads=4, block=32, dropout=0.05, history="output", tie_embeddings=False),
    progress=ProgressConfig(),
    optimizer=OptimizerConfig(lr=5e-4, clip=0),
    training=TrainingConfig(
        samples=600_000, batch=120, segment=16, validate_every=250, validate_samples=None, report_every=50
    ),
)
IMAGE = replace(IMAGE_PAPER, task=ImageTask(), optimizer=OptimizerConfig(lr=5e-4, clip=1.0))
TEXT_PAPER = TrainConfig(
    task=TextTask(),
    architecture=Architecture(dim=384, heads=6, block=16, dropout=0.2, activation="gelu", history="output"),
    progress=ProgressConfig(),
    optimizer=OptimizerConfig(lr=1e-3, clip=1.0, beta2=0.95, weight_decay=0.1),
    training=TrainingConfig(
        samples=960_000, batch=64, segment=8, validate_every=250, validate_samples=None, report_every=50
    ),
)
TEXT = replace(TEXT_PAPER, architecture=replace(TEXT_PAPER.architecture, positions="block", history="hidden"))

DESCRIPTIONS = {
    "copy": "Recall 16 tokens after thousands of noise tokens (paper §6.2).",
    "selective-copy": "Recall 16 tokens strewn over thousands of noise tokens (paper §6.2).",
    "image": "Classify CIFAR-10 images from 1,024 grey levels read one by one (paper §6.1).",
    "text": "Predict the next character of tiny Shakespeare, or of any text (paper §6.3).",
}
RECIPES = {
    "copy": {"default": COPY, "paper": COPY_PAPER},
    "selective-copy": {"default": SELECTIVE_COPY, "paper": SELECTIVE_COPY_PAPER},
    "image": {"default": IMAGE, "paper": IMAGE_PAPER},
    "text": {"default": TEXT, "paper": TEXT_PAPER},
}


def by_task(recipe: str) -> dict[str, tuple[str, TrainConfig]]:
    """Each task's description and its settings by a recipe; by the default one where there is none of that name."""
    return {task: (DESCRIPTIONS[task], made.get(recipe, made["default"])) for task, made in RECIPES.items()}


def to_stored(task: str, config: TrainConfig, data: Data) -> dict:
    """The settings as a run folder's ``config.json`` keeps them."""
    parts = asdict(config)
    model = {"kind": parts.pop("model"), **asdict(config.model_config(data))}
    del parts["architecture"]
    described = {**data.describe(), "sha256": data.fingerprint}
    return {"task": task, "model": model, "settings": parts, "data": described}


def from_stored(stored: dict) -> tuple[str, TrainConfig]:
    """The task's name and the settings that `to_stored` wrote.

    Raises:
        UserError: they do not fit this version.
    """
    try:
        recipe, model = RECIPES[stored["task"]]["default"], stored["model"]
        parts = stored["settings"] | {
            "architecture": {f.name: model[f.name] for f in fields(Architecture) if f.name in model}
        }
        made = {name: type(getattr(recipe, name))(**part) for name, part in parts.items()}
        return stored["task"], TrainConfig(model=model["kind"], **made)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"config.json: its settings do not fit this mlx_rtx ({error})") from None
