"""Operations of a forward pass, counted.

Letters: L length, D width, K block width, r layers.
"""

from typing import Literal

from mlx_rtx.config import Architecture


def paper_ops(config: Architecture, length: int, model: Literal["recurrent", "regular"] = "recurrent") -> int:
    """The paper's count for one sequence (§5.1): r(4DLK + 2LD²), or r(L²D + LD²) for a regular transformer.

    It leaves out the MLP and most projections.

    Args:
        config: the model's sizes.
        length: tokens L of the sequence.
        model: which of the two.

    Example:
        >>> f"{paper_ops(Architecture(dim=32, heads=4, block=32), 1024):.2e}"
        '6.29e+06'
    """
    D, K, r = config.dim, config.block, config.layers
    if model == "regular":
        return r * (length**2 * D + length * D**2)
    return r * (4 * D * length * K + 2 * length * D**2)
