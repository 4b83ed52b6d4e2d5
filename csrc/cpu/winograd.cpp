#include "winograd.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace inception_fused::cpu {

bool has_winograd(const Plan& plan, const Step& step, int64_t tile) {
  const int64_t kernel = step.window.kernel.height;
  const int64_t to = step.dst[0].slice.buffer;
  if (step.kind != Kind::CONV || step.window.kernel != Size{kernel, kernel} ||
      std::any_of(step.dst.begin(), step.dst.end(),
                  [to](const Destination& dst) { return dst.slice.buffer != to; })) {
    return false;
  }
  if (step.window.stride == Size{1, 1}) {
    return (kernel == 3 && (tile == 2 || tile == 4)) || (kernel == 5 && tile == 2);
  }
  // x is brought into its phases for one reader, all of it, in one group of channels.
  const auto readers = std::count_if(plan.steps.begin(), plan.steps.end(),
                                     [](const Step& s) { return s.src.buffer == kIn; });
  return step.window.stride == Size{2, 2} && (kernel == 5 || kernel == 7) &&
         points_of(step, tile) == kMaxPoints && step.src.buffer == kIn && readers == 1 &&
         step.src.channels == plan.in_channels() && depth_of(step) <= kGroup;
}

// Row i of G: the filter's polynomial at point i, over the derivative there of the polynomial whose
// roots are the finite points; the row of infinity takes the highest coefficient.
FilterTransform::FilterTransform(const Step& step, int64_t tile)
    : kernel_(step.window.kernel.height),
      phases_(phases_along(step)),
      edge_(edge_of(step)),
      points_(points_of(step, tile)) {
  const double small = std::sqrt(0.5), large = std::sqrt(2.0);
  const std::array<double, 5> four{0, 1, -1}, six{0, small, -small, large, -large};
  const std::array<double, 5>& point = points_ == 4 ? four : six;
  for (int64_t i = 0; i < points_ - 1; ++i) {
    double derivative = 1;
    for (int64_t j = 0; j < points_ - 1; ++j) {
      if (j != i) derivative *= point[i] - point[j];
    }
    double power = 1 / derivative;
    for (int64_t k = 0; k < edge_; ++k, power *= point[i]) g_[i][k] = power;
  }
  g_[points_ - 1][edge_ - 1] = 1;
}

void FilterTransform::operator()(const float* weight, int64_t phase, float* to,
                                 int64_t pitch) const {
  const int64_t top = phase / phases_, left = phase % phases_;
  for (int64_t i = 0; i < points_; ++i) {
    std::array<double, 5> row{};  // of G weight
    for (int64_t y = 0; y * phases_ + top < kernel_; ++y) {
      const float* taps = weight + (y * phases_ + top) * kernel_ + left;
      for (int64_t x = 0; x * phases_ + left < kernel_; ++x) row[x] += g_[i][y] * taps[x * phases_];
    }
    for (int64_t j = 0; j < points_; ++j) {
      double sum = 0;
      for (int64_t x = 0; x < edge_; ++x) sum += row[x] * g_[j][x];
      to[(i * points_ + j) * pitch] = static_cast<float>(sum);
    }
  }
}

}  // namespace inception_fused::cpu
