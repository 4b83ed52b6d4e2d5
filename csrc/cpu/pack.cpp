#include "pack.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <optional>
#include <stdexcept>
#include <string>

#include "winograd.h"

namespace inception_fused::cpu {

namespace {

int groups_of(int64_t channels) { return static_cast<int>((channels + kGroup - 1) / kGroup); }

// Elements of int8's scales and zeros.
int64_t scales_of(const Plan& plan) {
  return int64_t{groups_of(2 * static_cast<int64_t>(plan.buffers.size()))} * kGroup;
}

int64_t header_of(const Plan& plan) {
  return int64_t{groups_of(static_cast<int64_t>(plan.steps.size()))} * kGroup;
}

float value_of(float value) { return value; }
float value_of(BFloat16 value) { return std::bit_cast<float>(uint32_t{value.bits} << 16); }

// The weight of channel k into the column that starts at `column`.
void put(float* column, int64_t pitch, int64_t k, float weight) { column[k * pitch] = weight; }
void put(float* column, int64_t pitch, int64_t k, BFloat16 weight) {
  float& element = column[k / 2 * pitch];
  const auto half = static_cast<uint32_t>(weight.bits) << (k % 2 ? 16 : 0);
  element = std::bit_cast<float>(std::bit_cast<uint32_t>(element) | half);
}

void put(float* column, int64_t pitch, int64_t k, int8_t weight) {
  float& element = column[k / 4 * pitch];
  const uint32_t byte = static_cast<uint32_t>(static_cast<uint8_t>(weight)) << (k % 4 * 8);
  element = std::bit_cast<float>(std::bit_cast<uint32_t>(element) | byte);
}

// A group of the columns of one convolution of a step.
struct Unit {
  const Step* step;
  const StepPack* pack;
  const Destination* destination;
  int first_group;  // of the convolution, in the step
  int group;        // in the convolution
};

// Writes all that is in the pack of a unit but int8's factors; bias(o) stands before column o.
template <typename T, typename Bias>
void pack_unit(const Unit& unit, const T* weights, const Bias& bias, float* dst) {
  const StepPack& pack = *unit.pack;
  const int64_t depth = unit.step->src.channels, taps = unit.step->window.taps();
  const int64_t first = int64_t{unit.group} * kGroup;
  const int64_t lanes = std::min<int64_t>(kGroup, unit.destination->slice.channels - first);
  const int group = unit.first_group + unit.group;
  const auto panel = std::find_if(pack.panels.begin(), pack.panels.end(),
                                  [&](const Panel& p) { return group < p.first_group + p.groups; });
  const int64_t pitch = int64_t{panel->groups} * kGroup;
  float* columns = dst + panel->offset + (group - panel->first_group) * kGroup;
  for (int64_t row = 0; row < pack.taps * pack.depth; ++row) {
    std::fill_n(columns + row * pitch, kGroup, 0.0f);
  }
  std::optional<FilterTransform> transform;
  if (pack.tile) transform.emplace(*unit.step, pack.tile);
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const T* weight = weights + ((first + lane) * depth + k) * taps;
      float* column = columns + lane;
      if constexpr (!std::is_same_v<T, int8_t>) {
        if (transform) {
          float filter[kMaxKernel * kMaxKernel];
          std::transform(weight, weight + taps, filter, [](T value) { return value_of(value); });
          for (int64_t phase = 0; phase * depth < pack.depth; ++phase) {
            (*transform)(filter, phase, column + (phase * depth + k) * pitch, pack.depth * pitch);
          }
          continue;
        }
      }
      for (int64_t t = 0; t < pack.taps; ++t) {
        put(column + t * pack.depth * pitch, pitch, k, weight[t]);
      }
    }
  }
  float* own_bias = dst + pack.bias + int64_t{group} * kGroup;
  for (int64_t lane = 0; lane < kGroup; ++lane) {
    own_bias[lane] = lane < lanes ? bias(first + lane) : 0.0f;
  }
}

}  // namespace

PackLayout pack_layout(const Plan& plan, Precision precision, std::span<const int64_t> tiles) {
  if (!tiles.empty() && tiles.size() != plan.steps.size()) {
    throw std::invalid_argument("tuning must be empty or have one int per step, " +
                                std::to_string(plan.steps.size()) + ", got " +
                                std::to_string(tiles.size()));
  }
  PackLayout layout{precision};
  layout.size = header_of(plan);
  if (precision == Precision::kInt8) {
    layout.scales = layout.size;
    layout.size += scales_of(plan);
  }
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    StepPack pack;
    pack.tile = tiles.empty() ? 0 : tiles[i];
    if (pack.tile != 0 && (precision == Precision::kInt8 || !has_winograd(plan, step, pack.tile))) {
      throw std::invalid_argument("tuning: step " + std::to_string(i) +
                                  " cannot be computed in Winograd tiles of edge " +
                                  std::to_string(pack.tile));
    }
    if (has_weight(step.kind)) {
      const int64_t points = points_of(step, pack.tile);
      pack.taps = pack.tile ? points * points : step.window.taps();
      pack.depth = pack.tile
                       ? depth_of(step)
                       : (step.src.channels + per_element(precision) - 1) / per_element(precision);
      for (const Destination& dst : step.dst) pack.groups += groups_of(dst.slice.channels);
      pack.bias = layout.size;
      layout.size += int64_t{pack.groups} * kGroup;
      if (precision == Precision::kInt8) {
        check_sums(plan, i);
        pack.factor = layout.size;
        layout.size += int64_t{pack.groups} * kGroup;
      }
      for (int first = 0; first < pack.groups;) {
        const int left = pack.groups - first;
        const int width = left == 1 || left == 3 ? left : 2;
        pack.panels.push_back({first, width, layout.size});
        layout.size += pack.taps * pack.depth * width * kGroup;
        first += width;
      }
    }
    layout.steps.push_back(std::move(pack));
  }
  return layout;
}

