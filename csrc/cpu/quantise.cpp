#include "quantise.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <stdexcept>
#include <string>

namespace inception_fused::cpu {

namespace {

constexpr float kLargest = 127;    // weight
constexpr double kBias = 1 << 24;  // in its units, at most; so it has the accuracy of float32

// The units of a convolution's sums in its output channel.
double unit_of(float weight_scale, const Scale& from) {
  return static_cast<double>(from.scale) * static_cast<double>(weight_scale);
}

}  // namespace

QuantisedWeights quantise_weights(const float* weights, const float* biases, int64_t outputs,
                                  int64_t terms, const Scale& from, int64_t index) {
  QuantisedWeights result;
  result.weights.reserve(static_cast<size_t>(outputs * terms));
  for (int64_t o = 0; o < outputs; ++o, weights += terms) {
    float largest = 0;
    bool finite = std::isfinite(biases[o]);
    for (int64_t k = 0; k < terms; ++k) {
      finite = finite && std::isfinite(weights[k]);
      largest = std::max(largest, std::abs(weights[k]));
    }
    if (!finite) {
      throw std::invalid_argument("output channel " + std::to_string(o) + " of convolution " +
                                  std::to_string(index) +
                                  " has a weight or bias that is not finite, which int8 cannot be");
    }
    const double bias = biases[o];
    const float scale = std::max(
        {largest / kLargest, FLT_MIN, static_cast<float>(std::abs(bias) / (from.scale * kBias))});
    int64_t sum = 0;
    for (int64_t k = 0; k < terms; ++k) {
      const float number = std::clamp(std::nearbyint(weights[k] / scale), -kLargest, kLargest);
      result.weights.push_back(static_cast<int8_t>(number));
      sum += result.weights.back();
    }
    result.scales.push_back(scale);
    const auto whole = static_cast<int64_t>(std::nearbyint(bias / unit_of(scale, from)));
    result.biases.push_back(static_cast<uint32_t>(whole - sum * from.zero));
  }
  return result;
}

float factor_of(float weight_scale, const Scale& from, int64_t buffer,
                std::span<const Scale> scales) {
  double factor = unit_of(weight_scale, from);
  if (buffer != kOut) factor /= static_cast<double>(scales[buffer].scale);
  return static_cast<float>(std::min<double>(factor, FLT_MAX));
}

void check_scales(const Plan& plan, std::span<const Scale> scales) {
  constexpr float kLeast = 1e-20f, kMost = 1e20f;
  if (scales.size() != plan.buffers.size()) {
    throw std::invalid_argument("scales: the plan has " + std::to_string(plan.buffers.size()) +
                                " buffers, got " + std::to_string(scales.size()));
  }
  for (size_t b = 0; b < scales.size(); ++b) {
    const auto [scale, zero] = scales[b];
    if (b != kOut && !(scale >= kLeast && scale <= kMost && zero >= 0 && zero <= 255)) {
      throw std::invalid_argument("scales: buffer " + std::to_string(b) + " cannot have scale " +
                                  std::to_string(scale) + " and zero " + std::to_string(zero));
    }
  }
  for (const Step& step : plan.steps) {
    const int64_t to = step.dst[0].slice.buffer;
    const Scale &a = scales[step.src.buffer], &b = scales[to];
    if (step.kind == Kind::MAXPOOL && to != kOut && (a.scale != b.scale || a.zero != b.zero)) {
      throw std::invalid_argument("scales: a max pool reads buffer " +
                                  std::to_string(step.src.buffer) + " and writes buffer " +
                                  std::to_string(to) + ", whose scales differ");
    }
  }
}

void check_sums(const Plan& plan, size_t step) {
  constexpr double kTerm = kLargest * 255;
  const Step& s = plan.steps[step];
  const double terms = static_cast<double>(s.src.channels) * static_cast<double>(s.window.taps());
  if (terms * kTerm + kBias >= 0x1p31) {
    throw PlanError("step " + std::to_string(step) + " adds " +
                    std::to_string(s.src.channels * s.window.taps()) +
                    " products, too many for the int32 sums of int8");
  }
}

void put_scale(const Scale& scale, float* scales, size_t buffer) {
  scales[2 * buffer] = scale.scale;
  scales[2 * buffer + 1] = static_cast<float>(scale.zero);
}

Scale get_scale(const float* scales, int64_t buffer) {
  return {scales[2 * buffer], static_cast<int32_t>(scales[2 * buffer + 1])};
}

}  // namespace inception_fused::cpu
