"""What a kernel is compiled for, beside its sizes."""

from typing import NamedTuple


class Options(NamedTuple):
    """A recurrence's heads H and choices, as in `mlx_rtx.model.config.Architecture`."""

    heads: int
    history: str
    activation: str
    state_norm: bool

    def rows(self, K: int) -> int:
        """Rows n of a window that have outputs."""
        return K if self.history == "hidden" else 2 * K
