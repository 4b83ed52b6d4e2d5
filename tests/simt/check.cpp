// An emulated plan, run twice, against a plain float64 reference, as a program of its own so that
// the sanitizers can watch it. Small integers as inputs: sums are exact, results must be equal bit
// for bit. The first element of the input is NaN.
//
//   check MATH LAYOUT BATCH HEIGHT WIDTH SM SHAPE SEED MUTATION FILE LINE PLAN...
//
// Exit status: 0 equal, 2 wrong values, 3 a named error of the emulator. Prints the sites of all
// primitives as "site PRIMITIVE FILE LINE".
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/program.h"
#include "cuda/simt.h"
#include "emulated.h"
#include "plan.h"

namespace inception_fused::cuda {
namespace {

// Exactly as many bytes as the tensor has, from malloc, so that a read past the end is seen.
struct Tensor {
  Strided view;
  std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};
  Math math;

  Tensor(Math m, std::vector<int64_t> size, bool channels_last) : math(m) {
    std::copy(size.begin(), size.end(), view.size);
    const int64_t n = size[0], c = size[1], h = size[2], w = size[3];
    const int64_t last[4] = {h * w * c, 1, w * c, c}, first[4] = {c * h * w, h * w, w, 1};
    std::copy_n(channels_last ? last : first, 4, view.stride);
    const int64_t bytes = n * c * h * w * 16 / vector_elements(m);
    memory.reset(static_cast<char*>(std::aligned_alloc(16, (bytes + 15) / 16 * 16)));
    std::memset(memory.get(), 0xff, bytes);
    view.data = memory.get();
  }

  int64_t offset(int64_t n, int64_t c, int64_t h, int64_t w) const {
    const int64_t* s = view.stride;
    return n * s[0] + c * s[1] + h * s[2] + w * s[3];
  }

  double get(int64_t i) const {
    if (math == Math::kHalf) return simt::to_float(reinterpret_cast<simt::Half*>(view.data)[i]);
    if (math == Math::kBFloat16) {
      return simt::to_float(reinterpret_cast<simt::BFloat16*>(view.data)[i]);
    }
    return reinterpret_cast<float*>(view.data)[i];
  }

  void set(int64_t i, float value) {
    if (math == Math::kHalf) {
      simt::from_float(value, reinterpret_cast<simt::Half*>(view.data)[i]);
    } else if (math == Math::kBFloat16) {
      simt::from_float(value, reinterpret_cast<simt::BFloat16*>(view.data)[i]);
    } else {
      reinterpret_cast<float*>(view.data)[i] = value;
    }
  }

