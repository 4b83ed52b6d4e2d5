// The CPU operators of training: tensors in, pointers and strides to csrc/cpu/training.h. Their
// arguments come from inception_fused/training/cpu.py, which asks for nothing else than they take.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/training.h"
#include "threads.h"

namespace inception_fused {

namespace {

using torch::headeronly::ScalarType;

// Who works on so many elements: a thread is worth waking for some thousands.
int threads_for(int64_t elements) {
  constexpr int64_t kLeast = 16384;
  const auto most = static_cast<int64_t>(torch::stable::get_num_threads());
  return static_cast<int>(std::clamp<int64_t>(elements / kLeast, 1, std::max<int64_t>(most, 1)));
}

const cpu::Parallel& parallel() {
  static const cpu::Parallel threads = for_threads;
  return threads;
}

cpu::Crew crew_for(const Tensor& tensor) {
  return {cpu::kernels(), threads_for(tensor.numel()), parallel()};
}

cpu::Strided strided(const char* name, const Tensor& tensor) {
  require(tensor.is_cpu(), std::string(name) + " must be on the CPU");
  check_dtype(name, tensor, ScalarType::Float);
  require(tensor.dim() == 4,
          std::string(name) + " must have 4 dimensions, got shape " + shape_of(tensor));
  require(tensor.stride(1) == 1 || tensor.size(1) == 1,
          std::string(name) + " must have adjacent channels");
  cpu::Strided view{};
  view.data = const_cast<void*>(tensor.const_data_ptr());
  for (int i = 0; i < 4; ++i) {
    view.size[i] = tensor.size(i);
    view.stride[i] = tensor.stride(i);
  }
  return view;
}

int64_t pixels_of(const Tensor& tensor) { return tensor.size(0) * tensor.size(2) * tensor.size(3); }

// All pixels of a tensor at even distances.
template <typename T>
cpu::Pixels<T> pixels(const char* name, const Tensor& tensor) {
  const cpu::Strided view = strided(name, tensor);
  int64_t pitch = 0, count = 1;
  for (const int i : {3, 2, 0}) {
    if (view.size[i] == 1) continue;
    if (pitch == 0) pitch = view.stride[i];
    require(view.stride[i] == pitch * count,
            std::string(name) + " must have its pixels at even distances");
    count *= view.size[i];
  }
  return {static_cast<T*>(view.data), pitch};
}

void check_like(const char* name, const Tensor& tensor, const Tensor& like) {
  const auto sizes = tensor.sizes(), wanted = like.sizes();
  require(std::equal(sizes.begin(), sizes.end(), wanted.begin(), wanted.end()),
          std::string(name) + " must be of shape " + shape_of(like) + ", got " + shape_of(tensor));
}

// constants: (4, channels), as inception_fused/training/norm.py orders them.
cpu::Constants constants_of(const Tensor& constants, int64_t channels) {
  check_dtype("constants", constants, ScalarType::Float);
  require(constants.dim() == 2 && constants.size(0) == 4 && constants.size(1) == channels &&
              (constants.stride(1) == 1 || channels == 1),
          "constants must be of shape (4, " + std::to_string(channels) + "), got " +
              shape_of(constants));
  const auto* row = static_cast<const float*>(constants.const_data_ptr());
  const int64_t next = constants.stride(0);
  return {row, row + next, row + 2 * next, row + 3 * next};
}

Window window_of(const std::vector<int64_t>& numbers) {
  require(numbers.size() == 6, "window must be (kernel, stride, padding), 6 ints");
  const Window window{{numbers[0], numbers[1]}, {numbers[2], numbers[3]}, {numbers[4], numbers[5]}};
  require(window.taps() <= 256, "window must have at most 256 pixels");
  return window;
}

void normalise(Tensor z, Tensor constants, bool relu, Tensor out) {
  check_like("out", out, z);
  cpu::normalise(crew_for(z), pixels<const float>("z", z), constants_of(constants, z.size(1)), relu,
                 pixels_of(z), z.size(1), pixels<float>("out", out));
}

void normalise_backward(Tensor grad, Tensor z, Tensor constants, bool relu, bool batch,
                        Tensor grad_z, Tensor grad_affine) {
  check_like("grad", grad, z);
  check_like("grad_z", grad_z, z);
  check_dtype("grad_affine", grad_affine, ScalarType::Float);
  require(grad_affine.dim() == 2 && grad_affine.size(0) == 2 && grad_affine.size(1) == z.size(1) &&
              (grad_affine.stride(1) == 1 || z.size(1) == 1),
          "grad_affine must be of shape (2, " + std::to_string(z.size(1)) + "), got " +
              shape_of(grad_affine));
  auto* affine = static_cast<float*>(grad_affine.mutable_data_ptr());
  cpu::normalise_backward(crew_for(z), pixels<const float>("grad", grad),
                          pixels<const float>("z", z), constants_of(constants, z.size(1)), relu,
                          batch, pixels_of(z), z.size(1), pixels<float>("grad_z", grad_z), affine,
                          affine + grad_affine.stride(0));
}

// where: (batch, height, width, channels) of out, contiguous.
uint8_t* where_of(const Tensor& where, const Tensor& out) {
  check_dtype("where", where, ScalarType::Byte);
  require(where.is_contiguous() && where.numel() == out.numel(),
          "where must be contiguous and have as many elements as the result");
  return static_cast<uint8_t*>(const_cast<void*>(where.const_data_ptr()));
}

void check_pooled(const Window& window, const Tensor& x, const Tensor& out) {
  const auto fits = [&](int64_t size, int64_t got, int64_t kernel, int64_t stride,
                        int64_t padding) {
    // The last window starts inside, and every window has a pixel of the image.
    return kernel > 0 && stride > 0 && padding >= 0 && padding < kernel && got > 0 &&
           (got - 1) * stride - padding < size;
  };
  require(x.size(0) == out.size(0) && x.size(1) == out.size(1) &&
              fits(x.size(2), out.size(2), window.kernel.height, window.stride.height,
                   window.padding.height) &&
              fits(x.size(3), out.size(3), window.kernel.width, window.stride.width,
                   window.padding.width),
          "a pool of " + shape_of(x) + " with this window does not give " + shape_of(out));
}

void max_pool(Tensor x, std::vector<int64_t> window, Tensor out, Tensor where) {
  const Window pool = window_of(window);
  const cpu::Strided from = strided("x", x), to = strided("out", out);
  check_pooled(pool, x, out);
  cpu::max_pool(crew_for(out), from, pool, to, where_of(where, out));
}

void max_pool_backward(Tensor grad, Tensor where, std::vector<int64_t> window, Tensor grad_x) {
  const Window pool = window_of(window);
  const cpu::Strided from = strided("grad", grad), to = strided("grad_x", grad_x);
  check_pooled(pool, grad_x, grad);
  cpu::max_pool_backward(crew_for(grad), from, where_of(where, grad), pool, to);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CPU, m) {
  m.impl("normalise", TORCH_BOX(&normalise));
  m.impl("normalise_backward", TORCH_BOX(&normalise_backward));
  m.impl("max_pool", TORCH_BOX(&max_pool));
  m.impl("max_pool_backward", TORCH_BOX(&max_pool_backward));
}

}  // namespace inception_fused
