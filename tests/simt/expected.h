// What a plan must give, in float64: for check.cpp.
#pragma once

#include <cstdint>
#include <vector>

#include "plan.h"

namespace inception_fused {

struct Images {  // [image][channel][row][column]
  int64_t number = 0, channels = 0;
  Size size;
  std::vector<double> value;

  int64_t elements() const { return number * channels * size.height * size.width; }
  const double* plane(int64_t image, int64_t channel) const {
    return value.data() + (image * channels + channel) * size.height * size.width;
  }
  double* plane(int64_t image, int64_t channel) {
    return value.data() + (image * channels + channel) * size.height * size.width;
  }
};

// The plan's output; NaN where no step writes. The plan keeps the image size and has no other steps
// than convolutions, pooled first or not, with an odd window whose padding is half of it.
//
// weights: [out][in][row][column] of each convolution, all finite; biases: [out].
Images expected(const Plan& plan, const Images& x, const std::vector<std::vector<double>>& weights,
                const std::vector<std::vector<double>>& biases);

}  // namespace inception_fused
