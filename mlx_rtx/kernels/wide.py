"""The scan of a wide model, window by window: MLX computes the matrix products, fused kernels everything else.

Letters: B batch, S windows, K block width, D width, H heads, n rows of a window that have outputs. Matrices hold the
rows of all sequences: (B·rows, width).
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

from mlx_rtx.kernels import source
from mlx_rtx.kernels.options import Drops, Options, Products, ScanGradient, ScanInputs
from mlx_rtx.support.trees import each

import mlx.core as mx

WEIGHTS = ("qkv", "attention_out", "mlp_in", "mlp_out")
UNUSED = (8,)  # shape of an output that is not needed; 8 because a later kernel may take it as an input


class Kernel(NamedTuple):
    """Helpers, inputs and outputs of a kernel."""

    helpers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


ROW = ("vectors", "rows", "window", "residual")
HEAD = ("vectors", "rows", "window", "softmax", "kept", "wide_attention_rows")
HEADS = ("vectors", "rows")
NUMBER = ("vectors", "activation")
KERNELS = {
    "wide_window_norm": Kernel(ROW, ("alpha", "m", "u", "product", "dropout", "x"), ("out", "carried", "win", "n1")),
    "wide_head_norm": Kernel(HEADS, ("qkv",), ("scored",)),
    "wide_attention": Kernel(HEAD, ("qkv", "kept"), ("att",)),
    "wide_residual_norm": Kernel(ROW, ("win", "product", "dropout"), ("u", "n2")),
    "wide_activation": Kernel(NUMBER, ("z",), ("r",)),
    "wide_window_norm_vjp": Kernel(
        ROW,
        ("alpha", "m", "win", "dn1", "du", "out", "dout", "dropout", "dm_later", "dalpha_later"),
        ("dx", "dm", "dalpha", "dtotal", "dproduct"),
    ),
    "wide_activation_vjp": Kernel(NUMBER, ("z", "dr"), ("dz",)),
    "wide_residual_norm_vjp": Kernel(ROW, ("u", "dn2", "dtotal", "dropout"), ("du", "dproduct")),
    "wide_attention_vjp": Kernel(HEAD, ("qkv", "kept", "att", "datt"), ("dqkv",)),
    "wide_head_norm_vjp": Kernel(HEADS, ("qkv", "dscored"), ("dqkv",)),
}


class Sizes(NamedTuple):
    """Sizes and options for which a kernel is compiled."""

    B: int
    K: int
    D: int
    drops: Drops
    options: Options

    @property
    def rows(self) -> int:
        """Number n of rows of a window that have outputs."""
        return self.options.rows(self.K)


class SavedActivations(NamedTuple):
    """Activations within windows, each a matrix with the rows of all windows."""

    window: mx.array  # (·, D)
    normed: mx.array  # (·, D)
    qkv: mx.array  # (·, 3D)
    scored: mx.array  # (·, 3D): qkv, with normalised queries and keys if qk_norm
    attended: mx.array  # (·, D)
    u: mx.array  # (·, D): after the first residual connection
    normed_u: mx.array  # (·, D)
    z: mx.array  # (·, 4D): before the activation
    activated: mx.array  # (·, 4D)

    def split(self, S: int) -> list["SavedActivations"]:
        """Split into the activations of each of S windows."""
        parts = (each(array.reshape(S, -1, array.shape[-1])) for array in self)
        return [SavedActivations(*window) for window in zip(*parts, strict=True)]


def activations(options: Options, inputs: ScanInputs) -> SavedActivations:
    """Compute the activations of all windows at once, given the carry into each: m and h are (S, B, K, D), like x."""
    alpha, m, h, x, weights, dropout, kept = inputs
    S, B, K, D = x.shape
    sizes = Sizes(S * B, K, D, inputs.drops, options)
    m, h, x = (array.flatten(0, 1) for array in (m, h, x))
    _, _, window, normed = _launcher("wide_window_norm", sizes)(inputs=[alpha, m, h, h, h, x])
    return _finish(sizes, window, normed, weights, h if dropout is None else dropout[:, 0], h if kept is None else kept)


def _finish(
    sizes: Sizes, window: mx.array, normed: mx.array, weights: Products, dropout: mx.array, kept: mx.array
) -> SavedActivations:
    """Compute the activations from the normalised rows on; ``dropout`` begins with the attention output's scales."""
    wqkv, wo, w1, _ = weights
    scored = qkv = normed @ wqkv
    if sizes.options.qk_scale is not None:
        (scored,) = _launcher("wide_head_norm", sizes)(inputs=[qkv])
    (attended,) = _launcher("wide_attention", sizes)(inputs=[scored, kept])
    u, normed_u = _launcher("wide_residual_norm", sizes)(inputs=[window, attended @ wo, dropout])
    z = normed_u @ w1
    (activated,) = _launcher("wide_activation", sizes)(inputs=[z])
    return SavedActivations(window, normed, qkv, scored, attended, u, normed_u, z, activated)


