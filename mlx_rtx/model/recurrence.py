"""The recurrence of the paper, Eqs. 5–7: one layer τ applied block after block, with a carried state.

Letters: B batch, K block width, S blocks per segment, D width, H heads, d = D/H.

Let m_i be the history that Eq. 6 adds: m_i = h_i with ``history="hidden"`` (as printed in the paper), or m_i = y_i with
``"output"`` (as in the author's program), and m_0 = 0 or x_1 respectively. Every block i computes

    w_i = α m_i-1 + h_i                             first half of the window
    h_i+1 = second half of τ(w_i, α m_i-1 + x_i+1)
    y_i = first half of the same output = τ(w_i), since τ is causal

The last block of a closed sequence has w_T = h_T (Eq. 7). The *carry* into the next window is (m_i-1, h_i); with
``state_norm`` both are RMS-normalised.
"""

import math
from functools import partial
from typing import Any, NamedTuple

from mlx_rtx import kernels
from mlx_rtx.kernels.options import Options, ScanInputs
from mlx_rtx.kernels.scan import scan
from mlx_rtx.model.base import Implementation
from mlx_rtx.model.config import NORM_EPS, Architecture
from mlx_rtx.model.dropout import DropoutScales, SegmentDropout, draw_segment
from mlx_rtx.model.layer import FoldedWeights, TransformerLayer, causal_mask
from mlx_rtx.model.norms import rms_norm
from mlx_rtx.model.segment import Carry, Saved
from mlx_rtx.model.window import Alpha, Gate, accumulate, clamp, exportable_clamp, exportable_window, window

import mlx.core as mx
import mlx.nn as nn


class RecurrenceWeights(NamedTuple):
    """A recurrence's parameters in the form that all blocks use."""

    alpha: Alpha  # a scalar or (D,), clamped to [0, 1]; or a gate
    tau: FoldedWeights


class RecurrenceOutput(NamedTuple):
    """Result of running a recurrence over a segment."""

    y: mx.array  # (B, blocks_wanted·K, D)
    carry: Carry | None  # None after a closed sequence
    saved: Saved  # outputs of the fused scan; empty if there was none


class StepState(NamedTuple):
    """State of one recurrence between two tokens of a stream: the carry, and the block j in progress."""

    m_prev2: mx.array  # m_j-2 (B, K, D): added to block j's inputs
    m_prev: mx.array  # m_j-1 (B, K, D): added to its h
    m_now: mx.array  # m_j (B, K, D), filled row by row
    window_kv: mx.array  # keys and values (2, B, H, 2K, d) of the window (w_j-1, α m_j-2 + x_j)
    output_kv: mx.array  # keys and values (2, B, H, K, d) of w_j, the first half of the next window


