// Products of rows and weights in shared memory, at the accuracy of the dtype.
#pragma once

#include "cuda/tile.h"

namespace inception_fused::cuda {

// Vectors of the depth that an instruction multiplies. Of a slice a lane holds 2 * kSlice words of
// rows and kSlice words of columns; where kSplits, the high parts of all and then the low parts.
template <class D>
inline constexpr int kSlice = kSplits<D> ? 4 : 2;

// Vectors k and on of 16 rows; rows(vector) gives the address that this lane passes to ldmatrix: of
// its row lane % 16 and of vector + lane / 16.
template <class D, class Rows>
SIMT_DEVICE void load_rows(uint32_t (&a)[2 * kSlice<D>], const Rows& rows, int k) {
  if constexpr (kSplits<D>) {
    // The depth in the order in which the lanes hold it: it is the same for the weights.
    uint32_t near[4], far[4];
    simt::load_matrices(near, rows(k));
    simt::load_matrices(far, rows(k + 2));
    SIMT_UNROLL
    for (int r = 0; r < 2; ++r) {
      a[r] = high_pair(near[r], near[r + 2]);
      a[r + 2] = high_pair(far[r], far[r + 2]);
      a[r + 4] = low_pair(near[r], near[r + 2]);
      a[r + 6] = low_pair(far[r], far[r + 2]);
    }
  } else {
    simt::load_matrices(a, rows(k));
  }
}

// Vectors k and on of the weights of 16 columns; `at` is where this lane reads the first two.
template <class D>
SIMT_DEVICE void load_columns(uint32_t (&first)[kSlice<D>], uint32_t (&second)[kSlice<D>],
                              const Vector* at, int pitch) {
  uint32_t near[4];
  simt::load_matrices(near, at);
  if constexpr (kSplits<D>) {
    uint32_t far[4];
    simt::load_matrices(far, at + 2 * pitch);
    const auto pair = [&](uint32_t (&b)[kSlice<D>], int from) {
      b[0] = high_pair(near[from], near[from + 1]);
      b[1] = high_pair(far[from], far[from + 1]);
      b[2] = low_pair(near[from], near[from + 1]);
      b[3] = low_pair(far[from], far[from + 1]);
    };
    pair(first, 0);
    pair(second, 2);
  } else {
    first[0] = near[0], first[1] = near[1];
    second[0] = near[2], second[1] = near[3];
  }
}

// d += a * b for one slice. What is small is added first.
template <class D>
SIMT_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[2 * kSlice<D>],
                              const uint32_t (&b)[kSlice<D>]) {
  if constexpr (kSplits<D>) {
    const uint32_t high[4] = {a[0], a[1], a[2], a[3]}, low[4] = {a[4], a[5], a[6], a[7]};
    simt::multiply_add<D::kProduct>(d, low, b[0], b[1]);
    simt::multiply_add<D::kProduct>(d, high, b[2], b[3]);
    simt::multiply_add<D::kProduct>(d, high, b[0], b[1]);
  } else if constexpr (D::kProduct != simt::Product::kTf32) {
    simt::multiply_add<D::kProduct>(d, a, b[0], b[1]);
  } else {
    uint32_t ah[4], bh[2];
    if constexpr (D::kExact) {
      uint32_t al[4], bl[2];
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) split_tf32(a[i], ah[i], al[i]);
      SIMT_UNROLL
      for (int i = 0; i < 2; ++i) split_tf32(b[i], bh[i], bl[i]);
      simt::multiply_add<D::kProduct>(d, al, bh[0], bh[1]);
      simt::multiply_add<D::kProduct>(d, ah, bl[0], bl[1]);
    } else {
      SIMT_UNROLL
      for (int i = 0; i < 4; ++i) ah[i] = simt::round_tf32(a[i]);
      SIMT_UNROLL
      for (int i = 0; i < 2; ++i) bh[i] = simt::round_tf32(b[i]);
    }
    simt::multiply_add<D::kProduct>(d, ah, bh[0], bh[1]);
  }
}

// sums += rows * weights for this warp's share of one stage. rows(row tile, vector) as load_rows
// has it.
template <class D, class T, class Rows>
SIMT_DEVICE void multiply_stage(Sums<T>& sums, const Rows& rows, const Panel& weights,
                                const WarpPlace<T>& warp) {
  static_assert(T::kDepth / T::kWarpDepth % kSlice<D> == 0);
  const int lane = simt::lane();
  const int weight_vector = warp.depth + lane / 8 % 2;
  const int weight_column = warp.column + lane / 16 * 8 + lane % 8;
  SIMT_UNROLL
  for (int k = 0; k < T::kDepth / T::kWarpDepth; k += kSlice<D>) {
    uint32_t b[T::kColumnTiles][kSlice<D>];
    SIMT_UNROLL
    for (int j = 0; j < T::kColumnTiles; j += 2) {
      load_columns<D>(b[j], b[j + 1], weights.at(weight_vector + k, weight_column + 8 * j),
                      weights.pitch);
    }
    SIMT_UNROLL
    for (int i = 0; i < T::kRowTiles; ++i) {
      uint32_t a[2 * kSlice<D>];
      load_rows<D>(a, [&](int vector) { return rows(i, vector); }, warp.depth + k);
      SIMT_UNROLL
      for (int j = 0; j < T::kColumnTiles; ++j) multiply_add<D>(sums.value[i][j], a, b[j]);
    }
  }
}

}  // namespace inception_fused::cuda
