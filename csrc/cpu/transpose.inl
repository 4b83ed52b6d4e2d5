// The change of layout, for one instruction set.

#if defined(__clang__)
#define INCEPTION_FUSED_SHUFFLE(index, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INCEPTION_FUSED_SHUFFLE(index, a, b, ...) __builtin_shuffle(a, b, index{__VA_ARGS__})
#endif

typedef uint32_t Quad __attribute__((vector_size(16)));
typedef uint16_t Octet __attribute__((vector_size(16)));

// a[0], b[0], a[1], b[1], ... of the lower or the upper half.
static inline Quad interleave_low(Quad a, Quad b) {
  return INCEPTION_FUSED_SHUFFLE(Quad, a, b, 0, 4, 1, 5);
}
static inline Quad interleave_high(Quad a, Quad b) {
  return INCEPTION_FUSED_SHUFFLE(Quad, a, b, 2, 6, 3, 7);
}
static inline Octet interleave_low(Octet a, Octet b) {
  return INCEPTION_FUSED_SHUFFLE(Octet, a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
static inline Octet interleave_high(Octet a, Octet b) {
  return INCEPTION_FUSED_SHUFFLE(Octet, a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

template <typename T>
struct BlockOf {
  typedef Quad Row;
};
template <>
struct BlockOf<BFloat16> {
  typedef Octet Row;
};

template <typename T>
static void transpose(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst,
                      int64_t dst_stride) {
  using Row = typename BlockOf<T>::Row;
  struct __attribute__((packed, may_alias)) Unaligned {
    Row row;
  };
  constexpr int kEdge = sizeof(Row) / sizeof(T);  // of a block
  int64_t r = 0;
  for (; r + kEdge <= rows; r += kEdge) {
    int64_t c = 0;
    for (; c + kEdge <= columns; c += kEdge) {
      Row block[kEdge];
#pragma GCC unroll 8
      for (int i = 0; i < kEdge; ++i) {
        block[i] = reinterpret_cast<const Unaligned*>(src + (r + i) * src_stride + c)->row;
      }
      // Each turn moves one bit of the row's number to the end of the column's.
#pragma GCC unroll 3
      for (int turn = 1; turn < kEdge; turn *= 2) {
        Row next[kEdge];
#pragma GCC unroll 4
        for (int i = 0; i < kEdge / 2; ++i) {
          next[2 * i] = interleave_low(block[i], block[i + kEdge / 2]);
          next[2 * i + 1] = interleave_high(block[i], block[i + kEdge / 2]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < kEdge; ++i) block[i] = next[i];
      }
#pragma GCC unroll 8
      for (int i = 0; i < kEdge; ++i) {
        reinterpret_cast<Unaligned*>(dst + (c + i) * dst_stride + r)->row = block[i];
      }
    }
    for (; c < columns; ++c) {
      for (int i = 0; i < kEdge; ++i) dst[c * dst_stride + r + i] = src[(r + i) * src_stride + c];
    }
  }
  for (; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) dst[c * dst_stride + r] = src[r * src_stride + c];
  }
}
