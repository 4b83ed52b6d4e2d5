// float32 as the sum of two shorter numbers, for matrix instructions of the shorter type:
//
//   v = high + low + rest;   a * b ~ ah * bh + ah * bl + al * bh
//
// Both roundings are to nearest. In bfloat16 |low| <= 2^-9 |v| and |rest| <= 2^-18 |v|, so what the
// product leaves out, al * bl and the two rests, is at most 3 * 2^-18 |a * b|; in TF32 it is at
// most 3 * 2^-22 |a * b|. An infinity or a NaN is its low part alone: the two other products are
// zero then, and infinity times a number is what it is in float32.
#pragma once

#include "cuda/simt.h"

namespace inception_fused::cuda {

struct Split {
  uint32_t bits;  // high in the upper half, low in the lower
};

SIMT_DEVICE Split to_split(float v) {
  simt::BFloat16 high, low;
  simt::from_float(v, high);
  const float rest = v - simt::to_float(high);
  const bool finite = rest - rest == 0;
  simt::from_float(finite ? rest : v, low);
  return {(finite ? uint32_t{high.bits} << 16 : 0) | low.bits};
}

SIMT_DEVICE simt::Vector to_split(simt::Vector v) {  // of four float32
  SIMT_UNROLL
  for (int w = 0; w < 4; ++w) v.word[w] = to_split(simt::as_float(v.word[w])).bits;
  return v;
}

// The bits of v and of its parts in TF32.
SIMT_DEVICE void split_tf32(uint32_t v, uint32_t& high, uint32_t& low) {
  high = simt::round_tf32(v);
  const float rest = simt::as_float(v) - simt::as_float(high);
  const bool finite = rest - rest == 0;
  high = finite ? high : 0;
  low = simt::round_tf32(finite ? simt::as_bits(rest) : v);
}

// The high or the low parts of two as a matrix instruction takes them, the first in the lower half.
SIMT_DEVICE uint32_t high_pair(uint32_t first, uint32_t second) {
  return first >> 16 | (second & 0xffff0000u);
}
SIMT_DEVICE uint32_t low_pair(uint32_t first, uint32_t second) {
  return (first & 0xffffu) | second << 16;
}

}  // namespace inception_fused::cuda
