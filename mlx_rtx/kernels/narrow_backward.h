// Gradient of Eq. 6 over all windows of one sequence b, last one first. Shapes: alpha (D), h m (B, K, D), win
// (S·B·2K, D), qkv raw (S·B·2K, 3D), queries and keys normalised or not, att u (S·B·ROWS, D), z (S·B·ROWS, 4D),
// out dout (S, B, ROWS, D), dropout (S, 2, B, ROWS, D), kept (S, B, HEADS, ROWS, WORDS), weights transposed:
// wqkv_t (3D, D), wo_t (D, D), w1_t (4D, D), w2_t (D, 4D); dx (S, B, K, D), dh dm (B, K, D), dalpha (B, TEAMS, D),
// dtotal du (S, B, ROWS, D), dz (S, B, ROWS, 4D), dqkv (S, B, 2K, 3D). Of the current window: datt (B, ROWS, D),
// dwin (B, 2K, D), statistics (B, HEADS, ROWS, 2).
SHARED_ARRAY float4 storage[TILE / 4];
SHARED float* tile = (SHARED float*)storage;
const int S = dout_shape[0], B = dout_shape[1], lane = rank % LANES, team = rank / LANES;
const Carry carry = {m + b * K * D, h + b * K * D, out + b * ROWS * D, size_t(B) * ROWS};
GLOBAL float* dh_b = dh + b * K * D;
GLOBAL float* dm_b = dm + b * K * D;
GLOBAL float* datt_b = datt + b * ROWS * D;
GLOBAL float* dwin_b = dwin + b * WINDOW * D;
GLOBAL float* statistics_b = statistics + b * HEADS * ROWS * 2;
float dalpha_part[SHARE] = {};
for (int i = S - 1; i >= 0; --i) {
  const size_t step = size_t(i) * B + b;
  const GLOBAL float* win_i = win + step * WINDOW * D;
  const GLOBAL float* qkv_i = qkv + step * WINDOW * 3 * D;
  const GLOBAL float* raw_i = raw + step * WINDOW * 3 * D;
  const GLOBAL float* att_i = att + step * ROWS * D;
  const GLOBAL float* u_i = u + step * ROWS * D;
  const GLOBAL float* z_i = z + step * ROWS * 4 * D;
  GLOBAL float* dtotal_i = dtotal + step * ROWS * D;
  GLOBAL float* dz_i = dz + step * ROWS * 4 * D;
  GLOBAL float* du_i = du + step * ROWS * D;
  GLOBAL float* dqkv_i = dqkv + step * WINDOW * 3 * D;
  const GLOBAL float* attention_scales = dropout + (DROPOUT ? (size_t(i) * 2 * B + b) * ROWS * D : 0);
  const GLOBAL float* mlp_scales = attention_scales + (DROPOUT ? size_t(B) * ROWS * D : 0);
  const GLOBAL unsigned* kept_i = (const GLOBAL unsigned*)kept + (DROPS_WEIGHTS ? step * HEADS * ROWS * WORDS : 0);

  for (int above = 0; above < ROWS; above += TEAMS) {  // add the gradient that comes through the carry
    const int row = min(above + team, ROWS - 1);
    float total[SHARE];
    load_row(total, dout + (step * ROWS + row) * D, lane);
    if (i < S - 1) {
      float dstate[SHARE];
      load_row(dstate, row < ROWS - K ? dm_b + row * D : dh_b + (row - (ROWS - K)) * D, lane);
      if (STATE_NORM) {
        float state[SHARE];
        load_row(state, out + (step * ROWS + row) * D, lane);
        const float scale = rms_norm(state);
        rms_norm_vjp(dstate, state, scale);
      }
      UNROLL for (int j = 0; j < SHARE; ++j) total[j] += dstate[j];
    }
    if (above + team < ROWS) store_row(dtotal_i + row * D, total, lane);
  }
  BARRIER();
  product<ROWS, D, 4 * D>(Dropped{dtotal_i, mlp_scales}, w2_t, ActivationVjp{z_i, dz_i}, tile, rank);
  product<ROWS, 4 * D, D>(Plain<4 * D>{dz_i}, w1_t, Store<D>{du_i}, tile, rank);
  for (int above = 0; above < ROWS; above += TEAMS) {
    const int row = min(above + team, ROWS - 1);
    float y[SHARE], dy[SHARE] = {}, total[SHARE];
    load_row(y, u_i + row * D, lane);
    if (above + team < ROWS) load_row(dy, du_i + row * D, lane);  // other teams may be writing the clamped row
    load_row(total, dtotal_i + row * D, lane);
    const float scale = layer_norm(y, lane);
    layer_norm_vjp(dy, y, scale);
    UNROLL for (int j = 0; j < SHARE; ++j) dy[j] += total[j];
    if (above + team < ROWS) store_row(du_i + row * D, dy, lane);
  }
  BARRIER();
  product<ROWS, D, D>(Dropped{du_i, attention_scales}, wo_t, Store<D>{datt_b}, tile, rank);
  attend_vjp_queries(qkv_i, kept_i, att_i, datt_b, dqkv_i, statistics_b, rank);
  attend_vjp_keys(qkv_i, kept_i, datt_b, statistics_b, dqkv_i, rank);
  if (QK_NORM) normalise_heads_vjp(raw_i, dqkv_i, rank);
  product<WINDOW, 3 * D, D>(Plain<3 * D>{dqkv_i}, wqkv_t, Store<D>{dwin_b}, tile, rank);
  for (int above = 0; above < K; above += TEAMS) {
    const int row = min(above + team, K - 1);
    float both[2][SHARE], weight[SHARE], history[SHARE];
    load_row(weight, alpha, lane);
    UNROLL for (int side = 0; side < 2; ++side) {
      const int r = side * K + row;
      float y[SHARE];
      load_row(y, win_i + r * D, lane);
      load_row(both[side], dwin_b + r * D, lane);
      const float scale = layer_norm(y, lane);
      layer_norm_vjp(both[side], y, scale);
      if (r >= SKIPPED) {
        load_row(y, du_i + (r - SKIPPED) * D, lane);
        UNROLL for (int j = 0; j < SHARE; ++j) both[side][j] += y[j];
      }
    }
    carry.load_m(history, i, row, lane);
    if (above + team < K) {
      store_row(dx + (step * K + row) * D, both[1], lane);
      UNROLL for (int j = 0; j < SHARE; ++j) {
        both[1][j] += both[0][j];
        dalpha_part[j] = fma(history[j], both[1][j], dalpha_part[j]);
        both[1][j] *= weight[j];
      }
      if (ROWS == K && i < S - 1) {  // m of the next window is h of this one
        load_row(history, dm_b + row * D, lane);
        UNROLL for (int j = 0; j < SHARE; ++j) both[0][j] += history[j];
      }
      store_row(dh_b + row * D, both[0], lane);
      store_row(dm_b + row * D, both[1], lane);
    }
  }
  BARRIER();
}
store_row(dalpha + (b * TEAMS + team) * D, dalpha_part, lane);
