// The part that every kernel shares: one block computes kRows x kColumns of D, its warps in a grid
// of kWarpRows x kWarpColumns x kWarpDepth, the last cutting the depth of each stage between warps.
#pragma once

#include "cuda/problem.h"
#include "cuda/simt.h"

namespace inception_fused::cuda {

using simt::Vector;

// How a dtype is computed. kVector: elements in 16 bytes.
struct Half {
  using Element = simt::Half;
  static constexpr simt::Product kProduct = simt::Product::kHalf;
  static constexpr int kVector = 8;
  static constexpr bool kExact = false;
};
struct BFloat16 {
  using Element = simt::BFloat16;
  static constexpr simt::Product kProduct = simt::Product::kBFloat16;
  static constexpr int kVector = 8;
  static constexpr bool kExact = false;
};
struct Tf32 {  // float32, operands rounded to nearest
  using Element = float;
  static constexpr simt::Product kProduct = simt::Product::kTf32;
  static constexpr int kVector = 4;
  static constexpr bool kExact = false;
};
struct Float32 {  // as faithful as float32: a * b = ah * bh + ah * bl + al * bh, halves in TF32
  using Element = float;
  static constexpr simt::Product kProduct = simt::Product::kTf32;
  static constexpr int kVector = 4;
  static constexpr bool kExact = true;
};

template <int kRows_, int kColumns_, int kDepth_, int kWarpRows_, int kWarpColumns_,
          int kWarpDepth_, int kStages_, int kCluster_>
struct Tile {
  static constexpr int kRows = kRows_;        // pixels
  static constexpr int kColumns = kColumns_;  // output channels
  static constexpr int kDepth = kDepth_;      // vectors per stage
  static constexpr int kWarpRows = kWarpRows_;
  static constexpr int kWarpColumns = kWarpColumns_;
  static constexpr int kWarpDepth = kWarpDepth_;
  static constexpr int kStages = kStages_;
  static constexpr int kCluster = kCluster_;  // blocks
  static constexpr int kThreads = 32 * kWarpRows * kWarpColumns * kWarpDepth;
  static constexpr int kRowTiles = kRows / kWarpRows / 16;          // of a warp, 16 rows each
  static constexpr int kColumnTiles = kColumns / kWarpColumns / 8;  // of a warp, 8 columns each
  static constexpr int kPitch = kRows + 1;                          // odd: see Panel
  static constexpr int kSumPitch = kColumns + 8;  // floats; 8 keeps the stores free of conflicts
  static_assert(kRowTiles > 0 && kColumnTiles % 2 == 0 && kDepth % (2 * kWarpDepth) == 0);
  static_assert(kStages > (kCluster > 1 ? 2 : 1) && (kCluster == 1 || kDepth % kCluster == 0));
  static_assert(kColumns <= kThreads);
};

// Rows of vectors in shared memory lie at [vector][row]. ldmatrix reads 8 rows of one vector, 128
// adjacent bytes; with an odd pitch, 8 vectors of one row, as cp.async writes them, are in
// different banks too.
struct Panel {
  Vector* data;
  int pitch;
  SIMT_DEVICE Vector* at(int vector, int row) const { return data + vector * pitch + row; }
};

template <class T>
struct Sums {  // of a warp
  float value[T::kRowTiles][T::kColumnTiles][4] = {};
};

template <class T>
struct WarpPlace {  // of this warp in the tile, in units of rows, columns and vectors
  int row, column, depth;
  SIMT_DEVICE static WarpPlace here() {
    const int warp = simt::warp();
    return {warp % T::kWarpRows * 16 * T::kRowTiles,
            warp / T::kWarpRows % T::kWarpColumns * 8 * T::kColumnTiles,
            warp / (T::kWarpRows * T::kWarpColumns) * (T::kDepth / T::kWarpDepth)};
  }
};

// d += a * b at the accuracy of the dtype, for one instruction's worth.
template <class D>
SIMT_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (D::kProduct != simt::Product::kTf32) {
    simt::multiply_add<D::kProduct>(d, a, b[0], b[1]);
  } else {
    uint32_t ah[4], bh[2];
    SIMT_UNROLL
    for (int i = 0; i < 4; ++i) ah[i] = simt::round_tf32(a[i]);
    SIMT_UNROLL
    for (int i = 0; i < 2; ++i) bh[i] = simt::round_tf32(b[i]);
    if constexpr (D::kExact) {
      const auto rest = [](uint32_t whole, uint32_t high) {
        const float low = simt::as_float(whole) - simt::as_float(high);
        return simt::round_tf32(simt::as_bits(low - low == 0 ? low : 0));  // of inf there is none
      };
      uint32_t al[4], bl[2];
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) al[i] = rest(a[i], ah[i]);
      SIMT_UNROLL
      for (int i = 0; i < 2; ++i) bl[i] = rest(b[i], bh[i]);
      simt::multiply_add<D::kProduct>(d, al, bh[0], bh[1]);
      simt::multiply_add<D::kProduct>(d, ah, bl[0], bl[1]);
    }
    simt::multiply_add<D::kProduct>(d, ah, bh[0], bh[1]);
  }
}

// sums += rows * weights for this warp's share of one stage. rows(row tile, vector) gives the
// address that this lane passes to ldmatrix: of its row lane % 16 and of vector + lane / 16.
template <class D, class T, class Rows>
SIMT_DEVICE void multiply_stage(Sums<T>& sums, const Rows& rows, const Panel& weights,
                                const WarpPlace<T>& warp) {
  const int lane = simt::lane();
  const int weight_vector = warp.depth + lane / 8 % 2;
  const int weight_column = warp.column + lane / 16 * 8 + lane % 8;
  SIMT_UNROLL
  for (int k = 0; k < T::kDepth / T::kWarpDepth; k += 2) {
    uint32_t b[T::kColumnTiles][2];
    SIMT_UNROLL
    for (int j = 0; j < T::kColumnTiles; j += 2) {
      uint32_t four[4];
      simt::load_matrices(four, weights.at(weight_vector + k, weight_column + 8 * j));
      b[j][0] = four[0], b[j][1] = four[1];
      b[j + 1][0] = four[2], b[j + 1][1] = four[3];
    }
    SIMT_UNROLL
    for (int i = 0; i < T::kRowTiles; ++i) {
      uint32_t a[4];
      simt::load_matrices(a, rows(i, warp.depth + k));
      SIMT_UNROLL
      for (int j = 0; j < T::kColumnTiles; ++j) multiply_add<D>(sums.value[i][j], a, b[j]);
    }
  }
}

// Which problem this block works on, and which tile of it.
struct Work {
  const Problem* problem;
  int row;     // first pixel; there may be none in the last blocks of a cluster
  int column;  // first column
};

template <class T>
SIMT_DEVICE Work find_work(const Wave& wave) {
  const int block = simt::block();
  int i = 0;
  while (i + 1 < wave.problems && block >= wave.problem[i + 1].first_block) ++i;
  const Problem* problem = &wave.problem[i];
  const int tile = block - problem->first_block;
  const int cluster = tile / T::kCluster, rank = tile % T::kCluster;
  return {problem, (cluster / problem->column_tiles * T::kCluster + rank) * T::kRows,
          cluster % problem->column_tiles * T::kColumns};
}

// Whether the block has a pixel to compute: the same for all its threads.
template <class T>
SIMT_DEVICE bool has_rows(const Work& work) {
  return T::kCluster == 1 || work.row < work.problem->pixels;
}

}  // namespace inception_fused::cuda