def forward(options: Options, inputs: ScanInputs) -> tuple[list[mx.array], list[SavedActivations]]:
    """Return the output (B, n, D) and the activations of each window."""
    alpha, m, h, x, weights, dropout, kept = inputs
    S, B, K, D = x.shape
    sizes = Sizes(B, K, D, inputs.drops, options)
    window_norm = _launcher("wide_window_norm", sizes)
    u = product = scales = h  # a product with three axes marks the first window, for which u is h
    outs: list[mx.array] = []
    windows: list[SavedActivations] = []
    masks = ([h] * S if array is None else each(array) for array in (dropout, kept))
    for block, *own in zip(each(x), *masks, strict=True):
        out, carried, window, normed = window_norm(inputs=[alpha, m, u, product, scales, block])
        outs.append(out)
        scales = own[0]
        windows.append(_finish(sizes, window, normed, weights, *own))
        u, product = windows[-1].u, windows[-1].activated @ weights[3]
        if options.history == "hidden":
            m = carried if options.state_norm else out
    out, *_ = window_norm(inputs=[alpha, m, u, product, scales, h])  # only to compute the last output
    return [*outs[1:], out], windows


def backward(
    options: Options,
    inputs: ScanInputs,
    outs: Sequence[mx.array],
    douts: Sequence[mx.array],
    windows: list[SavedActivations],
) -> ScanGradient:
    """Compute the gradient from ``douts``, those of the outputs (B, n, D); ``inputs.m`` is (S, B, K, D), per window."""
    alpha, m, _, x, weights, dropout, kept = inputs
    S, B, K, D = x.shape
    sizes = Sizes(B, K, D, inputs.drops, options)
    names = "wide_window_norm_vjp", "wide_activation_vjp", "wide_residual_norm_vjp", "wide_attention_vjp"
    window_norm_vjp, activation_vjp, residual_norm_vjp, attention_vjp = (_launcher(name, sizes) for name in names)
    wqkv, wo, w1, w2 = (w.T for w in weights)
    dm, dalpha = mx.zeros((B, K, D)), mx.zeros((B * K, D))
    dweights: dict[str, mx.array] = {}

    def accumulate(name: str, inputs: mx.array, gradient: mx.array) -> None:
        """Add a window's contribution to the gradient of a weight."""
        total = dweights.get(name)
        dweights[name] = inputs.T @ gradient if total is None else mx.addmm(total, inputs.T, gradient)

    dblocks = []
    dtotal = douts[-1].reshape(-1, D)  # gradient of the window's output, including that through the carry
    ms, scales = each(m), [] if dropout is None else each(dropout)  # (B, K, D); (2, B, n, D)
    bits = [] if kept is None else each(kept)  # (B, H, n, ·)
    dproduct = dtotal if dropout is None else (each(scales[-1])[1] * douts[-1]).reshape(-1, D)
    for i in reversed(range(S)):
        w = windows[i]
        accumulate("mlp_out", w.activated, dproduct)
        (dz,) = activation_vjp(inputs=[w.z, dproduct @ w2])
        accumulate("mlp_in", w.normed_u, dz)
        du, dropped = residual_norm_vjp(inputs=[w.u, dz @ w1, dtotal, w.u if dropout is None else scales[i]])
        dropped = du if dropout is None else dropped
        accumulate("attention_out", w.attended, dropped)
        own_bits = w.u if kept is None else bits[i]
        (dqkv,) = attention_vjp(inputs=[w.scored, own_bits, w.attended, dropped @ wo])
        if options.qk_scale is not None:
            (dqkv,) = _launcher("wide_head_norm_vjp", sizes)(inputs=[w.qkv, dqkv])
        accumulate("qkv", w.normed, dqkv)
        # arrays of the previous window; an output with two axes tells the kernel that there is none
        before = [outs[i - 1], douts[i - 1], w.u if dropout is None else scales[i - 1]] if i else [w.window] * 3
        dblock, dm, dalpha, dtotal, dproduct = window_norm_vjp(
            inputs=[alpha, ms[i], w.window, dqkv @ wqkv, du, *before, dm, dalpha]
        )
        dproduct = dtotal if dropout is None else dproduct
        dblocks.append(dblock)
    if options.history == "hidden":
        dh = dtotal.reshape(B, K, D)
    else:
        dm, dh = mx.split(dtotal.reshape(B, 2 * K, D), 2, axis=1)
    return ScanGradient(dalpha.sum(0), dm, dh, mx.stack(dblocks[::-1]), [dweights[name] for name in WEIGHTS])


