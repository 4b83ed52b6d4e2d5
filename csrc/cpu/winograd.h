// Winograd's minimal filtering: F(2x2,3x3), F(4x4,3x3) and F(2x2,5x5) for convolutions of stride 1,
// F(4x4,3x3) and F(3x3,4x4) for 5x5 and 7x7 ones of stride 2 over a plan's input of few channels.
//
// The latter are of stride 1 over the phases of the image: the padded image is cut into squares of
// 2x2 pixels, and the channels of a square's four pixels are those of one pixel of the phases.
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
inline constexpr int kMaxKernel = 7;

// Whether a step can be computed in output tiles of this edge.
bool has_winograd(const Plan& plan, const Step& step, int64_t tile);

// Phases of the image that are channels of their own, along each axis: 1, or 2 at stride 2.
inline int64_t phases_along(const Step& step) { return step.window.stride.height; }

// Edge of the filter of each phase.
inline int64_t edge_of(const Step& step) {
  return (step.window.kernel.height + phases_along(step) - 1) / phases_along(step);
}

// Channels of all phases.
inline int64_t depth_of(const Step& step) {
  return phases_along(step) * phases_along(step) * step.src.channels;
}

inline int64_t points_of(const Step& step, int64_t tile) { return tile + edge_of(step) - 1; }

// The transform of the filters of one step, in float64, rounded at the end.
class FilterTransform {
 public:
  FilterTransform(const Step& step, int64_t tile);

  // weight: (kernel, kernel), of which g is the part of one phase, phase / phases_along(step) down
  // and phase % phases_along(step) to the right; to[(i * points + j) * pitch] = (G g G^T)[i][j].
  void operator()(const float* weight, int64_t phase, float* to, int64_t pitch) const;

 private:
  int64_t kernel_, phases_, edge_, points_;
  std::array<std::array<double, 5>, kMaxPoints> g_{};
};

}  // namespace inception_fused::cpu
