// The kernels as host functions, one instance per dtype and shape. No torch here.
#pragma once

#include "cuda/choose.h"
#include "cuda/problem.h"

struct CUstream_st;

namespace inception_fused::cuda {

// Enqueues one launch of a program. `early`: as a programmatic dependent launch, which may begin
// before the one before it has finished (from sm_90 on). Returns nullptr, or CUDA's error text.
const char* launch(bool conv, Math math, const Config& config, const Wave& wave, bool early,
                   CUstream_st* stream);

const char* launch_pack(Math math, const PackTask& task, int blocks, CUstream_st* stream);

// Whether this library has code that a device of this compute capability can run.
bool has_code_for_current_device();

// The current device, its rates those of the nearest architecture of choose.h; sm 0 if it is older
// than all.
Architecture current_architecture();

}  // namespace inception_fused::cuda
