// Attention: a thread computes one row of one head; 16 neighbouring threads have the same head, so that they read the
// same addresses at the same time.

CONSTANT int HEAD = D / HEADS;
CONSTANT int HEAD_V = vector_size(HEAD);

constexpr int neighbours(int rows) { return rows % 16 ? rows : 16; }

template <int COUNT>
INLINE int item_row(int item) {
  constexpr int SIDE = neighbours(COUNT);
  return item / (SIDE * HEADS) * SIDE + item % SIDE;
}

template <int COUNT>
INLINE int item_head(int item) { return item / neighbours(COUNT) % HEADS; }

INLINE float head_dot(const LOCAL float* x, const GLOBAL float* y) {
  float sum = 0;
  UNROLL for (int j = 0; j < HEAD; j += HEAD_V) {
    float part[HEAD_V];
    load<HEAD_V>(part, y + j);
    UNROLL for (int l = 0; l < HEAD_V; ++l) sum = fma(x[j + l], part[l], sum);
  }
  return sum;
}

INLINE void head_add(LOCAL float* sum, float factor, const GLOBAL float* y) {
  UNROLL for (int j = 0; j < HEAD; j += HEAD_V) {
    float part[HEAD_V];
    load<HEAD_V>(part, y + j);
    UNROLL for (int l = 0; l < HEAD_V; ++l) sum[j + l] = fma(factor, part[l], sum[j + l]);
  }
}

INLINE void load_head(LOCAL float* x, const GLOBAL float* from) {
  UNROLL for (int j = 0; j < HEAD; j += HEAD_V) load<HEAD_V>(x + j, from + j);
}

INLINE void store_head(GLOBAL float* to, LOCAL float* x, float factor) {
  UNROLL for (int j = 0; j < HEAD; ++j) x[j] *= factor;
  UNROLL for (int j = 0; j < HEAD; j += HEAD_V) store<HEAD_V>(to + j, x + j);
}

INLINE float head_factor(const LOCAL float* x) {
  float sum = 0;
  UNROLL for (int j = 0; j < HEAD; ++j) sum = fma(x[j], x[j], sum);
  return rsqrt(sum * (1.0f / HEAD) + EPS);
}

// RMS-normalises queries and keys per head and multiplies queries by QK_SCALE, in-place.
INLINE void normalise_heads(GLOBAL float* qkv, int rank) {
  for (int item = rank; item < 2 * HEADS * WINDOW; item += THREADS) {
    const int head = item % (2 * HEADS);
    GLOBAL float* at = qkv + item / (2 * HEADS) * 3 * D + head * HEAD;
    float x[HEAD];
    load_head(x, at);
    store_head(at, x, head_factor(x) * (head < HEADS ? QK_SCALE : 1));
  }
  BARRIER();
}

INLINE void normalise_heads_vjp(const GLOBAL float* qkv, GLOBAL float* dqkv, int rank) {
  for (int item = rank; item < 2 * HEADS * WINDOW; item += THREADS) {
    const int head = item % (2 * HEADS), at = item / (2 * HEADS) * 3 * D + head * HEAD;
    float x[HEAD], dx[HEAD], along = 0;
    load_head(x, qkv + at);
    load_head(dx, dqkv + at);
    const float factor = head_factor(x);
    UNROLL for (int j = 0; j < HEAD; ++j) along = fma(x[j], dx[j], along);
    along *= factor * factor * (1.0f / HEAD);
    UNROLL for (int j = 0; j < HEAD; ++j) dx[j] = fma(-along, x[j], dx[j]);
    store_head(dqkv + at, dx, factor * (head < HEADS ? QK_SCALE : 1));
  }
  BARRIER();
}

INLINE void attend(const GLOBAL float* qkv, const GLOBAL unsigned* kept, GLOBAL float* att, int rank) {
  for (int item = rank; item < HEADS * ROWS; item += THREADS) {
    const int row = item_row<ROWS>(item), head = item_head<ROWS>(item), last = row + SKIPPED;
    const GLOBAL float* keys = qkv + D + head * HEAD;
    float q[HEAD], mixed[HEAD] = {};
    load_head(q, qkv + last * 3 * D + head * HEAD);
    Softmax softmax = {LOWEST, 0};
    for (int first = 0; first <= last; first += AHEAD) {
      float scores[AHEAD];
      UNROLL for (int c = 0; c < AHEAD; ++c) {
        const float score = head_dot(q, keys + min(first + c, WINDOW - 1) * 3 * D);
        scores[c] = first + c <= last ? score : LOWEST;
      }
      const float factor = softmax.add(scores);
      UNROLL for (int j = 0; j < HEAD; ++j) mixed[j] *= factor;
      UNROLL for (int c = 0; c < AHEAD; ++c) {
        const float weight = drop_weight(scores[c], kept, head, row, first + c);
        head_add(mixed, weight, keys + min(first + c, WINDOW - 1) * 3 * D + D);
      }
    }
    store_head(att + row * D + head * HEAD, mixed, 1 / softmax.sum);
  }
  BARRIER();
}

