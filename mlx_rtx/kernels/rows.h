// Rows: LANES neighbouring threads share a row of LENGTH elements; each holds SHARE of them, with zeros past the end.

CONSTANT int V = vector_size(LENGTH);
CONSTANT int TEAMS = THREADS / LANES;
CONSTANT int SHARE = ceil_div(LENGTH, LANES * V) * V;
CONSTANT bool FULL = LENGTH == LANES * SHARE;

INLINE int place(int i, int lane) { return (i / V * LANES + lane) * V + i % V; }  // column of element i

INLINE void load_row(LOCAL float* x, const GLOBAL float* from, int lane) {
  UNROLL for (int i = 0; i < SHARE; i += V) {
    UNROLL for (int j = 0; j < V; ++j) x[i + j] = 0;
    if (FULL || place(i, lane) < LENGTH) load<V>(x + i, from + place(i, lane));
  }
}

INLINE void store_row(GLOBAL float* to, const LOCAL float* x, int lane) {
  UNROLL for (int i = 0; i < SHARE; i += V)
    if (FULL || place(i, lane) < LENGTH) store<V>(to + place(i, lane), x + i);
}

INLINE void add(LOCAL float* x, float factor, const LOCAL float* y) {
  UNROLL for (int i = 0; i < SHARE; ++i) x[i] = fma(factor, y[i], x[i]);
}

// The next two take one factor per column.
INLINE void add_columns(LOCAL float* x, const LOCAL float* factor, const LOCAL float* y) {
  UNROLL for (int i = 0; i < SHARE; ++i) x[i] = fma(factor[i], y[i], x[i]);
}

INLINE void scale_columns(LOCAL float* x, const LOCAL float* factor) {
  UNROLL for (int i = 0; i < SHARE; ++i) x[i] *= factor[i];
}

INLINE void scale(LOCAL float* x, float factor) {
  UNROLL for (int i = 0; i < SHARE; ++i) x[i] *= factor;
}

INLINE float row_sum(float x) {
  UNROLL for (int mask = 1; mask < LANES; mask *= 2) x += SHUFFLE_XOR(x, mask);
  return x;
}

INLINE float dot(const LOCAL float* x, const LOCAL float* y) {
  float sum = 0;
  UNROLL for (int i = 0; i < SHARE; ++i) sum = fma(x[i], y[i], sum);
  return row_sum(sum);
}

INLINE float row_mean(const LOCAL float* x) {
  float sum = 0;
  UNROLL for (int i = 0; i < SHARE; ++i) sum += x[i];
  return row_sum(sum) * (1.0f / LENGTH);
}

INLINE float row_mean(const LOCAL float* x, const LOCAL float* y) { return dot(x, y) * (1.0f / LENGTH); }

INLINE float rms_norm(LOCAL float* x) {
  const float factor = rsqrt(row_mean(x, x) + EPS);
  scale(x, factor);
  return factor;
}

INLINE float layer_norm(LOCAL float* x, int lane) {
  const float mean = row_mean(x);
  UNROLL for (int i = 0; i < SHARE; ++i)
    if (FULL || place(i, lane) < LENGTH) x[i] -= mean;
  return rms_norm(x);
}

// Replaces dy by dx, where y = factor x is the result of the norm.
INLINE void rms_norm_vjp(LOCAL float* dy, const LOCAL float* y, float factor) {
  const float along = row_mean(dy, y);
  UNROLL for (int i = 0; i < SHARE; ++i) dy[i] = factor * fma(-along, y[i], dy[i]);
}

INLINE void layer_norm_vjp(LOCAL float* dy, const LOCAL float* y, float factor) {
  const float mean = row_mean(dy);
  rms_norm_vjp(dy, y, factor);
  UNROLL for (int i = 0; i < SHARE; ++i) dy[i] = fma(-factor, mean, dy[i]);
}
