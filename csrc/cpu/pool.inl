// Pools, for one instruction set; after vector.inl.

namespace {  // so that members have no weak symbols

// How max_pool compares, `kCount` channels at a time. NaN wins.
struct Floats {
  typedef Vector Value;
  typedef uint32_t Bits __attribute__((vector_size(sizeof(Vector))));
  static constexpr int kCount = kLanes;
  static inline Value get(const float* p) { return load(p); }
  static inline void put(float* p, Value v) { store(p, v); }
  // The instruction of `a > b ? a : b` gives b if either is NaN: of the two orders one keeps the
  // NaN, and otherwise they agree.
  static inline Value larger(Value v, Value m) {
    const Value one = v > m ? v : m, other = m > v ? m : v;
    return reinterpret_cast<Value>(reinterpret_cast<Bits>(one) | reinterpret_cast<Bits>(other));
  }
};

struct OneFloat {
  typedef float Value;
  static constexpr int kCount = 1;
  static inline Value get(const float* p) { return *p; }
  static inline void put(float* p, Value v) { *p = v; }
  static inline Value larger(Value v, Value m) { return v > m || v != v ? v : m; }
};

// The order of BFloat16 as one of unsigned integers: from -infinity, 0, to infinity, and NaN of
// either sign above it. Unsigned and Signed: uint16_t and int16_t, or vectors of them.
inline constexpr uint16_t kLowest = 0x807f;

template <typename Unsigned, typename Signed>
static inline Unsigned mirrored(Unsigned bits) {  // negative numbers; its own inverse
  return Unsigned(bits ^ Unsigned(Unsigned(Signed(bits) >> 15) >> 1));
}

template <typename Unsigned, typename Signed>
static inline Unsigned rank_of(Unsigned bits) {
  return Unsigned(mirrored<Unsigned, Signed>(bits) - kLowest);
}

template <typename Unsigned, typename Signed>
static inline Unsigned bits_of(Unsigned rank) {
  return mirrored<Unsigned, Signed>(Unsigned(rank + kLowest));
}

struct Ranks {
  typedef uint16_t Value __attribute__((vector_size(sizeof(Vector))));
  typedef int16_t Signed __attribute__((vector_size(sizeof(Vector))));
  typedef uint16_t Unaligned __attribute__((vector_size(sizeof(Vector)), aligned(2), may_alias));
  static constexpr int kCount = 2 * kLanes;
  static inline Value get(const BFloat16* p) {
    return rank_of<Value, Signed>(*reinterpret_cast<const Unaligned*>(p));
  }
  static inline void put(BFloat16* p, Value v) {
    *reinterpret_cast<Unaligned*>(p) = bits_of<Value, Signed>(v);
  }
  static inline Value larger(Value v, Value m) { return v > m ? v : m; }
};

struct OneRank {
  typedef uint16_t Value;
  static constexpr int kCount = 1;
  static inline Value get(const BFloat16* p) { return rank_of<uint16_t, int16_t>(p->bits); }
  static inline void put(BFloat16* p, Value v) { p->bits = bits_of<uint16_t, int16_t>(v); }
  static inline Value larger(Value v, Value m) { return v > m ? v : m; }
};

struct UnsignedBytes {
  typedef uint8_t Value __attribute__((vector_size(sizeof(Vector))));
  typedef uint8_t Unaligned __attribute__((vector_size(sizeof(Vector)), aligned(1), may_alias));
  static constexpr int kCount = 4 * kLanes;
  static inline Value get(const uint8_t* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void put(uint8_t* p, Value v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline Value larger(Value v, Value m) { return v > m ? v : m; }
};

struct OneByte {
  typedef uint8_t Value;
  static constexpr int kCount = 1;
  static inline Value get(const uint8_t* p) { return *p; }
  static inline void put(uint8_t* p, Value v) { *p = v; }
  static inline Value larger(Value v, Value m) { return v > m ? v : m; }
};

template <typename T>
struct OrderOf {
  typedef Floats Many;
  typedef OneFloat One;
};
template <>
struct OrderOf<BFloat16> {
  typedef Ranks Many;
  typedef OneRank One;
};
template <>
struct OrderOf<uint8_t> {
  typedef UnsignedBytes Many;
  typedef OneByte One;
};

}  // namespace

// Where a vector of channels starts so that it ends with the last one; some then come twice, which
// changes no maximum.
template <typename Order>
static inline int64_t last_fit(int64_t c, int64_t channels) {
  return c + Order::kCount <= channels ? c : channels - Order::kCount;
}

template <typename T>
static void max_pool(const T* const* tap, int taps, int64_t channels, T* dst) {
  using Many = typename OrderOf<T>::Many;
  using One = typename OrderOf<T>::One;
  int64_t c = 0;
  for (; c + 2 * Many::kCount <= channels; c += 2 * Many::kCount) {
    auto low = Many::get(tap[0] + c);
    auto high = Many::get(tap[0] + c + Many::kCount);
    for (int t = 1; t < taps; ++t) {
      low = Many::larger(Many::get(tap[t] + c), low);
      high = Many::larger(Many::get(tap[t] + c + Many::kCount), high);
    }
    Many::put(dst + c, low);
    Many::put(dst + c + Many::kCount, high);
  }
  while (c < channels && channels >= Many::kCount) {
    c = last_fit<Many>(c, channels);
    auto m = Many::get(tap[0] + c);
    for (int t = 1; t < taps; ++t) m = Many::larger(Many::get(tap[t] + c), m);
    Many::put(dst + c, m);
    c += Many::kCount;
  }
  for (; c < channels; ++c) {
    auto m = One::get(tap[0] + c);
    for (int t = 1; t < taps; ++t) m = One::larger(One::get(tap[t] + c), m);
    One::put(dst + c, m);
  }
}

// Order's channels from c on; each column of the windows is reduced once.
template <typename Order, typename T>
static inline void max_pool_channels(const T* const* row, int rows, int64_t pixel, bool left,
                                     bool right, int64_t count, int64_t c, T* dst,
                                     int64_t dst_pixel) {
  using Value = typename Order::Value;
  const auto column = [&](int64_t x) __attribute__((always_inline)) {
    Value m = Order::get(row[0] + x * pixel + c);
    for (int y = 1; y < rows; ++y) m = Order::larger(Order::get(row[y] + x * pixel + c), m);
    return m;
  };
  Value here = column(0);
  Value before = left ? column(-1) : here;
  for (int64_t x = 0; x < count; ++x) {
    const Value next = x + 1 < count || right ? column(x + 1) : here;
    Order::put(dst + x * dst_pixel + c, Order::larger(before, Order::larger(here, next)));
    before = here;
    here = next;
  }
}

template <typename T>
static void max_pool_row(const T* const* row, int rows, int64_t pixel, bool left, bool right,
                         int64_t count, int64_t channels, T* dst, int64_t dst_pixel) {
  using Many = typename OrderOf<T>::Many;
  using One = typename OrderOf<T>::One;
  int64_t c = 0;
  while (c < channels && channels >= Many::kCount) {
    c = last_fit<Many>(c, channels);
    max_pool_channels<Many>(row, rows, pixel, left, right, count, c, dst, dst_pixel);
    c += Many::kCount;
  }
  for (; c < channels; ++c) {
    max_pool_channels<One>(row, rows, pixel, left, right, count, c, dst, dst_pixel);
  }
}

template <typename T>
static void average_pool(const T* const* tap, int taps, int64_t channels, float scale, T* dst) {
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector sum = load_some(tap[0] + c, channels - c);
    for (int t = 1; t < taps; ++t) sum += load_some(tap[t] + c, channels - c);
    store_some(dst + c, sum * scale, channels - c);
  }
}
