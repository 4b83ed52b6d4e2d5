#include "training.h"

#include <algorithm>
#include <array>
#include <vector>

namespace inception_fused::cpu {

namespace {

struct Range {
  int64_t first;
  int64_t last;
  int64_t count() const { return last - first; }
};

// Calls body(thread, its range of the items).
template <typename Body>
void share(const Crew& crew, int64_t items, const Body& body) {
  const int threads = static_cast<int>(std::clamp<int64_t>(items, 1, crew.threads));
  crew.parallel(threads, [&](int thread) {
    body(thread, Range{thread * items / threads, (thread + 1) * items / threads});
  });
}

template <typename T>
Pixels<T> from(const Pixels<T>& pixels, int64_t first) {
  return {pixels.data + first * pixels.pitch, pixels.pitch};
}

std::vector<float> scale_of(const Constants& constants, int64_t channels) {
  std::vector<float> scale(static_cast<size_t>(channels));
  for (int64_t c = 0; c < channels; ++c) scale[c] = constants.inverse[c] * constants.gamma[c];
  return scale;
}

// The pixels of a window that are in the image, and their numbers in it.
struct Taps {
  std::array<int64_t, 256> offset;
  std::array<uint8_t, 256> number;
  int count = 0;

  void find(const Window& window, const Strided& x, int64_t top, int64_t left) {
    count = 0;
    for (int64_t y = std::max<int64_t>(0, -top); y < window.kernel.height; ++y) {
      if (top + y >= x.size[2]) break;
      for (int64_t column = std::max<int64_t>(0, -left); column < window.kernel.width; ++column) {
        if (left + column >= x.size[3]) break;
        offset[count] = (top + y) * x.stride[2] + (left + column) * x.stride[3];
        number[count++] = static_cast<uint8_t>(y * window.kernel.width + column);
      }
    }
  }
};

// Calls body(taps, offset in out, number of the pixel) for the pixels of one row of windows.
template <typename Body>
void for_windows(const Window& window, const Strided& x, const Strided& out, int64_t image,
                 int64_t y, const Body& body) {
  Taps taps;
  for (int64_t column = 0; column < out.size[3]; ++column) {
    taps.find(window, x, y * window.stride.height - window.padding.height,
              column * window.stride.width - window.padding.width);
    body(taps, image * out.stride[0] + y * out.stride[2] + column * out.stride[3],
         (image * out.size[2] + y) * out.size[3] + column);
  }
}

}  // namespace

void normalise(const Crew& crew, Pixels<const float> z, const Constants& constants, bool relu,
               int64_t pixels, int64_t channels, Pixels<float> y) {
  const std::vector<float> scale = scale_of(constants, channels);
  share(crew, pixels, [&](int, Range range) {
    crew.kernels.training.normalise(from(z, range.first), scale.data(), constants.shift, relu,
                                    range.count(), channels, from(y, range.first));
  });
}

void normalise_backward(const Crew& crew, Pixels<const float> grad, Pixels<const float> z,
                        const Constants& constants, bool relu, bool batch, int64_t pixels,
                        int64_t channels, Pixels<float> grad_z, float* grad_gamma,
                        float* grad_beta) {
  const std::vector<float> scale = scale_of(constants, channels);
  const auto size = static_cast<size_t>(channels);
  std::vector<std::vector<double>> parts(static_cast<size_t>(crew.threads));
  share(crew, pixels, [&](int thread, Range range) {
    std::vector<double>& sums = parts[thread];
    sums.resize(2 * size);
    std::vector<float> work(2 * size + 16);
    crew.kernels.training.normalise_sums(from(grad, range.first), from(z, range.first),
                                         scale.data(), constants.shift, constants.mean, relu,
                                         range.count(), channels, work.data(), sums.data(),
                                         sums.data() + channels);
  });
  std::vector<float> grad_mean(size), slope(size);
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, product = 0;
    for (const std::vector<double>& part : parts) {
      if (part.empty()) continue;
      sum += part[c];
      product += part[channels + c];
    }
    const double inverse = constants.inverse[c];
    grad_gamma[c] = static_cast<float>(product * inverse);
    grad_beta[c] = static_cast<float>(sum);
    if (!batch) continue;
    grad_mean[c] = static_cast<float>(sum / static_cast<double>(pixels));
    slope[c] = static_cast<float>(product * inverse * inverse / static_cast<double>(pixels));
  }
  share(crew, pixels, [&](int, Range range) {
    crew.kernels.training.normalise_gradient(from(grad, range.first), from(z, range.first),
                                             scale.data(), constants.shift, constants.mean,
                                             grad_mean.data(), slope.data(), relu, range.count(),
                                             channels, from(grad_z, range.first));
  });
}

void max_pool(const Crew& crew, const Strided& x, const Window& window, const Strided& out,
              uint8_t* where) {
  share(crew, out.size[0] * out.size[2], [&](int, Range range) {
    std::array<const float*, 256> tap;
    for (int64_t row = range.first; row < range.last; ++row) {
      const int64_t image = row / out.size[2];
      const float* src = static_cast<const float*>(x.data) + image * x.stride[0];
      for_windows(window, x, out, image, row % out.size[2],
                  [&](const Taps& taps, int64_t offset, int64_t pixel) {
                    for (int t = 0; t < taps.count; ++t) tap[t] = src + taps.offset[t];
                    crew.kernels.training.max_pool_numbered(
                        tap.data(), taps.number.data(), taps.count, x.size[1],
                        static_cast<float*>(out.data) + offset, where + pixel * x.size[1]);
                  });
    }
  });
}

void max_pool_backward(const Crew& crew, const Strided& grad, const uint8_t* where,
                       const Window& window, const Strided& grad_x) {
  const int64_t channels = grad_x.size[1];
  share(crew, grad_x.size[0], [&](int, Range range) {
    std::array<float*, 256> tap;
    for (int64_t image = range.first; image < range.last; ++image) {
      float* dst = static_cast<float*>(grad_x.data) + image * grad_x.stride[0];
      for (int64_t y = 0; y < grad_x.size[2]; ++y) {
        for (int64_t column = 0; column < grad_x.size[3]; ++column) {
          std::fill_n(dst + y * grad_x.stride[2] + column * grad_x.stride[3], channels, 0.0f);
        }
      }
      for (int64_t y = 0; y < grad.size[2]; ++y) {
        for_windows(
            window, grad_x, grad, image, y, [&](const Taps& taps, int64_t offset, int64_t pixel) {
              for (int t = 0; t < taps.count; ++t) tap[t] = dst + taps.offset[t];
              crew.kernels.training.max_pool_gradient(static_cast<const float*>(grad.data) + offset,
                                                      where + pixel * channels, tap.data(),
                                                      taps.number.data(), taps.count, channels);
            });
      }
    }
  });
}

}  // namespace inception_fused::cpu
