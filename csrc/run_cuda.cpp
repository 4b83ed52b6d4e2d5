// The CUDA back end's side of the operator: tensors in, launches on torch's current stream out.
#include <Python.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "cuda/launch.h"
#include "cuda/program.h"

namespace inception_fused {

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::accelerator::DeviceGuard;

// `float32` is that of inception_fused::pack.
cuda::Math math_of(ScalarType dtype, const std::string& float32) {
  switch (dtype) {
    case ScalarType::Half:
      return cuda::Math::kHalf;
    case ScalarType::BFloat16:
      return cuda::Math::kBFloat16;
    case ScalarType::Float:
      if (float32 == "tf32") return cuda::Math::kTf32;
      if (float32 == "bf16x3") return cuda::Math::kBf16x3;
      require(float32 == "ieee", "float32 must be tf32, bf16x3 or ieee, got " + float32);
      return cuda::Math::kFloat32;
    default:
      require(false, std::string("x must be float16, bfloat16 or float32 on CUDA, got ") +
                         torch::headeronly::toString(dtype));
      return {};
  }
}

cuda::Strided strided(const Tensor& tensor) {
  cuda::Strided view;
  view.data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  for (int i = 0; i < 4; ++i) {
    view.size[i] = tensor.size(i);
    view.stride[i] = tensor.stride(i);
  }
  return view;
}

CUstream_st* current_stream(int32_t device) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<CUstream_st*>(stream);
}

// The architecture of a device, asked once.
const cuda::Architecture& architecture_of(int32_t device) {
  constexpr int kMaxDevices = 64;
  static std::array<cuda::Architecture, kMaxDevices> known{};
  static std::array<std::once_flag, kMaxDevices> asked;
  require(device >= 0 && device < kMaxDevices, "x is on a device with an index above 63");
  std::call_once(asked[device], [&] { known[device] = cuda::current_architecture(); });
  const cuda::Architecture& found = known[device];
  require(found.sm != 0, "x is on a GPU older than sm_80, which this back end needs");
  require(cuda::has_code_for_current_device(),
          "x is on a GPU of sm_" + std::to_string(found.sm) +
              ", which this library was not built for: rebuild it with TORCH_CUDA_ARCH_LIST=" +
              std::to_string(found.sm / 10) + "." + std::to_string(found.sm % 10));
  return found;
}

void check_cuda(const char* error) {
  if (error) throw std::runtime_error(std::string("inception_fused: CUDA: ") + error);
}

void same_device(const char* name, const Tensor& tensor, const Tensor& x) {
  require(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(),
          std::string(name) + " must be on CUDA device " + std::to_string(x.get_device_index()));
}

Tensor bytes_on(const Tensor& x, int64_t bytes) {
  const std::array<int64_t, 1> size{bytes};
  return torch::stable::new_empty(x, size, ScalarType::Byte);
}

cuda::Math check_run(const Plan& plan, const Tensor& x, const Tensor& pack) {
  check_input(plan, x);
  same_device("pack", pack, x);
  check_dtype("pack", pack, x.scalar_type());
  const cuda::Math math = math_of(x.scalar_type(), "tf32");
  const int64_t bytes = cuda::pack_layout(plan, math).bytes;
  const int64_t given = pack.numel() * static_cast<int64_t>(pack.element_size());
  const std::optional<cuda::Math> told = cuda::told_by(given - bytes, math);
  require(pack.is_contiguous() && told.has_value(),
          "pack must be what inception_fused::pack gives for this plan and dtype, " +
              std::to_string(bytes) + " bytes, got " + std::to_string(given));
  return *told;
}

