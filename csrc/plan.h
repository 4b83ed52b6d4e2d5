// The C++ mirror of inception_fused/plan.py: what crosses the operator boundary, decoded and
// checked. Standard library only, so that host tests, the emulator and every back end can use it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace inception_fused {

enum class Kind : int64_t {
#define KIND(name, value) name = value,
#include "kinds.def"
};

enum class Activation : int64_t {
#define ACTIVATION(name, value) name = value,
#include "kinds.def"
};

inline bool is_pool(Kind kind) {
  return kind == Kind::MAXPOOL || kind == Kind::AVGPOOL || kind == Kind::AVGPOOL_INSIDE;
}

inline bool has_weight(Kind kind) { return kind == Kind::POINTWISE || kind == Kind::CONV; }

inline constexpr int64_t kFormat = 2;
inline constexpr double kMaxWeights = 0x1p40;  // elements of all weights of a plan
inline constexpr int64_t kIn = 0;              // buffer index of the module's input
inline constexpr int64_t kOut = 1;  // buffer index of the module's output; scratch follows

struct Size {  // pixels
  int64_t height = 0;
  int64_t width = 0;
  bool operator==(const Size&) const = default;
};

struct Window {  // pixels
  Size kernel{1, 1};
  Size stride{1, 1};
  Size padding{0, 0};
  bool ceil_mode = false;  // of a pool: a last window that ends outside, but starts inside, counts
  bool operator==(const Window&) const = default;
  int64_t taps() const { return kernel.height * kernel.width; }
};

struct Slice {  // channels [offset, offset + channels) of a buffer
  int64_t buffer = 0;
  int64_t offset = 0;
  int64_t channels = 0;
  int64_t end() const { return offset + channels; }
};

struct Destination {
  Slice slice;
  int64_t weight = -1;  // index of the convolution, -1 for anything else
  Activation activation = Activation::NONE;
};

struct Pool {
  Kind kind = Kind::MAXPOOL;
  Window window;
};

// Channel c of a pixel is divided by (k + alpha / size * sum of squares) ** beta, the sum over the
// `size` channels from c - size / 2 on that exist.
struct Response {
  int64_t size = 1;
  float alpha = 0;
  float beta = 0;
  float k = 0;
};

struct Step {
  Kind kind = Kind::POINTWISE;
  Window window;
  int64_t wave = 0;
  std::optional<Pool> pre;  // a pool folded into the operand load of a pointwise step
  Response response;        // of kind LRN
  Slice src;
  std::vector<Destination> dst;
};

struct Plan {
  std::vector<int64_t> buffers;  // channels of each buffer
  std::vector<Step> steps;       // sorted by wave

  int64_t in_channels() const { return buffers[kIn]; }
  int64_t out_channels() const { return buffers[kOut]; }
  int64_t waves() const { return steps.back().wave + 1; }
  int64_t weights() const;                                 // number of convolutions
  std::vector<Size> sizes(Size image) const;               // height and width of each buffer
  std::vector<int64_t> weight_shape(int64_t index) const;  // out, in, height, width
};

struct PlanError : std::invalid_argument {
  explicit PlanError(const std::string& what) : std::invalid_argument("plan: " + what) {}
};

inline Size output_size(const Window& window, Size in) {
  const auto axis = [&](int64_t n, int64_t k, int64_t s, int64_t p) -> int64_t {
    const int64_t reach = n + 2 * p - k;
    if (!window.ceil_mode) return reach < 0 ? 0 : reach / s + 1;
    if (reach <= -s) return 0;
    const int64_t last = (reach + s - 1) / s;
    return last * s >= n + p ? last : last + 1;
  };
  const Size out{axis(in.height, window.kernel.height, window.stride.height, window.padding.height),
                 axis(in.width, window.kernel.width, window.stride.width, window.padding.width)};
  if (out.height < 1 || out.width < 1) {
    throw PlanError("a " + std::to_string(window.kernel.height) + "x" +
                    std::to_string(window.kernel.width) + " window does not fit into an image of " +
                    std::to_string(in.height) + "x" + std::to_string(in.width) + " pixels");
  }
  return out;
}

