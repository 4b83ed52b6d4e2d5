#include "run.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "execute.h"

namespace inception_fused::cpu {

namespace {

// Memory that a thread keeps between its calls: it grows and is freed with the thread.
float* scratch_of_this_thread(int64_t elements) {
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
  };
  thread_local std::unique_ptr<float, Free> memory;
  thread_local int64_t size = 0;
  if (elements > size) {
    size = 0;
    memory.reset(static_cast<float*>(::operator new(static_cast<size_t>(elements) * sizeof(float),
                                                    std::align_val_t{kAlignment})));
    size = elements;
  }
  return memory.get();
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Hands out the tasks of one program to several threads, wave by wave. A thread first takes tasks
// from its own share, which lies together in memory, then from the others'. It waits for tasks to
// be done, never for a thread to arrive: so it cannot hang if the bodies run one after the other.
class Waves {
 public:
  Waves(const Program& program, int threads)
      : program_(program),
        threads_(threads),
        shares_(program.wave_end.size() * static_cast<size_t>(threads)),
        left_(program.wave_end.size()) {
    int first = 0;
    for (size_t wave = 0; wave < left_.size(); ++wave) {
      const int end = program.wave_end[wave];
      left_[wave].count.store(end - first, std::memory_order_relaxed);
      double total = 0;
      for (int i = first; i < end; ++i) total += program.tasks[i].cost;
      double before = 0;
      for (int t = 0; t < threads; ++t) {
        Share& share = shares_[wave * threads + t];
        share.next.store(first, std::memory_order_relaxed);
        while (first < end && (t == threads - 1 || before + program.tasks[first].cost / 2 <=
                                                       total * (t + 1) / threads)) {
          before += program.tasks[first++].cost;
        }
        share.end = first;
      }
    }
  }

  void work(int thread, const Operands& operands) {
    for (size_t wave = 0; wave < left_.size(); ++wave) {
      std::atomic<int>& left = left_[wave].count;
      for (int i = 0; i < threads_; ++i) {
        Share& share = shares_[wave * threads_ + (thread + i) % threads_];
        for (int task; (task = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
          execute(program_, program_.tasks[task], operands);
          if (left.fetch_sub(1, std::memory_order_acq_rel) == 1) left.notify_all();
        }
      }
      // About 100 microseconds of spinning, then sleep: the core may be shared.
      for (int spins = 0; spins < 3000 && left.load(std::memory_order_acquire) > 0; ++spins)
        pause();
      for (int now; (now = left.load(std::memory_order_acquire)) > 0;) left.wait(now);
    }
  }

 private:
  struct alignas(64) Share {
    std::atomic<int> next{0};
    int end = 0;
  };
  struct alignas(64) Left {
    std::atomic<int> count{0};
  };
  const Program& program_;
  int threads_;
  std::vector<Share> shares_;
  std::vector<Left> left_;
};

}  // namespace

void run(const Plan& plan, const PackLayout& layout, const Strided& x, const Strided& out,
         const float* pack, const Kernels& kernels, int threads, const Parallel& parallel) {
  const int64_t batch = x.size[0];
  if (batch == 0) return;
  // Whole images, a few at a time, run on one thread each as long as there are enough of them; the
  // rest is shared by all threads. Small images are taken together so that weights are used more
  // often per load.
  constexpr int64_t kPixels = 196;
  const int64_t pixels = x.size[2] * x.size[3];
  const int64_t per_thread = batch / threads;
  const int64_t group =
      std::clamp<int64_t>((kPixels + pixels - 1) / pixels, 1, std::max<int64_t>(per_thread, 1));
  const int64_t groups = threads == 1 ? batch / group : per_thread / group * threads;
  const int64_t rest = batch - groups * group;

  std::unique_ptr<Program> alone, together;
  if (groups) alone = std::make_unique<Program>(plan, layout, kernels, x, out, group, 1);
  if (rest) {
    // Eight tasks per thread and wave, so that a late thread costs little.
    const int parts = threads == 1 ? 1 : 8 * threads;
    together = std::make_unique<Program>(plan, layout, kernels, x, out, rest, parts);
  }
  const auto line = [](int64_t elements) { return (elements + 15) / 16 * 16; };
  const int64_t images = alone ? line(alone->scratch) : 0;
  const int64_t own =
      images + line(std::max(alone ? alone->own.size() : 0, together ? together->own.size() : 0));
  const int64_t shared = together ? line(together->scratch) : 0;
  float* scratch = scratch_of_this_thread(shared + threads * own);

  std::unique_ptr<Waves> waves;
  if (together) waves = std::make_unique<Waves>(*together, threads);
  std::atomic<int64_t> next_group{0};
  parallel(threads, [&](int thread) {
    float* mine = scratch + shared + thread * own;
    Transformed transformed;
    for (int64_t g; (g = next_group.fetch_add(1, std::memory_order_relaxed)) < groups;) {
      transformed = {};
      const Operands operands{x, out, g * group, pack, mine, mine + images, &transformed};
      for (const Task& task : alone->tasks) execute(*alone, task, operands);
    }
    transformed = {};
    if (waves) {
      waves->work(thread, {x, out, groups * group, pack, scratch, mine + images, &transformed});
    }
  });
}

}  // namespace inception_fused::cpu
