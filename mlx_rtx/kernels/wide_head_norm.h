// RMS-normalises queries and keys per head and multiplies queries by QK_SCALE; copies values. Shapes: qkv (B·2K, 3D);
// scored the same.
const int count = qkv_shape[0] * 3 * HEADS, lane = rank % LANES, team = b * TEAMS + rank / LANES;
const int item = min(team, count - 1), head = item % (3 * HEADS);
float x[SHARE];
load_row(x, qkv + item * LENGTH, lane);
const float factor = rsqrt(row_mean(x, x) + EPS);
scale(x, head < HEADS ? factor * QK_SCALE : head < 2 * HEADS ? factor : 1);
if (team < count) store_row(scored + item * LENGTH, x, lane);
