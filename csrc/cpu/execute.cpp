#include "execute.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <vector>

namespace inception_fused::cpu {

template <typename T>
T* base_of(const Program& program, int64_t buffer, const Operands<T>& operands) {
  const Place& place = program.places[buffer];
  if (place.scratch) return operands.scratch + place.offset;
  const Strided& tensor = buffer == kIn ? operands.x : operands.out;
  return static_cast<T*>(tensor.data) + operands.first_image * place.stride;
}

template <typename T>
void find_columns(const Program& program, int step, const Panel& panel, const Operands<T>& operands,
                  const int64_t* const* rows, Column<T>* columns) {
  const StepInfo& info = program.steps[step];
  int group = 0;
  for (const Destination& dst : program.plan.steps[step].dst) {
    for (int64_t channel = 0; channel < dst.slice.channels; channel += kGroup, ++group) {
      const int i = group - panel.first_group;
      if (i < 0 || i >= panel.groups) continue;
      const auto target = std::find(info.targets.begin(), info.targets.end(), dst.slice.buffer);
      Column<T>& column = columns[i];
      const int64_t start = (dst.slice.offset + channel) * program.width(dst.slice.buffer);
      column.dst = base_of(program, dst.slice.buffer, operands) + start;
      column.row = rows[target - info.targets.begin()];
      column.lanes = static_cast<int>(std::min<int64_t>(kGroup, dst.slice.channels - channel));
      column.relu = dst.activation == Activation::RELU;
      if constexpr (std::is_same_v<T, uint8_t>) {
        column.wide = dst.slice.buffer == kOut;
        column.zero = column.wide ? 0 : scale_of(program, dst.slice.buffer, operands).zero;
        column.factor = operands.pack + program.layout.steps[step].factor + int64_t{group} * kGroup;
      }
    }
  }
}

namespace {

// Offsets of the pixels of a chunk in one of the buffers that a step writes.
using Rows = std::array<int64_t, kMaxChunk>;

template <typename T>
void run_product(const Program& program, const Task& task, const Operands<T>& operands) {
  const KernelsOf<T>& kernels = program.kernels.of<T>();
  const Step& step = program.plan.steps[task.step];
  const StepPack& pack = program.layout.steps[task.step];
  const StepInfo& info = program.steps[task.step];
  const Place& from = program.places[step.src.buffer];
  const T* src = base_of(program, step.src.buffer, operands) + step.src.offset;
  const int64_t channels = step.src.channels;
  const Size size = program.places[step.dst[0].slice.buffer].size;
  const int tap_count = static_cast<int>(info.taps.size());
  std::vector<Rows> rows(info.targets.size());
  std::vector<const int64_t*> first_rows;
  for (const Rows& offsets : rows) first_rows.push_back(offsets.data());

  // Rows of A that stay in the second-level cache while all panels pass over them.
  constexpr int64_t kChunkBytes = 128 << 10;
  const int64_t longest =
      step.pre
          ? kPoolChunk
          : std::clamp<int64_t>(kChunkBytes / (channels * int64_t{sizeof(T)}), kMaxRows, kMaxChunk);
  const int64_t chunks = (task.last - task.first + longest - 1) / longest;
  const T* a[kMaxChunk];
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t first = task.first + c * (task.last - task.first) / chunks;
    const int64_t last = task.first + (c + 1) * (task.last - task.first) / chunks;
    const int count = static_cast<int>(last - first);
    if (step.pre) {
      Rescale rescale;
      if constexpr (std::is_same_v<T, uint8_t>) {
        rescale.from_zero = rescale.zero = scale_of(program, step.src.buffer, operands).zero;
      }
      pool_pixels(kernels, *step.pre, from, src, channels, Cursor(size, first), count, operands.own,
                  rescale);
    }
    Cursor at(size, first);
    for (int i = 0; i < count; ++i, at.next()) {
      if (step.pre) {
        a[i] = operands.own + i * channels;
      } else {
        a[i] = src + from.image(at.image) + at.y * step.window.stride.height * from.row +
               at.x * step.window.stride.width * from.pixel;
      }
      for (size_t t = 0; t < rows.size(); ++t) {
        const Place& to = program.places[info.targets[t]];
        rows[t][i] = to.image(at.image) + at.y * to.row + at.x * to.pixel;
      }
    }
    for (int p = task.first_panel; p < task.last_panel; ++p) {
      const Panel& panel = pack.panels[p];
      const int most = kernels.rows[panel.groups];
      const int tiles = (count + most - 1) / most;
      Column<T> columns[kMaxGroups];
      find_columns(program, task.step, panel, operands, first_rows.data(), columns);
      int done = 0;
      for (int t = 0; t < tiles; ++t) {
        const int height = (t + 1) * count / tiles - done;
        kernels.gemm({a + done, info.taps.data(), operands.pack + panel.offset,
                      operands.pack + pack.bias + panel.first_group * kGroup, columns, info.depth,
                      tap_count, height, panel.groups});
        for (int g = 0; g < panel.groups; ++g) columns[g].row += height;
        done += height;
      }
    }
  }
}

// Image rows [first, last) of x into scratch.
template <typename T>
void run_load(const Program& program, const Task& task, const Operands<T>& operands) {
  const Place& to = program.places[kIn];
  if (to.phases) return load_phases(program, task, operands);
  const Strided& x = operands.x;
  T* dst = base_of(program, kIn, operands);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t image = i / to.size.height;
    const int64_t y = i % to.size.height;
    const T* src = static_cast<const T*>(x.data) + (operands.first_image + image) * x.stride[0] +
                   y * x.stride[2];
    T* row = dst + to.image(image) + y * to.row;
    if (x.channels_last()) {
      for (int64_t pixel = 0; pixel < to.size.width; ++pixel) {
        std::memcpy(row + pixel * to.pixel, src + pixel * x.stride[3],
                    static_cast<size_t>(to.channels) * sizeof(T));
      }
    } else {
      program.kernels.of<T>().transpose(src, x.stride[1], to.channels, to.size.width, row,
                                        to.pixel);
    }
  }
}

