#include "program.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "winograd.h"

namespace inception_fused::cpu {

namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Tiles of a convolution's output.
Size tiles_of(const Step& step, int64_t tile, Size in) {
  const Size out = output_size(step, in);
  return {(out.height + tile - 1) / tile, (out.width + tile - 1) / tile};
}

// The border of zeros that direct convolutions need around the images of this buffer.
Size border_of(const Plan& plan, const PackLayout& layout, int64_t buffer) {
  Size border;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    if (step.kind == Kind::CONV && step.src.buffer == buffer && !layout.steps[i].tile) {
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

constexpr double kMaxScratch = 0x1p50;  // elements

// Lays the buffer out in scratch, from element 0 on; returns its elements, a multiple of `line`.
int64_t place_in_scratch(Place& place, int64_t channels, Size size, Size border, int64_t images,
                         int64_t line) {
  const auto padded = [](int64_t n, int64_t border) {
    return static_cast<double>(n) + 2 * static_cast<double>(border);
  };
  if (static_cast<double>(images) * static_cast<double>(channels) *
          padded(size.height, border.height) * padded(size.width, border.width) >
      kMaxScratch) {
    throw std::invalid_argument("plan: padded by " + std::to_string(border.height) + " and " +
                                std::to_string(border.width) +
                                " pixels, an image is larger than any memory");
  }
  place.scratch = true;
  place.channels = channels;
  place.size = size;
  place.border = border;
  place.pixel = channels;
  place.row = (size.width + 2 * border.width) * channels;
  place.image = (size.height + 2 * border.height) * place.row;
  place.offset = border.height * place.row + border.width * place.pixel;
  return round_up(images * place.image, line);
}

// A buffer's part of scratch, and the waves in which it is needed.
struct Life {
  int64_t buffer;
  int64_t first_wave;
  int64_t last_wave;
  int64_t elements;
  int64_t start = 0;
};

// Gives every buffer a start so that no two of one wave overlap; returns the elements needed.
// Large ones first, each as low as it fits.
int64_t assign(std::vector<Life>& lives) {
  std::stable_sort(lives.begin(), lives.end(),
                   [](const Life& a, const Life& b) { return a.elements > b.elements; });
  int64_t total = 0;
  std::vector<const Life*> placed;  // by start
  for (Life& life : lives) {
    for (const Life* other : placed) {
      const bool together =
          life.first_wave <= other->last_wave && other->first_wave <= life.last_wave;
      if (together && life.start + life.elements > other->start) {
        life.start = std::max(life.start, other->start + other->elements);
      }
    }
    total = std::max(total, life.start + life.elements);
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), &life,
                         [](const Life* a, const Life* b) { return a->start < b->start; }),
        &life);
  }
  return total;
}

// Elements of transformed tiles that stay in the second-level cache while the weights pass.
constexpr int64_t kTransformed = 96 << 10;

