// Winograd's transforms of activations, for one instruction set; after vector.inl. See winograd.h.

inline constexpr float kSmall = 0.70710678f;  // 1/sqrt(2), a point
inline constexpr float kLarge = 1.41421356f;  // sqrt(2), a point

template <int P>
static inline void input_transform(const Vector* d, Vector* v) {
  if constexpr (P == 4) {
    v[0] = d[2] - d[0];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[3] - d[1];
  } else {
    const Vector even_small = d[4] - 2.0f * d[2], odd_small = d[3] - 2.0f * d[1];
    const Vector even_large = d[4] - 0.5f * d[2], odd_large = d[3] - 0.5f * d[1];
    v[0] = d[0] - 2.5f * d[2] + d[4];
    v[1] = even_small + kSmall * odd_small;
    v[2] = even_small - kSmall * odd_small;
    v[3] = even_large + kLarge * odd_large;
    v[4] = even_large - kLarge * odd_large;
    v[5] = d[1] - 2.5f * d[3] + d[5];
  }
}

template <int P, int M>
static inline void output_transform(const Vector* m, Vector* y) {
  if constexpr (P == 4) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  } else {
    const Vector sum_small = m[1] + m[2], difference_small = m[1] - m[2];
    const Vector sum_large = m[3] + m[4], difference_large = m[3] - m[4];
    y[0] = m[0] + sum_small + sum_large;
    const Vector first = kSmall * difference_small + kLarge * difference_large;
    if constexpr (M == 2) {
      y[1] = first + m[5];
    } else if constexpr (M == 3) {
      y[1] = first;
      y[2] = 0.5f * sum_small + 2.0f * sum_large + m[5];
    } else {
      y[1] = first;
      y[2] = 0.5f * sum_small + 2.0f * sum_large;
      y[3] = (0.5f * kSmall) * difference_small + (2.0f * kLarge) * difference_large + m[5];
    }
  }
}

template <typename T, int P>
static void winograd_input(const T* const* pixel, int64_t channels, float* v, int64_t plane) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector half[P][P];
#pragma GCC unroll 8
    for (int x = 0; x < P; ++x) {
      Vector d[P], t[P];
#pragma GCC unroll 8
      for (int y = 0; y < P; ++y) d[y] = load_some(pixel[y * P + x] + c, channels - c);
      input_transform<P>(d, t);
#pragma GCC unroll 8
      for (int y = 0; y < P; ++y) half[y][x] = t[y];
    }
#pragma GCC unroll 8
    for (int y = 0; y < P; ++y) {
      Vector t[P];
      input_transform<P>(half[y], t);
#pragma GCC unroll 8
      for (int x = 0; x < P; ++x) store(v + (y * P + x) * plane + c, t[x]);
    }
  }
}

template <typename T, int P, int M>
static void winograd_output(const float* m, int64_t plane, const float* bias, bool with_relu,
                            T* dst, int64_t row, int64_t pixel, int rows, int columns, int lanes) {
  for (int i = 0; i < lanes; i += kLanes) {
    Vector half[M][P];
#pragma GCC unroll 8
    for (int x = 0; x < P; ++x) {
      Vector d[P], t[M];
#pragma GCC unroll 8
      for (int y = 0; y < P; ++y) d[y] = load(m + (y * P + x) * plane + i);
      output_transform<P, M>(d, t);
#pragma GCC unroll 8
      for (int y = 0; y < M; ++y) half[y][x] = t[y];
    }
    const Vector b = load(bias + i);
#pragma GCC unroll 8
    for (int y = 0; y < M; ++y) {
      if (y >= rows) break;
      Vector t[M];
      output_transform<P, M>(half[y], t);
#pragma GCC unroll 8
      for (int x = 0; x < M; ++x) {
        if (x >= columns) break;
        Vector value = t[x] + b;
        if (with_relu) value = relu(value);
        store_some(dst + y * row + x * pixel + i, value, lanes - i);
      }
    }
  }
}
