// Products of 8 x 8 matrices, which the threads of a warp hold and multiply together; widths and depths are multiples
// of 8. A warp computes TALL by BROAD matrices of the result at a time. It stores them through shared memory, because
// the assignment of matrix elements to threads is not specified.

#ifdef __METAL_VERSION__
#include <metal_simdgroup_matrix>
#define MATRIX simdgroup_float8x8
#define NO_MATRIX make_filled_simdgroup_matrix<float, 8, 8>(0.0f)
#define MATRIX_LOAD(to, from, pitch) simdgroup_load(to, from, pitch)
#define MATRIX_STORE(from, to, pitch) simdgroup_store(from, to, pitch)
#define MATRIX_ADD_PRODUCT(sum, a, b) simdgroup_multiply_accumulate(sum, a, b, sum)
#define WARP_BARRIER() simdgroup_barrier(mem_flags::mem_threadgroup)
#endif

// Loads and products that a warp issues per step of the depth, over all turns; a huge value if registers do not suffice
constexpr int turn_cost(int down, int across, int tall, int broad) {
  const bool fits = down % tall == 0 && across % broad == 0 && 2 * tall * broad <= SUMS;
  return fits ? ceil_div(down / tall * (across / broad), WARPS) * (tall * broad + tall + broad) : 1 << 20;
}

constexpr int broadest(int down, int across, int tall) {
  int best = 1;
  for (int broad = 2; broad <= 4; ++broad) {
    if (turn_cost(down, across, tall, broad) < turn_cost(down, across, tall, best)) best = broad;
  }
  return best;
}

constexpr int tallest(int down, int across) {
  int best = 1;
  for (int tall = 2; tall <= 8; ++tall) {
    const int now = turn_cost(down, across, tall, broadest(down, across, tall));
    if (now < turn_cost(down, across, best, broadest(down, across, best))) best = tall;
  }
  return best;
}

template <int PITCH, int WIDTH, int TALL, int BROAD>
INLINE void multiply(LOCAL MATRIX (&sum)[TALL][BROAD], const SHARED float* a, const GLOBAL float* weights, int depth) {
  for (int k = 0; k < depth; k += 8) {
    MATRIX x[TALL];
    UNROLL for (int i = 0; i < TALL; ++i) MATRIX_LOAD(x[i], a + 8 * i * PITCH + k, PITCH);
    UNROLL for (int n = 0; n < BROAD; ++n) {
      MATRIX w;
      MATRIX_LOAD(w, weights + k * WIDTH + 8 * n, WIDTH);
      UNROLL for (int i = 0; i < TALL; ++i) MATRIX_ADD_PRODUCT(sum[i][n], x[i], w);
    }
  }
}

template <int HEIGHT, int DEPTH, int WIDTH, typename Stage, typename Finish>
INLINE void product(Stage stage, const GLOBAL float* weights, Finish finish, SHARED float* tile, int rank) {
  constexpr int AT_ONCE = HEIGHT < BAND ? HEIGHT : BAND, DOWN = ceil_div(AT_ONCE, 8), ACROSS = WIDTH / 8;
  constexpr int TALL = tallest(DOWN, ACROSS), BROAD = broadest(DOWN, ACROSS, TALL), SIDE = ACROSS / BROAD;
  constexpr int CHUNK = ceil_div(DEPTH, ceil_div(DEPTH, DEEPEST) * 8) * 8, PITCH = CHUNK + 4;
  const int warp = rank / 32, lane = rank % 32;
  for (int top = 0; top < HEIGHT; top += BAND) {
    for (int turn = 0; turn < DOWN / TALL * SIDE; turn += WARPS) {
      const int place = turn + warp, row = place / SIDE * 8 * TALL, column = place % SIDE * 8 * BROAD;
      const bool busy = place < DOWN / TALL * SIDE;
      MATRIX sum[TALL][BROAD];
      UNROLL for (int i = 0; i < TALL; ++i) {
        UNROLL for (int n = 0; n < BROAD; ++n) sum[i][n] = NO_MATRIX;
      }
      for (int first = 0; first < DEPTH; first += CHUNK) {
        const int depth = DEPTH % CHUNK ? min(DEPTH - first, CHUNK) : CHUNK;
        fill<HEIGHT, AT_ONCE, CHUNK, PITCH>(tile, stage, top, first, depth, rank);
        BARRIER();
        if (busy) multiply<PITCH, WIDTH>(sum, tile + row * PITCH, weights + first * WIDTH + column, depth);
        BARRIER();
      }
      SHARED float* mine = tile + warp * 64 * BROAD;
      UNROLL for (int i = 0; i < TALL; ++i) {
        if (busy) {
          UNROLL for (int n = 0; n < BROAD; ++n) MATRIX_STORE(sum[i][n], mine + 8 * n, 8 * BROAD);
        }
        WARP_BARRIER();
        for (int at = lane; at < 16 * BROAD; at += 32) {  // vectors of 4 elements
          const int r = row + 8 * i + at / (2 * BROAD);
          float x[V];
          UNROLL for (int j = 0; j < V; ++j) x[j] = mine[4 * at + j];
          if (busy && r < AT_ONCE && top + r < HEIGHT) finish.write(top + r, column + at % (2 * BROAD) * 4, x);
        }
        WARP_BARRIER();
      }
      BARRIER();
    }
  }
}
