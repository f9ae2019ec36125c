"""The scan of a narrow model, one kernel a direction: a threadgroup walks all windows of its sequence.

Letters: B batch, S windows, K block width, D width, n rows of a window that have outputs. It waits for no other
threadgroup, so a piece of any length is one launch; for a wide model one processor is too little.
"""

from functools import cache

from mlx_rtx.kernels import source
from mlx_rtx.kernels.options import Options
from mlx_rtx.kernels.wide import Within

import mlx.core as mx

HELPERS = (
    "vectors", "rows", "window", "activation", "narrow_products", "softmax", "narrow_attention", "narrow_carry",
)  # fmt: skip
WEIGHTS = ("wqkv", "wo", "w1", "w2")
SAVED = ("win", "qkv", "att", "u", "z")
INPUTS = {
    "narrow_forward": ("alpha", "h", "m", "x", *WEIGHTS, "keep"),
    "narrow_backward": ("alpha", *SAVED, "out", "h", "m", "keep", "dout", *(f"{w}_t" for w in WEIGHTS)),
}
OUTPUTS = {
    "narrow_forward": ("out", *SAVED),
    "narrow_backward": (
        "dx", "dh", "dm", "dalpha", "dtotal", "dz", "du", "dqkv", "datt", "dwin", "statistics",
    ),
}  # fmt: skip


def forward(options: Options, alpha, m, h, x, weights, keep) -> tuple[list[mx.array], list[Within]]:
    """τ of all windows, (S, B, n, D) in one array; what lies within them is not kept."""
    S, B, K, D = x.shape
    n = options.rows(K)
    scratch = [(B, 2 * K, D), (B, 2 * K, 3 * D), (B, n, D), (B, n, D), (B, n, 4 * D)]
    inputs = [alpha[None], h, m, x, *weights, x if keep is None else keep]
    out, *_ = _kernel("narrow_forward", options, K, D, keep is not None)(B, inputs, [(S, B, n, D), *scratch])
    return [out], []


def backward(options: Options, alpha, m, h, x, weights, keep, outs, of_outs, within: Within):
    """Gradients of alpha, m, h, x and the weights."""
    (out,), (of_out,), (S, B, K, D) = outs, of_outs, x.shape
    n, w = out.shape[2], within
    shapes = [
        (S, B, K, D), (B, K, D), (B, K, D), (B,),
        (S, B, n, D), (S, B, n, 4 * D), (S, B, n, D), (S, B, 2 * K, 3 * D),
        (B, n, D), (B, 2 * K, D), (B, options.heads, n, 2),
    ]  # fmt: skip
    transposed = (mx.contiguous(weight.T) for weight in weights)
    saved = w.window, w.qkv, w.attended, w.u, w.activated if options.activation == "relu" else w.z  # same slope
    inputs = [alpha[None], *saved, out, h, m, of_out if keep is None else keep, of_out, *transposed]
    gradient = _kernel("narrow_backward", options, K, D, keep is not None)(B, inputs, shapes)
    of_x, of_h, of_m, of_alpha, of_mlp, of_z, of_attention, of_qkv = gradient[:8]
    if keep is not None:
        of_attention, of_mlp = of_attention * keep[:, 0], of_mlp * keep[:, 1]
    pairs = (w.normed, of_qkv), (w.attended, of_attention), (w.normed_u, of_z), (w.activated, of_mlp)
    of_weights = [inputs.T @ gradient.reshape(-1, gradient.shape[-1]) for inputs, gradient in pairs]
    return of_alpha.sum(), of_m, of_h, of_x, of_weights


def thread_count(K: int, D: int) -> int:
    """Threads a group: each has 4 x 4 numbers of a (2K, D) product if that makes enough and not too many of them."""
    return min(512, max(256, -(-2 * K * D // 512) * 32))


def constants(options: Options, K: int, D: int, dropout: bool) -> dict[str, int]:
    """What a kernel is compiled for."""
    return {
        "K": K,
        "D": D,
        "LENGTH": D,
        "LANES": 8,
        "HEADS": options.heads,
        "ROWS": options.rows(K),
        "GELU": options.activation == "gelu",
        "STATE_NORM": options.state_norm,
        "DROPOUT": dropout,
        "THREADS": thread_count(K, D),
    }


@cache
def _kernel(name: str, options: Options, K: int, D: int, dropout: bool):
    """A kernel as a function of (B, inputs, shapes of its outputs)."""
    sizes = constants(options, K, D, dropout)
    kernel, threads = source.make_kernel(name, HELPERS, INPUTS[name], OUTPUTS[name], sizes), sizes["THREADS"]

    def run(B: int, inputs: list[mx.array], shapes: list[tuple[int, ...]]) -> list[mx.array]:
        return kernel(
            inputs=inputs,
            output_shapes=shapes,
            output_dtypes=[mx.float32] * len(shapes),
            grid=(B * threads, 1, 1),
            threadgroup=(threads, 1, 1),
        )

    return run
