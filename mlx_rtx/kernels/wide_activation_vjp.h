// Shapes: z dr (B·ROWS, 4D); dz the same.
const int at = (b * THREADS + rank) * 4;
if (at < z_shape[0] * z_shape[1]) {
  float x[4], dx[4];
  load<4>(x, z + at);
  load<4>(dx, dr + at);
  UNROLL for (int i = 0; i < 4; ++i) dx[i] *= activation_derivative(x[i]);
  store<4>(dz + at, dx);
}
