"""What every benchmark that leaves points out is given: time, memory, and a folder for its report."""

from dataclasses import dataclass
from pathlib import Path

from mlx_rtx.support.errors import require, require_each

LARGEST = 2**31 - 1  # size of an array


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a benchmark."""

    seconds: float | None
    """Time for all points together, about; a benchmark says how much where none is given."""
    memory: float = 0.5
    """Share of the machine's memory that a point may be expected to take."""
    out: Path | None = None
    """Folder for the report; benchmarks/results/<device> if not given."""

    def __post_init__(self):
        require(self.seconds is None or self.seconds > 0, f"seconds={self.seconds}: must be above 0")
        require(0 < self.memory <= 1, f"memory={self.memory}: must be above 0 and at most 1")

    def require_sizes(self, *names: str) -> None:
        """Refuse lists of sizes that hold none, or one that no array has."""
        require_each(self, *names, least=1, most=LARGEST)
