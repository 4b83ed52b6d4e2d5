#include "winograd.h"

#include <cmath>

namespace inception_fused::cpu {

// Row i of G: the filter's polynomial at point i, over the derivative there of the polynomial whose
// roots are the finite points; the row of infinity takes the highest coefficient.
FilterTransform::FilterTransform(int64_t edge, int64_t points) : edge_(edge), points_(points) {
  const double small = std::sqrt(0.5), large = std::sqrt(2.0);
  const std::array<double, 5> four{0, 1, -1}, six{0, small, -small, large, -large};
  const std::array<double, 5>& point = points == 4 ? four : six;
  for (int64_t i = 0; i < points - 1; ++i) {
    double derivative = 1;
    for (int64_t j = 0; j < points - 1; ++j) {
      if (j != i) derivative *= point[i] - point[j];
    }
    double power = 1 / derivative;
    for (int64_t k = 0; k < edge; ++k, power *= point[i]) g_[i][k] = power;
  }
  g_[points - 1][edge - 1] = 1;
}

void FilterTransform::operator()(const float* weight, float* to, int64_t pitch) const {
  for (int64_t i = 0; i < points_; ++i) {
    std::array<double, 5> row{};  // of G weight
    for (int64_t y = 0; y < edge_; ++y) {
      for (int64_t x = 0; x < edge_; ++x) row[x] += g_[i][y] * weight[y * edge_ + x];
    }
    for (int64_t j = 0; j < points_; ++j) {
      double sum = 0;
      for (int64_t x = 0; x < edge_; ++x) sum += row[x] * g_[j][x];
      to[(i * points_ + j) * pitch] = static_cast<float>(sum);
    }
  }
}

}  // namespace inception_fused::cpu
