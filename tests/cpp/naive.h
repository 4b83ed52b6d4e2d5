// A plan as loops over channels and taps in double, each value rounded to the precision when it is
// stored: what csrc/cpu must equal.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "plan.h"

namespace inception_fused {

struct Result {
  std::vector<double> output;  // (batch, channels, height, width), contiguous
  double largest = 0;          // sum of the magnitudes of the terms of any value on the way
};

// To the nearest value of the precision, ties to even; float32 stands for double here.
double rounded(double value, cpu::Precision precision);

// Of such an x; weights and biases by weight index, (out, in, height, width) and (out).
Result naive(const Plan& plan, int64_t batch, Size image, const std::vector<float>& x,
             const std::vector<std::vector<float>>& weights,
             const std::vector<std::vector<float>>& biases, cpu::Precision precision);

}  // namespace inception_fused
