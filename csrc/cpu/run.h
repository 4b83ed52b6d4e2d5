// Runs a plan on the CPU: tasks on threads, scratch, waves. Knows no torch; threads come from
// outside.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels.h"
#include "parallel.h"
#include "plan.h"
#include "program.h"

namespace inception_fused::cpu {

// A plan made ready for tensors of given sizes and strides: all that does not depend on their data.
// It may be used by several threads at once, and with other addresses.
class Prepared {
 public:
  // x and out have the plan's channels and sizes; their data is not looked at. Uses `threads`
  // threads at most.
  Prepared(Plan plan, PackLayout layout, const Strided& x, const Strided& out,
           const Kernels& kernels, int threads);

  const Plan& plan() const { return plan_; }
  const PackLayout& layout() const { return layout_; }
  Size out_size() const { return out_size_; }

  // out = plan(x), with a pack of this layout, made by pack(). x and out do not overlap.
  void run(const Strided& x, const Strided& out, const float* pack, const Parallel& parallel) const;

 private:
  template <typename T>
  void run_as(const Strided& x, const Strided& out, const float* pack,
              const Parallel& parallel) const;

  Plan plan_;
  PackLayout layout_;
  Size out_size_;
  int threads_;
  // Whole images, `group_` at a time, run on one thread each as long as there are enough of them;
  // the rest is shared by all threads.
  int64_t group_ = 0;
  int64_t groups_ = 0;
  std::unique_ptr<const Program> alone_;
  std::unique_ptr<const Program> together_;
};

}  // namespace inception_fused::cpu
