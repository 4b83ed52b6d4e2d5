// What every back end checks of the operator's arguments, and the layouts it returns. The only
// errors that leave a kernel library: std::exception, which torch turns into RuntimeError.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "plan.h"

namespace inception_fused {

using torch::stable::Tensor;

inline std::string shape_of(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    text += (i ? ", " : "") + std::to_string(tensor.size(i));
  }
  return text + ")";
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("inception_fused: " + message);
}

inline void check_dtype(const char* name, const Tensor& tensor,
                        torch::headeronly::ScalarType wanted) {
  require(tensor.scalar_type() == wanted, std::string(name) + " must be " +
                                              torch::headeronly::toString(wanted) + ", got " +
                                              torch::headeronly::toString(tensor.scalar_type()));
}

inline void require_4d(const Tensor& x) {
  require(x.dim() == 4,
          "x must have 4 dimensions (batch, channels, height, width), got shape " + shape_of(x));
}

// x: (batch, plan's input channels, height, width).
inline void check_input(const Plan& plan, const Tensor& x) {
  require_4d(x);
  require(x.size(1) == plan.in_channels(), "x must have " + std::to_string(plan.in_channels()) +
                                               " channels, got shape " + shape_of(x));
}

inline std::array<int64_t, 4> output_shape(const Plan& plan, const Tensor& x) {
  const Size size = plan.sizes({x.size(2), x.size(3)})[kOut];
  return {x.size(0), plan.out_channels(), size.height, size.width};
}

// The rule of reference.output_format in Python: channels adjacent, and not contiguous.
inline bool wants_channels_last(const Tensor& x) { return x.stride(1) == 1 && !x.is_contiguous(); }

inline void check_weights(const Plan& plan, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& biases) {
  const auto wanted = static_cast<size_t>(plan.weights());
  require(weights.size() == wanted && biases.size() == wanted,
          "the plan needs " + std::to_string(wanted) + " weights and biases, got " +
              std::to_string(weights.size()) + " and " + std::to_string(biases.size()));
  for (size_t i = 0; i < wanted; ++i) {
    const std::vector<int64_t> shape = plan.weight_shape(static_cast<int64_t>(i));
    const auto sizes = weights[i].sizes();
    require(sizes.size() == 4 && std::equal(shape.begin(), shape.end(), sizes.begin()),
            "weights[" + std::to_string(i) + "] must be of shape (" + std::to_string(shape[0]) +
                ", " + std::to_string(shape[1]) + ", " + std::to_string(shape[2]) + ", " +
                std::to_string(shape[3]) + "), got " + shape_of(weights[i]));
    require(biases[i].dim() == 1 && biases[i].size(0) == shape[0],
            "biases[" + std::to_string(i) + "] must be of shape (" + std::to_string(shape[0]) +
                "), got " + shape_of(biases[i]));
  }
}

struct Extent {  // of one dimension
  int64_t stride;
  int64_t size;
};

inline std::vector<Extent> extents_of(const Tensor& tensor) {
  std::vector<Extent> extents;
  for (int64_t i = 0; i < tensor.dim(); ++i) extents.push_back({tensor.stride(i), tensor.size(i)});
  return extents;
}

// True if no two indices name one element; on the side of caution.
inline bool elements_are_distinct(std::vector<Extent> extents) {
  std::erase_if(extents, [](const Extent& e) { return e.size == 1; });
  std::ranges::sort(extents, {}, &Extent::stride);
  int64_t reach = 0;  // largest offset of the dimensions so far
  for (const auto& [stride, size] : extents) {
    if (stride <= reach) return false;
    reach += stride * (size - 1);
  }
  return true;
}

// True if the two may share an element. Exact for separate memory and for two ranges of one
// dimension of a larger tensor, such as its channels; otherwise on the side of caution.
inline bool may_overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto a_first = reinterpret_cast<uintptr_t>(a.const_data_ptr());
  const auto b_first = reinterpret_cast<uintptr_t>(b.const_data_ptr());
  if (b_first < a_first) return may_overlap(b, a);
  int64_t last = 0;
  for (const auto& [stride, size] : extents_of(a)) last += stride * (size - 1);
  const auto bytes = static_cast<uintptr_t>(a.element_size());
  if (b_first - a_first >= static_cast<uintptr_t>(last + 1) * bytes) return false;
  if (a.dim() != b.dim() || a.element_size() != b.element_size()) return true;
  if ((b_first - a_first) % bytes) return true;
  const auto apart = static_cast<int64_t>((b_first - a_first) / bytes);

  // Ranges of dimension d, [0, size of a) and [start, start + size of b), share nothing if the
  // second starts behind the first and no two indices of both together name one element.
  const std::vector<Extent> of_a = extents_of(a), of_b = extents_of(b);
  for (size_t d = 0; d < of_a.size(); ++d) {
    std::vector<Extent> both = of_a;
    bool alike = of_a[d].stride == of_b[d].stride && of_a[d].stride > 0;
    for (size_t i = 0; i < both.size(); ++i) {
      if (i == d) continue;
      alike = alike && of_a[i].size == of_b[i].size &&
              (of_a[i].size == 1 || of_a[i].stride == of_b[i].stride);
    }
    if (!alike || apart % both[d].stride) continue;
    const int64_t start = apart / both[d].stride;
    both[d].size = start + of_b[d].size;
    if (start >= of_a[d].size && elements_are_distinct(both)) return false;
  }
  return true;
}

inline void check_out(const Plan& plan, const Tensor& x, const Tensor& out) {
  const auto shape = output_shape(plan, x);
  const auto sizes = out.sizes();
  require(sizes.size() == 4 && std::equal(shape.begin(), shape.end(), sizes.begin()),
          "out must be of shape (" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) +
              ", " + std::to_string(shape[2]) + ", " + std::to_string(shape[3]) + "), got " +
              shape_of(out));
  check_dtype("out", out, x.scalar_type());
  require(elements_are_distinct(extents_of(out)),
          "out must not have two indices for one element (an expanded "
          "or self-overlapping view)");
  require(!may_overlap(x, out), "out must not overlap x in memory");
}

}  // namespace inception_fused
