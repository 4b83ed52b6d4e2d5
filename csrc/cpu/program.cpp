#include "program.h"

#include <algorithm>
#include <cmath>

#include "winograd.h"

namespace inception_fused::cpu {

namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

Size larger(Size a, Size b) { return {std::max(a.height, b.height), std::max(a.width, b.width)}; }

// Tiles of a convolution's output.
Size tiles_of(const Step& step, int64_t tile, Size in) {
  const Size out = output_size(step.window, in);
  return {(out.height + tile - 1) / tile, (out.width + tile - 1) / tile};
}

struct Border {
  Size before, after;
  bool winograd = false;  // it is read in whole vectors, beyond the last channel
  bool needed() const { return winograd || before != Size{} || after != Size{}; }
};

// The border of zeros that the convolutions need around the images of this buffer.
Border border_of(const Plan& plan, const PackLayout& layout, int64_t buffer, Size size) {
  Border border;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    if (step.kind != Kind::CONV || step.src.buffer != buffer) continue;
    const Size padding = step.window.padding;
    border.before = larger(border.before, padding);
    border.after = larger(border.after, padding);
    if (const int64_t tile = layout.steps[i].tile) {
      border.winograd = true;
      const Size tiles = tiles_of(step, tile, size);
      const int64_t more = points_of(step, tile) - tile;
      border.after =
          larger(border.after, {tiles.height * tile + more - padding.height - size.height,
                                tiles.width * tile + more - padding.width - size.width});
    }
  }
  return border;
}

Place place_of(const Strided& tensor, Size size) {
  Place place;
  place.channels = tensor.size[1];
  place.size = size;
  place.image = tensor.stride[0];
  place.row = tensor.stride[2];
  place.pixel = tensor.stride[3];
  return place;
}

// Lays the buffer out in scratch, from element `start` on; returns the element after it.
int64_t place_in_scratch(Place& place, int64_t channels, Size size, const Border& border,
                         int64_t images, int64_t start) {
  place.scratch = true;
  place.channels = channels;
  place.size = size;
  place.before = border.before;
  place.after = border.after;
  place.pixel = channels;
  place.row = (border.before.width + size.width + border.after.width) * channels;
  place.image = (border.before.height + size.height + border.after.height) * place.row;
  place.offset = start + border.before.height * place.row + border.before.width * place.pixel;
  // Winograd's transforms read whole vectors, beyond the last channel.
  return start + round_up(images * place.image + kGroup, kAlignment / sizeof(float));
}

// Elements of transformed tiles that stay in the second-level cache while the weights pass.
constexpr int64_t kTransformed = 96 << 10;

StepInfo info_of(const Step& step, const StepPack& pack, const Kernels& kernels,
                 const Place& from) {
  StepInfo info;
  if (pack.tile) {
    info.tiles = tiles_of(step, pack.tile, from.size);
    info.v_pitch = round_up(step.src.channels, kGroup);
    const int64_t rows = kernels.rows[2];
    info.chunk = std::max<int64_t>(1, kTransformed / (pack.taps * info.v_pitch * rows)) * rows;
  }
  const Window& window = step.window;
  for (int64_t y = 0; y < window.kernel.height; ++y) {
    for (int64_t x = 0; x < window.kernel.width; ++x) {
      info.taps.push_back((y - window.padding.height) * from.row +
                          (x - window.padding.width) * from.pixel);
    }
  }
  for (const Destination& dst : step.dst) {
    const int64_t buffer = dst.slice.buffer;
    if (std::find(info.targets.begin(), info.targets.end(), buffer) == info.targets.end()) {
      info.targets.push_back(buffer);
    }
  }
  return info;
}

// Cuts `rows` rows into tasks of about equal size, `parts` at most.
void cut_rows(std::vector<Task>& tasks, Task task, int64_t rows, int64_t parts, double row_cost) {
  parts = std::clamp<int64_t>(parts, 1, rows);
  for (int64_t i = 0; i < parts; ++i) {
    task.first = i * rows / parts;
    task.last = (i + 1) * rows / parts;
    task.cost = row_cost * static_cast<double>(task.last - task.first);
    tasks.push_back(task);
  }
}

// Of one output pixel or one of Winograd's tiles, for some of the columns; in multiply-adds.
double cost_of(const Step& step, const StepPack& pack, double columns) {
  const auto depth = static_cast<double>(step.src.channels);
  const auto taps = static_cast<double>(is_pool(step.kind) ? step.window.taps() : pack.taps);
  if (is_pool(step.kind)) return 2 * depth * taps;
  double cost = taps * depth * columns;
  // A pool's loads and comparisons cost about as much as two columns of the product.
  if (step.pre) cost += 2 * depth * static_cast<double>(step.pre->window.taps());
  if (pack.tile) cost += taps * (6 * depth + 4 * columns);  // the transforms
  return cost;
}

