// Dropout of attention weights: a query has a bit a key, which says whether its weight is kept.

CONSTANT int WORDS = ceil_div(WINDOW, 32);  // of a query

INLINE float drop_weight(float x, const GLOBAL unsigned* kept, int head, int row, int key) {
  if (!DROPS_WEIGHTS) return x;
  return kept[(head * ROWS + row) * WORDS + key / 32] >> key % 32 & 1 ? x * KEPT_SCALE : 0;
}
