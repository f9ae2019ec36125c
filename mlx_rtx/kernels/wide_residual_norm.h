// u = window + dropout(product), and its norm. Shapes: win (B·2K, D), product (B·ROWS, D), dropout (B·ROWS, D) of the
// attention's output; u n2 (B·ROWS, D).
const int count = product_shape[0], lane = rank % LANES, team = b * TEAMS + rank / LANES, item = min(team, count - 1);
const int at = item * LENGTH, skipped = (item / ROWS + 1) * SKIPPED * LENGTH;
float x[SHARE];
residual(x, win + skipped + at, product + at, dropout + at, lane);
if (team < count) store_row(u + at, x, lane);
layer_norm(x, lane);
if (team < count) store_row(n2 + at, x, lane);
