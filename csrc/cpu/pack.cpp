#include "pack.h"

#include <algorithm>

namespace inception_fused::cpu {

namespace {

int groups_of(int64_t channels) { return static_cast<int>((channels + kGroup - 1) / kGroup); }

}  // namespace

PackLayout pack_layout(const Plan& plan) {
  PackLayout layout;
  for (const Step& step : plan.steps) {
    StepPack pack;
    if (!is_pool(step.kind)) {
      for (const Destination& dst : step.dst) pack.groups += groups_of(dst.slice.channels);
      pack.bias = layout.size;
      layout.size += int64_t{pack.groups} * kGroup;
      for (int first = 0; first < pack.groups;) {
        const int left = pack.groups - first;
        const int width = left == 1 || left == 3 ? left : 2;
        pack.panels.push_back({first, width, layout.size});
        layout.size += step.window.taps() * step.src.channels * width * kGroup;
        first += width;
      }
    }
    layout.steps.push_back(std::move(pack));
  }
  return layout;
}

void pack(const Plan& plan, std::span<const float* const> weights,
          std::span<const float* const> biases, float* dst) {
  const PackLayout layout = pack_layout(plan);
  std::fill_n(dst, layout.size, 0.0f);
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const Step& step = plan.steps[i];
    const StepPack& pack = layout.steps[i];
    if (pack.groups == 0) continue;
    const int64_t depth = step.src.channels;
    const int64_t taps = step.window.taps();
    int first_group = 0;
    for (const Destination& d : step.dst) {
      const float* weight = weights[d.weight];
      for (int64_t o = 0; o < d.slice.channels; ++o) {
        const int group = first_group + static_cast<int>(o / kGroup);
        const auto panel =
            std::find_if(pack.panels.begin(), pack.panels.end(),
                         [&](const Panel& p) { return group < p.first_group + p.groups; });
        const int64_t pitch = int64_t{panel->groups} * kGroup;
        const int64_t column = (group - panel->first_group) * kGroup + o % kGroup;
        float* out = dst + panel->offset + column;
        for (int64_t t = 0; t < taps; ++t) {
          for (int64_t k = 0; k < depth; ++k) {
            out[(t * depth + k) * pitch] = weight[(o * depth + k) * taps + t];
          }
        }
        dst[pack.bias + int64_t{first_group} * kGroup + o] = biases[d.weight][o];
      }
      first_group += groups_of(d.slice.channels);
    }
  }
}

}  // namespace inception_fused::cpu
