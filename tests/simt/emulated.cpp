#include "emulated.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

#include "cuda/kernels.h"

namespace inception_fused::cuda {
namespace {

struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Memory = std::unique_ptr<char, Free>;

// Exactly `bytes`, a multiple of 16, so that AddressSanitizer sees the first byte past the end.
Memory allocate(int64_t bytes) {
  Memory memory(static_cast<char*>(std::aligned_alloc(16, bytes ? bytes : 16)));
  if (!memory) throw std::bad_alloc();
  std::fill_n(memory.get(), bytes, static_cast<char>(0xff));
  return memory;
}

// Bytes from a tensor's first element to its last, with what a slice leaves out.
int64_t extent_bytes(const Strided& t, Math math) {
  int64_t elements = 1;
  for (int i = 0; i < 4; ++i) {
    if (t.size[i] == 0) return 0;
    elements += (t.size[i] - 1) * t.stride[i];
  }
  return elements * (16 / vector_elements(math));
}

// Whether the shape fits every launch; the launches are then rebuilt with it.
bool force_shape(Program& program, int shape, const Architecture& architecture, Math math) {
  bool fits = true;
  for (LaunchPlan& launch : program.launches) {
    const Config config = price(launch.wave, shape, architecture, math);
    if (config.shape < 0) {
      fits = false;
      continue;
    }
    launch.config = config;
    set_blocks(launch.wave, kShapes[shape]);
  }
  return fits;
}

#if defined(SIMT_FEW)  // builds in seconds under a sanitizer
template <class D, class T>
constexpr bool kBuilt =
    std::is_same_v<D, Half> && T::kColumns == 32 && (T::kRows == 32 || T::kCluster > 1);
#else
template <class D, class T>
constexpr bool kBuilt = true;
#endif

simt::Launch to_launch(const LaunchPlan& plan, Math math) {
  simt::Launch launch{plan.config.blocks, plan.config.threads, plan.config.shared, {}};
  launch.cluster = kShapes[plan.config.shape].cluster;
  const Wave* const wave = &plan.wave;
  with_math(math, [&]<class D>() {
    with_shape(plan.config.shape, [&]<class T>() {
      if constexpr (!kBuilt<D, T>) {
        throw simt::Error("this tile was not built");
      } else if (plan.conv) {
        launch.kernel = [wave] { run_conv<D, T>(*wave); };
      } else {
        launch.kernel = [wave] { run_pointwise<D, T>(*wave); };
      }
    });
  });
  return launch;
}

void pack(simt::Machine& machine, const Plan& plan, const PackLayout& layout, Math math,
          const std::vector<Weight>& weights, char* to, bool merged) {
  for (size_t i = 0; i < weights.size(); ++i) {
    PackTask task = pack_task(plan, layout, math, static_cast<int64_t>(i), to);
    task.weight = weights[i].weight.data;
    std::copy(weights[i].weight.stride, weights[i].weight.stride + 4, task.stride);
    task.bias = weights[i].bias;
    task.bias_stride = weights[i].bias_stride;
    simt::Launch launch{pack_blocks(task, math), kPackThreads, 0, {}};
    launch.merged = merged;
    with_math(math, [&]<class D>() { launch.kernel = [&task] { run_pack<D>(task); }; });
    machine.run({launch});
  }
}

}  // namespace

EmulatedRun run_emulated(simt::Machine& machine, const Plan& plan, Math math,
                         const Architecture& architecture, const Strided& x,
                         const std::vector<Weight>& weights, const Strided& out,
                         std::optional<int> shape, int times, bool merged_packs) {
  const PackLayout layout = pack_layout(plan, math);
  const Memory packed = allocate(layout.bytes);
  pack(machine, plan, layout, math, weights, packed.get(), merged_packs);
  machine.counters = {};
  const int64_t pixels = x.size[0] * x.size[2] * x.size[3];
  const int64_t scratch = scratch_bytes(plan, math, pixels);
  const Memory scratched = allocate(scratch);
  machine.watch("x", x.data, extent_bytes(x, math));
  machine.watch("out", out.data, extent_bytes(out, math));
  machine.watch("pack", packed.get(), layout.bytes);
  machine.watch("scratch", scratched.get(), scratch);
  EmulatedRun run{build(plan, math, architecture, x, out, packed.get(), scratched.get()),
                  layout.bytes};
  if (shape) force_shape(run.program, *shape, architecture, math);
  std::vector<simt::Launch> launches;
  for (int i = 0; i < times; ++i) {
    for (const LaunchPlan& launch : run.program.launches) {
      launches.push_back(to_launch(launch, math));
    }
  }
  machine.run(launches);
  return run;
}

}  // namespace inception_fused::cuda
