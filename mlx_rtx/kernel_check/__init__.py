"""Try fused kernels on this machine: ``python -m mlx_rtx.kernel_check copy``.

Trainings ask by `decide` whether they are to be used; where nobody knows yet, a process of its own finds out.
"""

from mlx_rtx.kernel_check.decision import Decision, decide

__all__ = ["Decision", "decide"]
