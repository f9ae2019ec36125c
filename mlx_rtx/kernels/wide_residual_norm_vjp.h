// Gradient of wide_residual_norm. Shapes: u dn2 dtotal (B·ROWS, D), dropout (B·ROWS, D); du dproduct (B·ROWS, D).
const int count = dn2_shape[0], lane = rank % LANES, team = b * TEAMS + rank / LANES;
const int at = min(team, count - 1) * LENGTH;
float y[SHARE], dy[SHARE], total[SHARE], dropped[SHARE];
load_row(y, u + at, lane);
load_row(dy, dn2 + at, lane);
load_row(total, dtotal + at, lane);
const float factor = layer_norm(y, lane);
layer_norm_vjp(dy, y, factor);
add(dy, 1, total);
if (DROPOUT) drop(dropped, dy, dropout + at, lane);
if (team < count) {
  store_row(du + at, dy, lane);
  if (DROPOUT) store_row(dproduct + at, dropped, lane);
}
