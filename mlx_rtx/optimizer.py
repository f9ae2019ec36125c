"""From gradients to weights: clipping, Adam, and a guard against what is not finite."""

from dataclasses import dataclass

from mlx_rtx.errors import require
from mlx_rtx.trees import flat

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with bias correction; with weight decay AdamW."""

    lr: float = 1e-3
    """Learning rate at the start."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    beta2: float = 0.999
    """Adam's memory of squared gradients; that of gradients is 0.9."""
    weight_decay: float = 0.0
    """AdamW's decay, on matrices only: not on gains of norms, nor on alpha."""

    def __post_init__(self):
        require(self.lr > 0, f"lr={self.lr}: must be above 0, e.g. 1e-3")
        require(self.clip >= 0, f"clip={self.clip}: must be 0 (off) or above, e.g. 1.0")
        require(0 < self.beta2 < 1, f"beta2={self.beta2}: must lie between 0 and 1, e.g. 0.999")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay}: must be 0 (off) or above, e.g. 0.1")


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> optim.Optimizer:
    """Adam or AdamW for the trainable parameters of ``model``, its state laid out."""
    betas = [0.9, config.beta2]
    optimizer: optim.Optimizer = optim.Adam(config.lr, betas, bias_correction=True)
    if config.weight_decay:
        decaying = optim.AdamW(config.lr, betas, weight_decay=config.weight_decay, bias_correction=True)
        optimizer = optim.MultiOptimizer([decaying, optimizer], [lambda _, weight: weight.ndim > 1])
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
