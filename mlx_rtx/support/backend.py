"""The machine: what it has, what would make it faster, and a record of what a run was made with.

Import this before `mlx.core`, so that MLX finds OpenBLAS: the package's ``__init__`` does.
"""

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from mlx_rtx.support.errors import require
from mlx_rtx.support.openblas import HAS_OPENBLAS

DeviceName = Literal["cpu", "gpu"]
REMEDY = (
    "OpenBLAS would be about 10 times as fast as the BLAS in MLX's Linux wheel: make setup fetches it, "
    "or install it by the system's package manager; and import mlx_rtx before mlx"
)


def advice() -> str | None:
    """One line on what would make this machine faster, if anything is known."""
    import mlx.core as mx

    on_linux_cpu = sys.platform == "linux" and mx.default_device().type == mx.cpu
    return REMEDY if on_linux_cpu and not HAS_OPENBLAS else None


def use_device(name: DeviceName | None) -> None:
    """Have MLX work on the CPU or the GPU from now on; without a name, on the one that it prefers.

    Raises:
        UserError: this MLX has no GPU here.
    """
    import mlx.core as mx

    if name is None:
        return
    has_gpu = mx.metal.is_available() or mx.cuda.is_available()
    require(name == "cpu" or has_gpu, "--device gpu: this MLX has no GPU here; drop the flag, or set MLX up for it")
    mx.set_default_device(mx.cpu if name == "cpu" else mx.gpu)


def memory_gb() -> float:
    """Memory that the device has, or may use where it or the system says so, in GB."""
    import mlx.core as mx

    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if size := info.get(name):
            return int(size) / 1e9
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()) / 1e9


def _limits() -> Iterator[int]:
    """Bytes that this process may take, where there is a limit: its own (ulimit -v), or a container's."""
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        yield own
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of version 2 of control groups, and of version 1
        with contextlib.suppress(OSError, ValueError):
            yield int(Path("/sys/fs/cgroup", name).read_text())


def device_name() -> str | None:
    """What the device in use is called, where MLX says so."""
    import mlx.core as mx

    info: Any = mx.device_info()
    return info.get("device_name") or info.get("architecture")


def device() -> str:
    """The device in use and MLX's version, for people."""
    import mlx.core as mx

    return f"{device_name()} ({mx.default_device()}), mlx {version('mlx')}"


def environment() -> dict:
    """Versions, device and source revision, ready for JSON."""
    from mlx_rtx.support.compiled import should_compile

    import mlx.core as mx

    names = ("mlx_rtx", "mlx", "numpy")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "platform": platform.platform(),
        "device": str(mx.default_device()),
        "device_name": device_name(),
        "memory_gb": round(memory_gb(), 1),
        "processor": _processor(),
        "openblas": HAS_OPENBLAS,
        "tf32": os.environ.get("MLX_ENABLE_TF32", "default"),
        "compiled": should_compile(),
        "kernels": os.environ.get("MLX_RTX_KERNELS", "default"),
        "git_revision": git_revision(),
    }


def _processor() -> str:
    """The host's processor, which sets the pace where launching does, and its cores."""
    name = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def version(package: str) -> str | None:
    """The installed version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Revision of the source this runs from; None outside a checkout.

    With ``+`` where a tracked file was changed, results and pages aside: those are what a run is made for.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    sources = [":(top)", ":(top,exclude)results", ":(top,exclude)benchmarks/results", ":(top,exclude)*.md"]
    try:
        git("ls-files", "--error-unmatch", __file__)  # else some other repository holds this package
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
