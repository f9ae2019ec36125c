// Products of a (HEIGHT, DEPTH) and weights (DEPTH, WIDTH): bands of rows of a are staged in shared memory.

CONSTANT int WARPS = THREADS / 32;
CONSTANT int BAND = 64;    // rows staged at a time
CONSTANT int DEEPEST = 112;  // maximum number of columns staged at a time
CONSTANT int TILE = BAND * (DEEPEST + 4);

// Fills the tile with what `stage` reads, from row `top` and column `first` on.
template <int HEIGHT, int ROWS_AT_ONCE, int CHUNK, int PITCH, typename Stage>
INLINE void fill(SHARED float* tile, Stage stage, int top, int first, int depth, int rank) {
  const int lane = rank % LANES, team = rank / LANES;
  for (int above = 0; above < ROWS_AT_ONCE; above += TEAMS) {
    const int row = above + team, source = min(top + row, HEIGHT - 1);
    stage.start(source, lane);
    UNROLL for (int i = 0; i < CHUNK; i += LANES * V) {
      const int k = i + lane * V;
      if (row < ROWS_AT_ONCE && k < depth) {
        float x[V];
        stage.read(source, first + k, x);
        UNROLL for (int j = 0; j < V; ++j) tile[row * PITCH + k + j] = x[j];
      }
    }
  }
}

// How a product's left operand is staged

template <int WIDTH>
struct Plain {
  const GLOBAL float* a;
  INLINE void start(int, int) {}
  INLINE void read(int row, int column, LOCAL float* x) const { load<V>(x, a + row * WIDTH + column); }
};

struct Activated {
  const GLOBAL float* z;
  INLINE void start(int, int) {}
  INLINE void read(int row, int column, LOCAL float* x) const {
    load<V>(x, z + row * 4 * D + column);
    UNROLL for (int j = 0; j < V; ++j) x[j] = activation(x[j]);
  }
};

struct Dropped {
  const GLOBAL float* a;
  const GLOBAL float* dropout;
  INLINE void start(int, int) {}
  INLINE void read(int row, int column, LOCAL float* x) const {
    load<V>(x, a + row * D + column);
    if (DROPOUT) {
      float factor[V];
      load<V>(factor, dropout + row * D + column);
      UNROLL for (int j = 0; j < V; ++j) x[j] *= factor[j];
    }
  }
};

struct Normalised {
  const GLOBAL float* a;
  float mean, scale;
  INLINE void start(int row, int lane) {
    float x[SHARE];
    load_row(x, a + row * D, lane);
    mean = row_mean(x);
    scale = layer_norm(x, lane);
  }
  INLINE void read(int row, int column, LOCAL float* x) const {
    load<V>(x, a + row * D + column);
    UNROLL for (int j = 0; j < V; ++j) x[j] = (x[j] - mean) * scale;
  }
};

// What is done with a product's result

template <int WIDTH>
struct Store {
  GLOBAL float* to;
  INLINE void write(int row, int column, const LOCAL float* x) const { store<V>(to + row * WIDTH + column, x); }
};

struct Residual {
  const GLOBAL float* base;
  const GLOBAL float* dropout;
  GLOBAL float* to;
  INLINE void write(int row, int column, LOCAL float* x) const {
    const int at = row * D + column;
    float base_x[V], factor[V];
    load<V>(base_x, base + at);
    if (DROPOUT) load<V>(factor, dropout + at);
    UNROLL for (int j = 0; j < V; ++j) x[j] = DROPOUT ? fma(factor[j], x[j], base_x[j]) : base_x[j] + x[j];
    store<V>(to + at, x);
  }
};

struct ActivationVjp {
  const GLOBAL float* z;
  GLOBAL float* to;
  INLINE void write(int row, int column, LOCAL float* x) const {
    const int at = row * 4 * D + column;
    float slope[V];
    load<V>(slope, z + at);
    UNROLL for (int j = 0; j < V; ++j) x[j] *= activation_derivative(slope[j]);
    store<V>(to + at, x);
  }
};
