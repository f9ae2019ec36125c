// Gradient of wide_head_norm. Shapes: qkv dscored (B·2K, 3D); dqkv the same.
const int count = qkv_shape[0] * 3 * HEADS, lane = rank % LANES, team = b * TEAMS + rank / LANES;
const int item = min(team, count - 1), head = item % (3 * HEADS);
float y[SHARE], dx[SHARE];
load_row(y, qkv + item * LENGTH, lane);
load_row(dx, dscored + item * LENGTH, lane);
const float factor = rms_norm(y), along = row_mean(dx, y);
if (head < 2 * HEADS) {
  add(dx, -along, y);
  scale(dx, head < HEADS ? factor * QK_SCALE : factor);
}
if (team < count) store_row(dqkv + item * LENGTH, dx, lane);
