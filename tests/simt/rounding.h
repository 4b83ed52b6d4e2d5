// What simt.h's conversions and maxima must give, worked out in float64.
#pragma once

#include <bit>
#include <cmath>
#include <limits>

#include "conform.h"

namespace conform {

inline uint32_t bits_of(float value) { return std::bit_cast<uint32_t>(value); }
inline float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

struct Format {  // a binary floating-point format
  int exponent_bits, fraction_bits;
  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
};
inline constexpr Format kHalf{5, 10}, kBFloat16{8, 7}, kTf32{8, 10};

// The nearest number of the format, its bits at the right; ties to even, or away from zero.
inline uint32_t nearest(float value, const Format& to, bool ties_away = false) {
  const uint32_t sign = std::signbit(value) ? 1u << (to.exponent_bits + to.fraction_bits) : 0;
  const uint32_t infinity = ((1u << to.exponent_bits) - 1) << to.fraction_bits;
  if (std::isnan(value)) return infinity | 1;
  if (std::isinf(value)) return sign | infinity;
  const double magnitude = std::fabs(static_cast<double>(value));
  const int least = 1 - to.bias();  // exponent of the least normal number
  const int exponent = magnitude == 0 ? least : std::max(std::ilogb(magnitude), least);
  const double units = std::ldexp(magnitude, to.fraction_bits - exponent);
  double whole = std::floor(units);
  const double rest = units - whole;
  if (rest > 0.5 || (rest == 0.5 && (ties_away || std::fmod(whole, 2) == 1))) whole += 1;
  // The carry out of the fraction is the next exponent, so bits and numbers are in one order.
  const uint32_t first = static_cast<uint32_t>(exponent - least) << to.fraction_bits;
  return sign | std::min(first + static_cast<uint32_t>(whole), infinity);
}

inline float value_of(uint32_t bits, const Format& from) {
  const uint32_t exponent = bits >> from.fraction_bits & ((1u << from.exponent_bits) - 1);
  const uint32_t fraction = bits & ((1u << from.fraction_bits) - 1);
  const bool negative = bits >> (from.exponent_bits + from.fraction_bits) & 1;
  double magnitude;
  if (exponent == (1u << from.exponent_bits) - 1) {
    magnitude = fraction ? std::nan("") : std::numeric_limits<double>::infinity();
  } else {
    const double units = fraction + (exponent ? std::ldexp(1.0, from.fraction_bits) : 0.0);
    magnitude = std::ldexp(units, std::max(int(exponent), 1) - from.bias() - from.fraction_bits);
  }
  return static_cast<float>(negative ? -magnitude : magnitude);
}

template <simt::Product kProduct>
uint32_t encode(float value) {
  return nearest(value, kProduct == simt::Product::kHalf ? kHalf : kBFloat16);
}

// Float32 bits: both sides of every tie, the ends of each format's range, and what is no number.
inline std::vector<uint32_t> interesting() {
  std::vector<uint32_t> found{
      0,          1,          0x007fffff, 0x00800000, 0x33000000, 0x33000001, 0x33800000,
      0x387fc000, 0x387fe000, 0x38800000, 0x477fe000, 0x477fefff, 0x477ff000, 0x7f7f0000,
      0x7f7f7fff, 0x7f7f8000, 0x7f7fffff, 0x7f800000, 0x7f800001, 0x7fc00000, 0x7fffffff};
  for (const uint32_t tie : {0x1000u, 0x8000u}) {
    for (uint32_t base = 0x33000000; base < 0x48000000; base += 0x01234000) {
      for (const uint32_t odd : {0u, tie << 1}) {
        for (const uint32_t step : {tie - 1, tie, tie + 1}) {
          found.push_back((base & ~(4 * tie - 1)) + odd + step);
        }
      }
    }
  }
  for (size_t i = 0, count = found.size(); i < count; ++i) found.push_back(found[i] | 1u << 31);
  return found;
}

template <class T>
struct Narrow {
  const uint32_t* from;
  uint32_t* to;
  int count;
  SIMT_DEVICE void operator()() const {
    const int i = simt::block() * 128 + simt::thread();
    if (i >= count) return;
    T value;
    simt::from_float(simt::as_float(simt::load(from + i)), value);
    simt::store(to + i, static_cast<uint32_t>(value.bits));
  }
};

template <class T>
struct Widen {  // every number that there is
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    const int i = simt::block() * 128 + simt::thread();
    simt::store(to + i, simt::as_bits(simt::to_float(T{static_cast<uint16_t>(i)})));
  }
};

