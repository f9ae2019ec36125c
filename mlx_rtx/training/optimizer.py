"""Optimizer step: clipping, Adam or Muon, and a guard against gradients that are not finite or too large."""

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

LAYER_MATRICES = ("qkv", "attention_out", "mlp_in", "mlp_out")  # updated by Muon; qkv as three matrices


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer settings. With weight decay, Adam is AdamW."""

    optimizer: Literal["adam", "muon"] = "adam"
    """adam (with bias correction), or muon: Muon for the layers' matrices, Adam for all other parameters."""
    lr: float = 1e-3
    """Initial learning rate. Muon's updates are scaled so that the same rate suits both optimizers."""
    muon_lr: float | None = None
    """Initial learning rate of Muon, e.g. 8e-3; None: --lr. Both rates follow the same schedule."""
    warm_up: int = 0
    """Steps of linear learning-rate warm-up; 0: none."""
    clip: float = 1.0
    """Maximum gradient norm, to which larger gradients are scaled down; 0: no clipping."""
    skip_above: float = 0.0
    """Skip steps whose gradient norm exceeds its running mean by this factor, e.g. 5; 0: skip none."""
    beta2: float = 0.999
    """Adam's decay rate of the second moment; that of the first is 0.9."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices only: not on the gains of norms nor on alpha."""
    average: float = 0.0
    """Decay of an exponential moving average of the weights, e.g. 0.999; 0: none.
    Validations score the weights and the average, and keep the better; the average decides if the task is solved."""

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
    """MLX's Muon with decoupled weight decay, and orthogonal updates scaled by 0.2 √max(rows, columns).

    With this scale updates are about as large as Adam's (Liu et al. 2025, arXiv 2502.16982, Eq. 4), so that both can
    use the same learning rate. ``factor`` multiplies the learning rate for Muon alone.
    """

    def __init__(self, learning_rate: float, weight_decay: float, factor: float = 1.0):
        super().__init__(learning_rate, weight_decay=0.0)
        self.decay, self.factor = weight_decay, factor

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated matrix."""
        rows, columns = parameter.shape
        update = super().apply_single(gradient, mx.zeros_like(parameter), state)  # its scale: √max(1, rows / columns)
        scale = 0.2 * math.sqrt(max(rows, columns)) / max(1, rows / columns) ** 0.5
        return parameter * (1 - self.learning_rate * (self.factor * self.decay)) + self.factor * scale * update


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> optim.Optimizer:
    """Return the optimizer for the trainable parameters of ``model``, with its state initialized.

    Adam's parameters are concatenated into two vectors, one of matrices and one of the others, so that a step launches
    few kernels.
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
    """Result of `apply_gradients`; its arrays may not be evaluated yet."""

    taken: mx.array  # scalar bool: whether the weights were updated
    norm: mx.array  # scalar, norm of all gradients before clipping; NaN if the new weights would not have been finite


def apply_gradients(
    model: nn.Module,
    optimizer: optim.Optimizer,
    gradients: dict,
    config: OptimizerConfig,
    guard: SpikeGuard | None = None,
) -> Update:
    """Take one optimizer step; if it is not finite or too large, leave weights and moments unchanged.

    Args:
        model: model whose trainable parameters are updated.
        optimizer: from `make_optimizer`.
        gradients: a tree like ``model.trainable_parameters()``.
        config: optimizer settings.
        guard: decides which gradients are too large; default: none are.
    """
    own, state = model.trainable_parameters(), tree_map(lambda a: a, optimizer.state)
    weights, joined = _join(own, own, config), _join(own, gradients, config)
    joined, norm = optim.clip_grad_norm(joined, config.clip or math.inf)
    after = optimizer.apply_gradients(joined, weights)
    total = reduce(mx.add, (array.sum() for array in after.values()))
    norm = norm + (total - total)  # adds 0, or NaN unless all new weights are finite
    taken = guard.accepts(norm) if guard else mx.isfinite(norm)

    def choose(new, old):
        return mx.where(taken, new, old)

    model.update(_part(own, tree_map(choose, after, weights), config))
    optimizer.state = tree_map(choose, optimizer.state, state)
    return Update(taken, norm)


def _muon_parts(name: str, config: OptimizerConfig) -> int:
    """Return into how many matrices, by columns, Muon splits a parameter; 0 if Adam updates it."""
    kind = name.rpartition(".")[2]
    return (3 if kind == "qkv" else 1) if config.optimizer == "muon" and kind in LAYER_MATRICES else 0


def _keys(name: str, parts: int) -> list[str]:
    """Return names for the parts of a parameter, without dots, because trees are split at dots."""
    return [f"{name.replace('.', '/')}/{i}" for i in range(parts)]


def _join(shapes: dict, tree: dict, config: OptimizerConfig) -> dict[str, mx.array]:
    """Concatenate the arrays of ``tree`` into one vector of matrices and one of others, judged by ``shapes``.

    Matrices that Muon updates are kept separately, under their own names.
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
    """Invert `_join`: return a tree like ``shapes``."""

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
