// float32 as the sum of two shorter numbers, for matrix instructions of the shorter type:
//
//   v = high + low + rest;   a * b ~ ah * bh + ah * bl + al * bh
//
// Both roundings are to nearest. In bfloat16 |low| <= 2^-8 |v| and |rest| <= 2^-17 |v|, so what the
// product leaves out, al * bl and the rests, is at most 2^-15 |a * b|; in TF32, of three bits more,
// at most 2^-21 |a * b|. What has no finite high part, such as an infinity or a NaN, is its low
// part alone: the other products are zero then, and infinity times a number is what it is in
// float32.
#pragma once

#include "cuda/simt.h"

namespace inception_fused::cuda {

// Whether |v| is below a positive number of these bits, the first that a rounding makes infinite.
SIMT_DEVICE bool is_below(float v, uint32_t limit) {
  return (simt::as_bits(v) & 0x7fffffffu) < limit;
}

struct Split {
  uint32_t bits;  // high in the upper half, low in the lower
};

SIMT_DEVICE Split to_split(float v) {
  simt::BFloat16 high, low;
  simt::from_float(is_below(v, 0x7f7f8000u) ? v : 0.0f, high);
  simt::from_float(v - simt::to_float(high), low);
  return {uint32_t{high.bits} << 16 | low.bits};
}

SIMT_DEVICE simt::Vector to_split(simt::Vector v) {  // of four float32
  SIMT_UNROLL
  for (int w = 0; w < 4; ++w) v.word[w] = to_split(simt::as_float(v.word[w])).bits;
  return v;
}

// The bits of v and of its parts in TF32.
SIMT_DEVICE void split_tf32(uint32_t v, uint32_t& high, uint32_t& low) {
  const float value = simt::as_float(v);
  high = simt::round_tf32(is_below(value, 0x7f7ff000u) ? v : 0);
  low = simt::round_tf32(simt::as_bits(value - simt::as_float(high)));
}

// The high or the low parts of two as a matrix instruction takes them, the first in the lower half.
SIMT_DEVICE uint32_t high_pair(uint32_t first, uint32_t second) {
  return first >> 16 | (second & 0xffff0000u);
}
SIMT_DEVICE uint32_t low_pair(uint32_t first, uint32_t second) {
  return (first & 0xffffu) | second << 16;
}

}  // namespace inception_fused::cuda
