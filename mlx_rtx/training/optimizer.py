"""From gradients to weights: clipping, Adam or Muon, and a guard against what is not finite."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple

from mlx_rtx.support.errors import require
from mlx_rtx.support.trees import count, flat, part
from mlx_rtx.support.typed import require_types
from mlx_rtx.training.spikes import SpikeGuard

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map, tree_unflatten

LAYER_MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")  # which Muon takes; qkv as three


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients change weights. With weight decay Adam is AdamW."""

    optimizer: Literal["adam", "muon"] = "adam"
    """adam, with bias correction, or muon: Muon on the matrices of layers, Adam on everything else."""
    lr: float = 1e-3
    """Learning rate at the start; Muon's updates are scaled so that one rate serves both."""
    muon_lr: float | None = None
    """Muon's own learning rate at the start, e.g. 8e-3; --lr if not given. Both follow one schedule."""
    warm_up: int = 0
    """Steps over which the learning rate rises to its own; 0 for none."""
    clip: float = 1.0
    """Largest gradient norm; 0 for no clipping."""
    skip_above: float = 0.0
    """Take no step whose gradient norm is more than this many times its running mean, e.g. 5; 0 for no such limit."""
    beta2: float = 0.999
    """Adam's memory of squared gradients; that of gradients is 0.9."""
    weight_decay: float = 0.0
    """Decoupled decay, on matrices only: not on gains of norms, nor on alpha."""
    average: float = 0.0
    """Decay of a moving average of the weights, e.g. 0.999: scored beside them, kept if better, and what ends a run
    before its samples do; 0 for none."""

    def __post_init__(self):
        require_types(self)
        require(0 <= self.average < 1, f"average={self.average}: must be 0 (off) or below 1, e.g. 0.999")
        require(0 < self.lr < math.inf, f"lr={self.lr}: must be above 0 and finite, e.g. 1e-3")
        muon_lr = self.muon_lr
        require(muon_lr is None or 0 < muon_lr < math.inf, f"muon_lr={muon_lr}: must be above 0 and finite, e.g. 8e-3")
        require(self.warm_up >= 0, f"warm_up={self.warm_up}: must be 0 (off) or above, e.g. 100")
        require(self.clip >= 0, f"clip={self.clip}: must be 0 (off) or above, e.g. 1.0")
        limit = self.skip_above
        require(limit == 0 or 1 < limit < math.inf, f"skip_above={limit}: must be 0 (off) or above 1, e.g. 5")
        require(0 < self.beta2 < 1, f"beta2={self.beta2}: must lie between 0 and 1, e.g. 0.999")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay}: must be 0 (off) or above, e.g. 0.1")


class ScaledMuon(optim.Muon):
    """MLX's Muon with decoupled weight decay, and updates 0.2 √max(rows, columns) as large as an orthogonal matrix.

    So scaled they are about as large as Adam's (Liu et al. 2025, arXiv 2502.16982, Eq. 4), and one learning rate serves
    both. ``factor`` is how many times as large its own rate is.
    """

    def __init__(self, learning_rate: float, weight_decay: float, factor: float = 1.0):
        super().__init__(learning_rate, weight_decay=0.0)
        self.decay, self.factor = weight_decay, factor

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """The matrix after an update."""
        rows, columns = parameter.shape
        update = super().apply_single(gradient, mx.zeros_like(parameter), state)  # its scale: √max(1, rows / columns)
        scale = 0.2 * math.sqrt(max(rows, columns)) / max(1, rows / columns) ** 0.5
        return parameter * (1 - self.learning_rate * (self.factor * self.decay)) + self.factor * scale * update


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> optim.Optimizer:
    """The optimizer for the trainable parameters of ``model``, its state laid out.

    Adam works on parameters that are joined to two vectors, matrices and others, so that a step
    launches little more than for two parameters.
    """
    size = count(model.trainable_parameters())
    require(
        size < 2**31,
        f"{size:,} parameters: at most {2**31 - 1:,} can be trained; use a smaller --dim, --layers or --alphabet",
    )
    betas = [0.9, config.beta2]
    optimizers: list[optim.Optimizer] = []
    filters = []
    if config.optimizer == "muon":
        factor = (config.muon_lr or config.lr) / config.lr
        optimizers.append(ScaledMuon(config.lr, config.weight_decay, factor))
        filters.append(lambda name, _: name not in ("matrices", "others"))
    if config.weight_decay:
        optimizers.append(optim.AdamW(config.lr, betas, weight_decay=config.weight_decay, bias_correction=True))
        filters.append(lambda name, _: name == "matrices")
    optimizers.append(optim.Adam(config.lr, betas, bias_correction=True))
    optimizer = optimizers[0] if len(optimizers) == 1 else optim.MultiOptimizer(optimizers, filters)
    own = model.trainable_parameters()
    optimizer.init(_join(own, own, config))
    return optimizer


