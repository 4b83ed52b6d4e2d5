#include "program.h"

#include <algorithm>
#include <cmath>

namespace inception_fused::cpu {

namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// The widest zero border that a convolution needs around the images of this buffer.
Size border_of(const Plan& plan, int64_t buffer) {
  Size border;
  for (const Step& step : plan.steps) {
    if (step.kind == Kind::CONV && step.src.buffer == buffer) {
      border.height = std::max(border.height, step.window.padding.height);
      border.width = std::max(border.width, step.window.padding.width);
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
int64_t place_in_scratch(Place& place, int64_t channels, Size size, Size border, int64_t images,
                         int64_t start) {
  place.scratch = true;
  place.channels = channels;
  place.size = size;
  place.border = border;
  place.pixel = channels;
  place.row = (size.width + 2 * border.width) * channels;
  place.image = (size.height + 2 * border.height) * place.row;
  place.offset = start + border.height * place.row + border.width * place.pixel;
  return start + round_up(images * place.image, kAlignment / sizeof(float));
}

StepInfo info_of(const Step& step, const Place& from) {
  StepInfo info;
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

// Cuts a step by pixels, by panels, or by both, into about `parts` tasks. Where the weights are the
// larger operand, panels are cut first: then no two threads read the same weights.
void cut_step(std::vector<Task>& tasks, const Program& program, int index, int64_t parts) {
  const Step& step = program.plan.steps[index];
  const StepPack& pack = program.layout.steps[index];
  const Size size = program.places[step.dst[0].slice.buffer].size;
  const int64_t pixels = program.images * size.height * size.width;
  const int64_t panels = std::max<int64_t>(1, pack.panels.size());
  const int64_t depth = step.src.channels * step.window.taps();
  const int64_t rows = program.kernels.rows[2];
  const int64_t tiles = (pixels + rows - 1) / rows;

  int64_t by_panel = 1;
  int64_t by_pixel = std::min(parts, tiles);
  if (step.pre || pack.panels.empty()) {
    // A pooled operand is shared by all panels.
  } else if (int64_t{pack.groups} * kGroup * step.window.taps() > pixels) {
    by_panel = std::min(parts, panels);
    by_pixel = std::min((parts + by_panel - 1) / by_panel, tiles);
  } else {
    by_panel = std::min((parts + by_pixel - 1) / by_pixel, panels);
  }
  Task task{Task::Op::kStep};
  task.step = index;
  for (int64_t p = 0; p < by_panel; ++p) {
    task.first_panel = static_cast<int>(p * panels / by_panel);
    task.last_panel = static_cast<int>((p + 1) * panels / by_panel);
    int64_t groups = 0;
    if (!pack.panels.empty()) {
      for (int i = task.first_panel; i < task.last_panel; ++i) groups += pack.panels[i].groups;
    }
    // A pool's loads and comparisons cost about as much as two columns of the product.
    const int64_t pool_taps = step.pre             ? step.pre->window.taps()
                              : is_pool(step.kind) ? step.window.taps()
                                                   : 0;
    const double pixel_cost = static_cast<double>(depth * groups * kGroup) +
                              2.0 * static_cast<double>(step.src.channels * pool_taps);
    for (int64_t i = 0; i < by_pixel; ++i) {
      task.first = i * tiles / by_pixel * pixels / tiles;
      task.last = (i + 1) * tiles / by_pixel * pixels / tiles;
      task.cost = pixel_cost * static_cast<double>(task.last - task.first);
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
    const Size border = border_of(plan, b);
    const bool direct =
        (b == kIn && x.channels_last() && border == Size{}) || (b == kOut && out.channels_last());
    if (!direct) {
      scratch = place_in_scratch(places[b], plan.buffers[b], sizes[b], border, images, scratch);
    }
  }
  for (const Step& step : plan.steps) {
    steps.push_back(info_of(step, places[step.src.buffer]));
    if (step.pre) pooled = std::max(pooled, kPoolChunk * step.src.channels);
  }

  const auto end_wave = [&] {
    const int end = static_cast<int>(tasks.size());
    if (end > (wave_end.empty() ? 0 : wave_end.back())) wave_end.push_back(end);
  };
  const auto add_border = [&](int64_t b) {
    const Place& place = places[b];
    if (place.border == Size{}) return;
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
