INLINE float error_function(float x) {
  const float t = fabs(x), s = x * x;
  if (t > 0.927734375f) {
    float r = fma(-1.72853470e-5f, t, 3.83197126e-4f);
    r = fma(r, s, fma(-3.88396438e-3f, t, 2.42546219e-2f));
    r = fma(r, t, -1.06777877e-1f);
    r = fma(r, t, -6.34846687e-1f);
    r = fma(r, t, -1.28717512e-1f);
    r = 1.0f - exp(fma(r, t, -t));
    return x < 0 ? -r : r;
  }
  float r = fma(-5.96761703e-4f, s, 4.99119423e-3f);
  r = fma(r, s, -2.67681349e-2f);
  r = fma(r, s, 1.12819925e-1f);
  r = fma(r, s, -3.76125336e-1f);
  r = fma(r, s, 1.28379166e-1f);
  return fma(r, x, x);
}

INLINE float normal_cdf(float x) { return 0.5f + 0.5f * error_function(0.70710678f * x); }

INLINE float activation(float z) { return GELU ? z * normal_cdf(z) : z > 0 ? z : 0; }

INLINE float activation_derivative(float z) {
  return GELU ? normal_cdf(z) + z * 0.39894228f * exp(-0.5f * z * z) : z > 0 ? 1 : 0;
}
