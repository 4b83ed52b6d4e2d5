// The CPU back end's side of the operator: tensors in, pointers and strides to csrc/cpu.
#include <torch/csrc/stable/library.h>

#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include "check.h"
#include "cpu/pack.h"
#include "cpu/pages.h"
#include "cpu/run.h"
#include "threads.h"

namespace inception_fused {

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

cpu::Strided strided(const Tensor& tensor) {
  cpu::Strided view{};
  view.data = const_cast<void*>(tensor.const_data_ptr());
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

constexpr double kMacsPerElement = 30;  // of a pack: what takes as long as to make it

// A thread is worth waking for about 5 microseconds of work.
int threads_for(double macs) {
  constexpr double kLeast = 250e3;
  const int most = static_cast<int>(torch::stable::get_num_threads());
  return std::clamp(static_cast<int>(std::min(macs / kLeast, 1e6)), 1, std::max(most, 1));
}

int threads_for(const Plan& plan, const Tensor& x) {
  double macs = 0;
  for (const Step& step : plan.steps) {
    for (const Destination& dst : step.dst) {
      macs += static_cast<double>(step.window.taps()) * static_cast<double>(step.src.channels) *
              static_cast<double>(dst.slice.channels);
    }
  }
  return threads_for(macs * static_cast<double>(x.size(0) * x.size(2) * x.size(3)));
}

cpu::Precision precision_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return cpu::Precision::kFloat32;
    case ScalarType::BFloat16:
      return cpu::Precision::kBFloat16;
    default:
      throw std::invalid_argument("inception_fused: " + std::string(name) +
                                  " must be Float or BFloat16, got " +
                                  torch::headeronly::toString(tensor.scalar_type()));
  }
}

// Elements of a pack as its layout counts them, float32; -1 if they are not whole.
int64_t size_of(const Tensor& pack) {
  constexpr int64_t kBytes = sizeof(float);
  const int64_t bytes = pack.numel() * pack.element_size();
  return bytes % kBytes ? -1 : bytes / kBytes;
}

// The last plans that this thread has run, each with the sizes and strides it ran on.
class Recent {
 public:
  using Key = std::vector<int64_t>;

  // Null if there is none with this key whose layout is the pack's.
  std::shared_ptr<const cpu::Prepared> find(const Key& key, const Tensor& pack) const {
    const auto* header = static_cast<const float*>(pack.const_data_ptr());
    for (const Entry& entry : entries_) {
      if (entry.key == key && cpu::is_layout_of(entry.prepared->layout(), header, size_of(pack))) {
        return entry.prepared;
      }
    }
    return nullptr;
  }

  void add(Key key, std::shared_ptr<const cpu::Prepared> prepared) {
    constexpr size_t kMost = 64;
    if (entries_.size() < kMost) {
      entries_.push_back({std::move(key), std::move(prepared)});
    } else {
      entries_[next_++ % kMost] = {std::move(key), std::move(prepared)};
    }
  }

 private:
  struct Entry {
    Key key;
    std::shared_ptr<const cpu::Prepared> prepared;
  };
  std::vector<Entry> entries_;
  size_t next_ = 0;
};

thread_local Recent recent;

// All that a Prepared depends on, beside the pack's layout.
Recent::Key key_of(const Tensor& x, const Tensor& pack, const std::vector<int64_t>& code,
                   const Tensor* out) {
  Recent::Key key{torch::stable::get_num_threads(), static_cast<int64_t>(x.scalar_type()),
                  static_cast<int64_t>(pack.scalar_type())};
  for (int i = 0; i < 4; ++i) {
    key.push_back(x.size(i));
    key.push_back(x.stride(i));
    key.push_back(out ? out->stride(i) : -1);
  }
  key.insert(key.end(), code.begin(), code.end());
  return key;
}

std::vector<cpu::Scale> scales_of(const std::vector<double>& numbers) {
  require(numbers.size() % 2 == 0, "scales must be two numbers per buffer of the plan, got " +
                                       std::to_string(numbers.size()));
  std::vector<cpu::Scale> scales;
  for (size_t i = 0; i < numbers.size(); i += 2) {
    const double zero = numbers[i + 1];
    require(zero >= 0 && zero <= 255 && zero == std::floor(zero),
            "scales: a zero must be 0 to 255, got " + std::to_string(zero));
    scales.push_back({static_cast<float>(numbers[i]), static_cast<int32_t>(zero)});
  }
  return scales;
}

