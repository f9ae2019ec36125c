// Shapes: z (B·ROWS, 4D); r the same.
const int at = (b * THREADS + rank) * 4;
if (at < z_shape[0] * z_shape[1]) {
  float x[4];
  load<4>(x, z + at);
  UNROLL for (int i = 0; i < 4; ++i) x[i] = activation(x[i]);
  store<4>(r + at, x);
}