void run_into(const Plan& plan, cuda::Math math, const Tensor& x, const Tensor& pack,
              const Tensor& out) {
  const int32_t device = x.get_device_index();
  const cuda::Architecture& architecture = architecture_of(device);
  if (x.numel() == 0) return;
  const Tensor scratch =
      bytes_on(x, cuda::scratch_bytes(plan, math, x.size(0) * x.size(2) * x.size(3)));
  const cuda::Program program = cuda::build(plan, math, architecture, strided(x), strided(out),
                                            static_cast<const char*>(pack.const_data_ptr()),
                                            static_cast<char*>(scratch.mutable_data_ptr()));
  CUstream_st* const stream = current_stream(device);
  const bool early = architecture.sm >= 90;
  for (const cuda::LaunchPlan& launch : program.launches) {
    check_cuda(cuda::launch(launch.conv, math, launch.config, launch.wave, early, stream));
  }
}

Tensor pack_cuda(std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<int64_t> code,
                 std::vector<int64_t> tuning, std::string float32) {
  const Plan plan = decode(code);
  require(std::all_of(tuning.begin(), tuning.end(), [](int64_t tile) { return tile == 0; }),
          "tuning must be empty or zeros on CUDA");
  check_weights(plan, weights, biases);
  const Tensor& first = weights[0];
  const DeviceGuard guard(first.get_device_index());
  architecture_of(first.get_device_index());
  const cuda::Math math = math_of(first.scalar_type(), float32);
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::string index = "[" + std::to_string(i) + "]";
    same_device(("weights" + index).c_str(), weights[i], first);
    same_device(("biases" + index).c_str(), biases[i], first);
    check_dtype(("weights" + index).c_str(), weights[i], first.scalar_type());
    check_dtype(("biases" + index).c_str(), biases[i], first.scalar_type());
  }
  const cuda::PackLayout layout = cuda::pack_layout(plan, math);
  const int64_t bytes = layout.bytes + cuda::telling_bytes(math);
  const std::array<int64_t, 1> size{bytes / static_cast<int64_t>(first.element_size())};
  const Tensor packed = torch::stable::new_empty(first, size);
  CUstream_st* const stream = current_stream(first.get_device_index());
  for (size_t i = 0; i < weights.size(); ++i) {
    cuda::PackTask task = cuda::pack_task(plan, layout, math, static_cast<int64_t>(i),
                                          static_cast<char*>(packed.mutable_data_ptr()));
    const cuda::Strided weight = strided(weights[i]);
    task.weight = weight.data;
    std::copy(weight.stride, weight.stride + 4, task.stride);
    task.bias = static_cast<const char*>(biases[i].const_data_ptr());
    task.bias_stride = biases[i].stride(0);
    check_cuda(cuda::launch_pack(math, task, cuda::pack_blocks(task, math), stream));
  }
  return packed;
}

Tensor run_cuda(Tensor x, Tensor pack, std::vector<int64_t> code) {
  const Plan plan = decode(code);
  const cuda::Math math = check_run(plan, x, pack);
  const DeviceGuard guard(x.get_device_index());
  const Tensor out = torch::stable::empty(
      output_shape(plan, x), x.scalar_type(), std::nullopt, x.device(), std::nullopt,
      wants_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  run_into(plan, math, x, pack, out);
  return out;
}

void run_out_cuda(Tensor x, Tensor pack, std::vector<int64_t> code, Tensor out) {
  const Plan plan = decode(code);
  const cuda::Math math = check_run(plan, x, pack);
  same_device("out", out, x);
  check_out(plan, x, out);
  const DeviceGuard guard(x.get_device_index());
  run_into(plan, math, x, pack, out);
}

bool cuda_has_code(int64_t device) {
  const DeviceGuard guard(static_cast<int32_t>(device));
  return cuda::current_architecture().sm != 0 && cuda::has_code_for_current_device();
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(inception_fused, m) {
  // Whether this library holds code for the device of that index.
  m.def("cuda_has_code(int device) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CUDA, m) {
  m.impl("pack", TORCH_BOX(&pack_cuda));
  m.impl("run", TORCH_BOX(&run_cuda));
  m.impl("run.out", TORCH_BOX(&run_out_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CompositeExplicitAutograd, m) {
  m.impl("cuda_has_code", TORCH_BOX(&cuda_has_code));
}

}  // namespace inception_fused

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__cuda(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