// Image rows [first, last) of the output from scratch.
template <typename T>
void run_store(const Program& program, const Task& task, const Operands<T>& operands) {
  const Place& from = program.places[kOut];
  const Strided& out = operands.out;
  const T* src = base_of(program, kOut, operands);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t image = i / from.size.height;
    const int64_t y = i % from.size.height;
    T* row = static_cast<T*>(out.data) + (operands.first_image + image) * out.stride[0] +
             y * out.stride[2];
    program.kernels.of<T>().transpose(src + from.image(image) + y * from.row, from.pixel,
                                      from.size.width, from.channels, row, out.stride[1]);
  }
}

// Zeros, or what stands for them, around images [first, last) of a buffer.
template <typename T>
void run_border(const Program& program, const Task& task, const Operands<T>& operands) {
  const Place& place = program.places[task.buffer];
  const int64_t side = place.border.width * place.pixel;
  T nothing{};
  if constexpr (std::is_same_v<T, uint8_t>) {
    nothing = static_cast<T>(scale_of(program, task.buffer, operands).zero);
  }
  const auto zero = [=](T* p, int64_t count) { std::fill_n(p, count, nothing); };
  for (int64_t image = task.first; image < task.last; ++image) {
    T* top = base_of(program, task.buffer, operands) + place.image(image) -
             place.border.height * place.row - side;
    zero(top, place.border.height * place.row);
    T* row = top + place.border.height * place.row;
    for (int64_t y = 0; y < place.size.height; ++y, row += place.row) {
      zero(row, side);
      zero(row + place.row - side, side);
    }
    zero(row, place.border.height * place.row);
  }
}

}  // namespace

template <typename T>
void execute(const Program& program, const Task& task, const Operands<T>& operands) {
  constexpr bool kInt8 = std::is_same_v<T, uint8_t>;
  switch (task.op) {
    case Task::Op::kLoad:
      if constexpr (kInt8) {
        return run_load_int8(program, task, operands);
      } else {
        return run_load(program, task, operands);
      }
    case Task::Op::kBorder:
      return run_border(program, task, operands);
    case Task::Op::kStore:
      if constexpr (kInt8) {
        return run_store_int8(program, task, operands);
      } else {
        return run_store(program, task, operands);
      }
    case Task::Op::kStep: {
      const Step& step = program.plan.steps[task.step];
      if (!has_weight(step.kind)) {
        if constexpr (kInt8) {
          return run_pool_int8(program, task, operands);
        } else {
          return run_pool(program, task, operands);
        }
      }
      if constexpr (!kInt8) {
        if (program.layout.steps[task.step].tile) return run_winograd(program, task, operands);
      }
      return run_product(program, task, operands);
    }
  }
}

template float* base_of(const Program&, int64_t, const Operands<float>&);
template BFloat16* base_of(const Program&, int64_t, const Operands<BFloat16>&);
template uint8_t* base_of(const Program&, int64_t, const Operands<uint8_t>&);
template void find_columns(const Program&, int, const Panel&, const Operands<float>&,
                           const int64_t* const*, Column<float>*);
template void execute(const Program&, const Task&, const Operands<float>&);
template void execute(const Program&, const Task&, const Operands<BFloat16>&);
template void execute(const Program&, const Task&, const Operands<uint8_t>&);

}  // namespace inception_fused::cpu