def lane_count(length: int) -> int:
    """Return the threads per row: the fewest with at most 8 elements each, up to a whole warp."""
    return next((lanes for lanes in (1, 2, 4, 8, 16) if length <= 8 * lanes), 32)


def _shapes(name: str, s: Sizes) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a kernel's outputs."""
    hidden, block, rows = s.options.history == "hidden", (s.B, s.K, s.D), s.B * s.rows
    window, output, wide = (s.B * 2 * s.K, s.D), (rows, s.D), (rows, 4 * s.D)
    of_heads = (s.B * 2 * s.K, 3 * s.D)
    dropped = output if s.drops.outputs else UNUSED
    carried = block if hidden and s.options.state_norm else UNUSED
    return {
        "wide_window_norm": ((s.B, s.rows, s.D), carried, window, window),
        "wide_head_norm": (of_heads,),
        "wide_attention": (output,),
        "wide_residual_norm": (output, output),
        "wide_activation": (wide,),
        "wide_window_norm_vjp": (block, block if hidden else UNUSED, (s.B * s.K, s.D), output, dropped),
        "wide_activation_vjp": (wide,),
        "wide_residual_norm_vjp": (output, dropped),
        "wide_attention_vjp": (of_heads,),
        "wide_head_norm_vjp": (of_heads,),
    }[name]


def _layout(name: str, s: Sizes) -> tuple[int, source.Constants]:
    """Return the number of threadgroups and the compile-time constants, among them the threads per threadgroup."""
    helpers, heads = KERNELS[name].helpers, s.options.heads
    if helpers is NUMBER:
        return -(-s.B * s.rows * s.D // 256), {"GELU": s.options.activation == "gelu", "THREADS": 256}
    length = s.D // heads if helpers in (HEAD, HEADS) else s.D
    lanes = lane_count(length)
    if helpers is HEAD:
        groups, threads = s.B * heads, min(256, -(-s.K * lanes // 32) * 32)
        choices = s.options.of_heads | s.drops.constants
    else:
        window = s.B * 2 * s.K
        rows = window * 3 * heads if helpers is HEADS else s.B * s.rows if "residual" in name else window // 2
        threads = 128
        groups = -(-rows * lanes // threads)
        choices = s.options.of_heads | s.drops.constants | {"STATE_NORM": s.options.state_norm}
    sizes = {"K": s.K, "ROWS": s.rows, "LENGTH": length, "LANES": lanes, "THREADS": threads}
    return groups, {**sizes, **choices, "EPS": s.options.epsilon}


@cache
def _launcher(name: str, sizes: Sizes) -> Callable[..., list[mx.array]]:
    """Return a kernel as a function of its inputs."""
    kernel, (groups, constants), shapes = KERNELS[name], _layout(name, sizes), _shapes(name, sizes)
    threads = int(constants["THREADS"])
    return partial(
        source.make_kernel(name, kernel.helpers, kernel.inputs, kernel.outputs, constants),
        output_shapes=shapes,
        output_dtypes=[mx.float32] * len(shapes),
        grid=(groups * threads, 1, 1),
        threadgroup=(threads, 1, 1),
    )
