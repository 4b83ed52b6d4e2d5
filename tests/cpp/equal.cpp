#include "equal.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <new>
#include <random>
#include <thread>

#include "cpu/run.h"
#include "cpu/winograd.h"
#include "naive.h"

namespace inception_fused {
namespace {

constexpr double kExact = 1 << 24;        // float32 has every integer up to here
constexpr cpu::Scale kScale{0.25f, 100};  // of every buffer, with int8

float value_of(float value) { return value; }
float value_of(cpu::BFloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

// Of a value that T has, or NaN.
template <typename T>
T element_of(float value) {
  if constexpr (std::is_same_v<T, float>) {
    return value;
  } else {
    return {static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16)};
  }
}

template <typename T>
std::vector<T> elements_of(const std::vector<float>& values) {
  std::vector<T> elements;
  for (float value : values) elements.push_back(element_of<T>(value));
  return elements;
}

}  // namespace

// A view of memory that ends with its last element, and in the plain layouts starts with its first;
// what lies between is poison.
template <typename T>
class Tensor {
 public:
  Tensor(Layout layout, int64_t batch, int64_t channels, Size size) {
    const bool slice = layout == Layout::kNchwSlice || layout == Layout::kNhwcSlice;
    const bool last = layout == Layout::kNhwc || layout == Layout::kNhwcSlice;
    const int64_t before = slice ? 3 : 0;  // channels of the larger tensor
    const int64_t total = before + channels + (slice ? 2 : 0);
    const int64_t pixels = size.height * size.width;
    view.size[0] = batch;
    view.size[1] = channels;
    view.size[2] = size.height;
    view.size[3] = size.width;
    view.stride[0] = total * pixels;
    view.stride[1] = last ? 1 : pixels;
    view.stride[2] = last ? size.width * total : size.width;
    view.stride[3] = last ? total : 1;
    int64_t elements = before * view.stride[1] + 1;
    for (int i = 0; i < 4; ++i) elements += (view.size[i] - 1) * view.stride[i];
    memory_.assign(elements, element_of<T>(std::numeric_limits<float>::quiet_NaN()));
    memory_.shrink_to_fit();
    view.data = memory_.data() + before * view.stride[1];
  }
  Tensor(const Tensor&) = delete;  // the view is of its own memory, which moves along
  Tensor(Tensor&&) = default;

  // Calls body(element) for every element, in the order (batch, channels, height, width).
  template <typename Body>
  void for_each(const Body& body) const {
    for (int64_t n = 0; n < view.size[0]; ++n) {
      for (int64_t c = 0; c < view.size[1]; ++c) {
        for (int64_t y = 0; y < view.size[2]; ++y) {
          for (int64_t x = 0; x < view.size[3]; ++x) {
            body(static_cast<T*>(view.data)[n * view.stride[0] + c * view.stride[1] +
                                            y * view.stride[2] + x * view.stride[3]]);
          }
        }
      }
    }
  }

  // Elements that are no poison any more.
  int64_t written() const {
    return std::count_if(memory_.begin(), memory_.end(),
                         [](T v) { return !std::isnan(value_of(v)); });
  }

  cpu::Strided view;

 private:
  std::vector<T> memory_;
};

namespace {

void at_once(int threads, const std::function<void(int)>& body) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
  body(0);
  for (std::thread& other : others) other.join();
}

void in_turn(int threads, const std::function<void(int)>& body) {
  for (int i = 0; i < threads; ++i) body(i);
}

bool is_exact(Kind kind, const Window& window) {
  if (kind == Kind::AVGPOOL) {
    return !window.ceil_mode && (window.taps() & (window.taps() - 1)) == 0;
  }
  return kind == Kind::MAXPOOL || has_weight(kind);
}

}  // namespace

std::string name_of(const Way& way) {
  constexpr const char* kNames[] = {"nchw", "nhwc", "nchw slice", "nhwc slice"};
  const std::string how = way.tile ? ", Winograd " + std::to_string(way.tile) : ", direct";
  return std::string(way.kernels->name) + how + ", " + kNames[static_cast<int>(way.x)] + " to " +
         kNames[static_cast<int>(way.out)] + ", " + std::to_string(way.threads) + " threads " +
         (way.at_once ? "at once" : "in turn");
}

Problem::Problem(const Plan& plan, cpu::Precision precision, int64_t batch, Size image,
                 unsigned seed)
    : plan_(plan), precision_(precision), batch_(batch), image_(image) {
  std::mt19937 random(seed);
  const auto integers = [&](int64_t count) {
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(static_cast<int>(random() % 7) - 3);
    return values;
  };
  x_ = integers(batch * plan.in_channels() * image.height * image.width);
  for (int64_t i = 0; i < plan.weights(); ++i) {
    const std::vector<int64_t> shape = plan.weight_shape(i);
    weights_.push_back(integers(shape[0] * shape[1] * shape[2] * shape[3]));
    biases_.push_back(integers(shape[0]));
  }
  if (precision == cpu::Precision::kInt8) {
    exact_ = true;
    return;
  }
  const Result result = naive(plan, batch, image, x_, weights_, biases_, precision);
  expected_ = result.output;
  exact_ = result.largest < kExact;
  for (const Step& step : plan.steps) {
    exact_ = exact_ && is_exact(step.kind, step.window) &&
             (!step.pre || is_exact(step.pre->kind, step.pre->window));
  }
  // Where sums are not exact, a value of BFloat16 may be rounded to its neighbour.
  const double step = precision == cpu::Precision::kFloat32 ? 4e-6 : 0x1p-6;
  tolerance_ = step * std::max(result.largest, 1.0);
}