class Update(NamedTuple):
    """What came of gradients; nothing of it need be computed yet."""

    taken: mx.array  # scalar bool: whether they changed the weights
    norm: mx.array  # scalar, of all gradients before clipping; NaN where the weights would not have been finite


def apply_gradients(
    model: nn.Module,
    optimizer: optim.Optimizer,
    gradients: dict,
    config: OptimizerConfig,
    guard: SpikeGuard | None = None,
) -> Update:
    """One optimizer step, unless it is not finite or too large: then weights and moments stay as they are.

    Args:
        model: its trainable parameters are updated.
        optimizer: from `make_optimizer`.
        gradients: a tree like ``model.trainable_parameters()``.
        config: the optimizer's settings.
        guard: what is too large; nothing if not given.
    """
    own, state = model.trainable_parameters(), tree_map(lambda a: a, optimizer.state)
    weights, joined = _join(own, own, config), _join(own, gradients, config)
    joined, norm = optim.clip_grad_norm(joined, config.clip or math.inf)
    after = optimizer.apply_gradients(joined, weights)
    total = reduce(mx.add, (array.sum() for array in after.values()))
    norm = norm + (total - total)  # which is 0, or NaN where not all of them are finite
    taken = guard.accepts(norm) if guard else mx.isfinite(norm)

    def choose(new, old):
        return mx.where(taken, new, old)

    model.update(_part(own, tree_map(choose, after, weights), config))
    optimizer.state = tree_map(choose, optimizer.state, state)
    return Update(taken, norm)


def _muon_parts(name: str, config: OptimizerConfig) -> int:
    """In how many matrices, side by side, Muon takes a parameter; 0 where Adam has it."""
    kind = name.rpartition(".")[2]
    return (3 if kind == "qkv" else 1) if config.optimizer == "muon" and kind in LAYER_MATRICES else 0


def _keys(name: str, parts: int) -> list[str]:
    """What the parts of a parameter are called where others are joined: without dots, at which trees are cut."""
    return [f"{name.replace('.', '/')}/{i}" for i in range(parts)]


def _join(shapes: dict, tree: dict, config: OptimizerConfig) -> dict[str, mx.array]:
    """The arrays of a tree joined to a vector of matrices and one of others, as ``shapes`` has them.

    Beside them stand the matrices that Muon takes, by their own names.
    """
    joined: dict[str, mx.array] = {}
    groups: dict[str, list[mx.array]] = {"matrices": [], "others": []}
    for (name, shape), array in zip(flat(shapes).items(), flat(tree).values(), strict=True):
        if parts := _muon_parts(name, config):
            joined |= dict(zip(_keys(name, parts), mx.split(array, parts, axis=1), strict=True))
        else:
            groups["matrices" if shape.ndim > 1 else "others"].append(array.reshape(-1))
    return joined | {name: mx.concatenate(arrays) for name, arrays in groups.items() if arrays}


def _part(shapes: dict, joined: dict[str, mx.array], config: OptimizerConfig) -> dict:
    """What `_join` joined, as a tree like ``shapes``."""

    def named() -> Iterator[tuple[str, mx.array]]:
        done = dict.fromkeys(joined, 0)
        for name, shape in flat(shapes).items():
            if parts := _muon_parts(name, config):
                yield name, mx.concatenate([joined[key] for key in _keys(name, parts)], axis=1)
                continue
            group = "matrices" if shape.ndim > 1 else "others"
            start, done[group] = done[group], done[group] + shape.size
            yield name, part(joined[group], start, shape.shape)

    return tree_unflatten(list(named()))
