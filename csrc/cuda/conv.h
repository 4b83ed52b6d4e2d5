// Kernel B: convolutions whose source stays in shared memory while only the weights stream.
//
// The pixels that a tile of kRows pixels reads are one range of pixel indices, so a tap is a shift
// of the row that ldmatrix reads. Taps outside the image read zeros instead.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/multiply.h"
#include "cuda/operand.h"
#include "cuda/weights.h"

namespace inception_fused::cuda {

inline constexpr int kZeros = 8;  // vectors of zeros, one for each group of four banks

// Bit t: tap t of the window around the pixel lies inside the image.
SIMT_DEVICE uint64_t taps_inside(const Problem& p, int pixel) {
  const Coordinates at(p, pixel);
  uint64_t mask = 0;
  for (int tap = 0; tap < p.taps; ++tap) {
    mask |= uint64_t{at.inside(p, find_tap(p, tap))} << tap;
  }
  return mask;
}

template <class D, class T>
SIMT_DEVICE void run_conv(const Wave& wave) {
  const Work work = find_work<T>(wave);
  const Problem& p = *work.problem;
  const int halo_rows = T::kRows + 2 * p.before();

  simt::Carve carve;
  simt::Barrier* const full = take_barriers<T>(carve);
  simt::Carve again = carve;  // for what lies over the stages in the end
  Weights<T> weights(full, carve, work);
  Vector* const zeros = carve.take<Vector>(kZeros);
  const int pitch = halo_rows | 1;
  const Panel halo{carve.take<Vector>(p.depth * pitch), pitch};

  // The weights do not depend on the launch before, which itself began after the pack was complete.
  weights.begin();
  for (int step = 0; step < T::kStages - 1; ++step) {
    weights.prefetch(step);
    simt::copy_commit();
  }
  weights.prefetched();
  if (simt::thread() < kZeros) zeros[simt::thread()] = Vector{};
  simt::dependency_wait();
  simt::dependency_release();
  const bool works = has_rows<T>(work);
  if (works) copy_halo<T>(halo, p, work.row - p.before(), halo_rows, 0, p.depth);
  simt::copy_commit();
  simt::copy_wait<0>();
  if (kSplits<D> && works && !p.from.split) split_halo<T>(halo, p, halo_rows, p.depth);

  const WarpPlace<T> warp = WarpPlace<T>::here();
  const int lane_row = warp.row + simt::lane() % 16;
  uint64_t inside[T::kRowTiles];
  SIMT_UNROLL
  for (int i = 0; i < T::kRowTiles; ++i) {
    inside[i] = taps_inside(p, work.row + lane_row + 16 * i);
  }

  Sums<T> sums;
  const int vectors = p.taps * p.depth;
  for (int step = 0; step < weights.steps; ++step) {
    if (step > 0) simt::copy_wait<T::kStages - 2>();
    weights.wait(step);
    simt::sync_block();  // the stage is there for all, and all have left the one before
    weights.enter(step);
    simt::copy_commit();
    // The two halves of a warp may be in different taps: depth need not be even.
    const int first = step * T::kDepth + simt::lane() / 16;
    if (works) {
      multiply_stage<D, T>(
          sums,
          [&](int i, int k) {
            const int vector = first + k;
            const int tap = static_cast<int>(p.by_depth.quotient(vector));
            const int tap_y = static_cast<int>(p.by_kernel_width.quotient(tap));
            const int tap_x = tap - tap_y * p.kernel_width;
            const int place =
                (vector - tap * p.depth) * pitch + lane_row + 16 * i + tap_y * p.width + tap_x;
            const bool valid = vector < vectors && (inside[i] >> tap & 1);
            return valid ? halo.data + place : zeros + place % kZeros;
          },
          weights.of(step), warp);
    }
    weights.leave(step);
  }
  weights.end();
  if (!works) return;
  simt::sync_block();  // all groups that are still open are empty
  store_sums<D, T>(again.take<float>(kSumFloats<T>), sums, warp, wave, work);
}

}  // namespace inception_fused::cuda
