"""State of the training loop apart from its arrays, stored in the metadata of ``training.safetensors``."""

import json
import math
from dataclasses import asdict, dataclass, field

from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import make


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counters of the training loop; fields with defaults are missing in runs of older versions."""

    step: int
    finished: bool
    progress: dict[str, float]
    """`Progress.state`."""
    due: bool = False
    """Whether the validation at this step is still pending."""
    tally: dict = field(default_factory=dict)
    """`Tally.state`."""
    signs: dict[str, int] = field(default_factory=dict)
    """`FailureSigns.lasted`."""

    def __post_init__(self):
        require(0 <= self.step < 2**32, f"step={self.step}: must be in [0, 2**32)")

    @property
    def chosen(self) -> bool:
        """Whether a validation has chosen weights."""
        return self.progress.get("stage", 0) > 0 or math.isfinite(self.progress.get("best", math.inf))

    def dump(self) -> str:
        """Return the counters as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Counters":
        """Parse the output of `dump`; raise ``ValueError`` or ``RecursionError`` for anything else."""
        return make(cls, json.loads(text))