// Of what a step writes, for a source of size `in`.
inline Size output_size(const Step& step, Size in) {
  if (step.kind == Kind::MEAN) return {1, 1};
  return output_size(step.window, step.pre ? output_size(step.pre->window, in) : in);
}

inline int64_t Plan::weights() const {
  int64_t count = 0;
  for (const Step& step : steps) {
    if (has_weight(step.kind)) count += static_cast<int64_t>(step.dst.size());
  }
  return count;
}

inline std::vector<Size> Plan::sizes(Size image) const {
  std::vector<Size> sizes(buffers.size());
  sizes[kIn] = image;
  for (const Step& step : steps) {
    const Size size = output_size(step, sizes[step.src.buffer]);
    for (const Destination& dst : step.dst) {
      Size& known = sizes[dst.slice.buffer];
      if (known != Size{} && known != size) {
        throw PlanError("branches disagree in size for an input of " +
                        std::to_string(image.height) + "x" + std::to_string(image.width) +
                        " pixels");
      }
      known = size;
    }
  }
  return sizes;
}

inline std::vector<int64_t> Plan::weight_shape(int64_t index) const {
  for (const Step& step : steps) {
    for (const Destination& dst : step.dst) {
      if (dst.weight == index) {
        return {dst.slice.channels, step.src.channels, step.window.kernel.height,
                step.window.kernel.width};
      }
    }
  }
  throw PlanError("has no weight " + std::to_string(index));
}

