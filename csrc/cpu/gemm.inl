// The micro-kernel, for one instruction set. The including file defines kLanes (floats per vector),
// kWide (groups per call) and kRows and has set the target; nothing here may instantiate a
// std template, or its weak symbol could carry wide instructions into the rest of the process.
//
// Every loop over accumulators is unrolled by pragma: otherwise gcc 12 keeps them in an array and
// stores all of them in each turn of the k loop (measured: 87 instead of 98 GFLOP/s).

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef float UnalignedVector
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t IntVector __attribute__((vector_size(kLanes * sizeof(float))));

inline constexpr int kVectors = kGroup / kLanes;  // per group
inline constexpr int kUnroll =
    2;  // of k; 4 is 7 % slower with AVX2 (Zen 3) and spills with AVX-512

static inline Vector load(const float* p) { return *reinterpret_cast<const UnalignedVector*>(p); }
static inline void store(float* p, Vector v) { *reinterpret_cast<UnalignedVector*>(p) = v; }
static inline Vector splat(float value) { return value - Vector{}; }
static inline Vector relu(Vector v) { return v < 0.0f ? Vector{} : v; }  // NaN stays NaN

// The load of one element of A into all lanes, kept as an instruction of its own: the compiler
// would otherwise load it once per use.
static inline Vector broadcast(const float* p) {
#if defined(__AVX512F__)
  Vector v;
  asm("vbroadcastss %1, %0" : "=v"(v) : "m"(*p));
  return v;
#elif defined(__AVX2__)
  Vector v;
  asm("vbroadcastss %1, %0" : "=x"(v) : "m"(*p));
  return v;
#else
  return splat(*p);
#endif
}

// R rows by V groups from group `first` on; R * V * kVectors accumulators live in registers.
// Not inlined, so that each tile gets a register allocation of its own.
template <int R, int V>
__attribute__((noinline)) static void gemm_tile(const Tile& tile, int first) {
  constexpr int N = V * kVectors;
  const int64_t pitch = kWide > 1 ? V * kGroup : tile.groups * kGroup;
  Vector sum[R][N];
#pragma GCC unroll 16
  for (int n = 0; n < N; ++n) {
    const Vector bias = load(tile.bias + first * kGroup + n * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][n] = bias;
  }
  const float* b = tile.b + first * kGroup;
  for (int t = 0; t < tile.taps; ++t) {
    const float* a[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) a[r] = tile.a[r] + tile.tap[t];
    const auto multiply = [&](int64_t k, int64_t row) __attribute__((always_inline)) {
      Vector column[N];
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) column[n] = load(b + row * pitch + n * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vector x = broadcast(a[r] + k);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) sum[r][n] += x * column[n];
      }
    };
    int64_t k = 0;
    for (; k + kUnroll <= tile.depth; k += kUnroll) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) multiply(k + u, u);
      b += kUnroll * pitch;
    }
    for (; k < tile.depth; ++k) {
      multiply(k, 0);
      b += pitch;
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
    const Column& column = tile.column[first + v];
    if (column.relu) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i)
          sum[r][v * kVectors + i] = relu(sum[r][v * kVectors + i]);
      }
    }
    if (column.lanes == kGroup) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* dst = column.dst + column.row[r];
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) store(dst + i * kLanes, sum[r][v * kVectors + i]);
      }
    } else {
      alignas(64) float lanes[R][kGroup];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int i = 0; i < kVectors; ++i) store(lanes[r] + i * kLanes, sum[r][v * kVectors + i]);
      }
      for (int r = 0; r < R; ++r) {
        float* dst = column.dst + column.row[r];
        for (int c = 0; c < column.lanes; ++c) dst[c] = lanes[r][c];
      }
    }
  }
}

template <int R, int V>
static void gemm_rows(const Tile& tile, int first) {
  if constexpr (R > 1) {
    if (tile.rows < R) return gemm_rows<R - 1, V>(tile, first);
  }
  gemm_tile<R, V>(tile, first);
}

static void gemm(const Tile& tile) {
  if constexpr (kWide == 1) {
    for (int group = 0; group < tile.groups; ++group) gemm_rows<kRows[1], 1>(tile, group);
  } else {
    switch (tile.groups) {
      case 1:
        return gemm_rows<kRows[1], 1>(tile, 0);
      case 2:
        return gemm_rows<kRows[2], 2>(tile, 0);
      default:
        return gemm_rows<kRows[3], 3>(tile, 0);
    }
  }
}
