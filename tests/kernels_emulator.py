"""GPU kernels on a CPU: their source, compiled with g++ and the definitions in ``kernels_emulator.h``.

The threads of a threadgroup take turns. With `SANITIZERS` they are real threads, and each kernel is a separate program
that runs under g++'s sanitizers and fails if they find an error.
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
WORDS = Path(__file__).with_suffix(".h").read_text()
# Arguments: a file with all arrays one after another, the number of threadgroups, the size of each array in bytes.
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
SANITIZERS: str | None = None  # g++'s names of sanitizers, e.g. "address,undefined"
FUSED = ["-march=native"] if platform.machine() == "x86_64" else []  # fused multiply-add, as on other architectures
UNFORTIFIED = "-U_FORTIFY_SOURCE"  # set by Ubuntu's g++, it aborts on jumps between the threads' stacks
FLAGS = ["-std=c++17", "-O1", UNFORTIFIED, *FUSED, "-Wno-unknown-pragmas", "-Wno-attributes"]


def make_kernel(name, helpers, inputs, outputs, constants):
    """Return the CPU version of a kernel that `mlx_rtx.kernels.source.make_kernel` would return."""
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
    text = f"""{WORDS}{source.shared(helpers, constants)}
static void run({parameters}) {{
const int rank = emulated_rank, b = emulated_group;
{numbers}{body}}}
static void body() {{
  void** arguments = emulated_arguments;
  run({given});
}}
extern "C" void launch(void** arguments, int groups) {{
  emulated_arguments = arguments;
  emulate(body, {constants["THREADS"]}, groups);
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
    """Run a kernel, which writes to the last arrays."""
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
    """Compile a library or program, or reuse one from an earlier run, and return its path."""
    watched = ["-DREAL_THREADS", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-g"]
    kind = watched if SANITIZERS else ["-shared", "-fPIC"]
    command = ["g++", *FLAGS, *kind, "-pthread"]
    digest = hashlib.sha256("\n".join([*command, text]).encode()).hexdigest()
    built = BUILD / f"{digest[:24]}.so"
    if not built.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:  # other processes may build the same kernel
            source, made = Path(folder, "kernel.cpp"), Path(folder, "kernel")
            source.write_text(text)
            subprocess.run([*command, "-o", made, source], check=True)
            made.replace(built)
    return built
