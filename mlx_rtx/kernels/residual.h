INLINE void drop(LOCAL float* to, const LOCAL float* x, const GLOBAL float* keep, int lane) {
  load_row(to, keep, lane);
  UNROLL for (int i = 0; i < SHARE; ++i) to[i] *= x[i];
}

INLINE void residual(
    LOCAL float* x, const GLOBAL float* base, const GLOBAL float* product, const GLOBAL float* keep, int lane) {
  float change[SHARE], dropped[SHARE];
  load_row(x, base, lane);
  load_row(change, product, lane);
  if (DROPOUT) drop(dropped, change, keep, lane);
  add(x, 1, DROPOUT ? dropped : change);
}
