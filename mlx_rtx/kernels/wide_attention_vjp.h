// Gradient of the attention of one head of one sequence. Shapes: qkv (B·2K, 3D), kept (B, HEADS, ROWS, WORDS),
// att datt (B·ROWS, D); dqkv (B·2K, 3D).
SHARED_ARRAY float statistics[2 * ROWS];  // per row: the logarithm of the softmax's denominator, and datt . att
const int lane = rank % LANES, sequence = b / HEADS, column = b % HEADS * LENGTH;
const GLOBAL float* queries = qkv + sequence * WINDOW * PITCH + column;
const GLOBAL float* keys = queries + WIDTH;
const GLOBAL float* values = keys + WIDTH;
const GLOBAL unsigned* bits = (const GLOBAL unsigned*)kept;
const GLOBAL float* douts = datt + sequence * ROWS * WIDTH + column;
GLOBAL float* dqueries = dqkv + sequence * WINDOW * PITCH + column;
for (int above = 0; above < ROWS; above += TEAMS) {
  const int mine = row_of(above, rank / LANES), row = min(mine, ROWS - 1), last = row + SKIPPED;
  const int end = min(greatest_row(above, rank), ROWS - 1) + SKIPPED;
  float q[SHARE], dout[SHARE], x[SHARE], dq[SHARE] = {};
  load_row(q, queries + last * PITCH, lane);
  load_row(dout, douts + row * WIDTH, lane);
  load_row(x, att + (sequence * ROWS + row) * WIDTH + column, lane);
  const float along = dot(dout, x);
  Softmax softmax = {LOWEST, 0};
  for (int start = 0; start <= end; start += AHEAD) {
    float scores[AHEAD], slopes[AHEAD], key[AHEAD][SHARE];
    UNROLL for (int c = 0; c < AHEAD; ++c) {
      const int at = min(start + c, WINDOW - 1) * PITCH;
      load_row(key[c], keys + at, lane);
      load_row(x, values + at, lane);
      const float score = dot(q, key[c]);
      scores[c] = start + c <= last ? score : LOWEST;
      slopes[c] = drop_weight(dot(dout, x), bits, b, row, start + c) - along;
    }
    scale(dq, softmax.add(scores));
    UNROLL for (int c = 0; c < AHEAD; ++c) add(dq, scores[c] * slopes[c], key[c]);
  }
  scale(dq, 1 / softmax.sum);
  if (mine < ROWS) {
    store_row(dqueries + last * PITCH, dq, lane);
    if (lane == 0) statistics[2 * row] = softmax.top + log(softmax.sum), statistics[2 * row + 1] = along;
  }
}
BARRIER();
for (int above = 0; above < WINDOW; above += TEAMS) {
  const int mine = row_of(above, rank / LANES), row = min(mine, WINDOW - 1);
  float k[SHARE], v[SHARE], dk[SHARE] = {}, dv[SHARE] = {};
  load_row(k, keys + row * PITCH, lane);
  load_row(v, values + row * PITCH, lane);
  for (int start = max(least_row(above, rank) - SKIPPED, 0); start < ROWS; start += AHEAD) {
    UNROLL for (int c = 0; c < AHEAD; ++c) {
      const int query = min(start + c, ROWS - 1);
      float q[SHARE], dout[SHARE];
      load_row(q, queries + (query + SKIPPED) * PITCH, lane);
      load_row(dout, douts + query * WIDTH, lane);
      const bool seen = row <= query + SKIPPED && start + c < ROWS;
      const float factor = drop_weight(1, bits, b, query, row);
      const float score = dot(k, q), slope = factor * dot(v, dout) - statistics[2 * query + 1];
      const float weight = seen ? exp(score - statistics[2 * query]) : 0;
      add(dv, weight * factor, dout);
      add(dk, weight * slope, q);
    }
  }
  if (mine < WINDOW) {
    store_row(dqueries + row * PITCH + WIDTH, dk, lane);
    store_row(dqueries + row * PITCH + 2 * WIDTH, dv, lane);
    scale(dk, 0);
    if (row < SKIPPED) store_row(dqueries + row * PITCH, dk, lane);
  }
}
