// The CUDA back end on the emulator: packs the weights and runs a plan, as csrc/run_cuda.cpp does
// on a device.
#pragma once

#include <optional>
#include <vector>

#include "cuda/program.h"
#include "cuda/simt.h"

namespace inception_fused::cuda {

struct Weight {
  Strided weight;  // (out, in, height, width)
  char* bias = nullptr;
  int64_t bias_stride = 1;
};

struct EmulatedRun {
  Program program;
  int64_t pack_bytes = 0;
};

// Writes out, which must not overlap x. `shape` forces a tile where it fits; `times`: how often the
// plan runs, each begun early, in the same scratch. `merged_packs`: see simt::Launch.
EmulatedRun run_emulated(simt::Machine& machine, const Plan& plan, Math math,
                         const Architecture& architecture, const Strided& x,
                         const std::vector<Weight>& weights, const Strided& out,
                         std::optional<int> shape = std::nullopt, int times = 1,
                         bool merged_packs = false);

}  // namespace inception_fused::cuda
