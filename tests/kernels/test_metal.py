"""The source that Metal's compiler would be given, checked without a Mac; `kernel_check` tests the rest on a Mac."""

from concurrent.futures import ThreadPoolExecutor

from mlx_rtx.kernels import FORMS, source, wide

import mlx.core as mx
import pytest

from metal_compiler import CLANG, complaints
from metal_sources import options, trace

pytestmark = [
    pytest.mark.skipif(CLANG is None, reason="needs clang++"),
    pytest.mark.skipif(mx.cuda.is_available(), reason="MLX for CUDA writes no Metal"),
]
NARROW, SMALL, MATRICES, WIDE = FORMS
COPY, TEXT = {"B": 64, "S": 3, "K": 32, "D": 96}, {"B": 64, "S": 3, "K": 16, "D": 384}
IMAGE, ODD = {"B": 20, "S": 4, "K": 128, "D": 52}, {"B": 2, "S": 3, "K": 5, "D": 30}
TINY = {"B": 1, "S": 3, "K": 1, "D": 8}
CASES = [
    (NARROW, COPY, options(), False),
    (NARROW, COPY, options("hidden", qk_norm=True, state_norm=True, activation="gelu"), True),
    (NARROW, IMAGE, options(heads=4), True),
    (NARROW, ODD, options(heads=3, state_norm=True, qk_norm=True, activation="gelu"), True),
    (NARROW, TINY, options(heads=1), False),
    (NARROW._replace(windows=2), COPY | {"D": 128}, options("hidden", heads=8, state_norm=True), False),
    (SMALL, COPY, options(qk_norm=True), True),
    (SMALL, TEXT, options("hidden", activation="gelu"), False),
    (MATRICES, COPY, options(qk_norm=True), True),
    (MATRICES, {"B": 2, "S": 3, "K": 20, "D": 72}, options("hidden", activation="gelu", state_norm=True), False),
    (WIDE, TEXT, options(activation="gelu"), False),
    (WIDE, TEXT, options("hidden", qk_norm=True, state_norm=True), True),
    (WIDE, COPY, options(state_norm=True, qk_norm=True), True),
    (WIDE, ODD, options("hidden", heads=3, activation="gelu"), True),
    (WIDE, TINY, options(heads=1, state_norm=True), False),
    (WIDE, TINY, options("hidden", heads=1), False),
    (WIDE, {"B": 2, "S": 3, "K": 16, "D": 1024}, options(heads=16, qk_norm=True), False),
]  # fmt: skip


def test_every_kernel_is_valid_metal():
    texts = {}
    for form, sizes, choices, dropout in CASES:
        found = trace(form, choices, dropout=dropout, **sizes)
        expected = (
            {"narrow_forward", "narrow_backward"} if form.narrow else {n for n in wide.KERNELS if "head" not in n}
        )
        assert {name.rpartition("_")[0] for name in found} >= expected
        for name, text in found.items():
            assert texts.setdefault(name, text) == text, "kernels that differ must not share a name"
    with ThreadPoolExecutor(2) as pool:
        for name, wrong in zip(texts, pool.map(complaints, texts.values()), strict=True):
            assert not wrong, f"{name}: {wrong}"


def test_the_thread_limit_is_the_number_of_launched_threads():
    (text,) = (t for n, t in trace(NARROW, options(), **COPY).items() if n.startswith("narrow_forward"))
    assert "[[max_total_threads_per_threadgroup(384)]]\n[[kernel]] void" in text


MISTAKES = {  # in narrow_forward
    "a dropped qualifier": ("const GLOBAL float* from, int lane", "const float* from, int lane"),
    "a dropped qualifier of a local": ("float dot(const LOCAL float* x", "float dot(const float* x"),
    "a lambda": ("const int S =", "const auto twice = [](int n) { return 2 * n; }; const int S ="),
    "a capture": ("const int S =", "const auto b_and = [&](int n) { return b + n; }; const int S ="),
    "double": ("float sum = 0;", "double sum = 0;"),
    "a constant in double": ("(1.0f / LENGTH)", "(1.0 / LENGTH)"),
    "if constexpr": ("if (SIZE % 4 == 0)", "if constexpr (SIZE % 4 == 0)"),
    "a threadgroup's array in a helper": ("float sum = 0;", "SHARED_ARRAY float sums[4]; float sum = 0;"),
    "a threadgroup's array in a block": ("i < S; ++i) {", "i < S; ++i) { SHARED_ARRAY float sums[4];"),
    "a constant of no address space": ("CONSTANT int WINDOW", "constexpr int WINDOW"),
    "shared memory as device memory": ("const SHARED float* a, const GLOBAL", "const GLOBAL float* a, const GLOBAL"),
    "a name that is nowhere": ("BARRIER();", "__syncthreads();"),
    "no bound on threads": ("[[max_total_threads_per_threadgroup(384)]]", ""),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake):
    (text,) = (t for n, t in trace(NARROW, options(), **COPY).items() if n.startswith("narrow_forward"))
    right, wrong = MISTAKES[mistake]
    assert right in text
    assert complaints(text.replace(right, wrong))


def test_small_arrays_would_be_in_another_address_space(monkeypatch):
    """An unused output of a single number once broke every wide model that reads the outputs."""
    monkeypatch.setattr(wide, "UNUSED", (1,))
    texts = trace(WIDE, options(), **COPY)
    (text,) = (t for n, t in texts.items() if n.startswith("wide_window_norm_vjp"))
    assert complaints(text)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_kernels_of_other_constants_have_other_names(form):
    one, other = (set(trace(form, options(heads=heads), **COPY)) for heads in (6, 3))
    with_heads = {n for n in one if n.startswith(("narrow", "wide_attention"))}
    assert with_heads
    assert not with_heads & other


def test_both_backends_define_the_same_words():
    def words(text):
        return {line.split()[1].partition("(")[0] for line in text.splitlines() if line.startswith("#define")}

    assert words(source.PROLOGUE["cuda"]) == words(source.PROLOGUE["metal"])