struct RoundTf32 {
  const uint32_t* from;
  uint32_t* to;
  int count;
  SIMT_DEVICE void operator()() const {
    const int i = simt::block() * 128 + simt::thread();
    if (i < count) simt::store(to + i, simt::round_tf32(simt::load(from + i)));
  }
};

template <class T>
struct Larger {
  const uint32_t *a, *b;
  uint32_t* to;
  int count;
  SIMT_DEVICE void operator()() const {
    const int i = simt::block() * 128 + simt::thread();
    if (i < count) simt::store(to + i, simt::larger(simt::load(a + i), simt::load(b + i), T{}));
  }
};

inline int blocks_of(size_t count) { return static_cast<int>((count + 127) / 128); }

template <class T>
void narrow(Report& report, const char* name, const Format& format) {
  const Array<uint32_t> from(interesting()), got(from.size());
  const int count = static_cast<int>(from.size());
  run({blocks_of(count), 128, 0}, Narrow<T>{from.data(), got.data(), count});
  std::vector<uint32_t> expected;
  for (int i = 0; i < count; ++i) expected.push_back(nearest(float_of(from[i]), format));
  report.compare(name, got, expected,
                 [&](uint32_t bits) { return std::isnan(value_of(bits, format)); });
}

template <class T>
void widen(Report& report, const char* name, const Format& format) {
  const Array<uint32_t> got(65536);
  run({512, 128, 0}, Widen<T>{got.data()});
  std::vector<uint32_t> expected;
  for (uint32_t bits = 0; bits < 65536; ++bits) expected.push_back(bits_of(value_of(bits, format)));
  report.compare(name, got, expected, is_nan);
}

// NaN if either is, and +0 is larger than -0. Every pair of some values; two in a word where they
// are narrow, the second pair being the first with its sides changed.
template <class T>
void larger(Report& report, const char* name, const Format& format) {
  const bool narrow = format.exponent_bits + format.fraction_bits == 15;
  std::vector<uint32_t> values;
  for (const float v : {0.0f, -0.0f, 1.0f, -1.0f, 1.5f, -65504.0f, INFINITY, -INFINITY, NAN}) {
    values.push_back(narrow ? nearest(v, format) : bits_of(v));
  }
  values.push_back(1);  // the least subnormal number
  const auto most = [&](uint32_t a, uint32_t b) {
    const float x = narrow ? value_of(a, format) : float_of(a);
    const float y = narrow ? value_of(b, format) : float_of(b);
    if (std::isnan(x)) return a;
    if (std::isnan(y)) return b;
    if (x == y) return std::signbit(x) ? b : a;
    return x > y ? a : b;
  };
  const size_t count = values.size() * values.size();
  const Array<uint32_t> left(count), right(count), got(count);
  std::vector<uint32_t> expected;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t a = values[i / values.size()], b = values[i % values.size()];
    left[i] = narrow ? b << 16 | a : a;
    right[i] = narrow ? a << 16 | b : b;
    expected.push_back(narrow ? most(b, a) << 16 | most(a, b) : most(a, b));
  }
  run({blocks_of(count), 128, 0},
      Larger<T>{left.data(), right.data(), got.data(), static_cast<int>(count)});
  if (!narrow) return report.compare(name, got, expected, is_nan);
  const Array<uint32_t> halves(2 * count);
  std::vector<uint32_t> expected_halves;
  for (size_t i = 0; i < count; ++i) {
    for (int shift = 0; shift < 32; shift += 16) {
      halves[2 * i + shift / 16] = got[i] >> shift & 0xffff;
      expected_halves.push_back(expected[i] >> shift & 0xffff);
    }
  }
  report.compare(name, halves, expected_halves,
                 [&](uint32_t bits) { return std::isnan(value_of(bits, format)); });
}

inline void rounding(Report& report) {
  widen<simt::Half>(report, "to_float half", kHalf);
  widen<simt::BFloat16>(report, "to_float bfloat16", kBFloat16);
  narrow<simt::Half>(report, "from_float half", kHalf);
  narrow<simt::BFloat16>(report, "from_float bfloat16", kBFloat16);
  const Array<uint32_t> from(interesting()), got(from.size());
  const int count = static_cast<int>(from.size());
  run({blocks_of(count), 128, 0}, RoundTf32{from.data(), got.data(), count});
  std::vector<uint32_t> expected;
  for (int i = 0; i < count; ++i) expected.push_back(nearest(float_of(from[i]), kTf32, true) << 13);
  report.compare("round_tf32", got, expected, is_nan);
  larger<simt::Half>(report, "larger half", kHalf);
  larger<simt::BFloat16>(report, "larger bfloat16", kBFloat16);
  larger<float>(report, "larger float", {8, 23});
}

}  // namespace conform