bool is_layout_of(const PackLayout& layout, const float* pack, int64_t size) {
  if (size != layout.size) return false;
  for (size_t i = 0; i < layout.steps.size(); ++i) {
    if (pack[i] != static_cast<float>(layout.steps[i].tile)) return false;
  }
  return true;
}

PackLayout read_layout(const Plan& plan, Precision precision, const float* pack, int64_t size) {
  constexpr auto kWrong = "pack must be what inception_fused::pack gives for this plan";
  if (size < header_of(plan)) throw std::invalid_argument(kWrong);
  std::vector<int64_t> tiles;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const float tile = pack[i];
    if (tile != 0.0f && !(tile == 2.0f || tile == 3.0f || tile == 4.0f))
      throw std::invalid_argument(kWrong);
    tiles.push_back(static_cast<int64_t>(tile));
    if (tiles[i] != 0 &&
        (precision == Precision::kInt8 || !has_winograd(plan, plan.steps[i], tiles[i]))) {
      throw std::invalid_argument(kWrong);
    }
  }
  PackLayout layout = pack_layout(plan, precision, tiles);
  if (layout.size != size) {
    throw std::invalid_argument(std::string(kWrong) + ", a contiguous tensor of " +
                                std::to_string(layout.size) + " elements, got " +
                                std::to_string(size));
  }
  return layout;
}

void pack(const Plan& plan, const PackLayout& layout, std::span<const void* const> weights,
          std::span<const void* const> biases, std::span<const Scale> scales, float* dst,
          int threads, const Parallel& parallel) {
  std::fill_n(dst, header_of(plan), 0.0f);
  const bool int8 = layout.precision == Precision::kInt8;
  if (int8) {
    check_scales(plan, scales);
    std::fill_n(dst + layout.scales, scales_of(plan), 0.0f);
    for (size_t b = 0; b < scales.size(); ++b) put_scale(scales[b], dst + layout.scales, b);
  }
  std::vector<QuantisedWeights> quantised(int8 ? weights.size() : 0);
  std::vector<Unit> units;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const StepPack& pack = layout.steps[i];
    dst[i] = static_cast<float>(pack.tile);
    if (pack.groups == 0) continue;
    int first_group = 0;
    for (const Destination& d : step.dst) {
      const int groups = groups_of(d.slice.channels);
      if (int8) {
        quantised[d.weight] = quantise_weights(
            static_cast<const float*>(weights[d.weight]),
            static_cast<const float*>(biases[d.weight]), d.slice.channels,
            step.src.channels * step.window.taps(), scales[step.src.buffer], d.weight);
        float* factor = dst + pack.factor + int64_t{first_group} * kGroup;
        std::fill_n(factor, int64_t{groups} * kGroup, 0.0f);
        for (int64_t o = 0; o < d.slice.channels; ++o) {
          factor[o] = factor_of(quantised[d.weight].scales[o], scales[step.src.buffer],
                                d.slice.buffer, scales);
        }
      }
      for (int g = 0; g < groups; ++g) units.push_back({&step, &pack, &d, first_group, g});
      first_group += groups;
    }
  }
  std::atomic<size_t> next{0};
  parallel(threads, [&](int) {
    for (size_t u; (u = next.fetch_add(1, std::memory_order_relaxed)) < units.size();) {
      const int64_t index = units[u].destination->weight;
      const auto pack_as = [&]<typename T>(const T* weight) {
        const auto* bias = static_cast<const T*>(biases[index]);
        pack_unit(units[u], weight, [&](int64_t o) { return value_of(bias[o]); }, dst);
      };
      switch (layout.precision) {
        case Precision::kFloat32:
          pack_as(static_cast<const float*>(weights[index]));
          break;
        case Precision::kBFloat16:
          pack_as(static_cast<const BFloat16*>(weights[index]));
          break;
        case Precision::kInt8:
          pack_unit(
              units[u], quantised[index].weights.data(),
              [&](int64_t o) { return std::bit_cast<float>(quantised[index].biases[o]); }, dst);
          break;
      }
    }
  });
}

}  // namespace inception_fused::cpu
