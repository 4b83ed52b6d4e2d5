// How weights come into shared memory, T::kStages stages deep: every block its own copy, or one
// copy for all blocks of a cluster. Both have the same functions, which all threads call.
#pragma once

#include <type_traits>

#include "cuda/tile.h"

namespace inception_fused::cuda {

template <class T>
class StagedWeights {  // what both ways share
 public:
  // Where step's weights are once they have come.
  SIMT_DEVICE Panel of(int step) const {
    return {data_ + step % T::kStages * T::kDepth * T::kColumns, T::kColumns};
  }
  int steps;

 protected:
  SIMT_DEVICE StagedWeights(simt::Carve& carve, const Work& work)
      : steps((work.problem->taps * work.problem->depth + T::kDepth - 1) / T::kDepth),
        problem_(*work.problem),
        column_(work.column),
        data_(carve.take<Vector>(T::kStages * T::kDepth * T::kColumns)) {}

  // The first of vector [step * kDepth + k]'s columns.
  SIMT_DEVICE const char* from(int step, int k) const {
    const int64_t vector = static_cast<int64_t>(step) * T::kDepth + k;
    return problem_.weights + (vector * problem_.columns + column_) * 16;
  }
  SIMT_DEVICE int vectors(int step) const {  // in the stage, of all taps
    const int left = problem_.taps * problem_.depth - step * T::kDepth;
    return left < T::kDepth ? left : T::kDepth;
  }

  const Problem& problem_;
  const int column_;

 private:
  Vector* const data_;
};

// By cp.async; the caller commits and waits.
template <class T>
class OwnWeights : public StagedWeights<T> {
 public:
  SIMT_DEVICE OwnWeights(simt::Barrier*, simt::Carve& carve, const Work& work)
      : StagedWeights<T>(carve, work) {}

  SIMT_DEVICE void begin() {}

  // Starts copying the weights of an early step, before the first one is used.
  SIMT_DEVICE void prefetch(int step) { copy(step); }
  SIMT_DEVICE void prefetched() {}

  SIMT_DEVICE void wait(int) {}
  // When all threads of the block have left the step before: its stage can be filled.
  SIMT_DEVICE void enter(int step) { copy(step + T::kStages - 1); }
  SIMT_DEVICE void leave(int) {}
  SIMT_DEVICE void end() {}

 private:
  // Past the end of the depth or of the columns it fills with zeros.
  SIMT_DEVICE void copy(int step) {
    if (step >= this->steps) return;
    const Panel to = this->of(step);
    const int vectors = this->vectors(step);
    SIMT_UNROLL
    for (int i = 0; i < T::kColumns * T::kDepth; i += T::kThreads) {
      const int item = i + simt::thread();
      if (T::kColumns * T::kDepth % T::kThreads && item >= T::kColumns * T::kDepth) break;
      const int n = item % T::kColumns, k = item / T::kColumns;
      const bool valid = k < vectors && this->column_ + n < this->problem_.columns;
      const char* const from = valid ? this->from(step, k) + n * 16 : this->problem_.weights;
      simt::copy_async(to.at(k, n), from, valid);
    }
  }
};

// By multicast: each block of the cluster asks for its share of every stage on behalf of all. A
// stage is filled again when all blocks have left it, which they say by arriving at the cluster's
// barrier; they do so after each step and wait for it after the next, so that none waits for a
// block that is less than a step behind.
template <class T>
class ClusterWeights : public StagedWeights<T> {
 public:
  SIMT_DEVICE ClusterWeights(simt::Barrier* full, simt::Carve& carve, const Work& work)
      : StagedWeights<T>(carve, work), full_(full) {}

  SIMT_DEVICE void begin() {
    if (simt::thread() == 0) {
      for (int stage = 0; stage < T::kStages; ++stage) simt::barrier_init(full_ + stage);
    }
    simt::cluster_arrive();
    simt::cluster_wait();
  }
  SIMT_DEVICE void prefetch(int step) { copy(step); }
  SIMT_DEVICE void prefetched() { simt::cluster_arrive(); }

  SIMT_DEVICE void wait(int step) {
    simt::barrier_wait(full_ + step % T::kStages, step / T::kStages % 2);
  }
  SIMT_DEVICE void enter(int) {}
  SIMT_DEVICE void leave(int step) {
    simt::cluster_wait();  // all have left the step before
    copy(step + T::kStages - 1);
    simt::cluster_arrive();
  }
  // No block ends while another may still write to its shared memory.
  SIMT_DEVICE void end() { simt::cluster_wait(); }

 private:
  // Columns past the end hold anything: their sums are not stored. Vectors past the end are zeros.
  SIMT_DEVICE void copy(int step) {
    if (step >= this->steps) return;
    const Panel to = this->of(step);
    const int vectors = this->vectors(step);
    const int left = this->problem_.columns - this->column_;
    const int bytes = 16 * (left < T::kColumns ? left : T::kColumns);
    for (int i = simt::thread(); i < (T::kDepth - vectors) * T::kColumns; i += T::kThreads) {
      *to.at(vectors + i / T::kColumns, i % T::kColumns) = Vector{};
    }
    if (simt::thread() == 0) {
      simt::Barrier* const full = full_ + step % T::kStages;
      simt::barrier_expect(full, vectors * bytes);
      for (int k = simt::block() % T::kCluster; k < vectors; k += T::kCluster) {
        simt::copy_multicast(to.at(k, 0), this->from(step, k), bytes, full, T::kCluster);
      }
    }
  }

  simt::Barrier* const full_;
};

// What the weights of a cluster need in shared memory that nothing else may lie over later.
template <class T>
SIMT_DEVICE simt::Barrier* take_barriers(simt::Carve& carve) {
  if constexpr (T::kCluster == 1) {
    return nullptr;
  } else {
    return carve.take<simt::Barrier>(T::kStages);
  }
}

template <class T>
using Weights = std::conditional_t<T::kCluster == 1, OwnWeights<T>, ClusterWeights<T>>;

}  // namespace inception_fused::cuda
