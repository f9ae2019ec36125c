"""Where reports lie: a folder a machine in benchmarks/results, each report with what it was made with."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from mlx_rtx import backend
from mlx_rtx.files import write_whole

RESULTS = Path(__file__).parent / "results"


def results_folder(out: Path | None) -> Path:
    """``out``, or the folder of this machine; it is there afterwards."""
    if out is None:
        out = RESULTS / "-".join(re.findall("[a-z0-9]+", str(backend.device_name()).lower()))
    out.mkdir(parents=True, exist_ok=True)
    return out


def write_report(folder: Path, name: str, report: dict) -> None:
    """Write ``name``.json: the environment first, then the report."""
    environment = backend.environment() | {"compiled": False}  # steps run as they are written, without mx.compile
    text = json.dumps({"environment": environment, **report}, indent=1) + "\n"
    write_whole(folder / f"{name}.json", lambda path: path.write_text(text))


def write_picture(folder: Path, name: str, figure: Any) -> None:
    """Write ``name``.png."""
    write_whole(folder / f"{name}.png", partial(figure.savefig, dpi=150))


def reports(name: str) -> dict[str, dict]:
    """The reports of that name of all machines, by folder."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"*/{name}.json"))}
