// An emulated plan against a plain float64 reference, as a program of its own so that
// the sanitizers can watch it. Small integers as inputs: sums are exact, results must be equal bit
// for bit. The first element of the input is NaN.
//
//   check MATH LAYOUT BATCH HEIGHT WIDTH SM SHAPE SEED TIMES MUTATION FILE LINE PLAN...
//
// The plan runs TIMES times; if once, the threads of its packs are one to ThreadSanitizer.
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
#include "expected.h"
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

std::vector<double> values(const Tensor& t) {  // [size 0][size 1][size 2][size 3]
  std::vector<double> result;
  result.reserve(t.elements());
  const int64_t* const size = t.view.size;
  for (int64_t n = 0; n < size[0]; ++n) {
    for (int64_t c = 0; c < size[1]; ++c) {
      for (int64_t h = 0; h < size[2]; ++h) {
        for (int64_t w = 0; w < size[3]; ++w) result.push_back(t.get(t.offset(n, c, h, w)));
      }
    }
  }
  return result;
}

int run(int argc, char** argv) {
  if (argc < 14) return 64;
  const Math math = static_cast<Math>(std::atoi(argv[1]));
  const bool channels_last = std::strcmp(argv[2], "nhwc") == 0;
  const int64_t batch = std::atoi(argv[3]), height = std::atoi(argv[4]), width = std::atoi(argv[5]);
  const Architecture* const architecture = find_architecture(std::atoi(argv[6]));
  simt::Machine machine;
  machine.seed = static_cast<uint32_t>(std::atoi(argv[8]));
  machine.mutation = static_cast<simt::Mutation>(std::atoi(argv[10]));
  machine.mutated_file = argv[11];
  machine.mutated_line = std::atoi(argv[12]);
  const int times = std::atoi(argv[9]);
  const std::optional<int> shape =
      std::atoi(argv[7]) < 0 ? std::nullopt : std::optional<int>(std::atoi(argv[7]));
  std::vector<int64_t> code;
  for (int i = 13; i < argc; ++i) code.push_back(std::atoll(argv[i]));
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
    run_emulated(machine, plan, math, *architecture, x.view, views, out.view, shape, times,
                 times == 1);
  } catch (const simt::Error& error) {
    std::printf("error %s\n", error.what());
    return 3;
  }
  for (const auto& [primitive, file, line] : machine.sites) {
    std::printf("site %s %s %d\n", primitive.c_str(), file.c_str(), line);
  }
  std::vector<std::vector<double>> weight_values, bias_values;
  for (const Tensor& t : weights) weight_values.push_back(values(t));
  for (const Tensor& t : biases) bias_values.push_back(values(t));
  const Images want = expected(plan, {batch, plan.in_channels(), {height, width}, values(x)},
                               weight_values, bias_values);
  const std::vector<double> got = values(out);
  int64_t wrong = 0;
  double largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(want.value[i]));
    wrong += std::isnan(want.value[i]) ? !std::isnan(got[i]) : got[i] != want.value[i];
  }
  std::printf("wrong %lld of %lld, largest value %g\n", static_cast<long long>(wrong),
              static_cast<long long>(out.elements()), largest);
  return wrong ? 2 : 0;
}

}  // namespace
}  // namespace inception_fused::cuda

int main(int argc, char** argv) { return inception_fused::cuda::run(argc, argv); }
