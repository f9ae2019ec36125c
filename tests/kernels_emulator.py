"""GPU kernels on a CPU: their own source, compiled by g++, the threads of a threadgroup as real threads.

With `SANITIZERS` a kernel is a program of its own, which g++'s sanitizers watch, and which fails at what they find.
"""

import ctypes
import hashlib
import platform
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
#include <stdio.h>
#include <stdlib.h>
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
#ifdef __APPLE__  // which has no barriers
struct pthread_barrier_t { pthread_mutex_t lock; pthread_cond_t open; int count, waiting, round; };
static void pthread_barrier_init(pthread_barrier_t* barrier, void*, int count) {
  *barrier = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, count, 0, 0};
}
static void pthread_barrier_destroy(pthread_barrier_t*) {}
static void pthread_barrier_wait(pthread_barrier_t* barrier) {
  pthread_mutex_lock(&barrier->lock);
  const int round = barrier->round;
  if (++barrier->waiting == barrier->count) {
    barrier->waiting = 0;
    ++barrier->round;
    pthread_cond_broadcast(&barrier->open);
  }
  while (round == barrier->round) pthread_cond_wait(&barrier->open, &barrier->lock);
  pthread_mutex_unlock(&barrier->lock);
}
#endif
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
struct Matrix { float x[8][8]; };  // all of it in each thread of a warp; a thread stores two of its numbers
#define MATRIX Matrix
#define NO_MATRIX Matrix()
#define MATRIX_LOAD(to, from, pitch) for (int e = 0; e < 64; ++e) (to).x[e / 8][e % 8] = (from)[e / 8 * (pitch) + e % 8]
#define MATRIX_STORE(from, to, pitch) \\
  for (int e = emulated_rank % 32; e < 64; e += 32) (to)[e / 8 * (pitch) + e % 8] = (from).x[e / 8][e % 8]
#define MATRIX_ADD_PRODUCT(sum, a, b) add_product(sum, a, b)
#define WARP_BARRIER() pthread_barrier_wait(warp_gates + emulated_rank / 32)
static void add_product(Matrix& sum, const Matrix& a, const Matrix& b) {
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 8; ++k)
      for (int j = 0; j < 8; ++j) sum.x[i][j] = fma(a.x[i][k], b.x[k][j], sum.x[i][j]);
}
"""
# Its arguments: a file that holds all arrays one after another, threadgroups, then how many bytes each array has.
PROGRAM = """
int main(int count, char** words) {
  std::vector<void*> arrays(count - 3);
  FILE* file = fopen(words[1], "r+b");
  for (int i = 3; i < count; ++i) {
    arrays[i - 3] = malloc(atol(words[i]));
    if (fread(arrays[i - 3], 1, atol(words[i]), file) != size_t(atol(words[i]))) return 1;
  }
  launch(arrays.data(), atoi(words[2]));
  rewind(file);
  for (int i = 3; i < count; ++i) fwrite(arrays[i - 3], 1, atol(words[i]), file);
  fclose(file);
  for (void* array : arrays) free(array);
}
"""
SANITIZERS: str | None = None  # as g++ names them, e.g. "address,undefined"
FUSED = ["-march=native"] if platform.machine() == "x86_64" else []  # multiply-adds in one instruction, as others have
FLAGS = ["-std=c++17", "-O1", *FUSED, "-Wno-unknown-pragmas", "-Wno-attributes"]


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
    built = _build(text + PROGRAM * bool(SANITIZERS))

    def call(*, inputs, output_shapes, output_dtypes, grid, threadgroup):
        held, results = [], [np.full(shape, np.nan, np.float32) for shape in output_shapes]
        for which, array in zip(_inputs, inputs, strict=True):
            held.append(np.ascontiguousarray(np.array(array)))
            if which + "_shape" in names:
                held.append(np.array(array.shape, dtype=np.int32))
            if which + "_ndim" in names:
                held.append(np.array([array.ndim], dtype=np.int32))
        _launch(built, [*held, *results], grid[0] // threadgroup[0])
        return [mx.array(result) for result in results]

    _inputs = inputs
    return call


def _launch(built: Path, arrays: list[np.ndarray], groups: int) -> None:
    """Run a kernel, which writes into the last arrays."""
    if not SANITIZERS:
        pointers = [array.ctypes.data for array in arrays]
        ctypes.CDLL(str(built)).launch((ctypes.c_void_p * len(pointers))(*pointers), groups)
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(array.tobytes() for array in arrays))
        file.flush()
        sizes = [str(array.nbytes) for array in arrays]
        run = subprocess.run([built, file.name, str(groups), *sizes], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        file.seek(0)
        for array in arrays:
            array[...] = np.frombuffer(file.read(array.nbytes), array.dtype).reshape(array.shape)


def _build(text: str) -> Path:
    """The compiled library or program, from an earlier run if there is one."""
    kind = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-g"] if SANITIZERS else ["-shared", "-fPIC"]
    command = ["g++", *FLAGS, *kind, "-pthread"]
    stem = BUILD / hashlib.sha256("\n".join([*command, text]).encode()).hexdigest()[:24]
    built = stem.with_suffix(".so")
    if not built.exists():
        BUILD.mkdir(exist_ok=True)
        stem.with_suffix(".cpp").write_text(text)
        partial = stem.with_suffix(".partial")
        subprocess.run([*command, "-o", partial, stem.with_suffix(".cpp")], check=True)
        partial.replace(built)
    return built
