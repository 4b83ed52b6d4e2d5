#include "pack.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <stdexcept>
#include <string>

#include "winograd.h"

namespace inception_fused::cpu {

namespace {

int groups_of(int64_t channels) { return static_cast<int>((channels + kGroup - 1) / kGroup); }

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

// The weights of one convolution into its step's panels, its first column in `first_group`.
template <typename T>
void pack_convolution(const Step& step, const StepPack& pack, int64_t channels, int first_group,
                      const T* weights, const T* bias, float* dst) {
  const int64_t depth = step.src.channels;
  std::optional<FilterTransform> transform;
  if (pack.tile) transform.emplace(step, pack.tile);
  for (int64_t o = 0; o < channels; ++o) {
    const int group = first_group + static_cast<int>(o / kGroup);
    const auto panel = std::find_if(pack.panels.begin(), pack.panels.end(), [&](const Panel& p) {
      return group < p.first_group + p.groups;
    });
    const int64_t pitch = int64_t{panel->groups} * kGroup;
    float* column = dst + panel->offset + (group - panel->first_group) * kGroup + o % kGroup;
    for (int64_t k = 0; k < depth; ++k) {
      const T* weight = weights + (o * depth + k) * step.window.taps();
      if constexpr (std::is_same_v<T, float>) {
        if (transform) {
          for (int64_t phase = 0; phase * depth < pack.depth; ++phase) {
            (*transform)(weight, phase, column + (phase * depth + k) * pitch, pack.depth * pitch);
          }
          continue;
        }
      }
      for (int64_t t = 0; t < pack.taps; ++t) {
        put(column + t * pack.depth * pitch, pitch, k, weight[t]);
      }
    }
    dst[pack.bias + int64_t{first_group} * kGroup + o] = value_of(bias[o]);
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
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    StepPack pack;
    pack.tile = tiles.empty() ? 0 : tiles[i];
    if (pack.tile != 0 &&
        (precision != Precision::kFloat32 || !has_winograd(plan, step, pack.tile))) {
      throw std::invalid_argument("tuning: step " + std::to_string(i) +
                                  " cannot be computed in Winograd tiles of edge " +
                                  std::to_string(pack.tile));
    }
    if (has_weight(step.kind)) {
      const int64_t points = points_of(step, pack.tile);
      pack.taps = pack.tile ? points * points : step.window.taps();
      pack.depth = pack.tile                          ? depth_of(step)
                   : precision == Precision::kFloat32 ? step.src.channels
                                                      : (step.src.channels + 1) / 2;
      for (const Destination& dst : step.dst) pack.groups += groups_of(dst.slice.channels);
      pack.bias = layout.size;
      layout.size += int64_t{pack.groups} * kGroup;
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
        (precision != Precision::kFloat32 || !has_winograd(plan, plan.steps[i], tiles[i]))) {
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
          std::span<const void* const> biases, float* dst) {
  std::fill_n(dst, layout.size, 0.0f);
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const StepPack& pack = layout.steps[i];
    dst[i] = static_cast<float>(pack.tile);
    if (pack.groups == 0) continue;
    int first_group = 0;
    for (const Destination& d : plan.steps[i].dst) {
      const auto pack_as = [&]<typename T>(const T* weight) {
        pack_convolution(plan.steps[i], pack, d.slice.channels, first_group, weight,
                         static_cast<const T*>(biases[d.weight]), dst);
      };
      if (layout.precision == Precision::kFloat32) {
        pack_as(static_cast<const float*>(weights[d.weight]));
      } else {
        pack_as(static_cast<const BFloat16*>(weights[d.weight]));
      }
      first_group += groups_of(d.slice.channels);
    }
  }
}

}  // namespace inception_fused::cpu
