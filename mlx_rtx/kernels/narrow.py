"""The scan of a narrow model, one kernel per direction: each threadgroup processes all windows of one sequence.

Threadgroups are independent, so one launch can process any number of windows. For a wide model one GPU core per
sequence would be too slow.

Letters: B batch, S windows, K block width, D width, n rows of a window that have outputs.
"""

from collections.abc import Callable
from functools import cache

from mlx_rtx.kernels import Tiles, source
from mlx_rtx.kernels.options import Drops, Options, ScanGradient, ScanInputs
from mlx_rtx.kernels.wide import SavedActivations

import mlx.core as mx

HELPERS = (
    ("vectors", "rows", "window", "activation", "narrow_operands"),
    ("softmax", "kept", "narrow_attention", "narrow_carry"),
)
SUMS = {"large tiles": 128, "small tiles": 32, "matrices": 32}  # results of a product per thread at most
LANES = 8  # threads that share a row
WEIGHTS = ("wqkv", "wo", "w1", "w2")
SAVED = ("win", "qkv", "att", "u", "z")  # activations within a window: scratch memory forward, inputs backward
INPUTS = {
    "narrow_forward": ("alpha", "h", "m", "x", *WEIGHTS, "dropout", "kept"),
    "narrow_backward": (
        "alpha", *SAVED, "raw", "out", "h", "m", "dropout", "kept", "dout", *(f"{w}_t" for w in WEIGHTS),
    ),
}  # fmt: skip
OUTPUTS = {
    "narrow_forward": ("out", *SAVED),
    "narrow_backward": (
        "dx", "dh", "dm", "dalpha", "dtotal", "dz", "du", "dqkv", "datt", "dwin", "statistics",
    ),
}  # fmt: skip


def forward(options: Options, tiles: Tiles, inputs: ScanInputs) -> mx.array:
    """Return the outputs of all windows, (S, B, n, D); activations within the windows are not kept."""
    alpha, m, h, x, weights, dropout, kept = inputs
    S, B, K, D = x.shape
    n = options.rows(K)
    scratch = [(B, 2 * K, D), (B, 2 * K, 3 * D), (B, n, D), (B, n, D), (B, n, 4 * D)]
    arrays = [alpha, h, m, x, *weights, x if dropout is None else dropout, x if kept is None else kept]
    return _kernel("narrow_forward", options, tiles, K, D, inputs.drops)(B, arrays, [(S, B, n, D), *scratch])[0]


def backward(
    options: Options, tiles: Tiles, inputs: ScanInputs, out: mx.array, dout: mx.array, activations: SavedActivations
) -> ScanGradient:
    """Compute the gradient from ``dout``, that of the outputs (S, B, n, D), and the activations of all windows."""
    alpha, m, h, x, weights, dropout, kept = inputs
    (S, B, K, D), n, a = x.shape, out.shape[2], activations
    shapes = [
        (S, B, K, D), (B, K, D), (B, K, D), (B, thread_count(K, D) // LANES, D),
        (S, B, n, D), (S, B, n, 4 * D), (S, B, n, D), (S, B, 2 * K, 3 * D),
        (B, n, D), (B, 2 * K, D), (B, options.heads, n, 2),
    ]  # fmt: skip
    transposed = (mx.contiguous(weight.T) for weight in weights)
    z = a.activated if options.activation == "relu" else a.z  # ReLU has the same derivative at both
    saved = a.window, a.scored, a.attended, a.u, z, a.qkv
    masks = dout if dropout is None else dropout, dout if kept is None else kept
    arrays = [alpha, *saved, out, h, m, *masks, dout, *transposed]
    made = _kernel("narrow_backward", options, tiles, K, D, inputs.drops)(B, arrays, shapes)
    dx, dh, dm, dalpha, dmlp, dz, dattention, dqkv = made[:8]
    if dropout is not None:
        dattention, dmlp = dattention * dropout[:, 0], dmlp * dropout[:, 1]
    pairs = (a.normed, dqkv), (a.attended, dattention), (a.normed_u, dz), (a.activated, dmlp)
    dweights = [rows.T @ gradient.reshape(-1, gradient.shape[-1]) for rows, gradient in pairs]
    return ScanGradient(dalpha.sum((0, 1)), dm, dh, dx, dweights)


def helpers(tiles: Tiles) -> tuple[str, ...]:
    """Return the source files that precede the kernel."""
    before, after = HELPERS
    return (*before, "narrow_matrices" if tiles == "matrices" else "narrow_products", *after)


def thread_count(K: int, D: int) -> int:
    """Return the threads per threadgroup: one per 4 x 4 results of a (2K, D) product, but at least 256, at most 512."""
    return min(512, max(256, -(-2 * K * D // 512) * 32))


def constants(options: Options, tiles: Tiles, K: int, D: int, drops: Drops) -> source.Constants:
    """Return a kernel's compile-time constants."""
    return {
        "K": K,
        "D": D,
        "LENGTH": D,
        "LANES": LANES,
        **options.of_heads,
        "ROWS": options.rows(K),
        "GELU": options.activation == "gelu",
        "STATE_NORM": options.state_norm,
        "EPS": options.epsilon,
        **drops.constants,
        "THREADS": thread_count(K, D),
        "SUMS": SUMS[tiles],
    }


def window_ops(n: int, K: int, D: int) -> int:
    """Return the multiply-adds of a window in one direction, accurate to a few per cent."""
    seen = 2 * K
    return (3 * seen + n) * D * D + 8 * n * D * D + 4 * n * seen * D


@cache
def _kernel(name: str, options: Options, tiles: Tiles, K: int, D: int, drops: Drops) -> Callable[..., list[mx.array]]:
    """Return a kernel as a function of (B, inputs, shapes of its outputs)."""
    sizes = constants(options, tiles, K, D, drops)
    kernel, threads = (
        source.make_kernel(name, helpers(tiles), INPUTS[name], OUTPUTS[name], sizes),
        int(sizes["THREADS"]),
    )

    def run(B: int, inputs: list[mx.array], shapes: list[tuple[int, ...]]) -> list[mx.array]:
        return kernel(
            inputs=inputs,
            output_shapes=shapes,
            output_dtypes=[mx.float32] * len(shapes),
            grid=(B * threads, 1, 1),
            threadgroup=(threads, 1, 1),
        )

    return run
