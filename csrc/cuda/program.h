// A plan for one image size, dtype and device, as launches: what run_cuda.cpp sends to the GPU and
// the emulator runs on a CPU. Standard library only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cuda/choose.h"
#include "cuda/problem.h"
#include "plan.h"

namespace inception_fused::cuda {

struct Strided {  // a tensor (batch, channels, height, width); strides in elements
  char* data = nullptr;
  int64_t size[4] = {};
  int64_t stride[4] = {};
};

struct StepPack {  // byte offsets in a pack; columns in elements, with the padding
  int64_t bias = 0;
  int64_t weights = 0;
  int columns = 0;
};

struct PackLayout {
  std::vector<StepPack> steps;  // as in the plan
  int64_t bytes = 0;            // a multiple of 16
};

struct LaunchPlan {
  bool conv = false;  // kernel B, run_conv; otherwise kernel A, run_pointwise
  Config config;
  Wave wave;
};

struct Program {
  std::vector<LaunchPlan> launches;
  int64_t scratch_bytes = 0;
};

// Why these kernels cannot run the plan, or nothing.
std::optional<std::string> why_not(const Plan& plan);

PackLayout pack_layout(const Plan& plan, Math math);

// Packs of float32 have one layout; how it is multiplied is told by bytes that follow. The inverse
// takes the math of the dtype by default and gives that of the pack, or nothing.
int64_t telling_bytes(Math math);
std::optional<Math> told_by(int64_t bytes, Math usual);

// The work of one weight; addresses of the weight itself are left to the caller.
PackTask pack_task(const Plan& plan, const PackLayout& layout, Math math, int64_t weight,
                   char* pack);

int pack_blocks(const PackTask& task, Math math);  // of kPackThreads threads

int64_t scratch_bytes(const Plan& plan, Math math, int64_t pixels);

// x and out have the plan's channels. `scratch` holds scratch_bytes(...), aligned to 16 bytes.
// Throws PlanError with the reason if why_not has one or if a problem has too many pixels for its
// indices.
Program build(const Plan& plan, Math math, const Architecture& architecture, const Strided& x,
              const Strided& out, const char* pack, char* scratch);

// Lays the wave's tiles out over the blocks of a launch of this shape.
void set_blocks(Wave& wave, const Shape& shape);

}  // namespace inception_fused::cuda
