INLINE void drop(LOCAL float* to, const LOCAL float* x, const GLOBAL float* dropout, int lane) {
  load_row(to, dropout, lane);
  UNROLL for (int i = 0; i < SHARE; ++i) to[i] *= x[i];
}

INLINE void residual(
    LOCAL float* x, const GLOBAL float* base, const GLOBAL float* product, const GLOBAL float* dropout, int lane) {
  float change[SHARE], dropped[SHARE];
  load_row(x, base, lane);
  load_row(change, product, lane);
  if (DROPOUT) drop(dropped, change, dropout, lane);
  add(x, 1, DROPOUT ? dropped : change);
}
