#include "naive.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace inception_fused {
namespace {

// (channels, height, width) of one image.
struct Image {
  int64_t channels;
  Size size;
  std::vector<double> data;

  Image(int64_t c, Size s) : channels(c), size(s), data(c * s.height * s.width) {}
  double& at(int64_t c, int64_t y, int64_t x) {
    return data[(c * size.height + y) * size.width + x];
  }
};

// Calls body(tap, value) for every tap of the window at output pixel (y, x) that is in the image.
template <typename Body>
void for_taps(const Window& w, Image& image, int64_t c, int64_t y, int64_t x, const Body& body) {
  for (int64_t ky = 0; ky < w.kernel.height; ++ky) {
    for (int64_t kx = 0; kx < w.kernel.width; ++kx) {
      const int64_t iy = y * w.stride.height + ky - w.padding.height;
      const int64_t ix = x * w.stride.width + kx - w.padding.width;
      if (iy < 0 || iy >= image.size.height || ix < 0 || ix >= image.size.width) continue;
      body(ky * w.kernel.width + kx, image.at(c, iy, ix));
    }
  }
}

// The pixels of the window at output pixel (y, x) that are in the image or in its padding.
int64_t padded_taps(const Window& w, Size size, int64_t y, int64_t x) {
  const auto count = [](int64_t n, int64_t at, int64_t k, int64_t s, int64_t p) {
    int64_t found = 0;
    for (int64_t i = at * s - p; i < at * s - p + k; ++i) found += i < n + p;
    return found;
  };
  return count(size.height, y, w.kernel.height, w.stride.height, w.padding.height) *
         count(size.width, x, w.kernel.width, w.stride.width, w.padding.width);
}

Image respond(const Response& r, Image& from) {
  Image to(from.channels, from.size);
  for (int64_t y = 0; y < to.size.height; ++y) {
    for (int64_t x = 0; x < to.size.width; ++x) {
      for (int64_t c = 0; c < to.channels; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < to.channels; ++i) {
          const bool near = i >= c - r.size / 2 && i < c - r.size / 2 + r.size;
          if (near) sum += from.at(i, y, x) * from.at(i, y, x);
        }
        const double scale = r.k + r.alpha / static_cast<double>(r.size) * sum;
        to.at(c, y, x) = from.at(c, y, x) / std::pow(scale, static_cast<double>(r.beta));
      }
    }
  }
  return to;
}

Image pool(Kind kind, const Window& w, Image& from) {
  Image to(from.channels, output_size(w, from.size));
  for (int64_t c = 0; c < to.channels; ++c) {
    for (int64_t y = 0; y < to.size.height; ++y) {
      for (int64_t x = 0; x < to.size.width; ++x) {
        double sum = 0, most = -std::numeric_limits<double>::infinity();
        int64_t inside = 0;
        for_taps(w, from, c, y, x, [&](int64_t, double v) {
          sum += v;
          most = std::max(most, v);
          ++inside;
        });
        const int64_t counted = kind == Kind::AVGPOOL ? padded_taps(w, from.size, y, x) : inside;
        to.at(c, y, x) = kind == Kind::MAXPOOL ? most : sum / static_cast<double>(counted);
      }
    }
  }
  return to;
}

Image convolve(const Window& w, Image& from, const Destination& dst,
               const std::vector<float>& weight, const std::vector<float>& bias, double& largest) {
  Image to(dst.slice.channels, output_size(w, from.size));
  for (int64_t o = 0; o < to.channels; ++o) {
    for (int64_t y = 0; y < to.size.height; ++y) {
      for (int64_t x = 0; x < to.size.width; ++x) {
        double sum = bias[o], magnitude = std::abs(sum);
        for (int64_t i = 0; i < from.channels; ++i) {
          const float* filter = weight.data() + (o * from.channels + i) * w.taps();
          for_taps(w, from, i, y, x, [&](int64_t tap, double v) {
            sum += v * filter[tap];
            magnitude += std::abs(v * filter[tap]);
          });
        }
        largest = std::max(largest, magnitude);
        to.at(o, y, x) = dst.activation == Activation::RELU && sum < 0 ? 0 : sum;
      }
    }
  }
  return to;
}

Image compute(const Step& step, const Destination& dst, Image& src,
              const std::vector<std::vector<float>>& weights,
              const std::vector<std::vector<float>>& biases, double& largest) {
  if (is_pool(step.kind)) return pool(step.kind, step.window, src);
  if (step.kind == Kind::MEAN) return pool(Kind::AVGPOOL_INSIDE, Window{src.size}, src);
  if (step.kind == Kind::LRN) return respond(step.response, src);
  return convolve(step.window, src, dst, weights[dst.weight], biases[dst.weight], largest);
}

Image slice(const Image& from, const Slice& s) {
  Image to(s.channels, from.size);
  const int64_t pixels = from.size.height * from.size.width;
  std::copy_n(from.data.begin() + s.offset * pixels, s.channels * pixels, to.data.begin());
  return to;
}

}  // namespace

double rounded(double value, cpu::Precision precision) {
  if (precision == cpu::Precision::kFloat32) return value;
  const auto bits = std::bit_cast<uint32_t>(static_cast<float>(value));
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  return static_cast<double>(std::bit_cast<float>(nearest));
}

Result naive(const Plan& plan, int64_t batch, Size image, const std::vector<float>& x,
             const std::vector<std::vector<float>>& weights,
             const std::vector<std::vector<float>>& biases, cpu::Precision precision) {
  const auto round = [&](Image image) {
    for (double& value : image.data) value = rounded(value, precision);
    return image;
  };
  const std::vector<Size> sizes = plan.sizes(image);
  Result result;
  for (int64_t n = 0; n < batch; ++n) {
    std::vector<Image> buffers;
    for (size_t b = 0; b < sizes.size(); ++b) buffers.emplace_back(plan.buffers[b], sizes[b]);
    std::vector<double>& in = buffers[kIn].data;
    std::copy_n(x.begin() + n * static_cast<int64_t>(in.size()), in.size(), in.begin());
    for (const Step& step : plan.steps) {
      Image src = slice(buffers[step.src.buffer], step.src);
      if (step.pre) src = round(pool(step.pre->kind, step.pre->window, src));
      for (const Destination& dst : step.dst) {
        const Image value = round(compute(step, dst, src, weights, biases, result.largest));
        Image& to = buffers[dst.slice.buffer];
        const int64_t first = dst.slice.offset * to.size.height * to.size.width;
        std::copy(value.data.begin(), value.data.end(), to.data.begin() + first);
      }
    }
    const std::vector<double>& out = buffers[kOut].data;
    result.output.insert(result.output.end(), out.begin(), out.end());
  }
  return result;
}

}  // namespace inception_fused
