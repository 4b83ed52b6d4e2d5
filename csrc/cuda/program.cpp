#include "cuda/program.h"

#include <algorithm>

namespace inception_fused::cuda {
namespace {

int element_bytes(Math math) { return 16 / vector_elements(math); }

bool keeps_size(const Window& w) {
  return w.stride == Size{1, 1} && 2 * w.padding.height == w.kernel.height - 1 &&
         2 * w.padding.width == w.kernel.width - 1;
}

int vectors_of(int64_t channels, Math math) { return ceil_divide(channels, vector_elements(math)); }

// Scratch: per destination, planes of vectors, [vector][pixel]. The offset of its first plane, in
// planes from the start of scratch; -1 if no destination is this slice.
int64_t find_planes(const Plan& plan, const Slice& slice, Math math) {
  int64_t planes = 0;
  for (const Step& step : plan.steps) {
    for (const Destination& dst : step.dst) {
      if (dst.slice.buffer == kOut) continue;
      if (dst.slice.buffer == slice.buffer && dst.slice.offset == slice.offset &&
          dst.slice.channels == slice.channels) {
        return planes;
      }
      planes += vectors_of(dst.slice.channels, math);
    }
  }
  return -1;
}

Place scratch_place(const Plan& plan, const Slice& slice, Math math, char* scratch,
                    int64_t pixels) {
  Place place;
  place.data = scratch + find_planes(plan, slice, math) * pixels * 16;
  place.vectors = true;
  place.split = math == Math::kBf16x3;
  place.pixel_bytes = 16;
  place.vector_bytes = pixels * 16;
  return place;
}

// A channel slice of x or out: as vectors where channels are adjacent, whole and aligned.
Place tensor_place(const Strided& t, const Slice& slice, Math math) {
  const int bytes = element_bytes(math);
  Place place;
  place.data = t.data + slice.offset * t.stride[1] * bytes;
  std::copy(t.stride, t.stride + 4, place.stride);
  const int64_t pixel = t.size[3] > 1 ? t.stride[3] : t.size[2] > 1 ? t.stride[2] : t.stride[0];
  const auto regular = [&](int axis, int64_t pixels) {
    return t.size[axis] <= 1 || t.stride[axis] == pixel * pixels;
  };
  place.vectors = (t.stride[1] == 1 || t.size[1] == 1) && regular(2, t.size[3]) &&
                  regular(0, t.size[2] * t.size[3]) && pixel * bytes % 16 == 0 &&
                  reinterpret_cast<uintptr_t>(place.data) % 16 == 0 &&
                  slice.channels % vector_elements(math) == 0;
  place.pixel_bytes = pixel * bytes;
  place.vector_bytes = 16;
  return place;
}

struct Context {
  const Plan& plan;
  Math math;
  const Architecture& architecture;
  const Strided& x;
  const Strided& out;
  const char* pack;
  char* scratch;
  PackLayout layout;
  int64_t pixels;
};

struct StepProblem {
  Problem problem;
  std::vector<Segment> segments;
};

StepProblem make_problem(const Context& c, size_t index) {
  const Step& step = c.plan.steps[index];
  const Window& window = step.pre ? step.pre->window : step.window;
  StepProblem made;
  Problem& p = made.problem;
  p.from = step.src.buffer == kIn ? tensor_place(c.x, step.src, c.math)
                                  : scratch_place(c.plan, step.src, c.math, c.scratch, c.pixels);
  p.channels = static_cast<int>(step.src.channels);
  p.depth = vectors_of(step.src.channels, c.math);
  p.by_depth = Divider::by(p.depth);
  p.taps = static_cast<int>(step.window.taps());
  p.weights = c.pack + c.layout.steps[index].weights;
  p.bias = reinterpret_cast<const float*>(c.pack + c.layout.steps[index].bias);
  p.columns = c.layout.steps[index].columns;
  p.vector = vector_elements(c.math);
  p.pixels = static_cast<int>(c.pixels);
  p.height = static_cast<int>(c.x.size[2]);
  p.width = static_cast<int>(c.x.size[3]);
  p.kernel_height = static_cast<int>(window.kernel.height);
  p.kernel_width = static_cast<int>(window.kernel.width);
  p.by_kernel_width = Divider::by(p.kernel_width);
  p.pad_height = static_cast<int>(window.padding.height);
  p.pad_width = static_cast<int>(window.padding.width);
  if (step.pre) {
    p.reduction = step.pre->kind == Kind::AVGPOOL ? Reduction::kMean : Reduction::kMax;
  }
  if (!p.from.vectors || p.reduction == Reduction::kMean) {
    p.operand = Operand::kElements;
  } else if (step.pre) {
    p.operand = Operand::kPooled;
  } else if (step.kind == Kind::CONV && p.taps <= kMaxTaps) {
    p.operand = Operand::kResident;
  }
  int column = 0;
  for (const Destination& dst : step.dst) {
    Segment segment;
    segment.to = dst.slice.buffer == kOut
                     ? tensor_place(c.out, dst.slice, c.math)
                     : scratch_place(c.plan, dst.slice, c.math, c.scratch, c.pixels);
    segment.first = column;
    segment.channels = static_cast<int>(dst.slice.channels);
    segment.relu = dst.activation == Activation::RELU;
    column += vectors_of(dst.slice.channels, c.math);
    made.segments.push_back(segment);
  }
  return made;
}

// Problems with the longest depth first: their blocks start first and end last.
void sort_by_work(std::vector<StepProblem>& problems) {
  std::stable_sort(problems.begin(), problems.end(), [](const auto& a, const auto& b) {
    const auto weight = [](const Problem& p) {
      return int64_t{p.taps} * p.depth * (p.operand == Operand::kPooled ? 2 : 1);
    };
    return weight(a.problem) > weight(b.problem);
  });
}

Wave make_wave(const std::vector<StepProblem>& problems, size_t first, size_t last) {
  Wave wave;
  int segments = 0;
  for (size_t i = first; i < last; ++i) {
    Problem& p = wave.problem[wave.problems++];
    p = problems[i].problem;
    p.first_segment = segments;
    p.segments = static_cast<int>(problems[i].segments.size());
    for (const Segment& segment : problems[i].segments) wave.segment[segments++] = segment;
  }
  return wave;
}

Config choose_alone(const Context& c, const StepProblem& step) {
  return choose(make_wave({step}, 0, 1), c.architecture, c.math);
}

// Takes the way through plain loads, or through streamed rows, where shared memory is too small.
void fit(const Context& c, StepProblem& step) {
  if (choose_alone(c, step).shape >= 0) return;
  Problem& p = step.problem;
  p.operand = p.operand == Operand::kPooled ? Operand::kElements : Operand::kVectors;
}

void append(const Context& c, Program& program, const std::vector<StepProblem>& problems,
            bool conv) {
  for (size_t first = 0; first < problems.size();) {
    size_t last = first, segments = 0;
    while (last < problems.size() && last - first < kMaxProblems &&
           segments + problems[last].segments.size() <= kMaxSegments) {
      segments += problems[last++].segments.size();
    }
    LaunchPlan launch;
    launch.conv = conv;
    launch.wave = make_wave(problems, first, last);
    launch.config = choose(launch.wave, c.architecture, c.math);
    if (launch.config.shape < 0) {
      throw PlanError("no tile fits into the shared memory of sm_" +
                      std::to_string(c.architecture.sm));
    }
    set_blocks(launch.wave, kShapes[launch.config.shape]);
    program.launches.push_back(launch);
    first = last;
  }
}

}  // namespace

void set_blocks(Wave& wave, const Shape& shape) {
  int block = 0;
  for (int i = 0; i < wave.problems; ++i) {
    Problem& p = wave.problem[i];
    p.first_block = block;
    p.column_tiles = column_tiles(shape, p);
    block += clusters(shape, p) * shape.cluster * p.column_tiles;
  }
}

std::optional<std::string> why_not(const Plan& plan) {
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const std::string where = "step " + std::to_string(i) + " ";
    if (is_pool(step.kind)) return where + "is a pool that no 1x1 convolution follows";
    if (!has_weight(step.kind)) return where + "is of a kind that has no kernel";
    if (step.pre && step.pre->kind == Kind::AVGPOOL_INSIDE) {
      return where + "averages the pixels inside the image alone";
    }
    if (!keeps_size(step.window) || (step.pre && !keeps_size(step.pre->window))) {
      return where + "has a window that changes the image size";
    }
    if (step.dst.size() > kMaxSegments) {
      return where + "has more than " + std::to_string(kMaxSegments) + " destinations";
    }
    if (step.src.buffer != kIn && find_planes(plan, step.src, Math::kHalf) < 0) {
      return where + "reads scratch that is not exactly one destination";
    }
    if (step.pre && step.src.buffer != kIn) return where + "pools scratch";
    // What Divider needs, of the smaller vectors and with the deepest stage past the end.
    const int64_t depth = vectors_of(step.src.channels, Math::kFloat32);
    if ((step.window.taps() * depth + 64) * depth >= int64_t{1} << 32) {
      return where + "reads more channels than an index can count";
    }
  }
  return std::nullopt;
}