// statistics: per head and row the logarithm of the softmax's denominator, and datt . att
INLINE void attend_vjp_queries(const GLOBAL float* qkv, const GLOBAL unsigned* kept, const GLOBAL float* att,
                               const GLOBAL float* datt, GLOBAL float* dqkv, GLOBAL float* statistics, int rank) {
  for (int item = rank; item < HEADS * ROWS; item += THREADS) {
    const int row = item_row<ROWS>(item), head = item_head<ROWS>(item), last = row + SKIPPED;
    const GLOBAL float* keys = qkv + D + head * HEAD;
    float q[HEAD], dout[HEAD], dq[HEAD] = {};
    load_head(q, qkv + last * 3 * D + head * HEAD);
    load_head(dout, datt + row * D + head * HEAD);
    const float along = head_dot(dout, att + row * D + head * HEAD);
    Softmax softmax = {LOWEST, 0};
    for (int first = 0; first <= last; first += AHEAD) {
      float scores[AHEAD], dscores[AHEAD];
      UNROLL for (int c = 0; c < AHEAD; ++c) {
        const GLOBAL float* key = keys + min(first + c, WINDOW - 1) * 3 * D;
        const float score = head_dot(q, key);
        scores[c] = first + c <= last ? score : LOWEST;
        dscores[c] = drop_weight(head_dot(dout, key + D), kept, head, row, first + c) - along;
      }
      const float factor = softmax.add(scores);
      UNROLL for (int j = 0; j < HEAD; ++j) dq[j] *= factor;
      UNROLL for (int c = 0; c < AHEAD; ++c) {
        head_add(dq, scores[c] * dscores[c], keys + min(first + c, WINDOW - 1) * 3 * D);
      }
    }
    store_head(dqkv + last * 3 * D + head * HEAD, dq, 1 / softmax.sum);
    statistics[(head * ROWS + row) * 2] = softmax.top + log(softmax.sum);
    statistics[(head * ROWS + row) * 2 + 1] = along;
  }
  BARRIER();
}

INLINE void attend_vjp_keys(const GLOBAL float* qkv, const GLOBAL unsigned* kept, const GLOBAL float* datt,
                            const GLOBAL float* statistics, GLOBAL float* dqkv, int rank) {
  constexpr int SIDE = neighbours(WINDOW);
  for (int item = rank; item < HEADS * WINDOW; item += THREADS) {
    const int row = item_row<WINDOW>(item), head = item_head<WINDOW>(item);
    float k[HEAD], v[HEAD], dk[HEAD] = {}, dv[HEAD] = {};
    load_head(k, qkv + row * 3 * D + D + head * HEAD);
    load_head(v, qkv + row * 3 * D + 2 * D + head * HEAD);
    const int first = max(row / SIDE * SIDE - SKIPPED, 0);  // the same start for all neighbours
    UNROLL_BY(2) for (int query = first; query < ROWS; ++query) {
      const GLOBAL float* q = qkv + (query + SKIPPED) * 3 * D + head * HEAD;
      const GLOBAL float* dout = datt + query * D + head * HEAD;
      const GLOBAL float* statistic = statistics + (head * ROWS + query) * 2;
      const float score = head_dot(k, q), weight = query + SKIPPED < row ? 0 : exp(score - statistic[0]);
      const float factor = drop_weight(1, kept, head, query, row);
      head_add(dv, weight * factor, dout);
      head_add(dk, weight * (factor * head_dot(v, dout) - statistic[1]), q);
    }
    GLOBAL float* to = dqkv + row * 3 * D + head * HEAD;
    store_head(to + D, dk, 1);
    store_head(to + 2 * D, dv, 1);
    if (row < SKIPPED) store_head(to, dk, 0);
  }
  BARRIER();
}