const Problem::Pack& Problem::pack_of(int64_t tile) {
  if (const auto known = packs_.find(tile); known != packs_.end()) return known->second;
  std::vector<std::vector<cpu::BFloat16>> halves;
  const auto addresses = [&](const std::vector<std::vector<float>>& tensors) {
    std::vector<const void*> found;
    for (const std::vector<float>& tensor : tensors) {
      if (precision_ != cpu::Precision::kBFloat16) {
        found.push_back(tensor.data());
      } else {
        found.push_back(halves.emplace_back(elements_of<cpu::BFloat16>(tensor)).data());
      }
    }
    return found;
  };
  const std::vector<const void*> weights = addresses(weights_), biases = addresses(biases_);
  std::vector<int64_t> tiles;
  for (const Step& step : plan_.steps) {
    tiles.push_back(has_winograd(tile) && cpu::has_winograd(plan_, step, tile) ? tile : 0);
  }
  Pack pack{cpu::pack_layout(plan_, precision_, tiles),
            {nullptr, [](float* p) { ::operator delete(p, std::align_val_t{cpu::kAlignment}); }}};
  const size_t bytes = static_cast<size_t>(pack.layout.size) * sizeof(float);
  pack.data.reset(static_cast<float*>(::operator new(bytes, std::align_val_t{cpu::kAlignment})));
  const size_t scales = precision_ == cpu::Precision::kInt8 ? plan_.buffers.size() : 0;
  const cpu::Parallel in_turn = [](int threads, const std::function<void(int)>& body) {
    for (int thread = 0; thread < threads; ++thread) body(thread);
  };
  cpu::pack(plan_, pack.layout, weights, biases, std::vector(scales, kScale), pack.data.get(), 2,
            in_turn);
  return packs_.emplace(tile, std::move(pack)).first->second;
}

bool Problem::has_winograd(int64_t tile) const {
  return precision_ != cpu::Precision::kInt8 &&
         std::ranges::any_of(
             plan_.steps, [&](const Step& step) { return cpu::has_winograd(plan_, step, tile); });
}

std::string Problem::differs(const Way& way) {
  if (precision_ == cpu::Precision::kInt8 && kernels_ != way.kernels) {
    const Tensor<float> out = run<float>({way.kernels, 0, Layout::kNchw, Layout::kNchw, 1, false});
    expected_.clear();
    out.for_each([&](float v) { expected_.push_back(v); });
    kernels_ = way.kernels;
  }
  return precision_ == cpu::Precision::kBFloat16 ? differs_as<cpu::BFloat16>(way)
                                                 : differs_as<float>(way);
}

template <typename T>
Tensor<T> Problem::run(const Way& way) {
  const Tensor<T> x(way.x, batch_, plan_.in_channels(), image_);
  Tensor<T> out(way.out, batch_, plan_.out_channels(), plan_.sizes(image_)[kOut]);
  size_t i = 0;
  x.for_each([&](T& v) { v = element_of<T>(x_[i++]); });

  const Pack& pack = pack_of(way.tile);

  // On a thread of its own, so that the scratch it keeps is as large as this run needs, no larger.
  std::thread([&] {
    const auto layout = cpu::read_layout(plan_, precision_, pack.data.get(), pack.layout.size);
    const cpu::Prepared prepared(plan_, layout, x.view, out.view, *way.kernels, way.threads);
    prepared.run(x.view, out.view, pack.data.get(), way.at_once ? at_once : in_turn);
  }).join();
  return out;
}

template <typename T>
std::string Problem::differs_as(const Way& way) {
  const Tensor<T> out = run<T>(way);
  const double tolerance = exact_ && !has_winograd(way.tile) ? 0 : tolerance_;
  std::string problem;
  size_t i = 0;
  out.for_each([&](T element) {
    const double v = value_of(element);
    const double wanted = expected_[i++];
    if (problem.empty() && !(std::abs(v - wanted) <= tolerance)) {
      problem = "element " + std::to_string(i - 1) + " of " + std::to_string(expected_.size()) +
                " is " + std::to_string(v) + ", must be " + std::to_string(wanted);
    }
  });
  if (problem.empty() && out.written() != static_cast<int64_t>(expected_.size())) {
    problem = "elements outside the slice were written";
  }
  return problem;
}

std::vector<const cpu::Kernels*> tables() {
  const cpu::Capabilities machine = cpu::capabilities();
  std::vector<const cpu::Kernels*> found;
  for (const char* limit : {"base", "avx2", "avx512", "avx512_vnni", "avx512_bf16"}) {
    const cpu::Kernels* table = &cpu::pick(machine, limit);
    if (found.empty() || found.back() != table) found.push_back(table);
  }
  return found;
}

}  // namespace inception_fused
