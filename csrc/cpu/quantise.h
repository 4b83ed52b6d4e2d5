// int8: what its numbers mean, and the weights of a plan as such.
//
//   activations  uint8, one scale and zero per buffer: value = scale * (number - zero)
//   weights      int8, -127 to 127, one scale per output channel: value = scale * number
//   sums         int32, exact:  sum = bias + sum of weight * (activation - zero)
//   bias         int32, in units of (scale of the source) * (scale of the weights)
//
// A sum becomes a number of its destination by one float32 factor (kernels.h). Input and output of
// a plan are float32; the input is quantised, and the output's values are not.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "plan.h"

namespace inception_fused::cpu {

struct Scale {
  float scale;
  int32_t zero;  // 0 to 255
};

struct QuantisedWeights {
  std::vector<int8_t> weights;   // as given
  std::vector<float> scales;     // by output channel
  std::vector<uint32_t> biases;  // bits of int32; zero of the source taken off every term
};

// Of one convolution, (outputs, terms) contiguous. A scale is such that the largest weight is 127,
// and larger where the bias needs it: it is a number of 25 bits at most.
// Throws std::invalid_argument if a number of weights[index] or biases[index] is not finite.
QuantisedWeights quantise_weights(const float* weights, const float* biases, int64_t outputs,
                                  int64_t terms, const Scale& from, int64_t index);

// What a sum is multiplied with on its way into a buffer.
float factor_of(float weight_scale, const Scale& from, int64_t buffer,
                std::span<const Scale> scales);

// Throws std::invalid_argument unless there is one per buffer but the output's, whose scale is not
// looked at, each positive and in range, and a max pool writes with the scale that it reads with.
void check_scales(const Plan& plan, std::span<const Scale> scales);

// Throws PlanError if the sums of a step may overflow.
void check_sums(const Plan& plan, size_t step);

// To and from a pack.
void put_scale(const Scale& scale, float* scales, size_t buffer);
Scale get_scale(const float* scales, int64_t buffer);

}  // namespace inception_fused::cpu
