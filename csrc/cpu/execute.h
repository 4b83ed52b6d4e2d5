// One task of a program, on the calling thread.
#pragma once

#include "program.h"

namespace inception_fused::cpu {

// The tensors and memory of one run of a program.
struct Operands {
  const Strided& x;
  const Strided& out;
  int64_t first_image;  // of the program's images, in x and out
  const float* pack;
  float* scratch;  // Program::scratch elements
  float* pooled;   // Program::pooled elements, of this thread alone
};

void execute(const Program& program, const Task& task, const Operands& operands);

}  // namespace inception_fused::cpu
