"""What would not fit into this machine's memory is refused before it is begun: no backend of MLX ends well on it."""

from mlx_rtx.forecast.memory import forward_memory, training_memory
from mlx_rtx.support import backend
from mlx_rtx.support.errors import require
from mlx_rtx.tasks import Data
from mlx_rtx.training.evaluation import SEGMENT
from mlx_rtx.training.settings import RunConfig

CERTAIN = 1.25  # times what there is: predictions may be off, and a machine may swap


def require_training_room(settings: RunConfig, data: Data) -> None:
    """Refuse a training whose steps cannot fit."""
    config, training = settings.model_config(data), settings.training
    needed = training_memory(config, data.length, training.batch, data.targets, training.segment, settings.model)
    _require_room(needed.peak, "use a smaller --dim, --batch or --segment; python -m mlx_rtx.plan says what fits")


def require_evaluation_room(settings: RunConfig, data: Data, batch: int) -> None:
    """Refuse to score sequences of which not even a segment fits."""
    read = min(data.targets, SEGMENT * settings.architecture.block)
    needed = forward_memory(settings.model_config(data), data.length, batch, read, settings.model)
    _require_room(needed.weights + needed.segment, "use a smaller --batch")


def _require_room(needed: float, remedy: str) -> None:
    there = 1e9 * backend.memory_gb()
    require(
        needed <= CERTAIN * there, f"memory: would take about {needed / 1e9:,.3g} GB of {there / 1e9:,.3g} GB; {remedy}"
    )
