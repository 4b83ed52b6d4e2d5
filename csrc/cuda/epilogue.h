// From sums in registers to the destinations: adds up the warps that share the depth, then bias,
// activation, rounding and a store of one vector at a time.
#pragma once

#include "cuda/tile.h"

namespace inception_fused::cuda {

// Floats of shared memory that store_sums takes: the sums of each part of the depth, and the bias.
template <class T>
inline constexpr int kSumFloats = (T::kWarpDepth * T::kRows + 1) * T::kSumPitch;

template <class T>
SIMT_DEVICE void put_sums(float* shared, const Sums<T>& sums, const WarpPlace<T>& warp) {
  const int group = simt::lane() / 4, pair = simt::lane() % 4 * 2;
  const int part = warp.depth / (T::kDepth / T::kWarpDepth);
  float* const tile = shared + part * T::kRows * T::kSumPitch;
  SIMT_UNROLL
  for (int i = 0; i < T::kRowTiles; ++i) {
    SIMT_UNROLL
    for (int j = 0; j < T::kColumnTiles; ++j) {
      SIMT_UNROLL
      for (int v = 0; v < 4; ++v) {
        const int row = warp.row + 16 * i + group + v / 2 * 8;
        tile[row * T::kSumPitch + warp.column + 8 * j + pair + v % 2] = sums.value[i][j][v];
      }
    }
  }
}

SIMT_DEVICE const Segment& find_segment(const Wave& wave, const Problem& p, int vector) {
  int i = p.first_segment;
  while (i + 1 < p.first_segment + p.segments && vector >= wave.segment[i + 1].first) ++i;
  return wave.segment[i];
}

SIMT_DEVICE int64_t element_offset(const Place& place, const Problem& p, int pixel) {
  const int x = pixel % p.width, rest = pixel / p.width;
  const int y = rest % p.height, image = rest / p.height;
  return image * place.stride[0] + y * place.stride[2] + x * place.stride[3];
}

template <class D>
SIMT_DEVICE void store_vector(const Segment& to, const Problem& p, int pixel, int vector,
                              const float (&value)[D::kVector]) {
  using Element = typename D::Element;
  const int channel = (vector - to.first) * D::kVector;
  if (to.to.vectors) {
    union {
      Vector whole;
      Element element[D::kVector];
    } packed;
    SIMT_UNROLL
    for (int e = 0; e < D::kVector; ++e) {
      simt::from_float(channel + e < to.channels ? value[e] : 0.0f, packed.element[e]);
    }
    if (kSplits<D> && to.to.split) packed.whole = to_split(packed.whole);
    char* const address =
        to.to.data + pixel * to.to.pixel_bytes + (vector - to.first) * to.to.vector_bytes;
    simt::store(reinterpret_cast<Vector*>(address), packed.whole);
  } else {
    Element* const address =
        reinterpret_cast<Element*>(to.to.data) + element_offset(to.to, p, pixel);
    SIMT_UNROLL
    for (int e = 0; e < D::kVector; ++e) {
      if (channel + e >= to.channels) continue;
      Element rounded;
      simt::from_float(value[e], rounded);
      simt::store(address + (channel + e) * to.to.stride[1], rounded);
    }
  }
}

// Called by all threads when no copy is in flight and nobody reads the stages any more; `shared`
// may lie over them.
template <class D, class T>
SIMT_DEVICE void store_sums(float* shared, const Sums<T>& sums, const WarpPlace<T>& warp,
                            const Wave& wave, const Work& work) {
  constexpr int kVectors = T::kColumns / D::kVector;
  const Problem& p = *work.problem;
  put_sums<T>(shared, sums, warp);
  float* const bias = shared + T::kWarpDepth * T::kRows * T::kSumPitch;
  const int own = work.column + simt::thread();
  if (simt::thread() < T::kColumns && own < p.columns) {
    bias[simt::thread()] = simt::load(p.bias + own);
  }
  simt::sync_block();
  // Neighbouring threads take what is adjacent in memory: pixels of one vector of channels, or
  // vectors of one pixel.
  const bool along_pixels = find_segment(wave, p, work.column / D::kVector).to.along_pixels();
  for (int item = simt::thread(); item < T::kRows * kVectors; item += T::kThreads) {
    const int row = along_pixels ? item % T::kRows : item / kVectors;
    const int vector = along_pixels ? item / T::kRows : item % kVectors;
    const int pixel = work.row + row, column = work.column + vector * D::kVector;
    if (pixel >= p.pixels || column >= p.columns) continue;
    const Segment& to = find_segment(wave, p, column / D::kVector);
    float value[D::kVector];
    SIMT_UNROLL
    for (int e = 0; e < D::kVector; ++e) {
      float sum = bias[vector * D::kVector + e];
      SIMT_UNROLL
      for (int part = 0; part < T::kWarpDepth; ++part) {
        sum += shared[(part * T::kRows + row) * T::kSumPitch + vector * D::kVector + e];
      }
      value[e] = to.relu && sum < 0 ? 0.0f : sum;  // NaN stays NaN
    }
    store_vector<D>(to, p, pixel, column / D::kVector, value);
  }
}

}  // namespace inception_fused::cuda