namespace detail {

// Throws unless every invariant of a plan holds: ranges, each channel written once, no channel read
// before the wave after the one that writes it, weight indices 0 to n-1. The limits keep all later
// arithmetic inside int64_t.
inline void check(const Plan& plan) {
  const auto fail = [](size_t step, const std::string& what) {
    throw PlanError("step " + std::to_string(step) + ": " + what);
  };
  if (plan.buffers.size() < 2) throw PlanError("needs an input and an output buffer");
  int64_t channels = 0;
  for (int64_t n : plan.buffers) {
    if (n < 1) throw PlanError("a buffer has " + std::to_string(n) + " channels");
    channels += n;
  }
  if (channels > int64_t{1} << 31) throw PlanError("has more than 2^31 channels");
  if (plan.steps.empty()) throw PlanError("has no steps");

  struct Written {
    Slice slice;
    int64_t wave;
  };
  std::vector<Written> written{{{kIn, 0, plan.buffers[kIn]}, -1}};
  std::vector<bool> weight_seen(static_cast<size_t>(plan.weights()), false);
  double elements = 0;  // of all weights; exact below 2^53
  int64_t wave = 0;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    if ((step.wave != wave && step.wave != wave + 1) || (i == 0 && step.wave != 0)) {
      fail(i, "wave " + std::to_string(step.wave) + " follows wave " + std::to_string(wave));
    }
    wave = step.wave;
    const auto check_slice = [&](const std::string& name, const Slice& s, int64_t forbidden) {
      if (s.buffer < 0 || s.buffer >= static_cast<int64_t>(plan.buffers.size()) ||
          s.buffer == forbidden) {
        fail(i, name + " buffer " + std::to_string(s.buffer) + " cannot be used so");
      }
      if (s.offset < 0 || s.channels < 1 || s.end() > plan.buffers[s.buffer]) {
        fail(i, name + " channels " + std::to_string(s.offset) + " to " + std::to_string(s.end()) +
                    " are not in buffer " + std::to_string(s.buffer) + " of " +
                    std::to_string(plan.buffers[s.buffer]) + " channels");
      }
    };
    check_slice("src", step.src, kOut);
    if (step.dst.empty()) fail(i, "has no destination");

    const bool weighted = has_weight(step.kind);
    const auto check_pool = [&](const Window& w) {
      if (2 * w.padding.height > w.kernel.height || 2 * w.padding.width > w.kernel.width) {
        fail(i, "the padding of a pool is more than half its kernel");
      }
    };
    if (is_pool(step.kind)) {
      check_pool(step.window);
    } else if ((step.kind != Kind::CONV) != (step.window == Window{}) || step.window.ceil_mode) {
      fail(i, "the kind does not go with the window");
    }
    if (step.pre) {
      if (step.kind != Kind::POINTWISE || !is_pool(step.pre->kind)) {
        fail(i, "only a pool can be folded in, and only into a pointwise step");
      }
      check_pool(step.pre->window);
    }

    int64_t read = 0;  // channels of the source that earlier waves have written
    for (const Written& w : written) {
      if (w.slice.buffer == step.src.buffer && w.wave < step.wave) {
        read += std::max<int64_t>(
            0, std::min(w.slice.end(), step.src.end()) - std::max(w.slice.offset, step.src.offset));
      }
    }
    if (read != step.src.channels) fail(i, "reads a channel that no earlier wave has written");

    for (const Destination& dst : step.dst) {
      check_slice("dst", dst.slice, kIn);
      for (const Written& w : written) {
        if (w.slice.buffer == dst.slice.buffer && w.slice.offset < dst.slice.end() &&
            dst.slice.offset < w.slice.end()) {
          fail(i, "writes a channel a second time");
        }
      }
      written.push_back({dst.slice, step.wave});
      if (!weighted) {
        if (dst.weight != -1 || dst.activation != Activation::NONE || step.dst.size() != 1 ||
            dst.slice.channels != step.src.channels) {
          fail(i,
               "what is no convolution has one destination with the channels of its source, and "
               "no weight");
        }
      } else {
        if (dst.weight < 0 || dst.weight >= plan.weights() || weight_seen[dst.weight]) {
          fail(i,
               "weight indices must be 0 to " + std::to_string(plan.weights() - 1) + ", each once");
        }
        weight_seen[dst.weight] = true;
        elements += static_cast<double>(step.window.taps()) *
                    static_cast<double>(step.src.channels) *
                    static_cast<double>(dst.slice.channels);
      }
    }
  }
  int64_t missing = plan.buffers[kOut];
  for (const Written& w : written) missing -= w.slice.buffer == kOut ? w.slice.channels : 0;
  if (missing) throw PlanError(std::to_string(missing) + " output channels are never written");
  if (elements > kMaxWeights) throw PlanError("the weights have more than 2^40 elements");
}

class Reader {
 public:
  explicit Reader(std::span<const int64_t> code) : code_(code) {}

  int64_t left() const { return static_cast<int64_t>(code_.size() - next_); }

  int64_t take() {
    if (next_ == code_.size()) {
      throw PlanError("ends after " + std::to_string(next_) + " ints, in the middle");
    }
    const int64_t value = code_[next_];
    if (value < -1 || value >= int64_t{1} << 31) {
      throw PlanError("int " + std::to_string(next_) + " is out of range");
    }
    ++next_;
    return value;
  }

  int64_t count() {
    const int64_t value = take();
    if (value < 0 || value > left()) throw PlanError("a count is out of range");
    return value;
  }

  Size size(int64_t least) {
    const int64_t height = take();
    const int64_t width = take();
    if (height < least || width < least) throw PlanError("a window is out of range");
    return {height, width};
  }

  Window window() {
    const Size kernel = size(1);
    const Size stride = size(1);
    const Size padding = size(0);
    const int64_t ceil_mode = take();
    if (ceil_mode < 0 || ceil_mode > (stride == Size{1, 1} ? 0 : 1)) {
      throw PlanError(std::to_string(ceil_mode) + " is not a ceil_mode for this stride");
    }
    return {kernel, stride, padding, ceil_mode == 1};
  }

  float factor() {
    const auto value = std::bit_cast<float>(static_cast<int32_t>(take()));
    if (!(value >= 0) || std::isinf(value)) throw PlanError("a factor is out of range");
    return value;
  }

