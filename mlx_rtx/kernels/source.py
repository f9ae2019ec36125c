"""Builds kernels from source files shared by CUDA and Metal; macros hide the differences between the two languages."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

Constants = dict[str, int | float]  # by name in the source; THREADS is the number of threads per threadgroup
PROLOGUE = {
    "cuda": """
#define GLOBAL
#define LOCAL
#define SHARED
#define SHARED_ARRAY __shared__
#define CONSTANT constexpr
#define INLINE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(count) PRAGMA(unroll count)
#define BARRIER() __syncthreads()
#define SHUFFLE_XOR(value, mask) __shfl_xor_sync(0xffffffff, value, mask)
#define STORE_4(to, value) __stwb((float4*)(to), value)  // the compiler splits an assignment into four stores
""",
    "metal": """
#define GLOBAL device
#define LOCAL thread
#define SHARED threadgroup
#define SHARED_ARRAY threadgroup
#define CONSTANT constant constexpr
#define INLINE __attribute__((always_inline)) inline
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_BY(count) PRAGMA(clang loop unroll_count(count))
#define BARRIER() threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup)
#define SHUFFLE_XOR(value, mask) simd_shuffle_xor(value, mask)
#define STORE_4(to, value) *(device float4*)(to) = value
""",
}
# Defined at the start of every kernel: the index of its thread, `rank`, and of its threadgroup, `b`.
INDICES = {
    "cuda": "const int rank = threadIdx.x, b = blockIdx.x;\n",
    "metal": "const int rank = thread_index_in_threadgroup, b = threadgroup_position_in_grid.x;\n",
}
COMMON = """
#define PRAGMA(text) _Pragma(#text)
constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int vector_size(int n) { return n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1; }
"""
# Bounds on the threads per threadgroup, which MLX does not declare: without them a kernel might use too many registers
# per thread, and CUDA would fail to launch it, or MLX on Metal refuse it. They precede MLX's `__global__ void` or
# `[[kernel]] void`.
BOUNDS = {
    "cuda": """
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__({threads}, 1)
""",
    "metal": "\n[[max_total_threads_per_threadgroup({threads})]]\n",
}
_fill: float | None = None


@cache
def text(name: str) -> str:
    """Return the text of a source file (.h) of this package."""
    return (files(__package__) / f"{name}.h").read_text()


def shared(helpers: tuple[str, ...], constants: Constants) -> str:
    """Return the part of a kernel's header that is the same for all backends: constants and helpers."""
    lines = "".join(
        f"CONSTANT float {name} = {value!r}f;\n" if isinstance(value, float) else f"CONSTANT int {name} = {value:d};\n"
        for name, value in constants.items()
    )
    return COMMON + lines + "".join(text(name) for name in helpers)


def header(backend: str, helpers: tuple[str, ...], constants: Constants) -> str:
    """Return the complete header of a kernel for one backend."""
    return PROLOGUE[backend] + shared(helpers, constants) + BOUNDS[backend].format(threads=constants["THREADS"])


def backend() -> str:
    """Return the backend for which kernels are built: "cuda" or "metal"."""
    return "cuda" if mx.cuda.is_available() else "metal"


@contextmanager
def filled(value: float) -> Iterator[None]:
    """Context manager: initialise the outputs of kernels to ``value``, which reveals elements that are not written."""
    global _fill
    before, _fill = _fill, value
    try:
        yield
    finally:
        _fill = before


def make_kernel(
    name: str, helpers: tuple[str, ...], inputs: tuple[str, ...], outputs: tuple[str, ...], constants: Constants
) -> Callable[..., list[mx.array]]:
    """Return the kernel whose body is the source file ``name``, built for the current backend.

    On Metal every input must have at least 8 elements: MLX passes smaller ones in the constant address space.
    """
    where = backend()
    make: Any = mx.fast.cuda_kernel if where == "cuda" else mx.fast.metal_kernel
    body, before = INDICES[where] + text(name), header(where, helpers, constants)
    told_apart = hashlib.sha256((before + body).encode()).hexdigest()[:12]  # MLX caches kernels by name
    kernel = make(
        name=f"{name}_{told_apart}",
        input_names=list(inputs),
        output_names=list(outputs),
        source=body,
        header=before,
    )

    def run(**arguments: Any) -> list[mx.array]:
        return kernel(**arguments) if _fill is None else kernel(**arguments, init_value=_fill)

    return run
