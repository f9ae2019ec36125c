"""The recurrence of the paper, Eqs. 5–7: one layer τ slides over blocks and carries its state on.

Letters: B batch, K block width, S blocks in a piece of sequence, D width, H heads, d = D/H.

With m_i the history that Eq. 6 mixes in, m_i = h_i (``history="hidden"``, as printed) or
m_i = y_i (``"output"``, as the author's program does), m_0 = 0 or x_1, every block i does

    w_i = α m_i-1 + h_i                       the window's first half
    h_i+1 = second half of τ(w_i, α m_i-1 + x_i+1)
    y_i = first half of the same window = τ(w_i), since τ is causal

and the last block of a closed sequence has w_T = h_T (Eq. 7). What the next block needs, its
*carry*, is (m_i-1, h_i, m_i), the last left out where it is h_i. With ``state_norm`` the m and h
that are carried are RMS-normalised.
"""

from typing import NamedTuple, cast

from mlx_rtx.config import Architecture
from mlx_rtx.dropout import keep_factors, pairs, split_keys
from mlx_rtx.layer import EPS, Keep, TransformerLayer, causal_mask

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


class StepState(NamedTuple):
    """State of one recurrence between two tokens of a stream: the carry and the block in progress."""

    before: mx.array  # m_j-2 (B, K, D), block j being in progress: added to its inputs
    last: mx.array  # m_j-1 (B, K, D): added to its h
    current: mx.array  # m_j (B, K, D), filled row by row
    window_k: mx.array  # keys (B, H, d, 2K) of the window (w_j-1, α m_j-2 + x_j)
    window_v: mx.array  # its values (B, H, 2K, d)
    output_k: mx.array  # keys (B, H, d, K) of w_j: the next window's first half
    output_v: mx.array  # its values (B, H, K, d)


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
        self._mask = causal_mask(2 * config.block)
        if not config.train_alpha:
            self.freeze(keys=["alpha"], recurse=False)

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
            keys: one random key a block (S, 2) for dropout; None for no dropout.

        Returns:
            (y (B, read·K, D), carry). A closed sequence's carry has no use.
        """
        S = x.shape[1] // self.block
        scan = self._scan_hidden if self.history == "hidden" else self._scan_output
        shape = (2, x.shape[0], self.block, x.shape[2])  # attention and MLP outputs of a block
        keep_h, keep_y = (keep_factors(k, self.rate, shape) for k in split_keys(keys, 2))
        return scan(mx.split(x, S, axis=1), carry, S if read is None else read, close, keep_h, keep_y)

    def _carried(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, None, EPS) if self.state_norm else x

    def _half(self, w: mx.array, keep: Keep | None) -> mx.array:
        """τ of a first half alone, (·, K, D) → (·, K, D)."""
        return self.tau(w, mask=self._mask[: self.block, : self.block], keep=keep)

    def _next(self, w: mx.array, x: mx.array, keep: Keep | None) -> mx.array:
        """The next h: the second half of τ of the window (w, x), each (B, K, D)."""
        return self._carried(self.tau(x, w, self._mask[self.block :], keep))

    def _scan_hidden(self, blocks, carry, read, close, keep_h, keep_y):
        """Only h is on the chain; the y that are read follow in one call for all blocks."""
        S, alpha, keep_h = len(blocks), clamp(self.alpha), pairs(keep_h, len(blocks))
        if carry is None:
            h = self._carried(self._half(blocks[0], keep_h[0]))  # (5)
            m, blocks = mx.zeros_like(h), blocks[1:]
        else:
            m, h = carry
        halves = []  # w of every block, before them the w of the block that the carry came from
        for i, x in enumerate(blocks, S - len(blocks)):
            history = alpha * m
            halves.append(history + h)
            m, h = h, self._next(halves[-1], history + x, keep_h[i])  # (6)
        carry = [] if close else [m, h]
        if not read:
            return h[:, :0], carry
        halves.append(h if close else alpha * m + h)  # (7) or (6)
        if keep_y is not None:
            keep_y = keep_y[S - read :].swapaxes(0, 1)[None]  # (1, 2, read, B, K, D)
        y = self._half(mx.concatenate(halves[-read:]), pairs(keep_y, 1)[0])  # (read·B, K, D)
        return y.reshape(read, *h.shape).swapaxes(0, 1).flatten(1, 2), carry

    def _scan_output(self, blocks, carry, read, close, keep_h, keep_y):
        """Each window gives the next h and, where it is not known yet, the y of the block before."""
        S, alpha = len(blocks), clamp(self.alpha)
        both = None if keep_y is None else mx.concatenate([keep_y[:-1], keep_h[1:]], axis=3)  # (S-1, 2, B, 2K, D)
        keep_h, keep_y, keep_both = pairs(keep_h, S), pairs(keep_y, S), pairs(both, S - 1)
        if carry is None:
            h = self._carried(self._half(blocks[0], keep_h[0]))  # (5)
            m, known, blocks = self._carried(blocks[0]), None, blocks[1:]
        else:
            m, h, known = carry
        outputs: list[mx.array] = []
        for i, x in enumerate(blocks, S - len(blocks)):
            history = alpha * m
            w, x = history + h, history + x
            if known is not None:  # the y of this window came with the carry
                m, h, known = known, self._next(w, x, keep_h[i]), None
            elif close and i == S - 1 and read <= 1:  # it has no use: (7) needs no history
                h = self._next(w, x, keep_h[i])
            else:
                window = mx.concatenate([w, x], axis=1)  # (B, 2K, D)
                y, h = mx.split(self.tau(window, mask=self._mask, keep=keep_both[i - 1]), 2, axis=1)  # (6)
                outputs.append(y)
                m, h = self._carried(y), self._carried(h)
        y = self._half(h if close else alpha * m + h, keep_y[-1])  # (7) or (6)
        outputs.append(y)
        carry = [] if close else [m, h, self._carried(y)]
        return mx.concatenate(outputs[-read:], axis=1) if read else y[:, :0], carry

    def initial_state(self, batch: int) -> StepState:
        """State before the first token, for ``batch`` streams."""
        K, D, H = self.block, self.tau.query.shape[0], self.tau.heads
        d, block = D // H, mx.zeros((batch, K, D))
        window = mx.zeros((batch, H, d, 2 * K)), mx.zeros((batch, H, 2 * K, d))
        half = mx.zeros((batch, H, d, K)), mx.zeros((batch, H, K, d))
        return StepState(block, block, block, *window, *half)

    def step(self, x: mx.array, state: StepState, position: int) -> tuple[mx.array, StepState]:
        """Feed tokens ``position`` … of a stream, at most to the end of the block they begin in.

        Args:
            x: embedded input (B, n, D).
            state: the state before them.
            position: tokens fed before.

        Returns:
            (y (B, n, D) by Eq. 6, state). Without dropout.
        """
        K, alpha = self.block, clamp(self.alpha)
        at, n, first = position % K, x.shape[1], position < K
        last, mask = state.last, self._mask[K + at : K + at + n]
        if first:
            mask = mx.where(mx.arange(2 * K) < K, -mx.inf, mask)  # nothing before x_1
            if self.history == "output":
                last = _write(last, self._carried(x), at)  # y_0 = x_1
        h, window_k, window_v = self.tau.step(
            alpha * state.before[:, at : at + n] + x, mask, state.window_k, state.window_v, K + at
        )
        h = self._carried(h)
        y, output_k, output_v = self.tau.step(
            alpha * last[:, at : at + n] + h, self._mask[at : at + n, :K], state.output_k, state.output_v, at
        )
        current = _write(state.current, h if self.history == "hidden" else self._carried(y), at)
        if at + n == K:  # what was w_j becomes the first half of the next window
            window_k, window_v = _write(window_k, output_k, 0, axis=3), _write(window_v, output_v, 0, axis=2)
            last, state = current, state._replace(before=last)
        return y, StepState(state.before, last, current, window_k, window_v, output_k, output_v)


def _write(rows: mx.array, new: mx.array, at: int, axis: int = 1) -> mx.array:
    return mx.slice_update(rows, new, mx.array([at]), [axis])