// Cuts a step by pixels, by panels, or by both, into about `parts` tasks. Where the weights are the
// larger operand, panels are cut first: then no two threads read the same weights.
void cut_step(std::vector<Task>& tasks, const Program& program, int index, int64_t parts) {
  const Step& step = program.plan.steps[index];
  const StepPack& pack = program.layout.steps[index];
  const StepInfo& info = program.steps[index];
  const bool winograd = pack.tile != 0;
  const Size size = winograd ? info.tiles : program.places[step.dst[0].slice.buffer].size;
  const int64_t units = program.images * size.height * size.width;  // pixels, or tiles
  const int64_t panels = std::max<int64_t>(1, pack.panels.size());
  const int64_t rows = program.kernels.rows[2];
  const int64_t blocks = (units + rows - 1) / rows;

  int64_t by_panel = 1;
  int64_t by_unit = std::min(parts, blocks);
  if (step.pre || pack.panels.empty()) {
    // A pooled operand is shared by all panels.
  } else if (int64_t{pack.groups} * kGroup * pack.taps > units * (winograd ? pack.taps : 1)) {
    by_panel = std::min(parts, panels);
    by_unit = std::min((parts + by_panel - 1) / by_panel, blocks);
  } else {
    by_panel = std::min((parts + by_unit - 1) / by_unit, panels);
  }
  Task task{Task::Op::kStep};
  task.step = index;
  for (int64_t p = 0; p < by_panel; ++p) {
    task.first_panel = static_cast<int>(p * panels / by_panel);
    task.last_panel = static_cast<int>((p + 1) * panels / by_panel);
    int64_t columns = 0;
    if (!pack.panels.empty()) {
      for (int i = task.first_panel; i < task.last_panel; ++i) {
        columns += pack.panels[i].groups * kGroup;
      }
    }
    const double unit_cost = cost_of(step, pack, static_cast<double>(columns));
    for (int64_t i = 0; i < by_unit; ++i) {
      task.first = i * blocks / by_unit * units / blocks;
      task.last = (i + 1) * blocks / by_unit * units / blocks;
      task.cost = unit_cost * static_cast<double>(task.last - task.first);
      tasks.push_back(task);
    }
  }
}

double step_cost(const Program& program, int index) {
  std::vector<Task> tasks;
  cut_step(tasks, program, index, 1);
  return tasks.front().cost;
}

}  // namespace

Program::Program(const Plan& plan_, const PackLayout& layout_, const Kernels& kernels_,
                 const Strided& x, const Strided& out, int64_t images_, int parts)
    : plan(plan_), layout(layout_), kernels(kernels_), images(images_) {
  const std::vector<Size> sizes = plan.sizes(x.image());
  places.resize(plan.buffers.size());
  places[kIn] = place_of(x, sizes[kIn]);
  places[kOut] = place_of(out, sizes[kOut]);
  for (int64_t b = 0; b < static_cast<int64_t>(places.size()); ++b) {
    const Border border = border_of(plan, layout, b, sizes[b]);
    const bool direct =
        (b == kIn && x.channels_last() && !border.needed()) || (b == kOut && out.channels_last());
    if (!direct) {
      scratch = place_in_scratch(places[b], plan.buffers[b], sizes[b], border, images, scratch);
    }
  }
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const StepPack& pack = layout.steps[i];
    const StepInfo& info =
        steps.emplace_back(info_of(step, pack, kernels, places[step.src.buffer]));
    if (step.pre) own.pooled = std::max(own.pooled, kPoolChunk * step.src.channels);
    if (pack.tile) {
      own.v = std::max(own.v, pack.taps * v_plane(info));
      own.m = std::max(own.m, pack.taps * m_plane(info.chunk, kMaxGroups));
    }
  }
  own.pooled = round_up(own.pooled, kGroup);

  const auto end_wave = [&] {
    const int end = static_cast<int>(tasks.size());
    if (end > (wave_end.empty() ? 0 : wave_end.back())) wave_end.push_back(end);
  };
  const auto add_border = [&](int64_t b) {
    const Place& place = places[b];
    if (place.before == Size{} && place.after == Size{}) return;
    Task task{Task::Op::kBorder};
    task.buffer = static_cast<int>(b);
    cut_rows(tasks, task, images, 1, static_cast<double>(place.image) / 2);
  };

  if (places[kIn].scratch) {
    cut_rows(tasks, {Task::Op::kLoad}, images * sizes[kIn].height, parts,
             static_cast<double>(4 * sizes[kIn].width * plan.in_channels()));
    add_border(kIn);
    end_wave();
  }
  for (int64_t wave = 0, next = 0; wave < plan.waves(); ++wave) {
    const int64_t first = next;
    double total = 0;
    while (next < static_cast<int64_t>(plan.steps.size()) && plan.steps[next].wave == wave) {
      total += step_cost(*this, static_cast<int>(next++));
    }
    for (int64_t i = first; i < next; ++i) {
      const double share = step_cost(*this, static_cast<int>(i)) / total;
      cut_step(tasks, *this, static_cast<int>(i),
               std::max<int64_t>(1, std::llround(parts * share)));
    }
    if (wave == 0) {
      for (int64_t b = kOut + 1; b < static_cast<int64_t>(places.size()); ++b) add_border(b);
    }
    end_wave();
  }
  if (places[kOut].scratch) {
    cut_rows(tasks, {Task::Op::kStore}, images * sizes[kOut].height, parts,
             static_cast<double>(4 * sizes[kOut].width * plan.out_channels()));
    end_wave();
  }
}

}  // namespace inception_fused::cpu
