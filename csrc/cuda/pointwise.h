// Kernel A: both operands stream through shared memory, kStages stages deep.
//
// Made for the pointwise steps of a wave, pool projections in the same grid. With more than one tap
// it is a convolution too, for sources that are not vectors and for halos that are too large to
// stay in shared memory.
#pragma once

#include "cuda/epilogue.h"
#include "cuda/operand.h"

namespace inception_fused::cuda {

template <class D, class T>
SIMT_DEVICE void run_pointwise(const Wave& wave) {
  const Work work = find_work<T>(wave);
  const Problem& p = *work.problem;
  const bool pooled = p.operand == Operand::kPooled;
  const int halo_rows = pooled ? T::kRows + 2 * p.before() : T::kRows;
  const int pitch = halo_rows | 1;

  simt::Carve carve;
  Vector* const rows_data = carve.take<Vector>(T::kStages * T::kDepth * pitch);
  Vector* const weights_data = carve.take<Vector>(T::kStages * T::kDepth * T::kColumns);
  const Panel pool{pooled ? carve.take<Vector>(T::kDepth * T::kPitch) : nullptr, T::kPitch};
  const auto rows_of = [&](int stage) {
    return Panel{rows_data + stage * T::kDepth * pitch, pitch};
  };
  const auto weights_of = [&](int stage) {
    return Panel{weights_data + stage * T::kDepth * T::kColumns, T::kColumns};
  };

  // Before any read: the pack may have been written by the launch before this one. The release
  // comes after, so that whatever the next launch reads early was complete when this one began.
  simt::dependency_wait();
  simt::dependency_release();

  const int steps = (p.taps * p.depth + T::kDepth - 1) / T::kDepth;
  const auto fill = [&](int step, int stage) {
    if (step < steps) {
      const int first = step * T::kDepth;
      if (p.operand == Operand::kVectors) {
        copy_rows<T>(rows_of(stage), p, work.row, first);
      } else if (pooled) {
        copy_halo<T>(rows_of(stage), p, work.row - p.before(), halo_rows, first, T::kDepth);
      } else {
        gather_rows<D, T>(rows_of(stage), p, work.row, first);
      }
      copy_weights<T>(weights_of(stage), p, work.column, first);
    }
    simt::copy_commit();
  };
  for (int stage = 0; stage < T::kStages - 1; ++stage) fill(stage, stage);

  const WarpPlace<T> warp = WarpPlace<T>::here();
  const int lane_row = warp.row + simt::lane() % 16, lane_vector = simt::lane() / 16;
  Sums<T> sums;
  int stage = 0;
  for (int step = 0; step < steps; ++step) {
    simt::copy_wait<T::kStages - 2>();
    simt::sync_block();  // the stage is there for all, and all have left the one before
    fill(step + T::kStages - 1, stage == 0 ? T::kStages - 1 : stage - 1);
    Panel rows = rows_of(stage);
    if (pooled) {
      pool_rows<D, T>(pool, rows, p, work.row);
      simt::sync_block();
      rows = pool;
    }
    multiply_stage<D, T>(
        sums, [&](int i, int k) { return rows.at(k + lane_vector, lane_row + 16 * i); },
        weights_of(stage), warp);
    stage = stage + 1 == T::kStages ? 0 : stage + 1;
  }
  simt::sync_block();  // all groups that are still open are empty
  simt::Carve again;   // over the stages
  float* const shared = again.take<float>(T::kWarpDepth * T::kRows * T::kSumPitch);
  store_sums<D, T>(shared, sums, warp, wave, work);
}

}  // namespace inception_fused::cuda
