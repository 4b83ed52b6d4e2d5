#include "run.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "execute.h"
#include "pages.h"

namespace inception_fused::cpu {

namespace {

// Memory that a thread keeps between its calls: it grows and is freed with the thread.
void* scratch_of_this_thread(int64_t bytes) {
  struct Free {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{kAlignment}); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = 0;
    memory.reset(::operator new(static_cast<size_t>(bytes), std::align_val_t{kAlignment}));
    advise_huge_pages(memory.get(), static_cast<size_t>(bytes));
    size = bytes;
  }
  return memory.get();
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// A range of tasks that its owner takes from the front, which lie together in memory, and others
// from the back.
class alignas(64) Share {
 public:
  void set(int first, int last) { range_.store(pack(first, last), std::memory_order_relaxed); }

  // A task, or -1 if none is left.
  int take(bool from_front) {
    uint64_t range = range_.load(std::memory_order_relaxed);
    for (;;) {
      const int first = static_cast<int>(range >> 32);
      const int last = static_cast<int>(range & 0xffffffff);
      if (first == last) return -1;
      const uint64_t rest = from_front ? pack(first + 1, last) : pack(first, last - 1);
      if (range_.compare_exchange_weak(range, rest, std::memory_order_relaxed)) {
        return from_front ? first : last - 1;
      }
    }
  }

 private:
  static uint64_t pack(int first, int last) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(last);
  }
  std::atomic<uint64_t> range_{0};
};

// Hands out the tasks of one program to several threads, wave by wave, each thread its own share
// and then what others have left. It waits for tasks to be done, never for a thread to arrive: so
// it cannot hang if the bodies run one after the other.
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
        const int start = first;
        while (first < end && (t == threads - 1 || before + program.tasks[first].cost / 2 <=
                                                       total * (t + 1) / threads)) {
          before += program.tasks[first++].cost;
        }
        shares_[wave * threads + t].set(start, first);
      }
    }
  }

  template <typename T>
  void work(int thread, const Operands<T>& operands) {
    for (size_t wave = 0; wave < left_.size(); ++wave) {
      std::atomic<int>& left = left_[wave].count;
      for (int i = 0; i < threads_; ++i) {
        Share& share = shares_[wave * threads_ + (thread + i) % threads_];
        for (int task; (task = share.take(i == 0)) >= 0;) {
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
  struct alignas(64) Left {
    std::atomic<int> count{0};
  };
  const Program& program_;
  int threads_;
  std::vector<Share> shares_;
  std::vector<Left> left_;
};

}  // namespace

Prepared::Prepared(Plan plan, PackLayout layout, const Strided& x, const Strided& out,
                   const Kernels& kernels, int threads)
    : plan_(std::move(plan)),
      layout_(std::move(layout)),
      out_size_(out.image()),
      threads_(threads) {
  const int64_t batch = x.size[0];
  // As many images as the smallest of the plan want, and still several groups for each thread.
  constexpr int64_t kMost = 8;
  const int64_t per_thread = batch / threads;
  const int64_t most = std::clamp<int64_t>(per_thread, 1, kMost);
  group_ = phases_of(plan_, x.image(), most).back().images;
  groups_ = threads == 1 ? batch / group_ : per_thread / group_ * threads;
  const int64_t rest = batch - groups_ * group_;
  if (groups_) {
    alone_ = std::make_unique<const Program>(plan_, layout_, kernels, x, out, group_, 1);
  }
  if (rest) {
    // Two dozen tasks per thread and wave, so that a late thread costs little; of BFloat16 half as
    // many, which take as long.
    const int tasks = layout_.precision == Precision::kFloat32 ? 24 : 12;
    const int parts = threads == 1 ? 1 : tasks * threads;
    together_ = std::make_unique<const Program>(plan_, layout_, kernels, x, out, rest, parts);
  }
}

void Prepared::run(const Strided& x, const Strided& out, const float* pack,
                   const Parallel& parallel) const {
  if (!alone_ && !together_) return;
  switch (layout_.precision) {
    case Precision::kFloat32:
      return run_as<float>(x, out, pack, parallel);
    case Precision::kBFloat16:
      return run_as<BFloat16>(x, out, pack, parallel);
    case Precision::kInt8:
      return run_as<uint8_t>(x, out, pack, parallel);
  }
}

template <typename T>
void Prepared::run_as(const Strided& x, const Strided& out, const float* pack,
                      const Parallel& parallel) const {
  const auto line = [](int64_t elements) {
    constexpr int64_t kLine = kAlignment / sizeof(T);
    return (elements + kLine - 1) / kLine * kLine;
  };
  const int64_t images = alone_ ? line(alone_->scratch) : 0;
  const Own& parts = (alone_ ? alone_ : together_)->own;  // the same in both
  const int64_t own = images + line(parts.size());
  const int64_t shared = together_ ? line(together_->scratch) : 0;
  T* scratch = static_cast<T*>(
      scratch_of_this_thread((shared + threads_ * own) * static_cast<int64_t>(sizeof(T))));

  std::optional<Waves> waves;
  if (together_) waves.emplace(*together_, threads_);
  std::atomic<int64_t> next_group{0};
  parallel(threads_, [&](int thread) {
    T* mine = scratch + shared + thread * own;
    std::fill_n(mine + images + parts.size() - parts.zeros, parts.zeros, T{});
    Transformed transformed;
    for (int64_t g; (g = next_group.fetch_add(1, std::memory_order_relaxed)) < groups_;) {
      transformed = {};
      const Operands<T> operands{x, out, g * group_, pack, mine, mine + images, &transformed};
      for (const Task& task : alone_->tasks) execute(*alone_, task, operands);
    }
    transformed = {};
    if (waves) {
      waves->work<T>(thread,
                     {x, out, groups_ * group_, pack, scratch, mine + images, &transformed});
    }
  });
}

}  // namespace inception_fused::cpu
