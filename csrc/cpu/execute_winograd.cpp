#include <algorithm>

#include "execute.h"
#include "winograd.h"

namespace inception_fused::cpu {

namespace {

constexpr float kNoBias[kMaxGroups * kGroup] = {};

Algorithm algorithm_of(const Step& step, int64_t tile) {
  switch (edge_of(step)) {
    case 5:
      return kF2x2_5x5;
    case 4:
      return kF3x3_4x4;
    default:
      return tile == 4 ? kF4x4_3x3 : kF2x2_3x3;
  }
}

// The pixels of one input tile; outside the image they are zeros.
template <typename T>
void find_pixels(Size padding, int64_t tile, int points, const Place& from, const T* src,
                 const T* zeros, const Cursor& at, const T** pixel) {
  const int64_t top = at.y * tile - padding.height, left = at.x * tile - padding.width;
  for (int64_t y = top; y < top + points; ++y) {
    const T* row = src + from.image(at.image) + y * from.row;
    const bool outside = y < 0 || y >= from.size.height;
    for (int64_t x = left; x < left + points; ++x) {
      const bool inside = !outside && x >= 0 && x < from.size.width;
      *pixel++ = inside ? row + x * from.pixel : zeros;
    }
  }
}

// The products of `tiles` transformed tiles with one panel's weights.
void multiply(const Program& program, const StepInfo& info, int64_t depth, const Panel& panel,
              int64_t products, int64_t tiles, const float* v, const float* weights, float* m) {
  const int most = program.kernels.float32.rows[panel.groups];
  const int64_t blocks = (tiles + most - 1) / most;
  const int64_t width = int64_t{panel.groups} * kGroup;
  for (int64_t p = 0; p < products; ++p) {
    float* sums = m + p * m_plane(tiles, panel.groups);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = b * tiles / blocks;
      const int rows = static_cast<int>((b + 1) * tiles / blocks - first);
      const float* a[kMaxRows];
      int64_t offset[kMaxRows];
      for (int r = 0; r < rows; ++r) {
        a[r] = v + (first + r) * info.v_pitch;
        offset[r] = (first + r) * width;
      }
      Column<float> columns[kMaxGroups];
      for (int g = 0; g < panel.groups; ++g) {
        columns[g] = {sums + g * kGroup, offset, kGroup, false};
      }
      const int64_t tap = p * v_plane(info);
      program.kernels.float32.gemm(
          {a, &tap, weights + p * depth * width, kNoBias, columns, depth, 1, rows, panel.groups});
    }
  }
}

}  // namespace

template <typename T>
void load_phases(const Program& program, const Task& task, const Operands<T>& operands) {
  const Place& to = program.places[kIn];
  const Strided& x = operands.x;
  const Window& window =
      std::find_if(program.plan.steps.begin(), program.plan.steps.end(), [](const Step& step) {
        return step.src.buffer == kIn;
      })->window;
  const auto [y_stride, x_stride] = window.stride;
  T* dst = base_of(program, kIn, operands);
  for (int64_t i = task.first; i < task.last; ++i) {
    const int64_t image = i / to.size.height;
    T* row = dst + to.image(image) + i % to.size.height * to.row;
    std::fill_n(row, to.row, T{});
    const T* src = static_cast<const T*>(x.data) + (operands.first_image + image) * x.stride[0];
    for (int64_t phase = 0; phase < y_stride * x_stride; ++phase, row += x.size[1]) {
      const int64_t y = i % to.size.height * y_stride + phase / x_stride - window.padding.height;
      if (y < 0 || y >= x.size[2]) continue;
      // Column j of the phase is column `left` + j * x_stride of the image.
      const int64_t left = phase % x_stride - window.padding.width;
      const int64_t first = left < 0 ? (-left + x_stride - 1) / x_stride : 0;
      const int64_t last = std::min(to.size.width, (x.size[3] - left + x_stride - 1) / x_stride);
      for (int64_t c = 0; c < x.size[1]; ++c) {
        const T* from = src + c * x.stride[1] + y * x.stride[2] + left * x.stride[3];
        for (int64_t j = first; j < last; ++j) {
          row[j * to.pixel + c] = from[j * x_stride * x.stride[3]];
        }
      }
    }
  }
}

template <typename T>
void run_winograd(const Program& program, const Task& task, const Operands<T>& operands) {
  const Step& step = program.plan.steps[task.step];
  const StepPack& pack = program.layout.steps[task.step];
  const StepInfo& info = program.steps[task.step];
  const Winograd<T>& kernel = program.kernels.of<T>().winograd[algorithm_of(step, pack.tile)];
  const Place& from = program.places[step.src.buffer];
  const Place& to = program.places[info.targets[0]];
  const T* src = base_of(program, step.src.buffer, operands) + step.src.offset;
  T* own = operands.own + program.own.pooled;
  auto* v = reinterpret_cast<float*>(own);
  auto* m = reinterpret_cast<float*>(own + program.own.v);
  const T* zeros = own + program.own.v + program.own.m;

  // Phases have zeros behind their channels.
  const int64_t channels = from.phases ? from.pixel : step.src.channels;
  const Size padding = from.phases ? Size{} : step.window.padding;
  const int64_t count = task.last - task.first;
  const int64_t chunks = (count + info.chunk - 1) / info.chunk;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t first = task.first + c * count / chunks;
    const int64_t last = task.first + (c + 1) * count / chunks;
    const int64_t tiles = last - first;
    const Transformed wanted{task.step, first, last};
    if (*operands.transformed != wanted) {
      Cursor at(info.tiles, first);
      for (int64_t t = 0; t < tiles; ++t, at.next()) {
        const T* pixel[kMaxPoints * kMaxPoints];
        find_pixels(padding, pack.tile, kernel.points, from, src, zeros, at, pixel);
        kernel.input(pixel, channels, v + t * info.v_pitch, v_plane(info));
      }
      *operands.transformed = wanted;
    }
    for (int p = task.first_panel; p < task.last_panel; ++p) {
      const Panel& panel = pack.panels[p];
      multiply(program, info, pack.depth, panel, pack.taps, tiles, v, operands.pack + panel.offset,
               m);
      Column<T> columns[kMaxGroups];
      const int64_t* const no_rows = nullptr;
      find_columns(program, task.step, panel, operands, &no_rows, columns);
      for (int g = 0; g < panel.groups; ++g) {
        const float* bias = operands.pack + pack.bias + (panel.first_group + g) * kGroup;
        Cursor at(info.tiles, first);
        for (int64_t t = 0; t < tiles; ++t, at.next()) {
          const int64_t y = at.y * pack.tile, x = at.x * pack.tile;
          kernel.output(m + (t * panel.groups + g) * kGroup, m_plane(tiles, panel.groups), bias,
                        columns[g].relu,
                        columns[g].dst + to.image(at.image) + y * to.row + x * to.pixel, to.row,
                        to.pixel, static_cast<int>(std::min(pack.tile, to.size.height - y)),
                        static_cast<int>(std::min(pack.tile, to.size.width - x)), columns[g].lanes);
        }
      }
    }
  }
}

template void load_phases(const Program&, const Task&, const Operands<float>&);
template void load_phases(const Program&, const Task&, const Operands<BFloat16>&);
template void run_winograd(const Program&, const Task&, const Operands<float>&);
template void run_winograd(const Program&, const Task&, const Operands<BFloat16>&);

}  // namespace inception_fused::cpu
