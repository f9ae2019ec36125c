// Gradient of wide_window_norm; dtotal is the gradient of the previous window's output, including that through the
// carry. Shapes: alpha (D), m (B, K, D), win dn1 (B·2K, D), du (B·ROWS, D), out dout (B, ROWS, D), or (·, D) if there
// is no previous window, dropout (2, B, ROWS, D), dm_later (B, K, D), dalpha_later (B·K, D); dx dm (B, K, D), dalpha
// (B·K, D), dtotal dproduct (B·ROWS, D).
const bool first = out_ndim == 2;  // there is no previous window: compute the gradient of the given carry
const int count = m_shape[0] * K, lane = rank % LANES, team = b * TEAMS + rank / LANES, item = min(team, count - 1);
const int row = item % K, above = (item / K * ROWS + row) * LENGTH, below = above + (ROWS - K) * LENGTH;
const GLOBAL float* mlp_scales = dropout + (DROPOUT ? count / K * ROWS * LENGTH : 0);
float dwin[2][SHARE], dcarry[2][SHARE], dropped[2][SHARE], y[SHARE];  // dcarry: gradients of h and of m
UNROLL for (int side = 0; side < 2; ++side) {
  const int at = (item / K * 2 * K + side * K + row) * LENGTH;
  load_row(y, win + at, lane);
  load_row(dwin[side], dn1 + at, lane);
  const float factor = layer_norm(y, lane);
  layer_norm_vjp(dwin[side], y, factor);
  if (side == 1 || ROWS > K) {
    load_row(y, du + (side == 1 ? below : above), lane);
    add(dwin[side], 1, y);
  }
}
UNROLL for (int i = 0; i < SHARE; ++i) {
  dcarry[0][i] = dwin[0][i];
  dcarry[1][i] = dwin[0][i] + dwin[1][i];
}
if (first || ROWS == K) {
  load_row(y, m + item * LENGTH, lane);
} else {
  load_row(y, out + above, lane);
  if (STATE_NORM) rms_norm(y);
}
float weight[SHARE], along[SHARE];
load_row(along, dalpha_later + item * LENGTH, lane);
add_columns(along, dcarry[1], y);
load_row(weight, alpha, lane);
scale_columns(dcarry[1], weight);
if (ROWS == K) {  // m of the later window is h of this one
  load_row(y, dm_later + item * LENGTH, lane);
  add(dcarry[0], 1, y);
}
UNROLL for (int side = 0; side < ROWS / K; ++side) {
  if (!first) {
    const int at = side == 0 ? below : above;
    if (STATE_NORM) {
      load_row(y, out + at, lane);
      const float factor = rms_norm(y);
      rms_norm_vjp(dcarry[side], y, factor);
    }
    load_row(y, dout + at, lane);
    add(dcarry[side], 1, y);
    if (DROPOUT) drop(dropped[side], dcarry[side], mlp_scales + at, lane);
  }
}
if (team < count) {
  store_row(dalpha + item * LENGTH, along, lane);
  store_row(dx + item * LENGTH, dwin[1], lane);
  if (ROWS == K) store_row(dm + item * LENGTH, dcarry[1], lane);
  UNROLL for (int side = 0; side < ROWS / K; ++side) {
    const int at = side == 0 ? below : above;
    store_row(dtotal + at, dcarry[side], lane);
    if (DROPOUT && !first) store_row(dproduct + at, dropped[side], lane);
  }
}
