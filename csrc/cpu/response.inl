// Local response normalisation, for one instruction set; after vector.inl.

// Of every lane. Not a builtin, which would check for negative numbers.
static inline Vector square_root(Vector v) {
#if defined(INCEPTION_FUSED_REGISTER)
  asm("vsqrtps %0, %0" : "+" INCEPTION_FUSED_REGISTER(v));
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
#endif
  return v;
}

template <typename T>
static void response(const T* src, int64_t channels, int64_t before, int64_t behind, float scale,
                     float beta, float k, float* squares, T* dst) {
  for (int64_t i = 0; i < before; ++i) squares[i] = 0;
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Vector v = load_some(src + c, channels - c);
    store_some(squares + before + c, v * v, channels - c);
  }
  for (int64_t i = before + channels; i < before + channels + behind + 16; ++i) squares[i] = 0;
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector sum = load(squares + c);
    for (int64_t i = 1; i <= before + behind; ++i) sum += load(squares + c + i);
    sum = splat(k) + splat(scale) * sum;
    Vector divisor;
    if (beta == 0.75f) {
      const Vector root = square_root(sum);
      divisor = root * square_root(root);
    } else {
      for (int i = 0; i < kLanes; ++i) divisor[i] = __builtin_powf(sum[i], beta);
    }
    store_some(dst + c, load_some(src + c, channels - c) / divisor, channels - c);
  }
}
