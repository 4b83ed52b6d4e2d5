// From and to uint8, for one instruction set; after vector.inl.

typedef int32_t Integers __attribute__((vector_size(sizeof(Vector))));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t UnalignedBytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

static inline Words load_bytes(const uint8_t* p) {
  return __builtin_convertvector(Bytes(*reinterpret_cast<const UnalignedBytes*>(p)), Words);
}

static inline void store_bytes(uint8_t* p, Words v) {
  *reinterpret_cast<UnalignedBytes*>(p) = __builtin_convertvector(v, Bytes);
}

static inline Words load_some_bytes(const uint8_t* p, int64_t count) {
  if (count >= kLanes) return load_bytes(p);
  alignas(64) uint8_t lanes[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load_bytes(lanes);
}

static inline void store_some_bytes(uint8_t* p, Words v, int64_t count) {
  if (count >= kLanes) return store_bytes(p, v);
  alignas(64) uint8_t lanes[kLanes];
  store_bytes(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

static inline Vector to_float(Words sum) {
  return __builtin_convertvector(reinterpret_cast<Integers>(sum), Vector);
}

// zero + v, rounded to nearest with ties to even, from `least` to 255, in the lowest byte.
// The sum with 3 * 2^22 has v's integer in its lower bits, which wrap as bytes do.
static inline Words round_bytes(Vector v, int zero, int least) {
  const Vector low = splat(static_cast<float>(least - zero));
  const Vector high = splat(static_cast<float>(255 - zero));
  v = v > low ? v : low;
  v = v < high ? v : high;
  return reinterpret_cast<Words>(v + 0x1.8p23f) + static_cast<uint32_t>(zero);
}

template <int R, int N>
__attribute__((always_inline)) static inline void store_columns(Words (&sum)[R][N], int n,
                                                                const Column<uint8_t>& column) {
  Vector factor[kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kVectors; ++i) factor[i] = load(column.factor + i * kLanes);
  const bool whole = column.lanes == kGroup;
  if (column.wide) {
    alignas(64) float lanes[kGroup];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      auto* const dst = reinterpret_cast<float*>(column.dst + column.row[r]);
      float* const to = whole ? dst : lanes;
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        const Vector v = to_float(sum[r][n + i]) * factor[i];
        store(to + i * kLanes, column.relu ? relu(v) : v);
      }
      if (!whole) {
        for (int c = 0; c < column.lanes; ++c) dst[c] = lanes[c];
      }
    }
  } else {
    const int least = column.relu ? column.zero : 0;
    alignas(64) uint8_t lanes[kGroup];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      uint8_t* const dst = column.dst + column.row[r];
      uint8_t* const to = whole ? dst : lanes;
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) {
        const Vector v = to_float(sum[r][n + i]) * factor[i];
        store_bytes(to + i * kLanes, round_bytes(v, column.zero, least));
      }
      if (!whole) {
        for (int c = 0; c < column.lanes; ++c) dst[c] = lanes[c];
      }
    }
  }
}

static void average_pool_int8(const uint8_t* const* tap, int taps, int64_t channels,
                              const Rescale& to, uint8_t* dst) {
  const auto zeros = static_cast<uint32_t>(taps * to.from_zero);
  for (int64_t c = 0; c < channels; c += kLanes) {
    Words sum = load_some_bytes(tap[0] + c, channels - c);
    for (int t = 1; t < taps; ++t) sum += load_some_bytes(tap[t] + c, channels - c);
    const Vector v = to_float(sum - zeros) * to.factor;
    if (to.wide) {
      store_some(reinterpret_cast<float*>(dst) + c, v, channels - c);
    } else {
      store_some_bytes(dst + c, round_bytes(v, to.zero, 0), channels - c);
    }
  }
}

static void quantise(const float* src, int64_t src_pixel, int64_t pixels, int64_t channels,
                     float inverse, int zero, uint8_t* dst, int64_t dst_pixel) {
  if (src_pixel == channels && dst_pixel == channels) {
    channels *= pixels;
    pixels = 1;
  }
  for (int64_t p = 0; p < pixels; ++p, src += src_pixel, dst += dst_pixel) {
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vector v = load_some(src + c, channels - c) * inverse;
      store_some_bytes(dst + c, round_bytes(v, zero, 0), channels - c);
    }
  }
}

static void dequantise(const uint8_t* src, int64_t channels, int zero, float scale, float* dst) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    const Words v = load_some_bytes(src + c, channels - c) - static_cast<uint32_t>(zero);
    store_some(dst + c, to_float(v) * scale, channels - c);
  }
}
