"""From gradients to weights: clipping, Adam, and a guard against what is not finite."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlx_rtx.errors import require
from mlx_rtx.trees import flat


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with bias correction."""

    lr: float = 1e-3
    """Learning rate at the start."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""

    def __post_init__(self):
        require(self.lr > 0, f"lr={self.lr}: must be above 0, e.g. 1e-3")
        require(self.clip >= 0, f"clip={self.clip}: must be 0 (off) or above, e.g. 1.0")


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> optim.Optimizer:
    """Adam for the trainable parameters of ``model``, its state laid out."""
    optimizer = optim.Adam(learning_rate=config.lr, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    return optimizer


def apply_gradients(model: nn.Module, optimizer: optim.Optimizer, gradients: dict, clip: float) -> mx.array:
    """One optimizer step, unless a gradient is not finite: then weights and moments stay as they are.

    Args:
        gradients: a tree like ``model.trainable_parameters()``.
        clip: largest norm of all gradients together; 0 for no limit.

    Returns:
        Whether the step was taken, a scalar bool. Nothing is evaluated here.
    """
    norm = mx.sqrt(mx.stack([g.square().sum() for g in flat(gradients).values()]).sum())
    taken = mx.isfinite(norm)
    if clip:
        scale = mx.minimum(1.0, clip / (norm + 1e-6))
        gradients = tree_map(lambda g: g * scale, gradients)
    weights, state = model.trainable_parameters(), tree_map(lambda a: a, optimizer.state)
    optimizer.update(model, gradients)

    def choose(new, old):
        return mx.where(taken, new, old)

    model.update(tree_map(choose, model.trainable_parameters(), weights))
    optimizer.state = tree_map(choose, optimizer.state, state)
    return taken
