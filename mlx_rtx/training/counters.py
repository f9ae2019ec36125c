"""Where the training loop stands, besides its arrays: what ``training.safetensors`` has in its metadata."""

import json
import math
from dataclasses import asdict, dataclass, field

from mlx_rtx.support.errors import require
from mlx_rtx.support.typed import make


@dataclass(frozen=True, kw_only=True)
class Counters:
    """The loop's counters; the first three are the oldest."""

    step: int
    finished: bool
    progress: dict[str, float]
    """`Progress.state`."""
    due: bool = False
    """Whether a validation is still to be done at this step."""
    tally: dict = field(default_factory=dict)
    """`Tally.state`."""
    signs: dict[str, int] = field(default_factory=dict)
    """`FailureSigns.lasted`."""

    def __post_init__(self):
        require(0 <= self.step < 2**32, f"step={self.step}: is no step")

    @property
    def chosen(self) -> bool:
        """Whether a validation has chosen weights."""
        return self.progress.get("stage", 0) > 0 or math.isfinite(self.progress.get("best", math.inf))

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> "Counters":
        """What `dump` gave; a ``ValueError`` or ``RecursionError`` says what else it is."""
        return make(cls, json.loads(text))
