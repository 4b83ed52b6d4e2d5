// Runs a plan on the CPU: tasks on threads, scratch, waves. Knows no torch; threads come from
// outside.
#pragma once

#include <cstdint>
#include <functional>

#include "kernels.h"
#include "plan.h"
#include "program.h"

namespace inception_fused::cpu {

// Calls body(0) ... body(threads - 1), each once, at the same time or one after the other.
using Parallel = std::function<void(int threads, const std::function<void(int)>& body)>;

// out = plan(x), with a pack made by pack() and its layout. x and out have the plan's channels and
// sizes and do not overlap. Uses `threads` threads at most.
void run(const Plan& plan, const PackLayout& layout, const Strided& x, const Strided& out,
         const float* pack, const Kernels& kernels, int threads, const Parallel& parallel);

}  // namespace inception_fused::cpu