PackLayout pack_layout(const Plan& plan, Math math) {
  PackLayout layout;
  for (const Step& step : plan.steps) {
    StepPack pack;
    for (const Destination& dst : step.dst) {
      pack.columns += vectors_of(dst.slice.channels, math) * vector_elements(math);
    }
    const int64_t depth = vectors_of(step.src.channels, math);
    pack.bias = layout.bytes;
    pack.weights = pack.bias + int64_t{4} * pack.columns;
    layout.bytes = pack.weights + step.window.taps() * depth * pack.columns * 16;
    layout.steps.push_back(pack);
  }
  return layout;
}

int64_t telling_bytes(Math math) {
  return math == Math::kFloat32 ? 16 : math == Math::kBf16x3 ? 32 : 0;
}

std::optional<Math> told_by(int64_t bytes, Math usual) {
  for (const Math math : {usual, Math::kFloat32, Math::kBf16x3}) {
    const bool possible = math == usual || usual == Math::kTf32;
    if (possible && telling_bytes(math) == bytes) return math;
  }
  return std::nullopt;
}

PackTask pack_task(const Plan& plan, const PackLayout& layout, Math math, int64_t weight,
                   char* pack) {
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    int first = 0;
    for (const Destination& dst : step.dst) {
      const int padded = vectors_of(dst.slice.channels, math) * vector_elements(math);
      if (dst.weight == weight) {
        PackTask task;
        task.out_channels = static_cast<int>(dst.slice.channels);
        task.in_channels = static_cast<int>(step.src.channels);
        task.kernel_height = static_cast<int>(step.window.kernel.height);
        task.kernel_width = static_cast<int>(step.window.kernel.width);
        task.columns = layout.steps[i].columns;
        task.first = first;
        task.padded = padded;
        task.to_weights = pack + layout.steps[i].weights;
        task.to_bias = reinterpret_cast<float*>(pack + layout.steps[i].bias);
        return task;
      }
      first += padded;
    }
  }
  throw PlanError("has no weight " + std::to_string(weight));
}