class Recurrence(nn.Module):
    """A transformer layer τ applied block after block, and its accumulation parameter α."""

    def __init__(self, config: Architecture, implementation: Implementation = "auto"):
        super().__init__()
        self.tau = TransformerLayer(config)
        self.alpha_kind = config.alpha_kind
        self.alpha = _initial_alpha(config)
        if config.alpha_kind == "gated":  # self.alpha is its bias; with zero weights it starts as a fixed α
            self.gate = mx.zeros((config.dim, config.heads))
        self.block = config.block
        self.history = config.history
        self.state_norm = config.state_norm
        self.implementation, self._config = implementation, config
        exportable = implementation == "exportable"
        self._clamp, self._window = (exportable_clamp, exportable_window) if exportable else (clamp, window)
        self._options = Options(
            config.heads,
            config.history,
            config.activation,
            config.state_norm,
            qk_scale=self.tau.scale if config.qk_norm else None,
            epsilon=NORM_EPS,
            kept_scale=1 / (1 - config.attention_dropout),
        )
        self._mask = causal_mask(2 * config.block).astype(self.tau.dtype)
        self._rows = mx.eye(2 * config.block).astype(mx.bool_)  # row i: one-hot mask of row i
        if not config.train_alpha:
            self.freeze(keys=["alpha", "gate"], recurse=False)

    def fold_weights(self, parameters: dict[str, Any]) -> RecurrenceWeights:
        """Return the weights that `__call__` takes, computed from a tree like ``self.parameters()``."""
        return RecurrenceWeights(self._alpha(parameters), self.tau.fold_weights(parameters["tau"]))

    def _alpha(self, parameters: dict[str, Any]) -> Alpha:
        """Return α in the form that all blocks use."""
        alpha = parameters["alpha"]
        if self.alpha_kind == "gated":
            return Gate(parameters["gate"], alpha)
        alpha = self._clamp(alpha)
        return mx.repeat(alpha, self.tau.qkv.shape[0] // len(alpha)) if self.alpha_kind == "head" else alpha

    @property
    def mean_alpha(self) -> mx.array:
        """Mean of α over heads or channels, a scalar in [0, 1]; for a gate, its value for rows of zeros."""
        alpha = self.alpha
        return (mx.sigmoid(alpha) if self.alpha_kind == "gated" else mx.clip(alpha, 0, 1)).mean()

    def __call__(
        self,
        x: mx.array,
        weights: RecurrenceWeights,
        carry: Carry | None = None,
        blocks_wanted: int | None = None,
        close: bool = False,
        keys: mx.array | None = None,
        saved: Saved = (),
        differentiated: bool = False,
    ) -> RecurrenceOutput:
        """Run S whole blocks.

        Args:
            x: embedded input (B, S·K, D).
            weights: from `fold_weights`.
            carry: carry of the preceding blocks, or None at the start of a sequence.
            blocks_wanted: number of final blocks whose outputs are computed; all by default.
            close: whether the last block ends the sequence: Eq. 7 instead of Eq. 6.
            keys: dropout keys (S + 1, 2), one per block and one for the outputs of the last block; None for no dropout.
            saved, differentiated: see `Transformer.run`.
        """
        (B, _, D), K, hidden = x.shape, self.block, self.history == "hidden"
        S, alpha, tau = x.shape[1] // K, weights.alpha, self.tau.cast(weights.tau)
        wanted = S if blocks_wanted is None else blocks_wanted
        windows = S if carry else S - 1  # a sequence's first block has no window
        dropout = draw_segment(self._config, keys, B, windows, wanted, self._fused)
        if carry is None:
            x_1 = x[:, :K]
            h = self._normalise(self._half(x_1, tau, dropout.first))  # (5)
            carry = Carry(mx.zeros_like(h) if hidden else self._normalise(x_1), h)
        before = carry
        states: list[mx.array] = []
        saved_now: Saved = ()
        if windows:
            blocks = x[:, (S - windows) * K :]
            states, carry, saved_now = self._scan(blocks, alpha, before, tau, dropout, saved, differentiated)
        if not wanted:
            y = x[:, :0]
        elif hidden:
            h = mx.stack([*before, *states][-wanted - 1 :], axis=1)  # (B, wanted + 1, K, D)
            w = self._first_halves(h, alpha, close).flatten(0, 1)  # (B·wanted, K, D)
            y = self._half(w, tau, dropout.last).reshape(B, wanted * K, D)
        else:
            m, h = carry
            y = self._half(h if close else accumulate(alpha, m, h), tau, dropout.last)  # (7) or (6)
            if wanted > 1:  # the windows have computed the earlier ones
                earlier = mx.stack(states[1 - wanted :], axis=1)[:, :, :K]  # (B, wanted - 1, K, D)
                y = mx.concatenate([earlier.flatten(1, 2), y], axis=1)
        return RecurrenceOutput(y, None if close else carry, saved_now)

    def _normalise(self, x: mx.array) -> mx.array:
        """Return x as it is carried: RMS-normalised with ``state_norm``."""
        return rms_norm(x) if self.state_norm else x

    def _half(self, w: mx.array, tau: FoldedWeights, dropout: DropoutScales | None) -> mx.array:
        """Apply τ to the first half of a window alone: (·, K, D) → (·, K, D)."""
        return self.tau(w, tau, None, self._mask[: self.block, : self.block], dropout)

    def _scan(
        self,
        x: mx.array,
        alpha: Alpha,
        carry: Carry,
        tau: FoldedWeights,
        dropout: SegmentDropout,
        saved: Saved,
        differentiated: bool,
    ) -> tuple[list[mx.array], Carry, Saved]:
        """Compute Eq. 6 over S windows, one per block of x (B, S·K, D).

        Returns:
            (states, carry, saved). ``states`` has one array per window: with ``history="hidden"`` the next h (B, K, D)
            as it is carried, with ``"output"`` the outputs of both halves (B, 2K, D), not normalised. ``carry`` is that
            after the last window; ``saved`` holds the outputs of the fused scan.
        """
        S, hidden = x.shape[1] // self.block, self.history == "hidden"
        if self._fused:
            assert isinstance(alpha, mx.array)
            blocks = mx.unflatten(x, 1, (S, self.block)).swapaxes(0, 1)  # (S, B, K, D)
            alpha, masks = mx.broadcast_to(alpha, x.shape[-1:]), (dropout.outputs.windows, dropout.kept)
            inputs = ScanInputs(alpha, *carry, blocks, tau, *masks)
            outs, saved = scan(self._options, inputs, saved, differentiated)
            if not hidden:
                return outs, self._halves(self._normalise(outs[-1])), saved
            states = [self._normalise(out) for out in outs]
            return states, Carry(*[*carry, *states][-2:]), saved
        rows, mask = (self.block, self._mask[self.block :]) if hidden else (None, self._mask)
        states = []
        for block, own in zip(mx.split(x, S, axis=1), dropout.windows(S), strict=True):
            out = self.tau(self._window(alpha, *carry, block), tau, rows, mask, own)
            carried = self._normalise(out)
            carry = Carry(carry.h, carried) if hidden else self._halves(carried)
            states.append(carried if hidden else out)
        return states, carry, ()

    @property
    def _fused(self) -> bool:
        """Whether windows are computed with the fused kernels."""
        return self.implementation == "auto" and self._config.fusible and kernels.available()

    @staticmethod
    def _halves(window: mx.array) -> Carry:
        """Return the carry (y_i, h_i+1) after a window whose outputs are (B, 2K, D)."""
        return Carry(*mx.split(window, 2, axis=1))

    def _first_halves(self, h: mx.array, alpha: Alpha, close: bool) -> mx.array:
        """Return w_i = α h_i-1 + h_i, (B, n, K, D), of all blocks of h (B, n + 1, K, D) but the first.

        If ``close``, the last one is w_T = h_T (Eq. 7).
        """
        n = h.shape[1] - 1
        before = h[:, :-1] * (mx.arange(n) < n - 1)[:, None, None] if close else h[:, :-1]
        return accumulate(alpha, before, h[:, 1:])

    def initial_state(self, batch: int) -> StepState:
        """Return the state of ``batch`` streams before their first token."""
        K, D, H = self.block, self.tau.qkv.shape[0], self.tau.heads
        block, rows = mx.zeros((batch, K, D)), mx.zeros((2, batch, H, 2 * K, D // H))
        return StepState(block, block, block, rows, rows[..., :K, :])

    def step(
        self, x: mx.array, parameters: dict[str, Any], state: StepState, at: int, first: bool
    ) -> tuple[mx.array, StepState]:
        """Feed the next tokens of a stream, all within one block; without dropout.

        Args:
            x: embedded input (B, n, D).
            parameters: a tree like ``self.parameters()``.
            state: state before these tokens.
            at: offset of the first token in its block.
            first: whether this is the stream's first block.

        Returns:
            (y (B, n, D) by Eq. 6, new state).
        """
        (_, n, _), K, alpha, tau = x.shape, self.block, self._alpha(parameters), parameters["tau"]
        m_prev, mask = state.m_prev, self._mask[K + at : K + at + n]
        if first:
            mask = mx.where(mx.arange(2 * K) < K, -mx.inf, mask)  # there is no block before x_1
            if self.history == "output":
                m_prev = self._write(m_prev, self._normalise(x), at)  # y_0 = x_1
        rows = accumulate(alpha, state.m_prev2[:, at : at + n], x)
        h, window_kv = self.tau.step(rows, tau, mask, state.window_kv, partial(self._write, at=K + at))
        h = self._normalise(h)
        rows = accumulate(alpha, m_prev[:, at : at + n], h)
        y, output_kv = self.tau.step(
            rows, tau, self._mask[at : at + n, :K], state.output_kv, partial(self._write, at=at)
        )
        m_now = self._write(state.m_now, h if self.history == "hidden" else self._normalise(y), at)
        m_prev2 = state.m_prev2
        if at + n == K:  # end of block: w_j becomes the first half of the next window
            window_kv = mx.concatenate([output_kv, window_kv[..., K:, :]], axis=-2)
            m_prev2, m_prev = m_prev, m_now
        return y, StepState(m_prev2, m_prev, m_now, window_kv, output_kv)

    def _write(self, rows: mx.array, new: mx.array, at: int) -> mx.array:
        """Return ``rows`` (…, N, d) with ``new`` (…, n, d) written from row ``at`` on."""
        if new.shape[-2] == 1:
            return mx.where(self._rows[: rows.shape[-2], at : at + 1], new, rows)
        return mx.slice_update(rows, new, mx.array([at]), [rows.ndim - 2])


def _initial_alpha(config: Architecture) -> mx.array:
    """Return the initial α in the shape of its kind; for a gate, the initial bias."""
    start = math.log(config.alpha / (1 - config.alpha)) if config.alpha_kind == "gated" else config.alpha
    shape = {"scalar": (), "channel": (config.dim,)}.get(config.alpha_kind, (config.heads,))
    return mx.full(shape, start, dtype=mx.float32)
