// The part that every kernel shares: one block computes kRows x kColumns of D, its warps in a grid
// of kWarpRows x kWarpColumns x kWarpDepth, the last cutting the depth of each stage between warps.
#pragma once

#include <type_traits>

#include "cuda/problem.h"
#include "cuda/simt.h"
#include "cuda/split.h"

namespace inception_fused::cuda {

using simt::Vector;

// How a dtype is computed. Element: of x and out. Stored: of scratch and weights, and of all rows
// in shared memory when they are multiplied. kVector: elements in 16 bytes.
struct Half {
  using Element = simt::Half;
  using Stored = Element;
  static constexpr simt::Product kProduct = simt::Product::kHalf;
  static constexpr int kVector = 8;
  static constexpr bool kExact = false;
};
struct BFloat16 {
  using Element = simt::BFloat16;
  using Stored = Element;
  static constexpr simt::Product kProduct = simt::Product::kBFloat16;
  static constexpr int kVector = 8;
  static constexpr bool kExact = false;
};
struct Tf32 {  // float32, operands rounded to nearest
  using Element = float;
  using Stored = Element;
  static constexpr simt::Product kProduct = simt::Product::kTf32;
  static constexpr int kVector = 4;
  static constexpr bool kExact = false;
};
struct Bf16x3 {  // float32 to 16 bits, see split.h
  using Element = float;
  using Stored = Split;
  static constexpr simt::Product kProduct = simt::Product::kBFloat16;
  static constexpr int kVector = 4;
  static constexpr bool kExact = false;
};
struct Float32 {  // as faithful as float32: a * b = ah * bh + ah * bl + al * bh, halves in TF32
  using Element = float;
  using Stored = Element;
  static constexpr simt::Product kProduct = simt::Product::kTf32;
  static constexpr int kVector = 4;
  static constexpr bool kExact = true;
};

template <class D>
inline constexpr bool kSplits = std::is_same_v<typename D::Stored, Split>;

template <class D>
SIMT_DEVICE typename D::Stored to_stored(typename D::Element v) {
  if constexpr (kSplits<D>) {
    return to_split(v);
  } else {
    return v;
  }
}

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