  int64_t elements() const { return view.size[0] * view.size[1] * view.size[2] * view.size[3]; }
};

uint32_t random_state = 1;
int random_below(int n) {
  random_state = random_state * 1664525u + 1013904223u;
  return static_cast<int>((random_state >> 8) % static_cast<uint32_t>(n));
}

// Mostly zeros, so that every value of every buffer stays small enough for bfloat16.
void fill_small(Tensor& t, int one_in) {
  for (int64_t i = 0; i < t.elements(); ++i) {
    t.set(i, random_below(one_in) ? 0.0f : static_cast<float>(random_below(3) - 1));
  }
}

using Known = std::vector<std::vector<std::optional<double>>>;  // by buffer, then element

// The value of a buffer at a pixel: the step that writes it, evaluated there.
double reference(const Plan& plan, const Tensor& x, const std::vector<Tensor>& weights,
                 const std::vector<Tensor>& biases, Known& known, int64_t buffer, int64_t n,
                 int64_t c, int64_t h, int64_t w) {
  const int64_t height = x.view.size[2], width = x.view.size[3];
  if (h < 0 || h >= height || w < 0 || w >= width) return 0;
  if (buffer == kIn) return x.get(x.offset(n, c, h, w));
  std::optional<double>& value =
      known[buffer][((n * plan.buffers[buffer] + c) * height + h) * width + w];
  if (value) return *value;
  for (const Step& step : plan.steps) {
    for (const Destination& d : step.dst) {
      if (d.slice.buffer != buffer || c < d.slice.offset || c >= d.slice.end()) continue;
      const Tensor& weight = weights[d.weight];
      const auto source = [&](int64_t k, int64_t y, int64_t z) {
        const auto read = [&](int64_t yy, int64_t zz) {
          return reference(plan, x, weights, biases, known, step.src.buffer, n, step.src.offset + k,
                           yy, zz);
        };
        if (!step.pre) return read(y, z);
        const Size pad = step.pre->window.padding;
        const auto larger = [](double a, double b) { return a > b || std::isnan(a) ? a : b; };
        double result = step.pre->kind == Kind::MAXPOOL ? -1e30 : 0;
        for (int64_t yy = y - pad.height; yy <= y + pad.height; ++yy) {
          for (int64_t zz = z - pad.width; zz <= z + pad.width; ++zz) {
            if (yy < 0 || yy >= height || zz < 0 || zz >= width) continue;
            result = step.pre->kind == Kind::MAXPOOL ? larger(result, read(yy, zz))
                                                     : result + read(yy, zz);
          }
        }
        return step.pre->kind == Kind::MAXPOOL ? result : result / step.pre->window.taps();
      };
      double sum = biases[d.weight].get(c - d.slice.offset);
      for (int64_t k = 0; k < step.src.channels; ++k) {
        for (int64_t i = 0; i < weight.view.size[2]; ++i) {
          for (int64_t j = 0; j < weight.view.size[3]; ++j) {
            const double factor = weight.get(weight.offset(c - d.slice.offset, k, i, j));
            sum += factor *
                   source(k, h + i - step.window.padding.height, w + j - step.window.padding.width);
          }
        }
      }
      value = d.activation == Activation::RELU && sum < 0 ? 0 : sum;
      return *value;
    }
  }
  return std::nan("");  // no step writes it
}

int run(int argc, char** argv) {
  if (argc < 13) return 64;
  const Math math = static_cast<Math>(std::atoi(argv[1]));
  const bool channels_last = std::strcmp(argv[2], "nhwc") == 0;
  const int64_t batch = std::atoi(argv[3]), height = std::atoi(argv[4]), width = std::atoi(argv[5]);
  const Architecture* const architecture = find_architecture(std::atoi(argv[6]));
  simt::Machine machine;
  machine.seed = static_cast<uint32_t>(std::atoi(argv[8]));
  machine.mutation = static_cast<simt::Mutation>(std::atoi(argv[9]));
  machine.mutated_file = argv[10];
  machine.mutated_line = std::atoi(argv[11]);
  const std::optional<int> shape =
      std::atoi(argv[7]) < 0 ? std::nullopt : std::optional<int>(std::atoi(argv[7]));
  std::vector<int64_t> code;
  for (int i = 12; i < argc; ++i) code.push_back(std::atoll(argv[i]));
  const Plan plan = decode(code);

  Tensor x(math, {batch, plan.in_channels(), height, width}, channels_last);
  Tensor out(math, {batch, plan.out_channels(), height, width}, channels_last);
  fill_small(x, 3);
  if (x.elements()) x.set(0, std::nanf(""));  // what is read by mistake and multiplied by 0 shows
  std::vector<Tensor> weights, biases;
  std::vector<Weight> views;
  for (int64_t i = 0; i < plan.weights(); ++i) {
    weights.emplace_back(math, plan.weight_shape(i), false);
    biases.emplace_back(math, std::vector<int64_t>{plan.weight_shape(i)[0], 1, 1, 1}, false);
    fill_small(weights.back(), 8);
    fill_small(biases.back(), 2);
    views.push_back({weights.back().view, biases.back().view.data, 1});
  }
  try {
    run_emulated(machine, plan, math, *architecture, x.view, views, out.view, shape, 2);
  } catch (const simt::Error& error) {
    std::printf("error %s\n", error.what());
    return 3;
  }
  for (const auto& [primitive, file, line] : machine.sites) {
    std::printf("site %s %s %d\n", primitive.c_str(), file.c_str(), line);
  }
  Known known;
  for (int64_t channels : plan.buffers) {
    known.emplace_back(batch * channels * height * width);
  }
  int64_t wrong = 0;
  double largest = 0;
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t c = 0; c < plan.out_channels(); ++c) {
      for (int64_t h = 0; h < height; ++h) {
        for (int64_t w = 0; w < width; ++w) {
          const double want = reference(plan, x, weights, biases, known, kOut, n, c, h, w);
          largest = std::max(largest, std::abs(want));
          const double got = out.get(out.offset(n, c, h, w));
          wrong += std::isnan(want) ? !std::isnan(got) : got != want;
        }
      }
    }
  }
  std::printf("wrong %lld of %lld, largest value %g\n", static_cast<long long>(wrong),
              static_cast<long long>(out.elements()), largest);
  return wrong ? 2 : 0;
}

}  // namespace
}  // namespace inception_fused::cuda

int main(int argc, char** argv) { return inception_fused::cuda::run(argc, argv); }
