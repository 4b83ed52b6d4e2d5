// Weights as the kernels read them, and the kernel that writes them.
//
// A pack holds, step by step, float32 bias[columns] and weights [tap][depth][columns][vector]: the
// columns of all destinations side by side, each destination and the depth of each tap padded with
// zeros to whole vectors. It depends on the plan and the dtype alone, not on the image or the tile.
#pragma once

#include "cuda/tile.h"

namespace inception_fused::cuda {

template <class D>
SIMT_DEVICE void run_pack(const PackTask& task) {
  using Element = typename D::Element;
  simt::dependency_wait();
  const int depth = (task.in_channels + D::kVector - 1) / D::kVector;
  const int taps = task.kernel_height * task.kernel_width;
  const int64_t item = static_cast<int64_t>(simt::block()) * kPackThreads + simt::thread();
  if (item >= int64_t{1} * taps * depth * task.padded) return;
  const int column = static_cast<int>(item % task.padded);
  const int vector = static_cast<int>(item / task.padded);
  const int tap = vector / depth, channel = vector % depth * D::kVector;
  const bool real = column < task.out_channels;
  const Element* const weight = reinterpret_cast<const Element*>(task.weight) +
                                tap / task.kernel_width * task.stride[2] +
                                tap % task.kernel_width * task.stride[3];
  union {
    Vector whole;
    typename D::Stored element[D::kVector];
  } packed;
  SIMT_UNROLL
  for (int e = 0; e < D::kVector; ++e) {
    const bool valid = real && channel + e < task.in_channels;
    packed.element[e] = {};
    if (!valid) continue;
    packed.element[e] =
        to_stored<D>(simt::load(weight + column * task.stride[0] + (channel + e) * task.stride[1]));
  }
  const int64_t place = static_cast<int64_t>(vector) * task.columns + task.first + column;
  simt::store(reinterpret_cast<Vector*>(task.to_weights) + place, packed.whole);
  if (vector == 0) {
    const Element* const bias = reinterpret_cast<const Element*>(task.bias);
    simt::store(task.to_bias + task.first + column,
                real ? simt::to_float(simt::load(bias + column * task.bias_stride)) : 0.0f);
  }
}

}  // namespace inception_fused::cuda
