"""From gradients to weights: clipping, Adam, and a guard against what is not finite."""

import math
from dataclasses import dataclass

from mlx_rtx.support.errors import require
from mlx_rtx.support.trees import flat

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_unflatten


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
    """Adam or AdamW for the trainable parameters of ``model``, its state laid out.

    It works on parameters that are joined to two vectors, matrices and others, so that a step
    launches little more than for two parameters.
    """
    betas = [0.9, config.beta2]
    optimizer: optim.Optimizer = optim.Adam(config.lr, betas, bias_correction=True)
    if config.weight_decay:
        decaying = optim.AdamW(config.lr, betas, weight_decay=config.weight_decay, bias_correction=True)
        optimizer = optim.MultiOptimizer([decaying, optimizer], [lambda name, _: name == "matrices"])
    optimizer.init(_join(model.trainable_parameters(), model.trainable_parameters()))
    return optimizer


def apply_gradients(model: nn.Module, optimizer: optim.Optimizer, gradients: dict, clip: float) -> mx.array:
    """One optimizer step, unless a gradient is not finite: then weights and moments stay as they are.

    Args:
        gradients: a tree like ``model.trainable_parameters()``.
        clip: largest norm of all gradients together; 0 for no limit.

    Returns:
        Whether the step was taken, a scalar bool. Nothing is evaluated here.
    """
    own, state = model.trainable_parameters(), tree_map(lambda a: a, optimizer.state)
    weights, joined = _join(own, own), _join(own, gradients)
    joined, norm = optim.clip_grad_norm(joined, clip or math.inf)
    taken = mx.isfinite(norm)
    after = optimizer.apply_gradients(joined, weights)

    def choose(new, old):
        return mx.where(taken, new, old)

    model.update(_part(own, tree_map(choose, after, weights)))
    optimizer.state = tree_map(choose, optimizer.state, state)
    return taken


def _join(shapes: dict, tree: dict) -> dict[str, mx.array]:
    """The arrays of a tree joined to a vector of matrices and one of others, as ``shapes`` has them."""
    groups: dict[str, list[mx.array]] = {"matrices": [], "others": []}
    for shape, array in zip(flat(shapes).values(), flat(tree).values(), strict=True):
        groups["matrices" if shape.ndim > 1 else "others"].append(array.reshape(-1))
    return {name: mx.concatenate(arrays) for name, arrays in groups.items() if arrays}


def _part(shapes: dict, joined: dict[str, mx.array]) -> dict:
    """What `_join` joined, as a tree like ``shapes``."""
    named, done = [], dict.fromkeys(joined, 0)
    for name, shape in flat(shapes).items():
        group = "matrices" if shape.ndim > 1 else "others"
        start, done[group] = done[group], done[group] + shape.size
        named.append((name, joined[group][start : done[group]].reshape(shape.shape)))
    return tree_unflatten(named)
