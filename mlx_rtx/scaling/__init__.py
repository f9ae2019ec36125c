"""Compute and measure the paper's scaling law: ``python -m mlx_rtx.scaling theory|count|train|fit``."""

from mlx_rtx.scaling.regression import LossFit, fit_losses
from mlx_rtx.scaling.theory import Fit, excess_bounds, gamma, unique_bounds
from mlx_rtx.scaling.unique import unique_sequences

__all__ = ["Fit", "LossFit", "excess_bounds", "fit_losses", "gamma", "unique_bounds", "unique_sequences"]
