"""Information about the machine: device, memory, versions, advice on speed, and a record of a run's environment.

Import this before `mlx.core`, as the package's ``__init__`` does, so that MLX finds OpenBLAS.
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
    "OpenBLAS is about 10 times as fast as the BLAS in MLX's Linux wheel: make setup downloads it, "
    "or install it with the system's package manager; and import mlx_rtx before mlx"
)


def advice() -> str | None:
    """Return one line on how to make this machine faster, or None if there is no advice."""
    import mlx.core as mx

    on_linux_cpu = sys.platform == "linux" and mx.default_device().type == mx.cpu
    return REMEDY if on_linux_cpu and not HAS_OPENBLAS else None


def use_device(name: DeviceName | None) -> None:
    """Make the CPU or the GPU MLX's default device; None leaves MLX's choice.

    Raises:
        UserError: if MLX cannot use a GPU on this machine.
    """
    import mlx.core as mx

    if name is None:
        return
    has_gpu = mx.metal.is_available() or mx.cuda.is_available()
    require(name == "cpu" or has_gpu, "--device gpu: MLX finds no GPU; omit the flag, or install MLX for your GPU")
    mx.set_default_device(mx.cpu if name == "cpu" else mx.gpu)


def memory_gb() -> float:
    """Return the memory in GB that this process may use on the device, as far as device or system report a limit."""
    import mlx.core as mx

    info = mx.device_info()
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if size := info.get(name):
            return int(size) / 1e9
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()) / 1e9


def _limits() -> Iterator[int]:
    """Yield memory limits of this process in bytes: its own (ulimit -v) and its container's, if any."""
    own, _ = resource.getrlimit(resource.RLIMIT_AS)
    if own != resource.RLIM_INFINITY:
        yield own
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, cgroup v1
        with contextlib.suppress(OSError, ValueError):
            yield int(Path("/sys/fs/cgroup", name).read_text())


def device_name() -> str | None:
    """Return the name of the default device, or None if MLX does not report it."""
    import mlx.core as mx

    info: Any = mx.device_info()
    return info.get("device_name") or info.get("architecture")


def device() -> str:
    """Return the default device and MLX's version as readable text."""
    import mlx.core as mx

    return f"{device_name()} ({mx.default_device()}), mlx {version('mlx')}"


def environment() -> dict:
    """Return versions, device and source revision as a dictionary for JSON."""
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
    """Return the name and core count of the host's processor, which limits the speed of host-bound work."""
    name = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {os.cpu_count()} cores"


def version(package: str) -> str | None:
    """Return the installed version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision() -> str | None:
    """Return the git revision of the running source, or None outside a checkout.

    ``+`` is appended if tracked files were changed, except for results and Markdown pages.
    """
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    sources = [":(top)", ":(top,exclude)results", ":(top,exclude)benchmarks/results", ":(top,exclude)*.md"]
    try:
        git("ls-files", "--error-unmatch", __file__)  # fails if another repository contains this package
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *sources)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
