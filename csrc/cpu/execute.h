// One task of a program, on the calling thread.
#pragma once

#include "program.h"

namespace inception_fused::cpu {

// Which tiles a thread's own memory holds, transformed; step -1: none.
struct Transformed {
  int step = -1;
  int64_t first = 0;
  int64_t last = 0;
  bool operator==(const Transformed&) const = default;
};

// The tensors and memory of one run of a program, for one thread. T: float, BFloat16 or uint8_t,
// whose tensors are float.
template <typename T>
struct Operands {
  const Strided& x;
  const Strided& out;
  int64_t first_image;  // of the program's images, in x and out
  const float* pack;
  T* scratch;  // Program::scratch elements
  T* own;      // Program::own.size() elements
  Transformed* transformed;
};

// Address of channel 0 of pixel (0, 0) of the program's first image.
template <typename T>
T* base_of(const Program& program, int64_t buffer, const Operands<T>& operands);

// The columns of one panel of a step: which part of which destination each group is. rows[t] are
// the offsets of the rows in StepInfo::targets[t].
template <typename T>
void find_columns(const Program& program, int step, const Panel& panel, const Operands<T>& operands,
                  const int64_t* const* rows, Column<T>* columns);

// Output pixels, or tiles, in order, across rows and images.
struct Cursor {
  Size size;
  int64_t image, y, x;

  Cursor(Size size_, int64_t unit)
      : size(size_),
        image(unit / (size_.height * size_.width)),
        y(unit / size_.width % size_.height),
        x(unit % size_.width) {}

  // Goes on by `count`, at most to the first of the next row.
  void next(int64_t count = 1) {
    if ((x += count) == size.width) {
      x = 0;
      if (++y == size.height) {
        y = 0;
        ++image;
      }
    }
  }
};

// `count` output pixels of a pool, in order, to dst, one after the other without gaps. `rescale`:
// of an average of uint8_t, before its factor is divided by the pixels that count.
template <typename T>
void pool_pixels(const KernelsOf<T>& kernels, const Pool& pool, const Place& from, const T* base,
                 int64_t channels, Cursor at, int64_t count, T* dst, const Rescale& rescale = {});

// The same of one row of an image.
template <typename T>
void pool_row(const KernelsOf<T>& kernels, const Pool& pool, const Place& from, const T* base,
              int64_t channels, const Cursor& at, int64_t count, T* dst, int64_t dst_pixel,
              const Rescale& rescale = {});

// The scale of a buffer, with int8.
Scale scale_of(const Program& program, int64_t buffer, const Operands<uint8_t>& operands);

// Image rows [first, last) of x into scratch, quantised; and of the output from scratch.
void run_load_int8(const Program& program, const Task& task, const Operands<uint8_t>& operands);
void run_store_int8(const Program& program, const Task& task, const Operands<uint8_t>& operands);

// The task of a step without weights.
template <typename T>
void run_pool(const Program& program, const Task& task, const Operands<T>& operands);
void run_pool_int8(const Program& program, const Task& task, const Operands<uint8_t>& operands);

// Rows [first, last) of the phases of x into scratch.
template <typename T>
void load_phases(const Program& program, const Task& task, const Operands<T>& operands);

// A convolution's task, by Winograd's algorithm.
template <typename T>
void run_winograd(const Program& program, const Task& task, const Operands<T>& operands);

template <typename T>
void execute(const Program& program, const Task& task, const Operands<T>& operands);

}  // namespace inception_fused::cpu