  Response response() {
    const int64_t size = take();
    if (size < 1) throw PlanError("a size is out of range");
    const float alpha = factor();
    const float beta = factor();
    return {size, alpha, beta, factor()};
  }

  Slice slice() {
    const int64_t buffer = take();
    const int64_t offset = take();
    return {buffer, offset, take()};
  }

  Kind kind() {
    const int64_t value = take();
    switch (static_cast<Kind>(value)) {
#define KIND(name, number) case Kind::name:
#include "kinds.def"
      return static_cast<Kind>(value);
    }
    throw PlanError(std::to_string(value) + " is not a kind");
  }

  Activation activation() {
    const int64_t value = take();
    switch (static_cast<Activation>(value)) {
#define ACTIVATION(name, number) case Activation::name:
#include "kinds.def"
      return static_cast<Activation>(value);
    }
    throw PlanError(std::to_string(value) + " is not an activation");
  }

  bool take_if_none() {  // consumes a -1
    if (next_ < code_.size() && code_[next_] == -1) {
      ++next_;
      return true;
    }
    return false;
  }

 private:
  std::span<const int64_t> code_;
  size_t next_ = 0;
};

}  // namespace detail

// The plan of an encoded list; PlanError, with the reason, if it is not one.
inline Plan decode(std::span<const int64_t> code) {
  detail::Reader ints(code);
  if (const int64_t format = ints.take(); format != kFormat) {
    throw PlanError("format " + std::to_string(format) + " is not the format " +
                    std::to_string(kFormat) + " of this library");
  }
  Plan plan;
  plan.buffers.resize(static_cast<size_t>(ints.count()));
  for (int64_t& channels : plan.buffers) channels = ints.take();
  plan.steps.resize(static_cast<size_t>(ints.count()));
  for (Step& step : plan.steps) {
    step.kind = ints.kind();
    step.window = ints.window();
    step.wave = ints.take();
    if (!ints.take_if_none()) {
      const Kind kind = ints.kind();
      step.pre = Pool{kind, ints.window()};
    }
    if (step.kind == Kind::LRN) step.response = ints.response();
    step.src = ints.slice();
    step.dst.resize(static_cast<size_t>(ints.count()));
    for (Destination& dst : step.dst) {
      dst.slice = ints.slice();
      dst.weight = ints.take();
      dst.activation = ints.activation();
    }
  }
  if (ints.left()) throw PlanError(std::to_string(ints.left()) + " ints left over at the end");
  detail::check(plan);
  return plan;
}

// The inverse of decode.
inline std::vector<int64_t> encode(const Plan& plan) {
  std::vector<int64_t> code{kFormat, static_cast<int64_t>(plan.buffers.size())};
  const auto put = [&code](auto... values) { (code.push_back(static_cast<int64_t>(values)), ...); };
  const auto put_window = [&put](const Window& w) {
    put(w.kernel.height, w.kernel.width, w.stride.height, w.stride.width, w.padding.height,
        w.padding.width, w.ceil_mode);
  };
  code.insert(code.end(), plan.buffers.begin(), plan.buffers.end());
  put(plan.steps.size());
  for (const Step& step : plan.steps) {
    put(step.kind);
    put_window(step.window);
    put(step.wave);
    if (step.pre) {
      put(step.pre->kind);
      put_window(step.pre->window);
    } else {
      put(-1);
    }
    if (step.kind == Kind::LRN) {
      put(step.response.size);
      for (float factor : {step.response.alpha, step.response.beta, step.response.k}) {
        put(std::bit_cast<int32_t>(factor));
      }
    }
    put(step.src.buffer, step.src.offset, step.src.channels, step.dst.size());
    for (const Destination& dst : step.dst) {
      put(dst.slice.buffer, dst.slice.offset, dst.slice.channels, dst.weight, dst.activation);
    }
  }
  return code;
}

}  // namespace inception_fused
