#include "places.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "winograd.h"

namespace inception_fused::cpu {

namespace {

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

// `width`: elements per number.
Place place_of(const Strided& tensor, Size size, int64_t width) {
  Place place;
  place.channels = tensor.size[1];
  place.size = size;
  place.stride = tensor.stride[0] * width;
  place.row = tensor.stride[2] * width;
  place.pixel = tensor.stride[3] * width;
  return place;
}

constexpr double kMaxScratch = 0x1p50;  // elements

// Elements from one pixel of a buffer in scratch to the next.
int64_t pixel_of(const PackLayout& layout, int64_t buffer, int64_t channels) {
  if (layout.precision != Precision::kInt8) return channels;
  constexpr int64_t kBytes = sizeof(float);
  return buffer == kOut ? channels * kBytes : (channels + kBytes - 1) / kBytes * kBytes;
}

// A place in scratch, from element 0 on.
Place place_in_scratch(int64_t channels, int64_t pixel, Size size, Size border, int64_t images) {
  const auto padded = [](int64_t n, int64_t border) {
    return static_cast<double>(n) + 2 * static_cast<double>(border);
  };
  if (static_cast<double>(images) * static_cast<double>(pixel) *
          padded(size.height, border.height) * padded(size.width, border.width) >
      kMaxScratch) {
    throw std::invalid_argument("plan: padded by " + std::to_string(border.height) + " and " +
                                std::to_string(border.width) +
                                " pixels, an image is larger than any memory");
  }
  Place place;
  place.scratch = true;
  place.channels = channels;
  place.size = size;
  place.border = border;
  place.pixel = pixel;
  place.row = (size.width + 2 * border.width) * pixel;
  place.stride = (size.height + 2 * border.height) * place.row;
  place.offset = border.height * place.row + border.width * place.pixel;
  return place;
}

// The step that reads x in its phases, or null.
const Step* reader_of_phases(const Plan& plan, const PackLayout& layout) {
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    if (layout.steps[i].tile && phases_along(plan.steps[i]) > 1) return &plan.steps[i];
  }
  return nullptr;
}

// As many as the step reads, a whole group of channels each.
Place place_of_phases(const Step& step, Size out, int64_t images) {
  const int64_t more = edge_of(step) - 1;
  Place place = place_in_scratch(kGroup, kGroup, {out.height + more, out.width + more}, {}, images);
  place.phases = true;
  return place;
}

// The waves in which a buffer is needed, and its part of scratch.
struct Life {
  int64_t buffer;
  int64_t first_wave;
  int64_t last_wave;
  int64_t elements = 0;
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

// Loading x into scratch is a wave before all others, storing out one behind them.
Life life_of(const Plan& plan, int64_t buffer) {
  Life life{buffer, plan.waves(), -1};
  const auto use = [&life](int64_t wave) {
    life.first_wave = std::min(life.first_wave, wave);
    life.last_wave = std::max(life.last_wave, wave);
  };
  if (buffer == kIn) use(-1);
  if (buffer == kOut) use(plan.waves());
  for (const Step& step : plan.steps) {
    if (step.src.buffer == buffer) use(step.wave);
    for (const Destination& dst : step.dst) {
      if (dst.slice.buffer == buffer) use(step.wave);
    }
  }
  return life;
}

}  // namespace

std::vector<Phase> phases_of(const Plan& plan, Size image, int64_t images) {
  constexpr int64_t kPixels = 784;  // that use a weight once it is loaded
  const std::vector<Size> sizes = plan.sizes(image);
  std::vector<Phase> phases;
  for (const Step& step : plan.steps) {
    const Size size = sizes[step.dst[0].slice.buffer];
    const int64_t pixels = std::min(size.height * size.width, kPixels);
    // A power of two, as a phase ends with whole groups of the one before.
    const auto wanted =
        static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>((kPixels + pixels - 1) / pixels)));
    const int64_t most = std::min(wanted, images);
    if (phases.empty() || (step.wave != phases.back().last_wave && most > phases.back().images)) {
      phases.push_back({step.wave, step.wave, most});
    }
    phases.back().last_wave = step.wave;
  }
  return phases;
}

Places place_all(const Plan& plan, const PackLayout& layout, const Strided& x, const Strided& out,
                 const std::vector<Phase>& phases, int64_t images, int64_t line) {
  const std::vector<Size> sizes = plan.sizes(x.image());
  const bool int8 = layout.precision == Precision::kInt8;
  Places places;
  std::vector<Life> lives;
  for (int64_t b = 0; b < static_cast<int64_t>(sizes.size()); ++b) {
    const Size border = border_of(plan, layout, b);
    const Step* phased = b == kIn ? reader_of_phases(plan, layout) : nullptr;
    if (b == kIn && x.channels_last() && border == Size{} && !phased && !int8) {
      places.by_buffer.push_back(place_of(x, sizes[b], 1));
      continue;
    }
    if (b == kOut && out.channels_last()) {
      places.by_buffer.push_back(place_of(out, sizes[b], width_of(layout.precision, b)));
      continue;
    }
    Life& life = lives.emplace_back(life_of(plan, b));
    const auto phase_of = [&](int64_t wave) {
      const auto phase = std::find_if(phases.begin(), phases.end(),
                                      [&](const Phase& p) { return wave <= p.last_wave; });
      return phase - phases.begin();
    };
    const auto last = phase_of(life.last_wave);
    const int64_t slots = last < static_cast<int64_t>(phases.size()) ? phases[last].images : images;
    const int64_t pixel = pixel_of(layout, b, plan.buffers[b]);
    Place& place = places.by_buffer.emplace_back(
        phased ? place_of_phases(*phased, sizes[phased->dst[0].slice.buffer], slots)
               : place_in_scratch(plan.buffers[b], pixel, sizes[b], border, slots));
    place.first_wave = life.first_wave;
    if (slots < images) place.mask = slots - 1;
    const int64_t beyond = int8 ? kBeyond : 0;
    life.elements = (slots * place.stride + beyond + line - 1) / line * line;
    // While a later phase waits for it to be filled, all waves of the earlier ones run again.
    if (phase_of(life.first_wave) != last) life.first_wave = -1;
  }
  places.scratch = assign(lives);
  for (const Life& life : lives) places.by_buffer[life.buffer].offset += life.start;
  return places;
}

}  // namespace inception_fused::cpu
