CONSTANT int AHEAD = 4;  // keys looked at together
CONSTANT float LOWEST = -1e30f;

struct Softmax {  // of scores that come AHEAD at a time
  float top, sum;
  // Makes weights of scores; sums over earlier weights are to be scaled by what this returns.
  INLINE float add(LOCAL float* scores) {
    float highest = top;
    UNROLL for (int c = 0; c < AHEAD; ++c) highest = max(highest, scores[c]);
    const float factor = exp(top - highest);
    top = highest;
    sum *= factor;
    UNROLL for (int c = 0; c < AHEAD; ++c) sum += scores[c] = exp(scores[c] - top);
    return factor;
  }
};
