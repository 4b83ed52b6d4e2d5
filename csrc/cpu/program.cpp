#include "program.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "winograd.h"

namespace inception_fused::cpu {

namespace {

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Elements of transformed tiles that stay in the second-level cache while the weights pass.
constexpr int64_t kTransformed = 96 << 10;

StepInfo info_of(const Step& step, const StepPack& pack, const Kernels& kernels,
                 Precision precision, const Place& from, Size out) {
  StepInfo info;
  if (pack.tile) {
    info.tiles = {(out.height + pack.tile - 1) / pack.tile,
                  (out.width + pack.tile - 1) / pack.tile};
    info.v_pitch = round_up(pack.depth, kGroup);
    const int64_t rows = kernels.float32.rows[2];
    info.chunk = std::max<int64_t>(1, kTransformed / (pack.taps * info.v_pitch * rows)) * rows;
  }
  const Window& window = step.window;
  if (has_weight(step.kind) && !pack.tile) {
    const int64_t per = per_element(precision);
    const int64_t depth =
        precision == Precision::kInt8 ? round_up(step.src.channels, per) : step.src.channels;
    // The channels that share an element of the weights must be of one pixel.
    const bool gapless = from.pixel == depth && depth % per == 0 && !step.pre;
    const int64_t joined = gapless ? window.kernel.width : 1;
    info.depth = joined * depth;
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

// Cuts rows [first, last) into tasks of about equal size, `parts` at most.
void cut_rows(std::vector<Task>& tasks, Task task, int64_t first, int64_t last, int64_t parts,
              double row_cost) {
  const int64_t rows = last - first;
  parts = std::clamp<int64_t>(parts, 1, rows);
  for (int64_t i = 0; i < parts; ++i) {
    task.first = first + i * rows / parts;
    task.last = first + (i + 1) * rows / parts;
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
  double cost = taps * static_cast<double>(pack.depth) * columns;
  // A pool's loads and comparisons cost about as much as two columns of the product.
  if (step.pre) cost += 2 * depth * static_cast<double>(step.pre->window.taps());
  if (pack.tile)
    cost += taps * (6 * static_cast<double>(pack.depth) + 4 * columns);  // the transforms
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

void cut_step(std::vector<Task>& tasks, const Program& program, int index, Images part,
              int64_t parts) {
  const Step& step = program.plan.steps[index];
  const StepPack& pack = program.layout.steps[index];
  const Size size =
      pack.tile ? program.steps[index].tiles : program.places[step.dst[0].slice.buffer].size;
  const int64_t units = part.count() * size.height * size.width;
  const int64_t start = part.first * size.height * size.width;
  const int64_t panels = std::max<int64_t>(1, static_cast<int64_t>(pack.panels.size()));
  const int64_t rows = pack.tile ? 1 : program.rows()[2];
  const int64_t blocks = (units + rows - 1) / rows;
  const Cut cut = choose_cut(program, index, units, parts);
  for (int64_t u = 0; u < cut.by_unit; ++u) {
    for (int64_t p = 0; p < cut.by_panel; ++p) {
      Task task{Task::Op::kStep};
      task.step = index;
      task.first = start + u * blocks / cut.by_unit * units / blocks;
      task.last = start + (u + 1) * blocks / cut.by_unit * units / blocks;
      task.position = static_cast<double>(task.first - start) / static_cast<double>(units);
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

double step_cost(const Program& program, int index, Images part) {
  std::vector<Task> tasks;
  cut_step(tasks, program, index, part, 1);
  return tasks.front().cost;
}

}  // namespace

Program::Program(const Plan& plan_, const PackLayout& layout_, const Kernels& kernels_,
                 const Strided& x, const Strided& out, int64_t images_, int parts)
    : plan(plan_), layout(layout_), kernels(kernels_), images(images_) {
  const Images all{0, images};
  const std::vector<Phase> phases = parts == 1 ? phases_of(plan, x.image(), images)
                                               : std::vector<Phase>{{0, plan.waves() - 1, images}};
  Places placed = place_all(plan, layout, x, out, phases, images, line());
  places = std::move(placed.by_buffer);
  scratch = placed.scratch;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const StepPack& pack = layout.steps[i];
    const StepInfo& info =
        steps.emplace_back(info_of(step, pack, kernels, layout.precision, places[step.src.buffer],
                                   places[step.dst[0].slice.buffer].size));
    const bool int8 = layout.precision == Precision::kInt8;
    if (step.pre || (int8 && step.kind == Kind::MAXPOOL)) {
      own.pooled = std::max(own.pooled, kPoolChunk * step.src.channels + (int8 ? kBeyond : 0));
    }
    if (step.kind == Kind::LRN) {
      const int64_t floats = (int8 ? 5 : 3) * step.src.channels + kGroup;
      own.pooled =
          std::max(own.pooled, floats * int64_t{sizeof(float)} / bytes_of(layout.precision));
    }
    if (pack.tile) {
      const int64_t in_float = int64_t{sizeof(float)} / bytes_of(layout.precision);
      own.v = std::max(own.v, in_float * pack.taps * v_plane(info));
      own.m = std::max(own.m, in_float * pack.taps * m_plane(info.chunk, kMaxGroups));
      own.zeros = std::max(own.zeros, info.v_pitch);
    }
  }
  if (layout.precision == Precision::kInt8 && !x.channels_last()) {
    const int64_t floats = kPoolChunk * plan.in_channels();
    own.pooled = std::max(own.pooled, floats * int64_t{sizeof(float)});
  }
  own.pooled = round_up(own.pooled, line());

  if (parts == 1) {
    const auto last = static_cast<int64_t>(phases.size()) - 1;
    for (int64_t i = 0; i < images; i += phases[last].images) {
      add_phase(phases, last, {i, std::min(i + phases[last].images, images)});
    }
  } else {
    add_load(all, parts);
    for (int64_t wave = 0; wave < plan.waves(); ++wave) add_wave(wave, all, parts);
  }
  if (places[kOut].scratch) {
    const Size size = places[kOut].size;
    cut_rows(tasks, {Task::Op::kStore}, 0, images * size.height, parts,
             static_cast<double>(4 * size.width * plan.out_channels()));
    end_wave();
  }
}

void Program::end_wave() {
  const int end = static_cast<int>(tasks.size());
  if (end > (wave_end.empty() ? 0 : wave_end.back())) wave_end.push_back(end);
}

void Program::add_load(Images part, int64_t parts) {
  const Place& place = places[kIn];
  if (!place.scratch) return;
  const int64_t height = place.size.height;
  cut_rows(tasks, {Task::Op::kLoad}, part.first * height, part.last * height, parts,
           static_cast<double>(4 * place.size.width * plan.in_channels()));
  add_border(kIn, part);
  end_wave();
}

void Program::add_border(int64_t buffer, Images part) {
  const Place& place = places[buffer];
  if (place.border == Size{}) return;
  Task task{Task::Op::kBorder};
  task.buffer = static_cast<int>(buffer);
  cut_rows(tasks, task, part.first, part.last, 1, static_cast<double>(place.stride) / 2);
}

void Program::add_wave(int64_t wave, Images part, int64_t parts) {
  std::vector<int> members;
  double total = 0;
  for (int i = 0; i < static_cast<int>(plan.steps.size()); ++i) {
    if (plan.steps[i].wave != wave) continue;
    members.push_back(i);
    total += step_cost(*this, i, part);
  }
  const auto first = static_cast<std::ptrdiff_t>(tasks.size());
  for (int i : members) {
    const double share = step_cost(*this, i, part) / total;
    cut_step(tasks, *this, i, part,
             std::max<int64_t>(1, std::llround(static_cast<double>(parts) * share)));
  }
  std::stable_sort(tasks.begin() + first, tasks.end(),
                   [](const Task& a, const Task& b) { return a.position < b.position; });
  for (size_t b = kOut + 1; b < places.size(); ++b) {
    if (places[b].first_wave == wave) add_border(static_cast<int64_t>(b), part);
  }
  end_wave();
}

// The waves of a phase for the images of `part`, behind all that they need of the phases before.
void Program::add_phase(const std::vector<Phase>& phases, int64_t phase, Images part) {
  if (phase == 0) {
    add_load(part, 1);
  } else {
    const int64_t step = phases[phase - 1].images;
    for (int64_t i = part.first; i < part.last; i += step) {
      add_phase(phases, phase - 1, {i, std::min(i + step, part.last)});
    }
  }
  for (int64_t wave = phases[phase].first_wave; wave <= phases[phase].last_wave; ++wave) {
    add_wave(wave, part, 1);
  }
}

}  // namespace inception_fused::cpu
