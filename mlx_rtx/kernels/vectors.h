template <int SIZE>
INLINE void load(LOCAL float* to, const GLOBAL float* from) {
  if (SIZE % 4 == 0) {
    UNROLL for (int i = 0; i < SIZE; i += 4) {
      const float4 x = *(const GLOBAL float4*)(from + i);
      to[i] = x.x, to[i + 1] = x.y, to[i + 2] = x.z, to[i + 3] = x.w;
    }
  } else {
    UNROLL for (int i = 0; i < SIZE; ++i) to[i] = from[i];
  }
}

template <int SIZE>
INLINE void store(GLOBAL float* to, const LOCAL float* from) {
  if (SIZE % 4 == 0) {
    UNROLL for (int i = 0; i < SIZE; i += 4) {
      float4 x;
      x.x = from[i], x.y = from[i + 1], x.z = from[i + 2], x.w = from[i + 3];
      STORE_4(to + i, x);
    }
  } else {
    UNROLL for (int i = 0; i < SIZE; ++i) to[i] = from[i];
  }
}
