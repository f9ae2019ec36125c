"""Limits of time and memory, beyond which a benchmark skips points, and the folder of its report."""

from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.support.errors import require, require_each

LARGEST = 2**31 - 1  # largest size of an array's axis


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a benchmark."""

    seconds: float | None
    """Approximate time for all points together; each benchmark has its own default."""
    memory: float = 0.5
    """Fraction of the machine's memory that a point may need, by prediction."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        require(self.seconds is None or self.seconds > 0, f"seconds={self.seconds}: must be above 0")
        require(0 < self.memory <= 1, f"memory={self.memory}: must be above 0 and at most 1")

    def require_sizes(self, *names: str) -> None:
        """Raise UserError if one of these lists of sizes is empty or has an invalid size."""
        require_each(self, *names, least=1, most=LARGEST)
