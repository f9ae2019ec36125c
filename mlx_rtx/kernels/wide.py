"""The scan of a wide model, window by window: products by MLX, all between them in eight fused kernels.

Letters: B batch, S windows, K block width, D width, H heads, n rows of a window that have outputs. Matrices have the
rows of all sequences: (B·rows, width).
"""

from functools import cache, partial
from typing import NamedTuple

from mlx_rtx.kernels import source
from mlx_rtx.kernels.options import Options
from mlx_rtx.support.trees import each

import mlx.core as mx

UNUSED = (1,)  # the shape of an output that the options at hand do without


class Kernel(NamedTuple):
    """Helpers, inputs and outputs of a kernel."""

    helpers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


ROW = ("vectors", "rows", "window", "residual")
HEAD = ("vectors", "rows", "window", "softmax", "wide_attention")
NUMBER = ("vectors", "activation")
KERNELS = {
    "wide_begin": Kernel(ROW, ("alpha", "m", "u", "product", "keep", "x"), ("out", "carried", "win", "n1")),
    "wide_attend": Kernel(HEAD, ("qkv",), ("att",)),
    "wide_middle": Kernel(ROW, ("win", "product", "keep"), ("u", "n2")),
    "wide_activate": Kernel(NUMBER, ("z",), ("r",)),
    "wide_turn": Kernel(
        ROW,
        ("alpha", "m", "win", "dn1", "du", "out", "dout", "keep", "dm_later", "dalpha_later"),
        ("dx", "dm", "dalpha", "dtotal", "dproduct"),
    ),
    "wide_slope": Kernel(NUMBER, ("z", "dr"), ("dz",)),
    "wide_middle_vjp": Kernel(ROW, ("u", "dn2", "dtotal", "keep"), ("du", "dproduct")),
    "wide_attend_vjp": Kernel(HEAD, ("qkv", "att", "datt"), ("dqkv",)),
}


class Sizes(NamedTuple):
    """What a kernel is compiled for."""

    B: int
    K: int
    D: int
    dropout: bool
    options: Options

    @property
    def rows(self) -> int:
        """Rows n of a window that have outputs."""
        return self.options.rows(self.K)


class Within(NamedTuple):
    """What windows compute on the way to their outputs, each a matrix with the rows of all of them."""

    window: mx.array  # (·, D)
    normed: mx.array  # (·, D)
    qkv: mx.array  # (·, 3D)
    attended: mx.array  # (·, D)
    u: mx.array  # (·, D): after the first residual
    normed_u: mx.array  # (·, D)
    z: mx.array  # (·, 4D): before the activation
    activated: mx.array  # (·, 4D)

    def split(self, S: int) -> list["Within"]:
        """Those of S windows, one by one."""
        parts = (each(array.reshape(S, -1, array.shape[-1])) for array in self)
        return [Within(*window) for window in zip(*parts, strict=True)]


def within(options: Options, alpha, m, h, x, weights, keep) -> Within:
    """All windows at once, since the carry (m, h) into each is known: each (S, B, K, D), as x is."""
    S, B, K, D = x.shape
    sizes = Sizes(S * B, K, D, keep is not None, options)
    m, h, x = (array.flatten(0, 1) for array in (m, h, x))
    _, _, window, normed = _launcher("wide_begin", sizes)(inputs=[alpha[None], m, h, h, h, x])
    return _finish(sizes, window, normed, weights, h if keep is None else keep[:, 0])


def _finish(sizes: Sizes, window, normed, weights, keep) -> Within:
    """Windows from their normed rows on; of ``keep`` it needs the attention's factors, which come first."""
    wqkv, wo, w1, _ = weights
    qkv = normed @ wqkv
    (attended,) = _launcher("wide_attend", sizes)(inputs=[qkv])
    u, normed_u = _launcher("wide_middle", sizes)(inputs=[window, attended @ wo, keep])
    z = normed_u @ w1
    (activated,) = _launcher("wide_activate", sizes)(inputs=[z])
    return Within(window, normed, qkv, attended, u, normed_u, z, activated)


def forward(options: Options, alpha, m, h, x, weights, keep) -> tuple[list[mx.array], list[Within]]:
    """τ of each window, (B, n, D), and what lies within it."""
    S, B, K, D = x.shape
    sizes = Sizes(B, K, D, keep is not None, options)
    begin, alpha = _launcher("wide_begin", sizes), alpha[None]
    u = product = factors = h  # a product of three axes tells the kernel that no window is before, and u is h
    outs, windows, kept = [], [], [h] * S if keep is None else each(keep)
    for block, own in zip(each(x), kept, strict=True):
        out, carried, window, normed = begin(inputs=[alpha, m, u, product, factors, block])
        outs.append(out)
        factors = own
        windows.append(_finish(sizes, window, normed, weights, factors))
        u, product = windows[-1].u, windows[-1].activated @ weights[3]
        if options.history == "hidden":
            m = carried if options.state_norm else out
    out, *_ = begin(inputs=[alpha, m, u, product, factors, h])  # for the last output alone
    return [*outs[1:], out], windows