StepInfo info_of(const Step& step, const StepPack& pack, const Kernels& kernels,
                 Precision precision, const Place& from) {
  StepInfo info;
  if (pack.tile) {
    info.tiles = tiles_of(step, pack.tile, from.size);
    info.v_pitch = round_up(step.src.channels, kGroup);
    const int64_t rows = kernels.float32.rows[2];
    info.chunk = std::max<int64_t>(1, kTransformed / (pack.taps * info.v_pitch * rows)) * rows;
  }
  const Window& window = step.window;
  if (has_weight(step.kind) && !pack.tile) {
    const bool gapless = from.pixel == step.src.channels && !step.pre;
    // Of BFloat16, a pair of channels must be of one pixel.
    const bool whole = precision == Precision::kFloat32 || step.src.channels % 2 == 0;
    const int64_t joined = gapless && whole ? window.kernel.width : 1;
    info.depth = joined * step.src.channels;
    for (int64_t y = 0; y < window.kernel.height; ++y) {
      for (int64_t x = 0; x < window.kernel.width; x += joined) {
        info.taps.push_back((y - window.padding.height) * from.row +
                            (x - window.padding.width) * from.pixel);
      }
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
double cost_of(const Step& step, const StepPack& pack, Size from, double columns) {
  const auto depth = static_cast<double>(step.src.channels);
  if (is_pool(step.kind)) return 2 * depth * static_cast<double>(step.window.taps());
  if (step.kind == Kind::MEAN) return 2 * depth * static_cast<double>(from.height * from.width);
  if (step.kind == Kind::LRN) return 2 * depth * static_cast<double>(step.response.size + 8);
  const auto taps = static_cast<double>(pack.taps);
  double cost = taps * depth * columns;
  // A pool's loads and comparisons cost about as much as two columns of the product.
  if (step.pre) cost += 2 * depth * static_cast<double>(step.pre->window.taps());
  if (pack.tile) cost += taps * (6 * depth + 4 * columns);  // the transforms
  return cost;
}

// Into how many parts a step is cut by its units (pixels, or tiles of Winograd's) and by its
// panels.
struct Cut {
  int64_t by_unit = 1;
  int64_t by_panel = 1;
};

// About `parts` tasks. A thread that has rows of its own finds the input of the next wave in its
// own cache; a task of fewer rows than these reads weights for too little work.
Cut choose_cut(const Program& program, int index, int64_t units, int64_t parts) {
  constexpr int64_t kLeastPixels = 42, kLeastTiles = 8;
  const StepPack& pack = program.layout.steps[index];
  const auto panels = static_cast<int64_t>(pack.panels.size());
  const int64_t rows = program.rows()[2];
  const int64_t blocks = (units + rows - 1) / rows;
  // A pooled operand is shared by all panels.
  if (program.plan.steps[index].pre || panels == 0) return {std::min(parts, blocks), 1};
  const int64_t most = std::max<int64_t>(1, units / (pack.tile ? kLeastTiles : kLeastPixels));
  int64_t by_panel = std::min(panels, (parts + most - 1) / most);
  if (2 * by_panel > panels) by_panel = panels;  // not some of one panel and some of two
  return {std::min(most, (parts + by_panel - 1) / by_panel), by_panel};
}

void cut_step(std::vector<Task>& tasks, const Program& program, int index, int64_t parts) {
  const Step& step = program.plan.steps[index];
  const StepPack& pack = program.layout.steps[index];
  const Size size =
      pack.tile ? program.steps[index].tiles : program.places[step.dst[0].slice.buffer].size;
  const int64_t units = program.images * size.height * size.width;
  const int64_t panels = std::max<int64_t>(1, static_cast<int64_t>(pack.panels.size()));
  const int64_t rows = pack.tile ? 1 : program.rows()[2];
  const int64_t blocks = (units + rows - 1) / rows;
  const Cut cut = choose_cut(program, index, units, parts);
  for (int64_t u = 0; u < cut.by_unit; ++u) {
    for (int64_t p = 0; p < cut.by_panel; ++p) {
      Task task{Task::Op::kStep};
      task.step = index;
      task.first = u * blocks / cut.by_unit * units / blocks;
      task.last = (u + 1) * blocks / cut.by_unit * units / blocks;
      task.position = static_cast<double>(task.first) / static_cast<double>(units);
      int64_t columns = 0;
      if (!pack.panels.empty()) {
        task.first_panel = static_cast<int>(p * panels / cut.by_panel);
        task.last_panel = static_cast<int>((p + 1) * panels / cut.by_panel);
        for (int i = task.first_panel; i < task.last_panel; ++i) {
          columns += pack.panels[i].groups * kGroup;
        }
      }
      task.cost =
          cost_of(step, pack, program.places[step.src.buffer].size, static_cast<double>(columns)) *
          static_cast<double>(task.last - task.first);
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
  std::vector<Life> lives;
  places.resize(plan.buffers.size());
  places[kIn] = place_of(x, sizes[kIn]);
  places[kOut] = place_of(out, sizes[kOut]);
  for (int64_t b = 0; b < static_cast<int64_t>(places.size()); ++b) {
    const Size border = border_of(plan, layout, b);
    const bool direct =
        (b == kIn && x.channels_last() && border == Size{}) || (b == kOut && out.channels_last());
    if (!direct) {
      const int64_t elements =
          place_in_scratch(places[b], plan.buffers[b], sizes[b], border, images, line());
      // Loading x and storing out are waves of their own.
      lives.push_back({b, b == kIn ? -1 : plan.waves(), b == kOut ? plan.waves() : -1, elements});
    }
  }
  for (Life& life : lives) {
    for (const Step& step : plan.steps) {
      const auto used = [&](int64_t buffer) {
        if (buffer != life.buffer) return;
        life.first_wave = std::min(life.first_wave, step.wave);
        life.last_wave = std::max(life.last_wave, step.wave);
      };
      used(step.src.buffer);
      for (const Destination& dst : step.dst) used(dst.slice.buffer);
    }
  }
  scratch = assign(lives);
  for (const Life& life : lives) places[life.buffer].offset += life.start;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const StepPack& pack = layout.steps[i];
    const StepInfo& info =
        steps.emplace_back(info_of(step, pack, kernels, layout.precision, places[step.src.buffer]));
    if (step.pre) own.pooled = std::max(own.pooled, kPoolChunk * step.src.channels);
    if (step.kind == Kind::LRN) {
      const int64_t floats = 3 * step.src.channels + kGroup;
      own.pooled =
          std::max(own.pooled, floats * int64_t{sizeof(float)} / bytes_of(layout.precision));
    }
    if (pack.tile) {
      own.v = std::max(own.v, pack.taps * v_plane(info));
      own.m = std::max(own.m, pack.taps * m_plane(info.chunk, kMaxGroups));
      own.zeros = std::max(own.zeros, info.v_pitch);
    }
  }
  own.pooled = round_up(own.pooled, line());

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
    std::stable_sort(tasks.begin() + (wave_end.empty() ? 0 : wave_end.back()), tasks.end(),
                     [](const Task& a, const Task& b) { return a.position < b.position; });
    for (const Life& life : lives) {
      if (life.first_wave == wave) add_border(life.buffer);
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
