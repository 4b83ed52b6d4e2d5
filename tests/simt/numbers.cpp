// Conversions of the 16-bit types.
#include <vector>

#include "cuda/simt.h"

namespace simt {

float to_float(Half v) {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31,
                     mantissa = bits & 1023;
      if (exponent == 31) {
        values[bits] = as_float(sign | 0x7f800000u | mantissa << 13);
      } else if (exponent) {
        values[bits] = as_float(sign | (exponent + 112) << 23 | mantissa << 13);
      } else {
        const float magnitude = static_cast<float>(mantissa) / 16777216.0f;
        values[bits] = sign ? -magnitude : magnitude;
      }
    }
    return values;
  }();
  return table[v.bits];
}

void from_float(float v, BFloat16& to) {
  const uint32_t bits = as_bits(v);
  to.bits = static_cast<uint16_t>(v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void from_float(float v, Half& to) {
  const uint32_t bits = as_bits(v);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fff;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // below the least normal number: units of 2^-24
    const float units = as_float(magnitude) * 16777216.0f;
    half = as_bits(units + 8388608.0f) & 0xffff;
  } else {
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  }
  to.bits = static_cast<uint16_t>(half | sign);
}

}  // namespace simt
