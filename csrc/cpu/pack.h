// Weights as the kernels read them: per step, the columns of all its convolutions side by side,
// each convolution padded with zeros to whole groups of 16, cut into panels of one to three groups.
//
//   pack:  per step the edge of Winograd's output tile, 0 for direct; zeros up to a multiple of 16;
//          of int8 scale and zero of each buffer, up to a multiple of 16; the steps
//   step:  bias[16 * groups]; of int8 factor[16 * groups]; then per panel
//          [tap][depth][16 * panel groups]
//
// All elements are float32, but of BFloat16 a panel's element is the weights of two channels, the
// first in the lower half, and depth is half as many, rounded up; the last may be half zero. Of
// int8 it is those of four, the first in the lowest byte, and the bias is int32 (quantise.h).
//
// With Winograd the taps are the products of one tile (winograd.h), float32 in any case. The layout
// does not depend on the instruction set, so a pack made on one machine serves on another.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels.h"
#include "parallel.h"
#include "plan.h"
#include "quantise.h"

namespace inception_fused::cpu {

struct Panel {
  int first_group;
  int groups;
  int64_t offset;  // of its weights, in elements from the start of the pack
};

struct StepPack {
  int64_t tile = 0;           // edge of Winograd's output tile; 0: direct
  int64_t taps = 0;           // products per depth and column
  int64_t depth = 0;          // elements per tap and column
  int groups = 0;             // 0 where there is no weight
  int64_t bias = 0;           // offset in elements from the start of the pack
  int64_t factor = 0;         // the same, of int8
  std::vector<Panel> panels;  // in column order
};

struct PackLayout {
  Precision precision = Precision::kFloat32;
  int64_t scales = 0;           // of int8: offset of the buffers' scales and zeros
  std::vector<StepPack> steps;  // as in the plan
  int64_t size = 0;             // elements
};

// tiles: per step the edge of Winograd's output tile, 0 for direct; empty for direct everywhere.
// Throws std::invalid_argument if a step cannot be computed so: of int8 none can in tiles, and no
// sum may overflow.
PackLayout pack_layout(const Plan& plan, Precision precision, std::span<const int64_t> tiles);

// Whether a pack of `size` elements has this layout.
bool is_layout_of(const PackLayout& layout, const float* pack, int64_t size);

// The layout of a pack of `size` elements. Throws std::invalid_argument if it is none of this plan.
PackLayout read_layout(const Plan& plan, Precision precision, const float* pack, int64_t size);

// weights[i]: (out, in, height, width) contiguous, of the layout's precision as biases[i]: (out);
// for int8 both are float32. `scales`: of each buffer, for int8 alone; std::invalid_argument if
// they cannot be (check_scales) or a weight is not finite. Writes all of dst[0, layout.size), on so
// many threads.
void pack(const Plan& plan, const PackLayout& layout, std::span<const void* const> weights,
          std::span<const void* const> biases, std::span<const Scale> scales, float* dst,
          int threads, const Parallel& parallel);

}  // namespace inception_fused::cpu
