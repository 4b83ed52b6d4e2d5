// The instances of the kernels: every dtype with every shape of choose.h.
#pragma once

#include "cuda/choose.h"
#include "cuda/conv.h"
#include "cuda/pack.h"
#include "cuda/pointwise.h"

namespace inception_fused::cuda {

template <int i>
using TileOf =
    Tile<kShapes[i].rows, kShapes[i].columns, kShapes[i].depth, kShapes[i].warp_rows,
         kShapes[i].warp_columns, kShapes[i].warp_depth, kShapes[i].stages, kShapes[i].cluster>;

// f.template operator()<T>() with the tile of that shape.
template <int i = 0, class F>
auto with_shape(int shape, const F& f) {
  if constexpr (i + 1 < kShapes.size()) {
    if (shape != i) return with_shape<i + 1>(shape, f);
  }
  return f.template operator()<TileOf<i>>();
}

// f.template operator()<D>() with the type that computes this math.
template <class F>
auto with_math(Math math, const F& f) {
  switch (math) {
    case Math::kHalf:
      return f.template operator()<Half>();
    case Math::kBFloat16:
      return f.template operator()<BFloat16>();
    case Math::kTf32:
      return f.template operator()<Tf32>();
    case Math::kBf16x3:
      return f.template operator()<Bf16x3>();
    default:
      return f.template operator()<Float32>();
  }
}

}  // namespace inception_fused::cuda
