"""Checks before a run that it fits into memory, because no backend of MLX fails cleanly when memory runs out."""

from mlx_rtx.forecast.memory import forward_memory, training_memory
from mlx_rtx.support import backend
from mlx_rtx.support.errors import require
from mlx_rtx.tasks import Data
from mlx_rtx.training.evaluation import SEGMENT
from mlx_rtx.training.settings import RunConfig

CERTAIN = 1.25  # tolerance on the memory available: predictions may be off, and the machine may swap


def require_training_memory(settings: RunConfig, data: Data) -> None:
    """Raise UserError if the training steps of a run cannot fit into memory."""
    config, training = settings.model_config(data), settings.training
    needed = training_memory(config, data.length, training.batch, data.targets, training.segment, settings.model)
    _require_memory(needed.peak, "use a smaller --dim, --batch or --segment; python -m mlx_rtx.plan says what fits")


def require_evaluation_memory(settings: RunConfig, data: Data, batch: int) -> None:
    """Raise UserError if not even one segment of the sequences to score fits into memory."""
    read = min(data.targets, SEGMENT * settings.architecture.block)
    needed = forward_memory(settings.model_config(data), data.length, batch, read, settings.model)
    _require_memory(needed.weights + needed.segment, "use a smaller --batch")


def _require_memory(needed: float, remedy: str) -> None:
    there = 1e9 * backend.memory_gb()
    require(
        needed <= CERTAIN * there, f"memory: would take about {needed / 1e9:,.3g} GB of {there / 1e9:,.3g} GB; {remedy}"
    )
