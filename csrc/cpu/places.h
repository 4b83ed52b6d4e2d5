// Where the buffers of a plan live while a program runs it, and for how many images at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "pack.h"
#include "plan.h"

namespace inception_fused::cpu {

// A tensor (batch, channels, height, width); strides in elements. Channels or columns are adjacent
// in memory: stride[1] == 1 (channels last) or stride[3] == 1.
struct Strided {
  void* data;  // BFloat16 if the pack's precision is that, else float
  int64_t size[4];
  int64_t stride[4];

  bool channels_last() const { return stride[1] == 1 || size[1] == 1; }
  Size image() const { return {size[2], size[3]}; }
};

// Where a buffer lives: in x, in out, or in scratch, there with a border of zeros around each
// image. With int8 an element is a byte, of the float32 output too, and a pixel in scratch has a
// multiple of four channels; those beyond the last may be read, but count nothing.
struct Place {
  bool scratch = false;
  int64_t channels = 0;
  Size size;
  Size border;
  bool phases = false;  // x in its phases (winograd.h), padded; channels and size are theirs
  int64_t offset = 0;   // of the first image's pixel (0, 0), in elements from the start of scratch
  int64_t stride = 0;   // of images, in elements
  int64_t row = 0;
  int64_t pixel = 0;
  int64_t mask = -1;  // image i is in slot i & mask
  // The first wave that writes it, of those that run in turn with it; -1 if x is loaded into it.
  int64_t first_wave = 0;

  int64_t image(int64_t i) const { return (i & mask) * stride; }
};

// Waves [first_wave, last_wave] run one after the other for `images` images, then for the next.
// The phase behind has at least as many, and runs when all of its images are there.
struct Phase {
  int64_t first_wave;
  int64_t last_wave;
  int64_t images;
};

// How a thread alone runs a plan for up to `images` images: where they are small, several at a time
// use the weights more often per load; where they are large, one stays in the cache.
std::vector<Phase> phases_of(const Plan& plan, Size image, int64_t images);

// Elements per number of a buffer.
constexpr int64_t width_of(Precision precision, int64_t buffer) {
  return precision == Precision::kInt8 && buffer == kOut ? sizeof(float) : 1;
}

// What kernels may read behind the last channel of a pixel, with int8.
inline constexpr int64_t kBeyond = 3;

struct Places {
  std::vector<Place> by_buffer;
  int64_t scratch = 0;  // elements
};

// `line`: a multiple of it, in elements, is where each buffer starts. Buffers that are not needed
// at the same time share memory. Throws std::invalid_argument if no memory could hold one.
Places place_all(const Plan& plan, const PackLayout& layout, const Strided& x, const Strided& out,
                 const std::vector<Phase>& phases, int64_t images, int64_t line);

}  // namespace inception_fused::cpu
