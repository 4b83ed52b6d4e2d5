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

// True unless two indices of the tensor can name one element.
inline bool elements_are_distinct(const Tensor& tensor) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1) dims.emplace_back(tensor.stride(i), tensor.size(i));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // largest offset of the dimensions so far
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return false;
    reach += stride * (size - 1);
  }
  return true;
}

// True if the two may share an element. Exact for separate memory and for two channel ranges of one
// channels-last buffer; otherwise on the side of caution.
inline bool may_overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto bytes = [](const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += t.stride(i) * (t.size(i) - 1);
    const auto first = reinterpret_cast<uintptr_t>(t.const_data_ptr());
    return std::pair{first, first + static_cast<uintptr_t>((last + 1) * t.element_size())};
  };
  const auto [a_first, a_end] = bytes(a);
  const auto [b_first, b_end] = bytes(b);
  if (a_end <= b_first || b_end <= a_first) return false;
  const bool same_pixels = a.stride(0) == b.stride(0) && a.stride(2) == b.stride(2) &&
                           a.stride(3) == b.stride(3) && a.element_size() == b.element_size() &&
                           a.size(0) == b.size(0) && a.size(2) == b.size(2) &&
                           a.size(3) == b.size(3);
  if (!same_pixels) return true;
  // Channel ranges of one buffer: apart if neither reaches into the other within one pixel or
  // plane.
  const int64_t channel = a.stride(1);
  if (channel != b.stride(1)) return true;
  const int64_t apart = (static_cast<int64_t>(b_first) - static_cast<int64_t>(a_first)) /
                        static_cast<int64_t>(a.element_size());
  const int64_t room = channel == 1 ? a.stride(3) : a.stride(0);
  const int64_t a_channels = a.size(1) * channel, b_channels = b.size(1) * channel;
  if (apart >= 0) return !(apart >= a_channels && apart + b_channels <= room);
  return !(-apart >= b_channels && -apart + a_channels <= room);
}

inline void check_out(const Plan& plan, const Tensor& x, const Tensor& out) {
  const auto shape = output_shape(plan, x);
  const auto sizes = out.sizes();
  require(sizes.size() == 4 && std::equal(shape.begin(), shape.end(), sizes.begin()),
          "out must be of shape (" + std::to_string(shape[0]) + ", " + std::to_string(shape[1]) +
              ", " + std::to_string(shape[2]) + ", " + std::to_string(shape[3]) + "), got " +
              shape_of(out));
  check_dtype("out", out, x.scalar_type());
  require(elements_are_distinct(out),
          "out must not have two indices for one element (an expanded "
          "or self-overlapping view)");
  require(!may_overlap(x, out), "out must not overlap x in memory");
}

}  // namespace inception_fused
