// The window (w, alpha m + x) and its norm. First finishes the previous window: out = u + dropout(product).
// Shapes: alpha (D), m x (B, K, D), u product (B·ROWS, D), or (B, K, D) if there is no previous window and u is h,
// dropout (2, B, ROWS, D); out (B, ROWS, D), carried (B, K, D), win n1 (B·2K, D).
const bool first = product_ndim == 3;  // there is no previous window: the carry is given as m and u
const int count = x_shape[0] * K, lane = rank % LANES, team = b * TEAMS + rank / LANES, item = min(team, count - 1);
const int row = item % K, above = (item / K * ROWS + row) * LENGTH, below = above + (ROWS - K) * LENGTH;
const int win_above = (item / K * 2 * K + row) * LENGTH, win_below = win_above + K * LENGTH;
const GLOBAL float* mlp_scales = dropout + (DROPOUT ? count / K * ROWS * LENGTH : 0);
const bool busy = team < count;
float weight[SHARE], history[SHARE], state[SHARE], input[SHARE];
load_row(weight, alpha, lane);
load_row(input, x + item * LENGTH, lane);
if (first) {
  load_row(state, u + item * LENGTH, lane);
} else {
  residual(state, u + below, product + below, mlp_scales + below, lane);
}
if (first || ROWS == K) {
  load_row(history, m + item * LENGTH, lane);
} else {
  residual(history, u + above, product + above, mlp_scales + above, lane);
}
if (busy && ROWS > K && !first) store_row(out + above, history, lane);
if (busy && (ROWS == K || !first)) store_row(out + below, state, lane);  // if ROWS == K, also m of the next window
if (STATE_NORM && !first) {
  rms_norm(state);
  if (ROWS > K) rms_norm(history);
}
if (STATE_NORM && ROWS == K && busy) store_row(carried + item * LENGTH, state, lane);
add_columns(state, weight, history);
add_columns(input, weight, history);
if (busy) {
  store_row(win + win_above, state, lane);
  store_row(win + win_below, input, lane);
}
layer_norm(state, lane);
layer_norm(input, lane);
if (busy) {
  store_row(n1 + win_above, state, lane);
  store_row(n1 + win_below, input, lane);
}
