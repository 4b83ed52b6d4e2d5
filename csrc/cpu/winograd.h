// Winograd's minimal filtering: F(2x2,3x3), F(4x4,3x3) and F(2x2,5x5) for convolutions of stride 1.
//
// An output tile of edge m comes from an input tile of edge points = m + r - 1, by one product per
// pair of points instead of one per tap. The points are 0, 1, -1, infinity (four of them) or 0,
// +-1/sqrt(2), +-sqrt(2), infinity (six), which keep the error near that of direct convolution; the
// textbook's +-1, +-2 are five times worse. The transforms of the activations are in winograd.inl.
#pragma once

#include <array>
#include <cstdint>

#include "plan.h"

namespace inception_fused::cpu {

inline constexpr int kMaxPoints = 6;

// Whether a step can be computed in output tiles of this edge.
inline bool has_winograd(const Step& step, int64_t tile) {
  const int64_t edge = step.window.kernel.height;
  for (const Destination& dst : step.dst) {
    if (dst.slice.buffer != step.dst[0].slice.buffer) return false;
  }
  return step.kind == Kind::CONV && step.window.kernel == Size{edge, edge} &&
         step.window.stride == Size{1, 1} &&
         ((edge == 3 && (tile == 2 || tile == 4)) || (edge == 5 && tile == 2));
}

inline int64_t points_of(const Step& step, int64_t tile) {
  return tile + step.window.kernel.height - 1;
}

// The transform of filters of one size, in float64, rounded at the end.
class FilterTransform {
 public:
  FilterTransform(int64_t edge, int64_t points);

  // weight: (edge, edge); to[(i * points + j) * pitch] = (G weight G^T)[i][j].
  void operator()(const float* weight, float* to, int64_t pitch) const;

 private:
  int64_t edge_, points_;
  std::array<std::array<double, 5>, kMaxPoints> g_{};
};

}  // namespace inception_fused::cpu
