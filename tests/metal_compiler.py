"""Check a Metal source as far as possible without a Mac.

clang compiles it as C++14 with Metal's address spaces; constructs that only clang accepts are searched for in the text.
"""

import re
import shutil
import subprocess
from pathlib import Path

NAMES = ["clang++", *(f"clang++-{version}" for version in range(30, 13, -1))]
CLANG = next(filter(None, map(shutil.which, NAMES)), None)
READ = ["-x", "c++", "-std=c++14", "-D__METAL_VERSION__=310", "-nostdinc", "-nostdinc++"]
FLAGS = [
    *READ, "-fsyntax-only", "-ffreestanding", "-Wall", "-Wextra", "-Wshadow", "-Wdouble-promotion",
    "-Wno-unknown-attributes", "-Wno-ignored-attributes", "-Wno-unused-const-variable", "-Wno-unused-parameter",
    "-Wno-unused-variable", "-Wno-unused-function", "-Wno-comma", "-ferror-limit=3", "-fno-caret-diagnostics",
]  # fmt: skip
FORBIDDEN = {
    "no such type": r"\b(?:double|long long)\b",
    "no such word": r"\b(?:goto|try|catch|throw|new|delete|virtual|thread_local|dynamic_cast)\b|\bstd::",
    "no lambdas": r"\[(?:[&=]|\w+)?\]\s*(?:\([^()]*\)\s*(?:mutable\s*)?(?:->\s*\w+\s*)?)?\{",
}
POINTER = r"([\w ]*?)\b(?:float4?|u?int|size_t)\s*(?:\*|\(?&)(?!&)"
SPACE = r"\b(?:device|constant|threadgroup|thread)\b"


def complaints(source):
    """Return the errors in a Metal source, one per line."""
    return [*_of_clang(source), *_of_text(_preprocessed(source))]


def _of_clang(source):
    # clang has no local variables in address spaces; a threadgroup's array has the lifetime of a static variable
    text = source.replace("#define SHARED_ARRAY threadgroup", "#define SHARED_ARRAY static threadgroup")
    text = text.replace("#include <metal_simdgroup_matrix>", "")  # the shim declares its contents
    shim = Path(__file__).with_name("metal_shim.h")
    run = subprocess.run([CLANG, *FLAGS, "-include", shim, "-"], input=text, text=True, capture_output=True)
    return [line for line in run.stderr.splitlines() if re.search(r"(?:error|warning):", line)]


def _preprocessed(source):
    return subprocess.run(
        [CLANG, *READ, "-E", "-P", "-"],
        input=source.replace("#include", "//"),
        text=True,
        capture_output=True,
        check=True,
    ).stdout


def _of_text(text):
    for what, pattern in FORBIDDEN.items():
        yield from (f"{what}: {found[0]}" for found in re.finditer(pattern, text))
    for found in re.finditer(POINTER, text):
        if not re.search(SPACE, found[1]):
            yield f"no address space: {found[0].strip()}"
    yield from (
        f"a constant of no address space: {line}"
        for line in re.findall(r"^(?:static )?constexpr \w+ \w+ =.*", text, re.M)
    )
    for found in re.finditer(r"\bthreadgroup \w+ \w+\[.*", text):
        before = text[: found.start()]
        if "[[kernel]]" not in before or before.count("{") - before.count("}") != 1:
            yield f"a threadgroup's array outside of a kernel's outermost braces: {found[0]}"
    if not re.search(r"\[\[max_total_threads_per_threadgroup\(\d+\)\]\]\s*\[\[kernel\]\] void", text):
        yield "no bound on threads before the kernel"