Tensor pack_as(cpu::Precision precision, ScalarType result, std::vector<Tensor>& weights,
               std::vector<Tensor>& biases, const Plan& plan, const std::vector<int64_t>& tuning,
               const std::vector<cpu::Scale>& scales) {
  const cpu::PackLayout layout = cpu::pack_layout(plan, precision, tuning);
  std::vector<const void*> weight_data, bias_data;
  for (std::vector<Tensor>* tensors : {&weights, &biases}) {
    auto& data = tensors == &weights ? weight_data : bias_data;
    for (Tensor& tensor : *tensors) {
      const char* name = tensors == &weights ? "weights" : "biases";
      require(tensor.is_cpu(), std::string(name) + " must all be on one device");
      check_dtype(name, tensor, weights[0].scalar_type());
      tensor = torch::stable::contiguous(tensor);
      data.push_back(tensor.const_data_ptr());
    }
  }
  const std::array<int64_t, 1> size{layout.size * static_cast<int64_t>(sizeof(float)) /
                                    cpu::bytes_of(precision)};
  const Tensor packed = torch::stable::empty(size, result);
  auto* data = static_cast<float*>(packed.mutable_data_ptr());
  cpu::advise_huge_pages(data, static_cast<size_t>(layout.size) * sizeof(float));
  const int threads = threads_for(static_cast<double>(layout.size) * kMacsPerElement);
  cpu::pack(plan, layout, weight_data, bias_data, scales, data, threads, for_threads);
  return packed;
}

Tensor pack_cpu(std::vector<Tensor> weights, std::vector<Tensor> biases, std::vector<int64_t> code,
                std::vector<int64_t> tuning, std::string /* float32 */) {
  const Plan plan = decode(code);
  check_weights(plan, weights, biases);
  const ScalarType dtype = weights.empty() ? ScalarType::Float : weights[0].scalar_type();
  const cpu::Precision precision =
      weights.empty() ? cpu::Precision::kFloat32 : precision_of("weights", weights[0]);
  return pack_as(precision, dtype, weights, biases, plan, tuning, {});
}

Tensor pack_int8_cpu(std::vector<Tensor> weights, std::vector<Tensor> biases,
                     std::vector<int64_t> code, std::vector<double> scales) {
  const Plan plan = decode(code);
  check_weights(plan, weights, biases);
  if (!weights.empty()) check_dtype("weights", weights[0], ScalarType::Float);
  require(scales.size() == 2 * plan.buffers.size(),
          "scales must be two numbers per buffer of the plan, " +
              std::to_string(2 * plan.buffers.size()) + ", got " + std::to_string(scales.size()));
  std::vector<cpu::Scale> by_buffer;
  for (size_t i = 0; i < scales.size(); i += 2) {
    const double zero = scales[i + 1];
    require(zero >= 0 && zero <= 255 && zero == std::floor(zero),
            "scales: a zero must be an integer from 0 to 255, got " + std::to_string(zero));
    by_buffer.push_back({static_cast<float>(scales[i]), static_cast<int32_t>(zero)});
  }
  return pack_as(cpu::Precision::kInt8, ScalarType::Char, weights, biases, plan, {}, by_buffer);
}

