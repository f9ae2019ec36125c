// Attention of one head of one sequence. Shapes: qkv (B·2K, 3D), kept (B, HEADS, ROWS, WORDS); att (B·ROWS, D).
const int lane = rank % LANES, sequence = b / HEADS, column = b % HEADS * LENGTH;
const GLOBAL float* queries = qkv + sequence * WINDOW * PITCH + column;
const GLOBAL float* keys = queries + WIDTH;
const GLOBAL float* values = keys + WIDTH;
const GLOBAL unsigned* bits = (const GLOBAL unsigned*)kept;
for (int above = 0; above < ROWS; above += TEAMS) {
  const int mine = row_of(above, rank / LANES), row = min(mine, ROWS - 1), last = row + SKIPPED;
  const int end = min(greatest_row(above, rank), ROWS - 1) + SKIPPED;
  float q[SHARE], mixed[SHARE] = {};
  load_row(q, queries + last * PITCH, lane);
  Softmax softmax = {LOWEST, 0};
  for (int start = 0; start <= end; start += AHEAD) {
    float scores[AHEAD], x[SHARE];
    UNROLL for (int c = 0; c < AHEAD; ++c) {
      load_row(x, keys + min(start + c, WINDOW - 1) * PITCH, lane);
      const float score = dot(q, x);
      scores[c] = start + c <= last ? score : LOWEST;
    }
    scale(mixed, softmax.add(scores));
    UNROLL for (int c = 0; c < AHEAD; ++c) {
      load_row(x, values + min(start + c, WINDOW - 1) * PITCH, lane);
      add(mixed, drop_weight(scores[c], bits, b, row, start + c), x);
    }
  }
  scale(mixed, 1 / softmax.sum);
  if (mine < ROWS) store_row(att + (sequence * ROWS + row) * WIDTH + column, mixed, lane);
}
