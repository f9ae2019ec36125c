"""GPU kernels on a CPU: their own source, compiled by g++, the threads of a threadgroup as real threads."""

import ctypes
import hashlib
import subprocess
import tempfile
from pathlib import Path

from mlx_rtx.kernels import source

import mlx.core as mx
import numpy as np

BUILD = Path(tempfile.gettempdir()) / "mlx_rtx_emulated_kernels"
STANDARD = """
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <algorithm>
#include <thread>
#include <vector>
using std::max; using std::min;
struct alignas(16) float4 { float x, y, z, w; };
static float rsqrt(float x) { return 1 / sqrtf(x); }
#define exp expf
#define log logf
#define fma fmaf
#define fabs fabsf
"""
PROLOGUE = """
static pthread_barrier_t gate, warp_gates[32];
static float slots[1024];
static thread_local int emulated_rank, emulated_group;
static float shuffle_xor(float value, int mask) {
  pthread_barrier_t* warp_gate = warp_gates + emulated_rank / 32;
  slots[emulated_rank] = value;
  pthread_barrier_wait(warp_gate);
  const float other = slots[emulated_rank ^ mask];
  pthread_barrier_wait(warp_gate);
  return other;
}
#define GLOBAL
#define LOCAL
#define SHARED
#define SHARED_ARRAY static
#define CONSTANT constexpr
#define INLINE inline
#define UNROLL
#define UNROLL_BY(count)
#define BARRIER() pthread_barrier_wait(&gate)
#define SHUFFLE_XOR(value, mask) shuffle_xor(value, mask)
#define STORE_4(to, value) *(float4*)(to) = value
"""
FLAGS = ["-std=c++17", "-O1", "-march=native", "-Wno-unknown-pragmas", "-Wno-attributes"]


def make_kernel(name, helpers, inputs, outputs, constants):
    """What `mlx_rtx.kernels.source.make_kernel` returns, on the CPU."""
    body, types, names = source.text(name), [], []
    for which in inputs:
        types.append("const float*")
        names.append(which)
        for extra, kind in (("_shape", "const int*"), ("_ndim", "const int*")):
            if which + extra in body:
                types.append(kind)
                names.append(which + extra)
    types += ["float*"] * len(outputs)
    names += outputs
    parameters = ", ".join(f"{t} {'at_' if n.endswith('_ndim') else ''}{n}" for t, n in zip(types, names, strict=True))
    numbers = "".join(f"const int {n} = *at_{n};\n" for n in names if n.endswith("_ndim"))
    given = ", ".join(f"({t})arguments[{i}]" for i, t in enumerate(types))
    threads = constants["THREADS"]
    text = f"""{STANDARD}{PROLOGUE}{source.shared(helpers, constants)}
static void run({parameters}) {{
const int rank = emulated_rank, b = emulated_group;
{numbers}{body}}}
extern "C" void launch(void** arguments, int groups) {{
  pthread_barrier_init(&gate, nullptr, {threads});
  for (int warp = 0; warp < {threads} / 32; ++warp) pthread_barrier_init(warp_gates + warp, nullptr, 32);
  for (int group = 0; group < groups; ++group) {{
    std::vector<std::thread> threads;
    for (int rank = 0; rank < {threads}; ++rank)
      threads.emplace_back([=] {{ emulated_rank = rank, emulated_group = group; run({given}); }});
    for (auto& thread : threads) thread.join();
  }}
  pthread_barrier_destroy(&gate);
}}
"""
    launch = ctypes.CDLL(str(_build(text))).launch

    def call(*, inputs, output_shapes, output_dtypes, grid, threadgroup):
        held, results = [], [np.full(shape, np.nan, np.float32) for shape in output_shapes]
        for which, array in zip(_inputs, inputs, strict=True):
            held.append(np.ascontiguousarray(np.array(array)))
            if which + "_shape" in names:
                held.append(np.array(array.shape, dtype=np.int32))
            if which + "_ndim" in names:
                held.append(np.array([array.ndim], dtype=np.int32))
        pointers = [array.ctypes.data for array in held + results]
        launch((ctypes.c_void_p * len(pointers))(*pointers), grid[0] // threadgroup[0])
        return [mx.array(result) for result in results]

    _inputs = inputs
    return call


def _build(text: str) -> Path:
    """The compiled library, from an earlier run if there is one."""
    stem = BUILD / hashlib.sha256(text.encode()).hexdigest()[:24]
    library = stem.with_suffix(".so")
    if not library.exists():
        BUILD.mkdir(exist_ok=True)
        stem.with_suffix(".cpp").write_text(text)
        partial = stem.with_suffix(".partial")
        subprocess.run(
            ["g++", *FLAGS, "-shared", "-fPIC", "-pthread", "-o", partial, stem.with_suffix(".cpp")], check=True
        )
        partial.replace(library)
    return library
