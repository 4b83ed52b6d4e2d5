// Runs a plan with csrc/cpu on memory that a sanitizer can watch and compares it with naive().
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/pack.h"
#include "plan.h"

namespace inception_fused {

enum class Layout {
  kNchw,
  kNhwc,
  kNchwSlice,  // a channel range of a larger tensor
  kNhwcSlice,  // the same, from an address that is a multiple of one element only
};

inline constexpr std::array kLayouts{Layout::kNchw, Layout::kNhwc, Layout::kNchwSlice,
                                     Layout::kNhwcSlice};

struct Way {  // of running a plan
  const cpu::Kernels* kernels;
  int64_t tile;  // edge of Winograd's output tile, in the steps that have such; 0: direct
  Layout x;
  Layout out;
  int threads;
  bool at_once;  // threads run at the same time, or one after the other
};

std::string name_of(const Way& way);

template <typename T>
class Tensor;

// A plan with an input and weights of small integers, and the output that they must give: with
// int8, that of one thread in the plain layout with the same kernels.
class Problem {
 public:
  Problem(const Plan& plan, cpu::Precision precision, int64_t batch, Size image, unsigned seed);

  // Whether all sums of direct convolution are exact in float32: then the output must be equal.
  bool exact() const { return exact_; }

  // Whether Way::tile makes a difference.
  bool has_winograd(int64_t tile) const;

  // "" if the run gave the output and wrote nothing else, otherwise what differs and where.
  std::string differs(const Way& way);

 private:
  struct Pack {
    cpu::PackLayout layout;
    std::unique_ptr<float, void (*)(float*)> data;
  };
  const Pack& pack_of(int64_t tile);

  template <typename T>
  Tensor<T> run(const Way& way);

  template <typename T>
  std::string differs_as(const Way& way);

  Plan plan_;
  cpu::Precision precision_;
  int64_t batch_;
  Size image_;
  bool exact_ = false;
  double tolerance_ = 0;  // of each output, where it is not exact
  std::vector<float> x_;  // (batch, channels, height, width), as of each weight and bias
                          // integers that every precision has
  std::vector<std::vector<float>> weights_, biases_;
  std::vector<double> expected_;           // (batch, channels, height, width)
  std::map<int64_t, Pack> packs_;          // by Way::tile
  const cpu::Kernels* kernels_ = nullptr;  // that gave expected_, with int8
};

// Every table that this machine can run.
std::vector<const cpu::Kernels*> tables();

}  // namespace inception_fused
