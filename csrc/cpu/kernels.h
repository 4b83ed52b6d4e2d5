// The leaf kernels: raw pointers and element offsets, no torch, no allocation, no threads.
// One table per instruction set; pick() chooses by the capabilities it is given, so that the choice
// can be tested on any machine.
#pragma once

#include <cstdint>
#include <string_view>
#include <type_traits>

namespace inception_fused::cpu {

inline constexpr int kGroup = 16;      // columns of a group: one AVX-512 register of float32
inline constexpr int kMaxGroups = 3;   // groups of a panel
inline constexpr int kMaxRows = 14;    // rows of a tile, at most
inline constexpr int kAlignment = 64;  // bytes; of packs and of scratch

struct BFloat16 {
  uint16_t bits;  // the upper half of a float32
};

// Of activations and of the weights of direct convolutions. Bias and sums are float32; of kInt8,
// whose activations are unsigned, int32 (quantise.h).
enum class Precision { kFloat32, kBFloat16, kInt8 };

constexpr int64_t bytes_of(Precision precision) {
  switch (precision) {
    case Precision::kFloat32:
      return sizeof(float);
    case Precision::kBFloat16:
      return sizeof(BFloat16);
    case Precision::kInt8:
      return sizeof(uint8_t);
  }
  return 0;
}

// Channels whose weights share the four bytes of a panel's element.
constexpr int64_t per_element(Precision precision) { return sizeof(float) / bytes_of(precision); }

template <typename T>
inline constexpr int64_t kPerElement = sizeof(float) / sizeof(T);

// Where the 16 columns of one group go: row r, column c to dst[row[r] + c].
template <typename T>
struct Column {
  T* dst;
  const int64_t* row;  // offsets in elements, one per row of the tile
  int lanes;           // columns that exist, 1 to 16; the others are not written
  bool relu;
};

// The same of int32 sums, which become float32 numbers factor[c] * sum, or, rounded to nearest with
// ties to even, uint8 numbers zero + factor[c] * sum, at most 255 and at least zero with ReLU.
template <>
struct Column<uint8_t> {
  uint8_t* dst;        // of floats if `wide`
  const int64_t* row;  // in bytes
  int lanes;
  bool relu;
  bool wide;
  int zero;
  const float* factor;  // kGroup
};

// dst[row[r] + c] = act(bias[c] + sum over tap t and k < depth of
//                       a[r][tap[t] + k] * b[(t * depth + k) * 16 * groups + c])
// in float32; of BFloat16, k counts pairs of channels in b, the first in the lower half, with a
// zero behind the last channel of an odd depth. Of uint8_t, sums and bias are int32, b is int8, and
// k counts four channels, the first in the lowest byte; depth is a multiple of four.
template <typename T>
struct Tile {
  const T* const* a;        // one pointer per row
  const int64_t* tap;       // offsets in elements
  const float* b;           // panel, 64-byte aligned
  const float* bias;        // 16 * groups
  const Column<T>* column;  // one per group
  int64_t depth;
  int taps;
  int rows;    // 1 to KernelsOf::rows[groups]
  int groups;  // 1 to kMaxGroups
};

// The transforms of one of Winograd's algorithms, in float32; winograd.h.
template <typename T>
struct Winograd {
  int points;  // edge of the input tile, in pixels
  // All channels of the input tile whose pixels are at pixel[0], pixel[1], ... row by row; to
  // v[p * plane + c] for each of the points^2 products p. Writes whole vectors: up to 15 floats
  // beyond the last channel.
  void (*input)(const T* const* pixel, int64_t channels, float* v, int64_t plane);
  // Up to 16 columns of the products m[p * plane + c]: the first rows x columns pixels of the
  // output tile at dst, with bias and, if asked for, ReLU. Writes the first `lanes` columns alone.
  void (*output)(const float* m, int64_t plane, const float* bias, bool relu, T* dst, int64_t row,
                 int64_t pixel, int rows, int columns, int lanes);
};

enum Algorithm { kF2x2_3x3, kF4x4_3x3, kF2x2_5x5, kF3x3_4x4, kAlgorithms };

template <typename T>
struct KernelsOf {
  int rows[kMaxGroups + 1];  // the best number of rows of a tile, by its groups
  void (*gemm)(const Tile<T>& tile);
  // dst[c] = max over the taps (NaN wins), or the sum of the taps, in float32, times scale.
  void (*max_pool)(const T* const* tap, int taps, int64_t channels, T* dst);
  // The same for `count` neighbours of one row and windows three wide at stride 1: row[y] is the
  // window's row y at the first of them, its neighbours are `pixel` elements apart, and `left` and
  // `right` say whether there is a pixel before the first and behind the last.
  void (*max_pool_row)(const T* const* row, int rows, int64_t pixel, bool left, bool right,
                       int64_t count, int64_t channels, T* dst, int64_t dst_pixel);
  void (*average_pool)(const T* const* tap, int taps, int64_t channels, float scale, T* dst);
  // One pixel: dst[c] = src[c] / (k + scale * sum of the squares of the channels from c - before to
  // c + behind that exist) ** beta. `squares` holds channels + before + behind + 16 floats of work.
  void (*response)(const T* src, int64_t channels, int64_t before, int64_t behind, float scale,
                   float beta, float k, float* squares, T* dst);
  // dst[c * dst_stride + r] = src[r * src_stride + c] for r < rows, c < columns.
  void (*transpose)(const T* src, int64_t src_stride, int64_t rows, int64_t columns, T* dst,
                    int64_t dst_stride);
  // Multiply-adds in registers, nothing else: floating-point operations done, for the peak.
  int64_t (*spin)(int64_t iterations);
  Winograd<T> winograd[kAlgorithms];
};

// What a uint8 number becomes in another buffer: factor * (number - from_zero), float32 if `wide`,
// else as in Column<uint8_t>.
struct Rescale {
  float factor = 1;
  int from_zero = 0;
  int zero = 0;
  bool wide = false;
};

template <>
struct KernelsOf<uint8_t> {
  int rows[kMaxGroups + 1];
  void (*gemm)(const Tile<uint8_t>& tile);
  void (*max_pool)(const uint8_t* const* tap, int taps, int64_t channels, uint8_t* dst);
  void (*max_pool_row)(const uint8_t* const* row, int rows, int64_t pixel, bool left, bool right,
                       int64_t count, int64_t channels, uint8_t* dst, int64_t dst_pixel);
  // The sum of the taps, rescaled; from_zero is taken off each.
  void (*average_pool)(const uint8_t* const* tap, int taps, int64_t channels, const Rescale& to,
                       uint8_t* dst);
  // dst[p * dst_pixel + c] = src[p * src_pixel + c] * inverse + zero, rounded to nearest with ties
  // to even, from 0 to 255; NaN is 0.
  void (*quantise)(const float* src, int64_t src_pixel, int64_t pixels, int64_t channels,
                   float inverse, int zero, uint8_t* dst, int64_t dst_pixel);
  // dst[c] = (src[c] - zero) * scale
  void (*dequantise)(const uint8_t* src, int64_t channels, int zero, float scale, float* dst);
  int64_t (*spin)(int64_t iterations);  // of int8
};

// Channel 0 of a pixel, and the elements between two neighbours; channels are adjacent.
template <typename T>
struct Pixels {
  T* data;
  int64_t pitch;
};

// Of float32. y = z * scale + shift per channel, with a ReLU behind if asked for; the gradient of y
// counts where that let y through.
struct Training {
  void (*normalise)(Pixels<const float> z, const float* scale, const float* shift, bool relu,
                    int64_t pixels, int64_t channels, Pixels<float> y);
  // sums[c] += sum over the pixels of grad, products[c] += that of grad * (z - mean). `work` holds
  // 2 * channels + 16 floats.
  void (*normalise_sums)(Pixels<const float> grad, Pixels<const float> z, const float* scale,
                         const float* shift, const float* mean, bool relu, int64_t pixels,
                         int64_t channels, float* work, double* sums, double* products);
  // grad_z = scale * (grad - grad_mean - (z - mean) * slope)
  void (*normalise_gradient)(Pixels<const float> grad, Pixels<const float> z, const float* scale,
                             const float* shift, const float* mean, const float* grad_mean,
                             const float* slope, bool relu, int64_t pixels, int64_t channels,
                             Pixels<float> grad_z);
  // dst[c] = max over the taps, where[c] = the number of the tap that has it.
  void (*max_pool_numbered)(const float* const* tap, const uint8_t* number, int taps,
                            int64_t channels, float* dst, uint8_t* where);
  // tap[t][c] += grad[c] for the tap whose number is where[c].
  void (*max_pool_gradient)(const float* grad, const uint8_t* where, float* const* tap,
                            const uint8_t* number, int taps, int64_t channels);
};

struct Kernels {
  std::string_view name;
  KernelsOf<float> float32;
  KernelsOf<BFloat16> bfloat16;
  KernelsOf<uint8_t> int8;
  Training training;

  template <typename T>
  const KernelsOf<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return float32;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      return bfloat16;
    } else {
      return int8;
    }
  }
  const int* rows(Precision precision) const {
    switch (precision) {
      case Precision::kFloat32:
        return float32.rows;
      case Precision::kBFloat16:
        return bfloat16.rows;
      case Precision::kInt8:
        return int8.rows;
    }
    return nullptr;
  }
};

extern const Kernels kBase;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const KernelsOf<uint8_t> kAvx512Vnni;
extern const KernelsOf<BFloat16> kAvx512Bf16;
#endif

// What the machine can do.
struct Capabilities {
  bool avx2 = false;  // with FMA
  bool avx512 = false;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;  // with VNNI
};

Capabilities capabilities();

// The widest table that `machine` can run and that `limit` allows: "" for any, else "base", "avx2",
// "avx512", "avx512_vnni" or "avx512_bf16", each with all that is in those before it. A limit can
// only lower the choice. Throws std::invalid_argument for another word.
const Kernels& pick(const Capabilities& machine, std::string_view limit);

// The table of this process: pick(capabilities(), $INCEPTION_FUSED_ISA), decided once.
const Kernels& kernels();

}  // namespace inception_fused::cpu
