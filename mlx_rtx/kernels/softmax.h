CONSTANT int AHEAD = 4;  // keys processed together
CONSTANT float LOWEST = -1e30f;

struct Softmax {  // online softmax of scores, AHEAD at a time
  float top, sum;
  // Replaces scores by weights; returns the factor by which to multiply sums over earlier weights.
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
