// The micro-kernel, for one instruction set; after vector.inl, and quantise.inl for int8. The
// including file defines kWide (groups per call) and rows_of<T>(groups).
//
// Every loop over accumulators is unrolled by pragma: otherwise gcc 12 keeps them in an array and
// stores all of them in each turn of the k loop (measured: 87 instead of 98 GFLOP/s).

inline constexpr int kUnroll =
    2;  // of k; 4 is 7 % slower with AVX2 (Zen 3) and spills with AVX-512

// The sums of one group, which are the vectors from n on.
template <typename T, int R, int N>
__attribute__((always_inline)) static inline void store_columns(Vector (&sum)[R][N], int n,
                                                                const Column<T>& column) {
  if (column.relu) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) sum[r][n + i] = relu(sum[r][n + i]);
    }
  }
  if (column.lanes == kGroup) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      T* dst = column.dst + column.row[r];
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) store(dst + i * kLanes, sum[r][n + i]);
    }
  } else {
    alignas(64) T lanes[R][kGroup];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int i = 0; i < kVectors; ++i) store(lanes[r] + i * kLanes, sum[r][n + i]);
    }
    for (int r = 0; r < R; ++r) {
      T* dst = column.dst + column.row[r];
      for (int c = 0; c < column.lanes; ++c) dst[c] = lanes[r][c];
    }
  }
}

// R rows by V groups from group `first` on; R * V * kVectors accumulators live in registers.
// Not inlined, so that each tile gets a register allocation of its own.
template <typename T, int R, int V>
__attribute__((noinline)) static void gemm_tile(const Tile<T>& tile, int first) {
  using Operand = typename OperandOf<T>::Type;
  using Sum = typename OperandOf<T>::Sum;
  constexpr int N = V * kVectors;
  const int64_t pitch = kWide > 1 ? V * kGroup : tile.groups * kGroup;
  Sum sum[R][N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const Sum bias = reinterpret_cast<Sum>(load(tile.bias + first * kGroup + n * kLanes));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][n] = bias;
  }
  const float* b = tile.b + first * kGroup;
  for (int t = 0; t < tile.taps; ++t) {
    const T* a[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) a[r] = tile.a[r] + tile.tap[t];
    const auto multiply = [&](const auto& element_of, int64_t row) __attribute__((always_inline)) {
      Operand column[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) {
        column[n] = reinterpret_cast<Operand>(load(b + row * pitch + n * kLanes));
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Operand x = element_of(a[r]);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) multiply_add(sum[r][n], x, column[n]);
      }
    };
    constexpr int64_t kStep = kPerElement<T>;  // channels
    int64_t k = 0;
    const auto at_k = [&](const T* row)
                          __attribute__((always_inline)) { return broadcast(row + k); };
    for (; k + kUnroll * kStep <= tile.depth;) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u, k += kStep) multiply(at_k, u);
      b += kUnroll * pitch;
    }
    for (; k + kStep <= tile.depth; k += kStep) {
      multiply(at_k, 0);
      b += pitch;
    }
    if constexpr (kStep == 2) {
      if (k < tile.depth) {
        multiply([&](const T* row)
                     __attribute__((always_inline)) { return broadcast_last(row + k); },
                 0);
        b += pitch;
      }
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) store_columns(sum, v * kVectors, tile.column[first + v]);
}

template <typename T, int R, int V>
static void gemm_rows(const Tile<T>& tile, int first) {
  if constexpr (R > 1) {
    if (tile.rows < R) return gemm_rows<T, R - 1, V>(tile, first);
  }
  gemm_tile<T, R, V>(tile, first);
}

template <typename T>
static void gemm(const Tile<T>& tile) {
  if constexpr (kWide == 1) {
    for (int group = 0; group < tile.groups; ++group) gemm_rows<T, rows_of<T>(1), 1>(tile, group);
  } else {
    switch (tile.groups) {
      case 1:
        return gemm_rows<T, rows_of<T>(1), 1>(tile, 0);
      case 2:
        return gemm_rows<T, rows_of<T>(2), 2>(tile, 0);
      default:
        return gemm_rows<T, rows_of<T>(3), 3>(tile, 0);
    }
  }
}
