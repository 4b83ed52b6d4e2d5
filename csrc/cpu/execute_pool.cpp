#include <algorithm>
#include <type_traits>
#include <vector>

#include "execute.h"

namespace inception_fused::cpu {

namespace {

// Pools `count` output pixels of one row, from `at` on.
template <typename T>
class PoolRow {
 public:
  PoolRow(const KernelsOf<T>& kernels, const Pool& pool, const Place& from, const T* base,
          int64_t channels, const Rescale& rescale)
      : kernels_(kernels),
        pool_(pool),
        from_(from),
        base_(base),
        channels_(channels),
        rescale_(rescale),
        tap_(static_cast<size_t>(std::min(pool.window.kernel.height, from.size.height) *
                                 std::min(pool.window.kernel.width, from.size.width))) {}

  void operator()(const Cursor& at, int64_t count, T* dst, int64_t dst_pixel) {
    const Window& window = pool_.window;
    if (pool_.kind == Kind::MAXPOOL && window.kernel.width == 3 && window.stride.width == 1) {
      const int64_t x = at.x + 1 - window.padding.width;  // the middle of the window
      const int rows = find_taps(at, x, x + 1);
      kernels_.max_pool_row(tap_.data(), rows, from_.pixel, x > 0, x + count < from_.size.width,
                            count, channels_, dst, dst_pixel);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const int64_t left = (at.x + i) * window.stride.width - window.padding.width;
      const int taps = find_taps(at, left, left + window.kernel.width);
      if (pool_.kind == Kind::MAXPOOL) {
        kernels_.max_pool(tap_.data(), taps, channels_, dst + i * dst_pixel);
      } else {
        const int64_t counted = pool_.kind == Kind::AVGPOOL_INSIDE ? taps : padded_taps(at.y, left);
        T* to = dst + i * dst_pixel;
        if constexpr (std::is_same_v<T, uint8_t>) {
          Rescale mean = rescale_;
          mean.factor /= static_cast<float>(counted);
          kernels_.average_pool(tap_.data(), taps, channels_, mean, to);
        } else {
          kernels_.average_pool(tap_.data(), taps, channels_, 1.0f / static_cast<float>(counted),
                                to);
        }
      }
    }
  }

 private:
  // The pixels of the window that are in the image, in columns [first, last).
  int find_taps(const Cursor& at, int64_t first, int64_t last) {
    const Window& window = pool_.window;
    const int64_t top = at.y * window.stride.height - window.padding.height;
    const int64_t bottom = std::min(top + window.kernel.height, from_.size.height);
    last = std::min(last, from_.size.width);
    int taps = 0;
    for (int64_t y = std::max<int64_t>(top, 0); y < bottom; ++y) {
      for (int64_t x = std::max<int64_t>(first, 0); x < last; ++x) {
        tap_[taps++] = base_ + from_.image(at.image) + y * from_.row + x * from_.pixel;
      }
    }
    return taps;
  }

  // The pixels of the window that are in the image or its padding: all but for ceil_mode.
  int64_t padded_taps(int64_t y, int64_t left) const {
    const Window& window = pool_.window;
    const int64_t top = y * window.stride.height - window.padding.height;
    const Size end{from_.size.height + window.padding.height,
                   from_.size.width + window.padding.width};
    return (std::min(top + window.kernel.height, end.height) - top) *
           (std::min(left + window.kernel.width, end.width) - left);
  }

  const KernelsOf<T>& kernels_;
  const Pool& pool_;
  const Place& from_;
  const T* base_;
  int64_t channels_;
  Rescale rescale_;
  std::vector<const T*> tap_;
};

}  // namespace

template <typename T>
void pool_pixels(const KernelsOf<T>& kernels, const Pool& pool, const Place& from, const T* base,
                 int64_t channels, Cursor at, int64_t count, T* dst, const Rescale& rescale) {
  PoolRow row(kernels, pool, from, base, channels, rescale);
  for (int64_t done = 0; done < count;) {
    const int64_t run = std::min(count - done, at.size.width - at.x);
    row(at, run, dst + done * channels, channels);
    at.next(run);
    done += run;
  }
}

template <typename T>
void pool_row(const KernelsOf<T>& kernels, const Pool& pool, const Place& from, const T* base,
              int64_t channels, const Cursor& at, int64_t count, T* dst, int64_t dst_pixel,
              const Rescale& rescale) {
  PoolRow(kernels, pool, from, base, channels, rescale)(at, count, dst, dst_pixel);
}

template <typename T>
void run_pool(const Program& program, const Task& task, const Operands<T>& operands) {
  const KernelsOf<T>& kernels = program.kernels.of<T>();
  const Step& step = program.plan.steps[task.step];
  const Slice& slice = step.dst[0].slice;
  const Place& from = program.places[step.src.buffer];
  const Place& to = program.places[slice.buffer];
  const T* src = base_of(program, step.src.buffer, operands) + step.src.offset;
  T* dst = base_of(program, slice.buffer, operands) + slice.offset;
  Cursor at(to.size, task.first);
  if (step.kind == Kind::LRN) {
    const Response& r = step.response;
    const int64_t most = step.src.channels - 1;  // beyond it there is no channel
    const int64_t before = std::min(r.size / 2, most);
    const int64_t behind = std::min(r.size - 1 - r.size / 2, most);
    auto* squares = reinterpret_cast<float*>(operands.own);
    for (int64_t i = task.first; i < task.last; ++i, at.next()) {
      kernels.response(src + from.image(at.image) + at.y * from.row + at.x * from.pixel,
                       step.src.channels, before, behind, r.alpha / static_cast<float>(r.size),
                       r.beta, r.k, squares,
                       dst + to.image(at.image) + at.y * to.row + at.x * to.pixel);
    }
    return;
  }
  // An average over the image is one over a window of its size.
  const bool mean = step.kind == Kind::MEAN;
  const Pool pool{mean ? Kind::AVGPOOL : step.kind, mean ? Window{from.size} : step.window};
  PoolRow row(kernels, pool, from, src, step.src.channels, {});
  for (int64_t i = task.first; i < task.last;) {
    const int64_t run = std::min(task.last - i, to.size.width - at.x);
    row(at, run, dst + to.image(at.image) + at.y * to.row + at.x * to.pixel, to.pixel);
    at.next(run);
    i += run;
  }
}

template void pool_pixels(const KernelsOf<float>&, const Pool&, const Place&, const float*, int64_t,
                          Cursor, int64_t, float*, const Rescale&);
template void pool_pixels(const KernelsOf<BFloat16>&, const Pool&, const Place&, const BFloat16*,
                          int64_t, Cursor, int64_t, BFloat16*, const Rescale&);
template void pool_pixels(const KernelsOf<uint8_t>&, const Pool&, const Place&, const uint8_t*,
                          int64_t, Cursor, int64_t, uint8_t*, const Rescale&);
template void pool_row(const KernelsOf<uint8_t>&, const Pool&, const Place&, const uint8_t*,
                       int64_t, const Cursor&, int64_t, uint8_t*, int64_t, const Rescale&);
template void run_pool(const Program&, const Task&, const Operands<float>&);
template void run_pool(const Program&, const Task&, const Operands<BFloat16>&);

}  // namespace inception_fused::cpu
