// What a training step needs beside the plan's convolutions: batch norms and max pools, forward and
// backward, on threads. float32, channels last. Knows no torch; threads come from outside.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "parallel.h"
#include "places.h"
#include "plan.h"

namespace inception_fused::cpu {

// Who runs something, and on how many threads.
struct Crew {
  const Kernels& kernels;
  int threads;
  const Parallel& parallel;
};

// Per channel what a norm is: y = (z - mean) * inverse * gamma + beta, shift = y of z = 0.
struct Constants {
  const float* mean;
  const float* inverse;
  const float* gamma;
  const float* shift;
};

// y = norm(z), with a ReLU behind if asked for.
void normalise(const Crew& crew, Pixels<const float> z, const Constants& constants, bool relu,
               int64_t pixels, int64_t channels, Pixels<float> y);

// From the gradient of y those of z, gamma and beta. batch: mean and inverse are those of z.
void normalise_backward(const Crew& crew, Pixels<const float> grad, Pixels<const float> z,
                        const Constants& constants, bool relu, bool batch, int64_t pixels,
                        int64_t channels, Pixels<float> grad_z, float* grad_gamma,
                        float* grad_beta);

// A max pool, and which tap of its window each maximum is, row by row: where holds out's elements
// as (batch, height, width, channels). The window has at most 256 taps.
void max_pool(const Crew& crew, const Strided& x, const Window& window, const Strided& out,
              uint8_t* where);

// Writes all of grad_x.
void max_pool_backward(const Crew& crew, const Strided& grad, const uint8_t* where,
                       const Window& window, const Strided& grad_x);

}  // namespace inception_fused::cpu
