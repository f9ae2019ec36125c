"""The recurrence of the paper, Eqs. 5–7: one layer τ slides over blocks and carries its state on.

Letters: B batch, K block width, S blocks in a piece of sequence, D width, H heads, d = D/H.

With m_i the history that Eq. 6 mixes in, m_i = h_i (``history="hidden"``, as printed) or
m_i = y_i (``"output"``, as the author's program does), m_0 = 0 or x_1, every block i does

    w_i = α m_i-1 + h_i                       the window's first half
    h_i+1 = second half of τ(w_i, α m_i-1 + x_i+1)
    y_i = first half of the same window = τ(w_i), since τ is causal

and the last block of a closed sequence has w_T = h_T (Eq. 7). What the next block needs, its
*carry*, is (m_i-1, h_i). With ``state_norm`` the m and h that are carried are RMS-normalised.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, cast

from mlx_rtx import kernels
from mlx_rtx.kernels.options import Options
from mlx_rtx.kernels.scan import scan
from mlx_rtx.model.config import Architecture
from mlx_rtx.model.dropout import keep_factors, pair, split_keys
from mlx_rtx.model.layer import EPS, Keep, TransformerLayer, Weights, causal_mask
from mlx_rtx.support.trees import each

import mlx.core as mx
import mlx.nn as nn

Carry = list[mx.array]  # each (B, K, D)


@mx.custom_function
def _clamp(alpha):
    return mx.clip(alpha, 0, 1)


@_clamp.vjp
def _clamp_vjp(alpha, cotangent, _):
    descends_outside = ((alpha < 0) & (cotangent > 0)) | ((alpha > 1) & (cotangent < 0))
    return mx.where(descends_outside, mx.zeros_like(cotangent), cotangent)


def clamp(alpha: mx.array) -> mx.array:
    """``alpha`` clamped to [0, 1]; outside, a gradient whose descent leads back in is let through."""
    return cast(mx.array, _clamp(alpha))


@mx.custom_function
def _window(alpha, x, *carry):
    m, h = halves(carry)
    B, K, D = x.shape
    rows = mx.where(_first_half(), h[:, None], x[:, None]) + alpha * m[:, None]  # (B, 2, K, D)
    return rows.reshape(B, 2 * K, D)


@_window.vjp
def _window_vjp(primals, cotangent, _):
    alpha, x, *carry = primals
    m, _ = halves(carry)
    B, K, D = x.shape
    cotangent = cotangent.reshape(B, 2, K, D)
    of_h, of_x = cotangent[:, 0], cotangent[:, 1]
    both = of_h + of_x
    of_alpha = (m * both).sum()
    if len(carry) == 2:
        return of_alpha, of_x, alpha * both, of_h
    of_carry = mx.where(_first_half(), (alpha * both)[:, None], of_h[:, None])  # (B, 2, K, D)
    return of_alpha, of_x, of_carry.reshape(B, 2 * K, D)


def halves(carry):
    """m and h, which come each for itself or as one array (B, 2K, D)."""
    return carry if len(carry) == 2 else mx.split(carry[0], 2, axis=1)


def _first_half() -> mx.array:
    return mx.array([True, False])[:, None, None]


def window(alpha: mx.array, x: mx.array, *carry: mx.array) -> mx.array:
    """The window (α m + h, α m + x): (B, 2K, D) in one operation, and one backward.

    Args:
        x: the next block (B, K, D).
        carry: m and h, each (B, K, D), or both in one array (B, 2K, D).
    """
    return cast(mx.array, _window(alpha, x, *carry))


class StepState(NamedTuple):
    """State of one recurrence between two tokens of a stream: the carry and the block in progress."""

    before: mx.array  # m_j-2 (B, K, D), block j being in progress: added to its inputs
    last: mx.array  # m_j-1 (B, K, D): added to its h
    current: mx.array  # m_j (B, K, D), filled row by row
    window: mx.array  # keys and values (2, B, H, 2K, d) of the window (w_j-1, α m_j-2 + x_j)
    output: mx.array  # those (2, B, H, K, d) of w_j: the next window's first half


class Recurrence(nn.Module):
    """A transformer layer τ applied block after block, with its accumulation parameter α."""

    def __init__(self, config: Architecture):
        super().__init__()
        self.tau = TransformerLayer(config)
        self.alpha = mx.array(config.alpha, dtype=mx.float32)
        self.block = config.block
        self.rate = config.dropout
        self.history = config.history
        self.state_norm = config.state_norm
        self._mask = causal_mask(2 * config.block).astype(self.tau.dtype)
        self._rows = mx.eye(2 * config.block).astype(mx.bool_)  # row by row: where it is
        self._ready: mx.array | None = None
        if not config.train_alpha:
            self.freeze(keys=["alpha"], recurse=False)

    def ready(self) -> list[mx.array]:
        """What `use` takes: α clamped, and the weights of τ as all blocks take them."""
        return [clamp(self.alpha), *self.tau.ready()]

    def use(self, ready: list[mx.array] | None) -> None:
        """Run with what was made ready, until told to use its own again, None."""
        self._ready = ready[0] if ready else None
        self.tau.use(ready[1:] if ready else None)

    def __call__(
        self,
        x: mx.array,
        carry: Carry | None = None,
        read: int | None = None,
        close: bool = False,
        keys: mx.array | None = None,
    ) -> tuple[mx.array, Carry]:
        """Run S whole blocks.

        Args:
            x: embedded input (B, S·K, D).
            carry: what the blocks before left; None at the start of a sequence.
            read: outputs wanted of the last ``read`` blocks only; None for all.
            close: the last block is the sequence's last: Eq. 7 instead of Eq. 6.
            keys: random keys (S + 1, 2) for dropout, the last for what reads the last block; None for none.

        Returns:
            (y (B, read·K, D), carry). A closed sequence's carry has no use.
        """
        (B, _, D), K, carry = x.shape, self.block, carry or []
        S, hidden, weights = x.shape[1] // K, self.history == "hidden", self.tau.in_use
        alpha = clamp(self.alpha) if self._ready is None else self._ready
        read = S if read is None else read
        windows = S if carry else S - 1  # the first block of a sequence has none before it
        first, keep, last = self._keep(keys, x, windows, read)
        if carry:
            m, h = carry
        else:
            x_1 = x[:, :K]
            h = self._carried(self._half(x_1, weights, first))  # (5)
            m = mx.zeros_like(h) if hidden else self._carried(x_1)
        outs: list[mx.array] = []
        after = [m, h]
        if windows:
            outs, after = self._scan(x[:, (S - windows) * K :], alpha, m, h, weights, keep)
        if not read:
            y = x[:, :0]
        elif hidden:
            states = mx.stack([m, h, *outs][-read - 1 :], axis=1)
            y = self._half(self._histories(states, alpha, close).flatten(0, 1), weights, last).reshape(B, read * K, D)
        else:
            m, h = after
            y = self._half(h if close else alpha * m + h, weights, last)  # (7) or (6)
            if read > 1:  # the windows gave those before
                before = mx.stack(outs[1 - read :], axis=1)[:, :, :K]  # (B, read - 1, K, D)
                y = mx.concatenate([before.flatten(1, 2), y], axis=1)
        return y, [] if close else after

    def _carried(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, EPS) if self.state_norm else x

    def _half(self, w: mx.array, weights: Weights, keep: Keep | None) -> mx.array:
        """τ of a first half alone, (·, K, D) → (·, K, D)."""
        return self.tau(w, None, self._mask[: self.block, : self.block], keep, weights)

    def _scan(
        self, x: mx.array, alpha: mx.array, m: mx.array, h: mx.array, weights: Weights, keep: mx.array | None
    ) -> tuple[list[mx.array], Carry]:
        """Eq. 6 over S windows, one a block of x (B, S·K, D): τ of each, and the carry that they leave.

        Of a window ``"output"`` takes both halves, (B, 2K, D), ``"hidden"`` the second only, (B, K, D), as it is
        carried.
        """
        S, hidden = x.shape[1] // self.block, self.history == "hidden"
        if kernels.fit(self.tau):
            options = Options(self.tau.heads, self.history, self.tau.activation.__name__, self.state_norm)
            outs = scan(options, alpha, m, h, mx.unflatten(x, 1, (S, self.block)).swapaxes(0, 1), weights, keep)
            outs = each(outs[0]) if outs[0].ndim == 4 else outs  # all windows in one array, or one by one
            if not hidden:
                return outs, list(mx.split(self._carried(outs[-1]), 2, axis=1))
            outs = [self._carried(out) for out in outs]
            return outs, [h, *outs][-2:]
        rows, mask = (self.block, self._mask[self.block :]) if hidden else (None, self._mask)
        outs, carry = [], [m, h]
        factors: Sequence[Keep | None] = [None] * S if keep is None else [pair(part) for part in each(keep)]
        for block, kept in zip(mx.split(x, S, axis=1), factors, strict=True):
            out = self.tau(window(alpha, block, *carry), rows, mask, kept, weights)
            carried = self._carried(out)
            carry = [carry[-1], carried] if hidden else [carried]
            outs.append(carried if hidden else out)
        return outs, carry if hidden else list(mx.split(carry[0], 2, axis=1))

    def _histories(self, states: mx.array, alpha: mx.array, close: bool) -> mx.array:
        """w of the blocks whose h are ``states`` (B, n, K, D), but the first; the last has none if closed (7)."""
        n = states.shape[1] - 1
        if close:
            alpha = alpha * (mx.arange(n) < n - 1)[:, None, None]
        return alpha * states[:, :-1] + states[:, 1:]

    def _keep(
        self, keys: mx.array | None, x: mx.array, windows: int, read: int
    ) -> tuple[Keep | None, mx.array | None, Keep | None]:
        """Dropout factors of the first block, of the windows, and of what is read in one call at the end.

        A block's key is that of the window which makes its h, and which gives the y of the block before.
        """
        if keys is None or self.rate == 0:
            return None, None, None
        (B, _, D), K = x.shape, self.block
        if self.history == "hidden":
            of_h, of_y = split_keys(keys, 2)
            factors = keep_factors(of_h[:-1], self.rate, (2, B, K, D))
            last = keep_factors(of_y[-max(read, 1) :], self.rate, (2, B, K, D))  # (read, 2, B, K, D)
            first, last = factors[0], last.transpose(1, 2, 0, 3, 4).flatten(1, 2)
        else:
            factors = keep_factors(keys, self.rate, (2, B, 2 * K, D))
            first, last, factors = factors[0, :, :, K:], factors[-1, :, :, :K], factors[:-1]
        return pair(first), factors[len(factors) - windows :], pair(last)

    def initial_state(self, batch: int) -> StepState:
        """State before the first token, for ``batch`` streams."""
        K, D, H = self.block, self.tau.qkv.shape[0], self.tau.heads
        block, rows = mx.zeros((batch, K, D)), mx.zeros((2, batch, H, 2 * K, D // H))
        return StepState(block, block, block, rows, rows[..., :K, :])

    def step(self, x: mx.array, state: StepState, at: int, first: bool) -> tuple[mx.array, StepState]:
        """Feed the next tokens of a stream, at most to the end of the block they are in.

        Args:
            x: embedded input (B, n, D).
            state: the state before them.
            at: their place in the block.
            first: the block is the stream's first.

        Returns:
            (y (B, n, D) by Eq. 6, state). Without dropout.
        """
        (_, n, _), K, alpha = x.shape, self.block, clamp(self.alpha)
        last, mask = state.last, self._mask[K + at : K + at + n]
        if first:
            mask = mx.where(mx.arange(2 * K) < K, -mx.inf, mask)  # nothing before x_1
            if self.history == "output":
                last = self._write(last, self._carried(x), at)  # y_0 = x_1
        rows = alpha * state.before[:, at : at + n] + x
        h, window = self.tau.step(rows, mask, state.window, partial(self._write, at=K + at))
        h = self._carried(h)
        rows = alpha * last[:, at : at + n] + h
        y, output = self.tau.step(rows, self._mask[at : at + n, :K], state.output, partial(self._write, at=at))
        current = self._write(state.current, h if self.history == "hidden" else self._carried(y), at)
        before = state.before
        if at + n == K:  # what was w_j becomes the first half of the next window
            window = mx.concatenate([output, window[..., K:, :]], axis=-2)
            before, last = last, current
        return y, StepState(before, last, current, window, output)

    def _write(self, rows: mx.array, new: mx.array, at: int) -> mx.array:
        """``rows`` (…, N, d) with ``new`` (…, n, d) from row ``at`` on; a single row in one operation."""
        if new.shape[-2] == 1:
            return mx.where(self._rows[: rows.shape[-2], at : at + 1], new, rows)
        return mx.slice_update(rows, new, mx.array([at]), [rows.ndim - 2])
