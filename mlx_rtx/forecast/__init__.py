"""Predictions of the cost of a step without running it: operations, kernel launches, memory and time."""

from mlx_rtx.forecast.operations import executed_ops, paper_ops, true_ops

__all__ = ["executed_ops", "paper_ops", "true_ops"]
