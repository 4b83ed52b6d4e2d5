// What a launch is told: plain data, passed by value to the kernels. Standard library only.
//
// A problem is one matrix product of a wave:
//
//   D[m, n] = act(bias[n] + sum over tap, c of S[pixel(m, tap), c] * W[tap, c, n])
//
// m counts the pixels of all images, n the columns of all destinations of a step side by side.
// Depth and columns are counted in vectors: 16 bytes, 8 channels of a 16-bit type or 4 of float32.
// Every window keeps the image size, so a pixel has one index, (image * height + y) * width + x, in
// the source and in every destination.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SIMT_HOST_DEVICE __host__ __device__
#else
#define SIMT_HOST_DEVICE
#endif

namespace inception_fused::cuda {

inline constexpr int kMaxProblems = 6;   // of a launch
inline constexpr int kMaxSegments = 12;  // of a launch
inline constexpr int kMaxTaps = 64;      // of a resident convolution: its validity is a 64-bit mask

// Unsigned division by a number known before the launch: exact for n * divisor < 2^32.
struct Divider {
  uint32_t divisor = 1;
  uint32_t magic = 0;  // ceil(2^32 / divisor), 0 for 1

  static Divider by(uint32_t divisor) {
    return {divisor, divisor == 1 ? 0 : static_cast<uint32_t>((uint64_t{1} << 32) / divisor + 1)};
  }
  SIMT_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    return magic ? static_cast<uint32_t>((uint64_t{n} * magic) >> 32) : n;
  }
};

// A slice of a buffer. As vectors: channels are adjacent and padded with zeros to whole vectors,
// and the address of a vector is data + pixel * pixel_bytes + vector * vector_bytes, a multiple
// of 16. As elements: any strides.
struct Place {
  char* data = nullptr;  // of image 0, pixel 0, channel 0 of the slice
  bool vectors = false;
  bool split = false;  // the elements are those of split.h
  int64_t pixel_bytes = 0;
  int64_t vector_bytes = 0;
  int64_t stride[4] = {};  // in elements: image, channel, row, column

  // Whether neighbouring pixels, not neighbouring channels, are adjacent in memory.
  SIMT_HOST_DEVICE constexpr bool along_pixels() const {
    return vectors ? pixel_bytes == 16 : stride[1] != 1;
  }
};

// A run of columns that goes to one destination; it begins and ends at whole vectors.
struct Segment {
  Place to;
  int first = 0;     // vector of the problem's columns
  int channels = 0;  // without the padding
  bool relu = false;
};

enum class Operand : int {
  kVectors,   // cp.async of vectors, one row a pixel
  kPooled,    // max pool: cp.async of a halo of vectors, reduced from shared memory
  kElements,  // any strides, any channels, any pool: plain loads
  kResident,  // convolution: the halo, all channels, stays in shared memory
};

enum class Reduction : int { kNone, kMax, kMean };

struct Problem {
  Operand operand = Operand::kVectors;
  Reduction reduction = Reduction::kNone;
  Place from;
  int channels = 0;  // of the source slice
  int depth = 0;     // vectors per tap
  int taps = 1;      // of the convolution
  Divider by_depth, by_kernel_width;
  const char* weights = nullptr;  // [tap][depth][columns][element of the vector]
  const float* bias = nullptr;    // [columns]
  int columns = 0;                // with the padding, in elements
  int vector = 1;                 // elements of one
  int pixels = 0;                 // of all images
  int height = 1, width = 1;
  int kernel_height = 1, kernel_width = 1;  // of the convolution or of the pool
  int pad_height = 0, pad_width = 0;
  int column_tiles = 1;
  int first_block = 0;
  int first_segment = 0, segments = 0;

  // Pixels between the first one that a window reads and its centre.
  SIMT_HOST_DEVICE constexpr int before() const { return pad_height * width + pad_width; }
};

struct Wave {
  int problems = 0;
  Problem problem[kMaxProblems];
  Segment segment[kMaxSegments];
};

struct PackTask {                // of one convolution
  const char* weight = nullptr;  // (out, in, taps), strides in elements
  int64_t stride[4] = {};        // out, in, kernel row, kernel column
  const char* bias = nullptr;
  int64_t bias_stride = 0;
  int out_channels = 0, in_channels = 0, kernel_height = 1, kernel_width = 1;
  int columns = 0;  // of the step
  int first = 0;    // column of this destination
  int padded = 0;   // columns of this destination, with the padding
  char* to_weights = nullptr;
  float* to_bias = nullptr;
};

inline constexpr int kPackThreads = 256;

}  // namespace inception_fused::cuda
