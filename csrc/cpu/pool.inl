// Pools and layout changes, for one instruction set; after gemm.inl.

// NaN wins. The instruction of `a > b ? a : b` gives b if either is NaN: of the two orders one
// keeps the NaN, and otherwise they agree.
static inline float larger(float v, float m) { return v > m || v != v ? v : m; }
static inline Vector larger(Vector v, Vector m) {
  const Vector one = v > m ? v : m, other = m > v ? m : v;
  return reinterpret_cast<Vector>(reinterpret_cast<IntVector>(one) |
                                  reinterpret_cast<IntVector>(other));
}

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

// T: Vector or float. Channel c; each column of the windows is reduced once.
template <typename T>
static inline void max_pool_channels(const float* const* row, int rows, int64_t pixel, bool left,
                                     bool right, int64_t count, int64_t c, float* dst,
                                     int64_t dst_pixel) {
  typedef T Unaligned __attribute__((aligned(4), may_alias));
  const auto column = [&](int64_t x) __attribute__((always_inline)) {
    T m = *reinterpret_cast<const Unaligned*>(row[0] + x * pixel + c);
    for (int y = 1; y < rows; ++y) {
      m = larger(*reinterpret_cast<const Unaligned*>(row[y] + x * pixel + c), m);
    }
    return m;
  };
  T here = column(0);
  T before = left ? column(-1) : here;
  for (int64_t x = 0; x < count; ++x) {
    const T next = x + 1 < count || right ? column(x + 1) : here;
    *reinterpret_cast<Unaligned*>(dst + x * dst_pixel + c) = larger(before, larger(here, next));
    before = here;
    here = next;
  }
}

static void max_pool_row(const float* const* row, int rows, int64_t pixel, bool left, bool right,
                         int64_t count, int64_t channels, float* dst, int64_t dst_pixel) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    max_pool_channels<Vector>(row, rows, pixel, left, right, count, c, dst, dst_pixel);
  }
  for (; c < channels; ++c) {
    max_pool_channels<float>(row, rows, pixel, left, right, count, c, dst, dst_pixel);
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

// The square root of every lane. Not a builtin, which would check for negative numbers.
static inline Vector square_root(Vector v) {
#if defined(__AVX512F__)
  asm("vsqrtps %0, %0" : "+v"(v));
#elif defined(__AVX2__)
  asm("vsqrtps %0, %0" : "+x"(v));
#else
  for (int i = 0; i < kLanes; ++i) v[i] = __builtin_sqrtf(v[i]);
#endif
  return v;
}

static void response(const float* src, int64_t channels, int64_t before, int64_t behind,
                     float scale, float beta, float k, float* squares, float* dst) {
  for (int64_t i = 0; i < before; ++i) squares[i] = 0;
  for (int64_t c = 0; c < channels; ++c) squares[before + c] = src[c] * src[c];
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
    if (c + kLanes <= channels) {
      store(dst + c, load(src + c) / divisor);
    } else {
      for (int64_t i = 0; i < channels - c; ++i) dst[c + i] = src[c + i] / divisor[i];
    }
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
