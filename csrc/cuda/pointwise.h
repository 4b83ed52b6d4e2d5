// Kernel A: both operands stream through shared memory, kStages stages deep.
//
// Made for the pointwise steps of a wave, pool projections in the same grid. With more than one tap
// it is a convolution too, for sources that are not vectors and for halos that are too large to
// stay in shared memory.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/multiply.h"
#include "cuda/operand.h"
#include "cuda/weights.h"

namespace inception_fused::cuda {

template <class D, class T>
SIMT_DEVICE void run_pointwise(const Wave& wave) {
  const Work work = find_work<T>(wave);
  const Problem& p = *work.problem;
  const bool pooled = p.operand == Operand::kPooled;
  const int halo_rows = pooled ? T::kRows + 2 * p.before() : T::kRows;
  const int pitch = halo_rows | 1;

  simt::Carve carve;
  simt::Barrier* const full = take_barriers<T>(carve);
  simt::Carve again = carve;  // for what lies over the stages in the end
  Weights<T> weights(full, carve, work);
  Vector* const rows_data = carve.take<Vector>(T::kStages * T::kDepth * pitch);
  const Panel pool{pooled ? carve.take<Vector>(T::kDepth * T::kPitch) : nullptr, T::kPitch};
  const auto rows_of = [&](int step) {
    return Panel{rows_data + step % T::kStages * T::kDepth * pitch, pitch};
  };

  weights.begin();
  // Before any read: the pack may have been written by the launch before this one. The release
  // comes after, so that whatever the next launch reads early was complete when this one began.
  simt::dependency_wait();
  simt::dependency_release();

  const bool works = has_rows<T>(work);
  const bool splits = kSplits<D> && works && p.operand == Operand::kVectors && !p.from.split;
  const auto fill = [&](int step) {
    if (works && step < weights.steps) {
      const int first = step * T::kDepth;
      if (p.operand == Operand::kVectors) {
        copy_rows<T>(rows_of(step), p, work.row, first);
      } else if (pooled) {
        copy_halo<T>(rows_of(step), p, work.row - p.before(), halo_rows, first, T::kDepth);
      } else {
        gather_rows<D, T>(rows_of(step), p, work.row, first);
      }
    }
  };
  for (int step = 0; step < T::kStages - 1; ++step) {
    weights.prefetch(step);
    fill(step);
    simt::copy_commit();
  }
  weights.prefetched();

  const WarpPlace<T> warp = WarpPlace<T>::here();
  const int lane_row = warp.row + simt::lane() % 16, lane_vector = simt::lane() / 16;
  Sums<T> sums;
  for (int step = 0; step < weights.steps; ++step) {
    simt::copy_wait<T::kStages - 2>();
    if (splits) split_rows<T>(rows_of(step), p);
    weights.wait(step);
    simt::sync_block();  // the stage is there for all, and all have left the one before
    weights.enter(step);
    fill(step + T::kStages - 1);
    simt::copy_commit();
    if (works) {
      Panel rows = rows_of(step);
      if (pooled) {
        pool_rows<D, T>(pool, rows, p, work.row);
        simt::sync_block();
        rows = pool;
      }
      multiply_stage<D, T>(
          sums, [&](int i, int k) { return rows.at(k + lane_vector, lane_row + 16 * i); },
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
