#include "expected.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace inception_fused {
namespace {

// Calls use(to, from) for every pixel `from` that the tap of a window reads for the pixel `to`.
template <class Use>
void for_pixels(Size size, int64_t down, int64_t right, const Use& use) {
  const int64_t top = std::max<int64_t>(0, -down), left = std::max<int64_t>(0, -right);
  const int64_t bottom = size.height - std::max<int64_t>(0, down);
  const int64_t end = size.width - std::max<int64_t>(0, right);
  for (int64_t y = top; y < bottom; ++y) {
    const int64_t row = y * size.width;
    for (int64_t x = left; x < end; ++x) use(row + x, row + down * size.width + x + right);
  }
}

void pool_plane(double* to, const double* from, Size size, const Pool& pool) {
  const Size pad = pool.window.padding;
  const bool most = pool.kind == Kind::MAXPOOL;
  std::fill_n(to, size.height * size.width, most ? -std::numeric_limits<double>::infinity() : 0.0);
  for (int64_t down = -pad.height; down <= pad.height; ++down) {
    for (int64_t right = -pad.width; right <= pad.width; ++right) {
      for_pixels(size, down, right, [&](int64_t i, int64_t j) {
        if (!most) {
          to[i] += from[j] / static_cast<double>(pool.window.taps());
        } else if (from[j] > to[i] || std::isnan(from[j])) {
          to[i] = from[j];
        }
      });
    }
  }
}

void convolve_plane(double* to, const double* from, Size size, const Window& window,
                    const double* weight) {
  for (int64_t i = 0; i < window.kernel.height; ++i) {
    for (int64_t j = 0; j < window.kernel.width; ++j) {
      const double factor = *weight++;
      for_pixels(size, i - window.padding.height, j - window.padding.width,
                 [&](int64_t p, int64_t q) { to[p] += factor * from[q]; });
    }
  }
}

}  // namespace

Images expected(const Plan& plan, const Images& x, const std::vector<std::vector<double>>& weights,
                const std::vector<std::vector<double>>& biases) {
  const int64_t pixels = x.size.height * x.size.width;
  std::vector<Images> buffers;
  for (int64_t channels : plan.buffers) {
    Images& buffer = buffers.emplace_back(Images{x.number, channels, x.size, {}});
    buffer.value.assign(buffer.elements(), std::nan(""));
  }
  buffers[kIn] = x;
  std::vector<double> pooled(pixels);
  for (const Step& step : plan.steps) {
    const Images& source = buffers[step.src.buffer];
    for (int64_t n = 0; n < x.number; ++n) {
      for (const Destination& d : step.dst) {
        for (int64_t c = 0; c < d.slice.channels; ++c) {
          std::fill_n(buffers[d.slice.buffer].plane(n, d.slice.offset + c), pixels,
                      biases[d.weight][c]);
        }
      }
      for (int64_t k = 0; k < step.src.channels; ++k) {
        const double* plane = source.plane(n, step.src.offset + k);
        if (step.pre) {
          pool_plane(pooled.data(), plane, x.size, *step.pre);
          plane = pooled.data();
        }
        for (const Destination& d : step.dst) {
          for (int64_t c = 0; c < d.slice.channels; ++c) {
            convolve_plane(
                buffers[d.slice.buffer].plane(n, d.slice.offset + c), plane, x.size, step.window,
                weights[d.weight].data() + (c * step.src.channels + k) * step.window.taps());
          }
        }
      }
      for (const Destination& d : step.dst) {
        if (d.activation != Activation::RELU) continue;
        double* const first = buffers[d.slice.buffer].plane(n, d.slice.offset);
        for (double* v = first; v != first + d.slice.channels * pixels; ++v) {
          if (*v < 0) *v = 0;  // NaN stays NaN
        }
      }
    }
  }
  return buffers[kOut];
}

}  // namespace inception_fused
