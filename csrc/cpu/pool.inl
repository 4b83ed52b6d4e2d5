// Pools and layout changes, for one instruction set; after gemm.inl.

static inline float larger(float v, float m) { return v > m || v != v ? v : m; }  // NaN wins
static inline Vector larger(Vector v, Vector m) { return (v > m) | (v != v) ? v : m; }

static void max_pool(const float* const* tap, int taps, int64_t channels, float* dst) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= channels; c += 2 * kLanes) {
    Vector low = load(tap[0] + c);
    Vector high = load(tap[0] + c + kLanes);
    for (int t = 1; t < taps; ++t) {
      low = larger(load(tap[t] + c), low);
      high = larger(load(tap[t] + c + kLanes), high);
    }
    store(dst + c, low);
    store(dst + c + kLanes, high);
  }
  for (; c < channels; ++c) {
    float m = tap[0][c];
    for (int t = 1; t < taps; ++t) m = larger(tap[t][c], m);
    dst[c] = m;
  }
}

static void average_pool(const float* const* tap, int taps, int64_t channels, float scale,
                         float* dst) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Vector sum = load(tap[0] + c);
    for (int t = 1; t < taps; ++t) sum += load(tap[t] + c);
    store(dst + c, sum * scale);
  }
  for (; c < channels; ++c) {
    float sum = tap[0][c];
    for (int t = 1; t < taps; ++t) sum += tap[t][c];
    dst[c] = sum * scale;
  }
}

#if defined(__clang__)
#define INCEPTION_FUSED_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INCEPTION_FUSED_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, QuadIndex{__VA_ARGS__})
#endif

typedef int32_t QuadIndex __attribute__((vector_size(16)));
typedef float Quad __attribute__((vector_size(16)));
typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4), may_alias));

static void transpose(const float* src, int64_t src_stride, int64_t rows, int64_t columns,
                      float* dst, int64_t dst_stride) {
  const auto at = [&](int64_t r, int64_t c) -> Quad {
    return *reinterpret_cast<const UnalignedQuad*>(src + r * src_stride + c);
  };
  const auto put = [&](int64_t c, int64_t r, Quad v) {
    *reinterpret_cast<UnalignedQuad*>(dst + c * dst_stride + r) = v;
  };
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4) {
      const Quad a = at(r, c), b = at(r + 1, c), d = at(r + 2, c), e = at(r + 3, c);
      const Quad ab_low = INCEPTION_FUSED_SHUFFLE(a, b, 0, 4, 1, 5);
      const Quad ab_high = INCEPTION_FUSED_SHUFFLE(a, b, 2, 6, 3, 7);
      const Quad de_low = INCEPTION_FUSED_SHUFFLE(d, e, 0, 4, 1, 5);
      const Quad de_high = INCEPTION_FUSED_SHUFFLE(d, e, 2, 6, 3, 7);
      put(c, r, INCEPTION_FUSED_SHUFFLE(ab_low, de_low, 0, 1, 4, 5));
      put(c + 1, r, INCEPTION_FUSED_SHUFFLE(ab_low, de_low, 2, 3, 6, 7));
      put(c + 2, r, INCEPTION_FUSED_SHUFFLE(ab_high, de_high, 0, 1, 4, 5));
      put(c + 3, r, INCEPTION_FUSED_SHUFFLE(ab_high, de_high, 2, 3, 6, 7));
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < 4; ++i) dst[c * dst_stride + r + i] = src[(r + i) * src_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) dst[c * dst_stride + r] = src[r * src_stride + c];
  }
}

static int64_t spin(int64_t iterations) {
  constexpr int kChains = 10;  // enough to hide the latency of two multiply-add pipes
  Vector sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = Vector{} + static_cast<float>(i);
  const Vector scale = Vector{} + 0.5f;
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) sum[i] = sum[i] * scale + scale;
  }
  Vector total = sum[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) total += sum[i];
  volatile float keep = total[0];
  (void)keep;
  return iterations * kChains * kLanes * 2;
}
