// Dropout of attention weights: one bit per query and key, set if the weight is kept.

CONSTANT int WORDS = ceil_div(WINDOW, 32);  // per query

INLINE float drop_weight(float x, const GLOBAL unsigned* kept, int head, int row, int key) {
  if (!DROPS_WEIGHTS) return x;
  return kept[(head * ROWS + row) * WORDS + key / 32] >> key % 32 & 1 ? x * KEPT_SCALE : 0;
}