int pack_blocks(const PackTask& task, Math math) {
  const int64_t depth = vectors_of(task.in_channels, math);
  return ceil_divide(depth * task.kernel_height * task.kernel_width * task.padded, kPackThreads);
}

int64_t scratch_bytes(const Plan& plan, Math math, int64_t pixels) {
  int64_t planes = 0;
  for (const Step& step : plan.steps) {
    for (const Destination& dst : step.dst) {
      if (dst.slice.buffer != kOut) planes += vectors_of(dst.slice.channels, math);
    }
  }
  return planes * pixels * 16;
}

Program build(const Plan& plan, Math math, const Architecture& architecture, const Strided& x,
              const Strided& out, const char* pack, char* scratch) {
  if (const auto reason = why_not(plan)) throw PlanError(*reason);
  const int64_t pixels = x.size[0] * x.size[2] * x.size[3];
  const int64_t largest = int64_t{1} << 30;  // pixel indices are 32-bit, with room for a halo
  if (pixels > largest) {
    throw PlanError("an input of " + std::to_string(pixels) + " pixels is more than " +
                    std::to_string(largest));
  }
  const Context c{plan, math, architecture, x, out, pack, scratch, pack_layout(plan, math), pixels};
  Program program;
  program.scratch_bytes = scratch_bytes(plan, math, pixels);
  if (pixels == 0) return program;
  for (int64_t wave = 0; wave < plan.waves(); ++wave) {
    std::vector<StepProblem> streamed, resident;
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      if (plan.steps[i].wave != wave) continue;
      StepProblem step = make_problem(c, i);
      fit(c, step);
      (step.problem.operand == Operand::kResident ? resident : streamed).push_back(step);
    }
    sort_by_work(streamed);
    sort_by_work(resident);
    append(c, program, streamed, false);
    append(c, program, resident, true);
  }
  return program;
}

}  // namespace inception_fused::cuda
