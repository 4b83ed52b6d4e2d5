// The CPU back end's side of the operator: tensors in, pointers and strides to csrc/cpu.
#include <torch/csrc/stable/library.h>

#include <array>
#include <functional>

#include "check.h"
#include "cpu/pack.h"
#include "cpu/run.h"

namespace inception_fused {

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

cpu::Strided strided(const Tensor& tensor) {
  cpu::Strided view{};
  view.data = static_cast<float*>(const_cast<void*>(tensor.const_data_ptr()));
  for (int i = 0; i < 4; ++i) {
    view.size[i] = tensor.size(i);
    view.stride[i] = tensor.stride(i);
  }
  return view;
}

// Channels or columns adjacent: what the kernels read and write directly.
bool is_direct(const Tensor& tensor) {
  return tensor.stride(1) == 1 || tensor.size(1) == 1 || tensor.stride(3) == 1 ||
         tensor.size(3) == 1;
}

// A thread is worth waking for about 5 microseconds of work.
int threads_for(const Plan& plan, const Tensor& x) {
  constexpr double kLeast = 250e3;  // multiply-adds
  double macs = 0;
  for (const Step& step : plan.steps) {
    for (const Destination& dst : step.dst) {
      macs += static_cast<double>(step.window.taps() * step.src.channels * dst.slice.channels);
    }
  }
  macs *= static_cast<double>(x.size(0) * x.size(2) * x.size(3));
  const int most = static_cast<int>(torch::stable::get_num_threads());
  return std::clamp(static_cast<int>(std::min(macs / kLeast, 1e6)), 1, std::max(most, 1));
}

void for_threads(int threads, const std::function<void(int)>& body) {
  if (threads == 1) return body(0);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) body(static_cast<int>(thread));
  });
}

void run_into(const Plan& plan, const cpu::PackLayout& layout, const Tensor& x, const Tensor& pack,
              const Tensor& out) {
  const Tensor input = is_direct(x) ? x : torch::stable::contiguous(x);
  cpu::run(plan, layout, strided(input), strided(out),
           static_cast<const float*>(pack.const_data_ptr()), cpu::kernels(), threads_for(plan, x),
           for_threads);
}

cpu::PackLayout check_run(const Plan& plan, const Tensor& x, const Tensor& pack) {
  check_input(plan, x);
  check_dtype("x", x, ScalarType::Float);
  require(pack.is_cpu(), "pack must be on the CPU, as x is");
  check_dtype("pack", pack, ScalarType::Float);
  require(
      pack.dim() == 1 && pack.is_contiguous(),
      "pack must be what inception_fused::pack gives, contiguous with one dimension, got shape " +
          shape_of(pack));
  return cpu::read_layout(plan, static_cast<const float*>(pack.const_data_ptr()), pack.numel());
}

Tensor pack_cpu(std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<int64_t> code,
                std::vector<int64_t> tuning) {
  const Plan plan = decode(code);
  const cpu::PackLayout layout = cpu::pack_layout(plan, tuning);
  check_weights(plan, weights, biases);
  std::vector<const float*> weight_data, bias_data;
  for (std::vector<Tensor>* tensors : {&weights, &biases}) {
    auto& data = tensors == &weights ? weight_data : bias_data;
    for (Tensor& tensor : *tensors) {
      const char* name = tensors == &weights ? "weights" : "biases";
      require(tensor.is_cpu(), std::string(name) + " must all be on one device");
      check_dtype(name, tensor, ScalarType::Float);
      tensor = torch::stable::contiguous(tensor);
      data.push_back(static_cast<const float*>(tensor.const_data_ptr()));
    }
  }
  const std::array<int64_t, 1> size{layout.size};
  const Tensor packed = torch::stable::empty(size, ScalarType::Float);
  cpu::pack(plan, layout, weight_data, bias_data, static_cast<float*>(packed.mutable_data_ptr()));
  return packed;
}

Tensor run_cpu(Tensor x, Tensor pack, std::vector<int64_t> code) {
  const Plan plan = decode(code);
  const cpu::PackLayout layout = check_run(plan, x, pack);
  const Tensor out = torch::stable::empty(
      output_shape(plan, x), ScalarType::Float, std::nullopt, std::nullopt, std::nullopt,
      wants_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  run_into(plan, layout, x, pack, out);
  return out;
}

void run_out_cpu(Tensor x, Tensor pack, std::vector<int64_t> code, Tensor out) {
  const Plan plan = decode(code);
  const cpu::PackLayout layout = check_run(plan, x, pack);
  require(out.is_cpu(), "out must be on the CPU, as x is");
  check_out(plan, x, out);
  if (is_direct(out)) {
    run_into(plan, layout, x, pack, out);
  } else {
    const Tensor dense = torch::stable::empty(output_shape(plan, x), ScalarType::Float);
    run_into(plan, layout, x, pack, dense);
    torch::stable::copy_(out, dense);
  }
}

int64_t cpu_lanes() {
  const cpu::Kernels& table = cpu::kernels();
  return table.name == "avx512" ? 16 : table.name == "avx2" ? 8 : 4;
}

int64_t cpu_spin(int64_t iterations) {
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  std::vector<int64_t> done(static_cast<size_t>(threads));
  for_threads(threads, [&](int thread) { done[thread] = cpu::kernels().spin(iterations); });
  int64_t total = 0;
  for (int64_t n : done) total += n;
  return total;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CPU, m) {
  m.impl("pack", TORCH_BOX(&pack_cpu));
  m.impl("run", TORCH_BOX(&run_cpu));
  m.impl("run.out", TORCH_BOX(&run_out_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_lanes", TORCH_BOX(&cpu_lanes));
  m.impl("cpu_spin", TORCH_BOX(&cpu_spin));
}

}  // namespace inception_fused
