"""Check the fused kernels on this machine: ``python -m mlx_rtx.kernel_check copy``.

Trainings call `decide` to learn whether to use the kernels; if no result is stored yet, it runs the check in a separate
process.
"""

from mlx_rtx.kernel_check.decision import Decision, decide

__all__ = ["Decision", "decide"]