Tensor empty_output(const Tensor& x, int64_t channels, Size size) {
  const std::array<int64_t, 4> shape{x.size(0), channels, size.height, size.width};
  return torch::stable::empty(
      shape, x.scalar_type(), std::nullopt, std::nullopt, std::nullopt,
      wants_channels_last(x) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

// The plan made ready for such an x and for `out`, or for an output of empty_output().
std::shared_ptr<const cpu::Prepared> prepare(const Tensor& x, const Tensor& pack,
                                             const std::vector<int64_t>& code, const Tensor* out) {
  require(pack.is_cpu(), "pack must be on the CPU, as x is");
  const bool int8 = pack.scalar_type() == ScalarType::Char;
  if (int8) check_dtype("x", x, ScalarType::Float);
  const cpu::Precision precision = int8 ? cpu::Precision::kInt8 : precision_of("x", x);
  if (!int8) check_dtype("pack", pack, x.scalar_type());
  require(
      pack.dim() == 1 && pack.is_contiguous(),
      "pack must be what inception_fused::pack gives, contiguous with one dimension, got shape " +
          shape_of(pack));
  Recent::Key key = key_of(x, pack, code, out);
  std::shared_ptr<const cpu::Prepared> prepared = recent.find(key, pack);
  if (!prepared) {
    Plan plan = decode(code);
    check_input(plan, x);
    const Size size = plan.sizes({x.size(2), x.size(3)})[kOut];
    cpu::PackLayout layout = cpu::read_layout(
        plan, precision, static_cast<const float*>(pack.const_data_ptr()), size_of(pack));
    const cpu::Strided to = strided(out ? *out : empty_output(x, plan.out_channels(), size));
    const int threads = threads_for(plan, x);
    prepared = std::make_shared<const cpu::Prepared>(std::move(plan), std::move(layout), strided(x),
                                                     to, cpu::kernels(), threads);
    recent.add(std::move(key), prepared);
  }
  return prepared;
}

// Channels or columns adjacent, as the kernels read and write.
Tensor direct(const Tensor& x) { return is_direct(x) ? x : torch::stable::contiguous(x); }

Tensor run_cpu(Tensor x, Tensor pack, std::vector<int64_t> code) {
  require_4d(x);
  x = direct(x);
  const auto prepared = prepare(x, pack, code, nullptr);
  const Tensor out = empty_output(x, prepared->plan().out_channels(), prepared->out_size());
  prepared->run(strided(x), strided(out), static_cast<const float*>(pack.const_data_ptr()),
                for_threads);
  return out;
}

void run_out_cpu(Tensor x, Tensor pack, std::vector<int64_t> code, Tensor out) {
  require_4d(x);
  require(out.is_cpu(), "out must be on the CPU, as x is");
  require(!may_overlap(pack, out), "out must not overlap pack in memory");
  x = direct(x);
  check_out(decode(code), x, out);
  const bool writable = is_direct(out);
  const Tensor to = writable ? out : empty_output(x, out.size(1), {out.size(2), out.size(3)});
  prepare(x, pack, code, &to)
      ->run(strided(x), strided(to), static_cast<const float*>(pack.const_data_ptr()), for_threads);
  if (!writable) torch::stable::copy_(out, to);
}

int64_t cpu_lanes() {
  const cpu::Kernels& table = cpu::kernels();
  return table.name.starts_with("avx512") ? 16 : table.name == "avx2" ? 8 : 4;
}

bool cpu_multiplies_bfloat16() { return cpu::kernels().name == "avx512_bf16"; }

bool cpu_multiplies_int8() {
  return cpu::kernels().name == "avx512_vnni" || cpu_multiplies_bfloat16();
}

int64_t cpu_spin(int64_t iterations, bool bfloat16, bool int8) {
  require(!(bfloat16 && int8), "bfloat16 and int8 must not both be asked for");
  const int threads = static_cast<int>(torch::stable::get_num_threads());
  std::vector<int64_t> done(static_cast<size_t>(threads));
  const cpu::Kernels& table = cpu::kernels();
  const auto spin = bfloat16 ? table.bfloat16.spin : int8 ? table.int8.spin : table.float32.spin;
  for_threads(threads, [&](int thread) { done[thread] = spin(iterations); });
  int64_t total = 0;
  for (int64_t n : done) total += n;
  return total;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CPU, m) {
  m.impl("pack", TORCH_BOX(&pack_cpu));
  m.impl("pack_int8", TORCH_BOX(&pack_int8_cpu));
  m.impl("run", TORCH_BOX(&run_cpu));
  m.impl("run.out", TORCH_BOX(&run_out_cpu));
}

STABLE_TORCH_LIBRARY_IMPL(inception_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_lanes", TORCH_BOX(&cpu_lanes));
  m.impl("cpu_multiplies_bfloat16", TORCH_BOX(&cpu_multiplies_bfloat16));
  m.impl("cpu_multiplies_int8", TORCH_BOX(&cpu_multiplies_int8));
  m.impl("cpu_spin", TORCH_BOX(&cpu_spin));
}

}  // namespace inception_fused
