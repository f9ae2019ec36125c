// Eq. 6 over all windows of one sequence b. Shapes: alpha (D), h m (B, K, D), x (S, B, K, D), wqkv (D, 3D), wo (D, D),
// w1 (D, 4D), w2 (4D, D), dropout (S, 2, B, ROWS, D), kept (S, B, HEADS, ROWS, WORDS); out (S, B, ROWS, D). Of the
// current window of each b: win (2K, D), qkv (2K, 3D), att u (ROWS, D), z (ROWS, 4D).
SHARED_ARRAY float4 storage[TILE / 4];
SHARED float* tile = (SHARED float*)storage;
const int S = x_shape[0], B = x_shape[1], lane = rank % LANES, team = rank / LANES;
const Carry carry = {m + b * K * D, h + b * K * D, out + b * ROWS * D, size_t(B) * ROWS};
GLOBAL float* win_b = win + b * WINDOW * D;
GLOBAL float* qkv_b = qkv + b * WINDOW * 3 * D;
GLOBAL float* att_b = att + b * ROWS * D;
GLOBAL float* u_b = u + b * ROWS * D;
GLOBAL float* z_b = z + b * ROWS * 4 * D;
for (int i = 0; i < S; ++i) {
  const size_t step = size_t(i) * B + b;
  GLOBAL float* out_i = out + step * ROWS * D;
  const GLOBAL float* attention_scales = dropout + (DROPOUT ? (size_t(i) * 2 * B + b) * ROWS * D : 0);
  const GLOBAL float* mlp_scales = attention_scales + (DROPOUT ? size_t(B) * ROWS * D : 0);
  const GLOBAL unsigned* kept_i = (const GLOBAL unsigned*)kept + (DROPS_WEIGHTS ? step * HEADS * ROWS * WORDS : 0);
  for (int above = 0; above < K; above += TEAMS) {
    const int row = min(above + team, K - 1);
    float weight[SHARE], history[SHARE], state[SHARE], input[SHARE];
    load_row(weight, alpha, lane);
    carry.load_m(history, i, row, lane);
    carry.load_h(state, i, row, lane);
    load_row(input, x + (step * K + row) * D, lane);
    add_columns(state, weight, history);
    add_columns(input, weight, history);
    if (above + team < K) {
      store_row(win_b + row * D, state, lane);
      store_row(win_b + (K + row) * D, input, lane);
    }
  }
  BARRIER();
  product<WINDOW, D, 3 * D>(Normalised{win_b, 0, 0}, wqkv, Store<3 * D>{qkv_b}, tile, rank);
  if (QK_NORM) normalise_heads(qkv_b, rank);
  attend(qkv_b, kept_i, att_b, rank);
  product<ROWS, D, D>(Plain<D>{att_b}, wo, Residual{win_b + SKIPPED * D, attention_scales, u_b}, tile, rank);
  product<ROWS, D, 4 * D>(Normalised{u_b, 0, 0}, w1, Store<4 * D>{z_b}, tile, rank);
  product<ROWS, 4 * D, D>(Activated{z_b}, w2, Residual{u_b, mlp_scales, out_i}, tile, rank);
}
