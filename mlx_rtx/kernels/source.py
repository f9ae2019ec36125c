"""Kernels from their source, which is one for CUDA and Metal: what the two call differently stands here."""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

Constants = dict[str, int | float]  # by their name in the source; THREADS are those of a threadgroup
PROLOGUE = {
    "cuda": """
#define GLOBAL
#define LOCAL
#define SHARED
#define SHARED_ARRAY __shared__
#define CONSTANT constexpr
#define INLINE __device__ __forceinline__
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
#define INLINE inline
#define BARRIER() threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup)
#define SHUFFLE_XOR(value, mask) simd_shuffle_xor(value, mask)
#define STORE_4(to, value) *(device float4*)(to) = value
""",
}
# Every kernel begins by naming its thread, `rank`, and its threadgroup, `b`.
INDICES = {
    "cuda": "const int rank = threadIdx.x, b = blockIdx.x;\n",
    "metal": "const int rank = thread_index_in_threadgroup, b = threadgroup_position_in_grid.x;\n",
}
COMMON = """
#define UNROLL _Pragma("unroll")
constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int vector_size(int n) { return n % 4 == 0 ? 4 : n % 2 == 0 ? 2 : 1; }
"""
# MLX declares CUDA kernels without launch bounds; too many registers a thread would then fail the launch.
BOUNDS = """
#undef __global__
#define __global__ __attribute__((global)) __launch_bounds__({threads}, 1)
"""


@cache
def text(name: str) -> str:
    """One of the source files that lie beside this one."""
    return (files(__package__) / f"{name}.h").read_text()


def shared(helpers: tuple[str, ...], constants: Constants) -> str:
    """What stands before a kernel on every backend: its constants and the helpers it uses."""
    lines = "".join(
        f"CONSTANT float {name} = {value!r}f;\n" if isinstance(value, float) else f"CONSTANT int {name} = {value:d};\n"
        for name, value in constants.items()
    )
    return COMMON + lines + "".join(text(name) for name in helpers)


def header(backend: str, helpers: tuple[str, ...], constants: Constants) -> str:
    """What stands before a kernel on one backend."""
    bounds = BOUNDS.format(threads=constants["THREADS"]) if backend == "cuda" else ""
    return PROLOGUE[backend] + shared(helpers, constants) + bounds


def make_kernel(
    name: str, helpers: tuple[str, ...], inputs: tuple[str, ...], outputs: tuple[str, ...], constants: Constants
) -> Callable[..., list[mx.array]]:
    """The kernel whose body is the source file of that name, for the backend at hand."""
    backend = "cuda" if mx.cuda.is_available() else "metal"
    make: Any = mx.fast.cuda_kernel if backend == "cuda" else mx.fast.metal_kernel
    return make(
        name=name,
        input_names=list(inputs),
        output_names=list(outputs),
        source=INDICES[backend] + text(name),
        header=header(backend, helpers, constants),
    )