def backward(options: Options, alpha, m, h, x, weights, keep, outs, of_outs, windows: list[Within]):
    """Gradients of alpha, m, h, x and the weights; m are those into all windows (S, B, K, D)."""
    S, B, K, D = x.shape
    sizes = Sizes(B, K, D, keep is not None, options)
    names = "wide_turn", "wide_slope", "wide_middle_vjp", "wide_attend_vjp"
    turn, slope, middle_vjp, attend_vjp = (_launcher(name, sizes) for name in names)
    wqkv, wo, w1, w2 = (w.T for w in weights)
    alpha, of_m, of_alpha = alpha[None], mx.zeros((B, K, D)), mx.zeros((B * K,))
    of_wqkv = of_wo = of_w1 = of_w2 = None
    of_blocks = []
    total = of_outs[-1].reshape(-1, D)  # of the window's raw output, what comes back through the carry included
    ms, kept = each(m), [] if keep is None else each(keep)
    product = total if keep is None else (each(kept[-1])[1] * of_outs[-1]).reshape(-1, D)
    for i in reversed(range(S)):
        w = windows[i]
        of_w2 = _accumulate(of_w2, w.activated, product)
        (of_z,) = slope(inputs=[w.z, product @ w2])
        of_w1 = _accumulate(of_w1, w.normed_u, of_z)
        of_u, dropped = middle_vjp(inputs=[w.u, of_z @ w1, total, w.u if keep is None else kept[i]])
        dropped = of_u if keep is None else dropped
        of_wo = _accumulate(of_wo, w.attended, dropped)
        (of_qkv,) = attend_vjp(inputs=[w.qkv, w.attended, dropped @ wo])
        of_wqkv = _accumulate(of_wqkv, w.normed, of_qkv)
        # of the window before; that there is none the kernel knows by an output of two axes
        before = [outs[i - 1], of_outs[i - 1], w.u if keep is None else kept[i - 1]] if i else [w.window] * 3
        of_block, of_m, of_alpha, total, product = turn(
            inputs=[alpha, ms[i], w.window, of_qkv @ wqkv, of_u, *before, of_m, of_alpha]
        )
        product = total if keep is None else product
        of_blocks.append(of_block)
    if options.history == "hidden":
        of_h = total.reshape(B, K, D)
    else:
        of_m, of_h = mx.split(total.reshape(B, 2 * K, D), 2, axis=1)
    return of_alpha.sum(), of_m, of_h, mx.stack(of_blocks[::-1]), (of_wqkv, of_wo, of_w1, of_w2)


def _accumulate(total: mx.array | None, inputs: mx.array, gradient: mx.array) -> mx.array:
    """Gradient of a weight with that of one more window."""
    return inputs.T @ gradient if total is None else mx.addmm(total, inputs.T, gradient)


def lane_count(length: int) -> int:
    """Lanes for a row: at most 8 numbers each if a warp can do that."""
    return next((lanes for lanes in (1, 2, 4, 8, 16) if length <= 8 * lanes), 32)


def _shapes(name: str, s: Sizes) -> tuple[tuple[int, ...], ...]:
    """Shapes of a kernel's outputs."""
    hidden, block, rows = s.options.history == "hidden", (s.B, s.K, s.D), s.B * s.rows
    window, output, wide = (s.B * 2 * s.K, s.D), (rows, s.D), (rows, 4 * s.D)
    dropped = output if s.dropout else UNUSED
    carried = block if hidden and s.options.state_norm else UNUSED
    return {
        "wide_begin": ((s.B, s.rows, s.D), carried, window, window),
        "wide_attend": (output,),
        "wide_middle": (output, output),
        "wide_activate": (wide,),
        "wide_turn": (block, block if hidden else UNUSED, (s.B * s.K,), output, dropped),
        "wide_slope": (wide,),
        "wide_middle_vjp": (output, dropped),
        "wide_attend_vjp": ((s.B * 2 * s.K, 3 * s.D),),
    }[name]


def _layout(name: str, s: Sizes) -> tuple[int, dict[str, int]]:
    """Threadgroups, and the constants that the source wants, among them the threads of a group."""
    helpers, heads = KERNELS[name].helpers, s.options.heads
    if helpers is NUMBER:
        return -(-s.B * s.rows * s.D // 256), {"GELU": s.options.activation == "gelu", "THREADS": 256}
    length = s.D // heads if helpers is HEAD else s.D
    lanes = lane_count(length)
    if helpers is HEAD:
        groups, threads = s.B * heads, min(256, -(-s.K * lanes // 32) * 32)
        choices = {"HEADS": heads}
    else:
        rows, threads = s.B * (s.rows if "middle" in name else s.K), 128
        groups = -(-rows * lanes // threads)
        choices = {"STATE_NORM": s.options.state_norm, "DROPOUT": s.dropout}
    return groups, {"K": s.K, "ROWS": s.rows, "LENGTH": length, "LANES": lanes, "THREADS": threads} | choices


@cache
def _launcher(name: str, sizes: Sizes):
    """A kernel as a function of its inputs."""
    kernel, (groups, constants), shapes = KERNELS[name], _layout(name, sizes), _shapes(name, sizes)
    threads = constants["THREADS"]
    return partial(
        source.make_kernel(name, kernel.helpers, kernel.inputs, kernel.outputs, constants),
        output_shapes=shapes,
        output_dtypes=[mx.float32] * len(shapes),
        grid=(groups * threads, 1, 1),
        threadgroup=(threads, 1, 1),
    )
