// Products of a (HEIGHT, DEPTH), staged in shared memory, and weights (DEPTH, WIDTH). Warps of 4 x 8 threads tile the
// result; a thread computes TALL rows (every fourth) by BLOCKS vectors of columns (APART columns apart). SPLIT groups
// of warps may each process a slice of the depth and add their sums at the end: taller tiles, hence fewer loads. A
// thread holds at most SUMS elements of the result at a time, which limits its registers.

constexpr int warps(int height, int tall, int groups) { return ceil_div(height, 4 * tall) * ceil_div(groups, 8); }

constexpr int parts(int height, int tall, int groups, int split) {
  int n = 1;
  while (n <= groups && (groups % n || warps(height, tall, groups / n) > WARPS / split)) ++n;
  return n;
}

// Instructions that a thread issues per step of the depth; a load costs as much as four products
constexpr int cost(int height, int tall, int groups, int split) {
  const int n = parts(height, tall, groups, split);
  const bool shared = WARPS % split == 0 && (split == 1 || THREADS / split * tall * n * V <= TILE);
  return n <= groups && tall * V <= SUMS && shared ? (V * V * tall * n + 4 * (tall + V * n)) / split : 1 << 20;
}

constexpr int best_split(int height, int tall, int groups) {
  return cost(height, tall, groups, 2) < cost(height, tall, groups, 1) ? 2 : 1;
}

constexpr int tallest(int height, int groups) {
  int best = 1;
  for (int tall = 2; tall <= 8; tall *= 2) {
    const int split = best_split(height, tall, groups);
    if (cost(height, tall, groups, split) < cost(height, best, groups, best_split(height, best, groups))) best = tall;
  }
  return best;
}

constexpr int blocks(int parts, int tall) {
  int n = SUMS / (tall * V);
  if (n > 4) n = 4;
  while (parts % n) --n;
  return n;
}

template <int PITCH, int WIDTH, int APART, int TALL, int BLOCKS>
INLINE void multiply(
    LOCAL float (&sum)[TALL][BLOCKS][V], const SHARED float* a, const GLOBAL float* weights, int depth) {
  constexpr int STEPS = ceil_div(16, TALL * BLOCKS);  // steps unrolled to hide the latency of loads
  UNROLL_BY(STEPS) for (int k = 0; k < depth; k += V) {
    float x[TALL][V];
    UNROLL for (int i = 0; i < TALL; ++i) {
      const SHARED float* from = a + 4 * i * PITCH + k;
      if (V == 4) {
        const float4 v = *(const SHARED float4*)from;
        x[i][0] = v.x, x[i][1 % V] = v.y, x[i][2 % V] = v.z, x[i][3 % V] = v.w;
      } else {
        UNROLL for (int j = 0; j < V; ++j) x[i][j] = from[j];
      }
    }
    UNROLL for (int l = 0; l < V; ++l) {
      UNROLL for (int n = 0; n < BLOCKS; ++n) {
        float w[V];
        load<V>(w, weights + (k + l) * WIDTH + n * APART);
        UNROLL for (int i = 0; i < TALL; ++i) {
          UNROLL for (int j = 0; j < V; ++j) sum[i][n][j] = fma(x[i][l], w[j], sum[i][n][j]);
        }
      }
    }
  }
}

template <int SIZE, int MEMBERS>
INLINE void add_slices(LOCAL float* sum, SHARED float* tile, int rank) {
  SHARED float* mine = tile + rank % MEMBERS;
  UNROLL for (int i = 0; i < SIZE; ++i) {
    if (rank >= MEMBERS) mine[MEMBERS * i] = sum[i];
  }
  BARRIER();
  UNROLL for (int i = 0; i < SIZE; ++i) {
    if (rank < MEMBERS) sum[i] += mine[MEMBERS * i];
  }
  BARRIER();
}

template <int HEIGHT, int DEPTH, int WIDTH, typename Stage, typename Finish>
INLINE void product(Stage stage, const GLOBAL float* weights, Finish finish, SHARED float* tile, int rank) {
  constexpr int AT_ONCE = HEIGHT < BAND ? HEIGHT : BAND;
  constexpr int GROUPS = WIDTH / V, TALL = tallest(AT_ONCE, GROUPS), SPLIT = best_split(AT_ONCE, TALL, GROUPS);
  constexpr int PARTS = parts(AT_ONCE, TALL, GROUPS, SPLIT), BLOCKS = blocks(PARTS, TALL), APART = WIDTH / PARTS;
  constexpr int CHUNK = ceil_div(DEPTH, ceil_div(DEPTH, DEEPEST) * V) * V, PITCH = CHUNK + 4;
  constexpr int SLICE = ceil_div(CHUNK, SPLIT * V) * V, MEMBERS = THREADS / SPLIT;
  constexpr int ACROSS = ceil_div(APART, 8 * V);  // warps side by side
  const int warp = rank % MEMBERS / 32, lane = rank % 32, start = rank / MEMBERS * SLICE;
  const int row = warp / ACROSS * 4 * TALL + lane / 8, column = (warp % ACROSS * 8 + lane % 8) * V;
  const bool busy = row < AT_ONCE && column < APART;
  for (int top = 0; top < HEIGHT; top += BAND) {
    for (int part = 0; part < PARTS; part += BLOCKS) {
      const int left = column + part * APART;
      float sum[TALL][BLOCKS][V] = {};
      for (int first = 0; first < DEPTH; first += CHUNK) {
        const int depth = DEPTH % CHUNK ? min(DEPTH - first, CHUNK) : CHUNK;
        fill<HEIGHT, AT_ONCE, CHUNK, PITCH>(tile, stage, top, first, depth, rank);
        BARRIER();
        if (busy) {
          const GLOBAL float* w = weights + (first + start) * WIDTH + left;
          const int share = DEPTH % CHUNK || CHUNK % SLICE ? min(depth - start, SLICE) : SLICE;
          multiply<PITCH, WIDTH, APART>(sum, tile + row * PITCH + start, w, share);
        }
        BARRIER();
      }
      if (SPLIT > 1) add_slices<TALL * BLOCKS * V, MEMBERS>(&sum[0][0][0], tile, rank);
      UNROLL for (int i = 0; i < TALL; ++i) {
        const int r = row + 4 * i;
        if (busy && start == 0 && r < AT_ONCE && top + r < HEIGHT) {
          UNROLL for (int n = 0; n < BLOCKS; ++n) finish.write(top + r, left + n * APART, sum[i][n]);
        }
      }
    }
  }
  BARRIER();
}
