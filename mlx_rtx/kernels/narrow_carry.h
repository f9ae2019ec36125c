// The carry (m, h) into window i: the kernel's inputs for i = 0, then outputs of earlier windows

struct Carry {
  const GLOBAL float* m;
  const GLOBAL float* h;
  const GLOBAL float* out;
  size_t stride;  // rows per window, of all sequences

  INLINE void load_state(LOCAL float* x, int window, int row, int lane) const {
    load_row(x, out + (window * stride + row) * D, lane);
    if (STATE_NORM) rms_norm(x);
  }

  INLINE void load_h(LOCAL float* x, int i, int row, int lane) const {
    if (i == 0) {
      load_row(x, h + row * D, lane);
    } else {
      load_state(x, i - 1, ROWS - K + row, lane);
    }
  }

  INLINE void load_m(LOCAL float* x, int i, int row, int lane) const {
    if (i == 0) {
      load_row(x, m + row * D, lane);
    } else if (ROWS == K) {
      load_h(x, i - 1, row, lane);
    } else {
      load_state(x, i - 1, row, lane);
    }
  }
};
