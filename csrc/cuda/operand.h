// How rows of the source come into shared memory, one stage at a time.
#pragma once

#include "cuda/tile.h"

namespace inception_fused::cuda {

struct Tap {  // a position of a window, relative to the pixel
  int y, x;
};

SIMT_DEVICE Tap find_tap(const Problem& p, int tap) {
  const int y = static_cast<int>(p.by_kernel_width.quotient(tap));
  return {y - p.pad_height, tap - y * p.kernel_width - p.pad_width};
}

struct Coordinates {
  int y, x;
  SIMT_DEVICE Coordinates(const Problem& p, int pixel)
      : y(pixel / p.width % p.height), x(pixel % p.width) {}
  SIMT_DEVICE bool inside(const Problem& p, const Tap& tap) const {
    return static_cast<unsigned>(y + tap.y) < static_cast<unsigned>(p.height) &&
           static_cast<unsigned>(x + tap.x) < static_cast<unsigned>(p.width);
  }
};

// A thread's share of the rows x kDepth vectors of a stage, neighbouring threads on adjacent
// memory.
template <class T>
struct Item {
  int row, vector;
  SIMT_DEVICE Item(const Place& from, int rows, int item)
      : row(from.along_pixels() ? item % rows : item / T::kDepth),
        vector(from.along_pixels() ? item / rows : item % T::kDepth) {}
};

// Operand::kVectors: starts copying vectors [first, first + kDepth) of all taps.
template <class T>
SIMT_DEVICE void copy_rows(const Panel& to, const Problem& p, int first_row, int first) {
  for (int i = simt::thread(); i < T::kRows * T::kDepth; i += T::kThreads) {
    const Item<T> item(p.from, T::kRows, i);
    const int vector = first + item.vector;
    const int tap = static_cast<int>(p.by_depth.quotient(vector));
    int pixel = first_row + item.row;
    bool valid = pixel < p.pixels && tap < p.taps;
    if (p.taps > 1) {
      const Tap at = find_tap(p, tap);
      valid = valid && Coordinates(p, pixel).inside(p, at);
      pixel += at.y * p.width + at.x;
    }
    const int64_t offset =
        valid ? pixel * p.from.pixel_bytes + (vector - tap * p.depth) * p.from.vector_bytes : 0;
    simt::copy_async(to.at(item.vector, item.row), p.from.data + offset, valid);
  }
}

// Starts copying pixels [first_pixel, first_pixel + rows) of vectors [first, first + vectors);
// zeros where there is no such pixel or vector.
template <class T>
SIMT_DEVICE void copy_halo(const Panel& to, const Problem& p, int first_pixel, int rows, int first,
                           int vectors) {
  const bool along_pixels = p.from.along_pixels();
  for (int i = simt::thread(); i < rows * vectors; i += T::kThreads) {
    const int row = along_pixels ? i % rows : i / vectors;
    const int k = along_pixels ? i / rows : i % vectors;
    const int pixel = first_pixel + row;
    const bool valid = pixel >= 0 && pixel < p.pixels && first + k < p.depth;
    const int64_t offset =
        valid ? pixel * p.from.pixel_bytes + (first + k) * p.from.vector_bytes : 0;
    simt::copy_async(to.at(k, row), p.from.data + offset, valid);
  }
}

// What copy_rows has brought, in float32, into the halves of split.h: every thread its own copies,
// when these have come.
template <class T>
SIMT_DEVICE void split_rows(const Panel& rows, const Problem& p) {
  for (int i = simt::thread(); i < T::kRows * T::kDepth; i += T::kThreads) {
    const Item<T> item(p.from, T::kRows, i);
    Vector* const vector = rows.at(item.vector, item.row);
    *vector = to_split(*vector);
  }
}

// The same of copy_halo.
template <class T>
SIMT_DEVICE void split_halo(const Panel& halo, const Problem& p, int rows, int vectors) {
  const bool along_pixels = p.from.along_pixels();
  for (int i = simt::thread(); i < rows * vectors; i += T::kThreads) {
    Vector* const vector =
        along_pixels ? halo.at(i / rows, i % rows) : halo.at(i % vectors, i / vectors);
    *vector = to_split(*vector);
  }
}

// Operand::kPooled: the maxima of a stage's halo. A tap outside the image counts as the pixel
// itself, which is as good as leaving it out.
template <class D, class T>
SIMT_DEVICE void pool_rows(const Panel& to, const Panel& halo, const Problem& p, int first_row) {
  for (int i = simt::thread(); i < T::kRows * T::kDepth; i += T::kThreads) {
    const int row = i % T::kRows, k = i / T::kRows;
    const Coordinates pixel(p, first_row + row);
    const Vector* const centre = halo.at(k, row + p.before());
    Vector most = *centre;
    for (int y = -p.pad_height; y <= p.pad_height; ++y) {
      for (int x = -p.pad_width; x <= p.pad_width; ++x) {
        const Vector value = centre[pixel.inside(p, {y, x}) ? y * p.width + x : 0];
        SIMT_UNROLL
        for (int w = 0; w < 4; ++w) {
          most.word[w] = simt::larger(most.word[w], value.word[w], typename D::Element{});
        }
      }
    }
    if constexpr (kSplits<D>) most = to_split(most);
    *to.at(k, row) = most;
  }
}

// One pooled element; `channel` points to it in the window's image, at the pixel (0, 0).
template <class Element>
SIMT_DEVICE float pool_element(const Element* channel, const Problem& p, const Coordinates& pixel) {
  float result = 0;
  bool first = true;
  for (int y = -p.pad_height; y <= p.pad_height; ++y) {
    for (int x = -p.pad_width; x <= p.pad_width; ++x) {
      if (!pixel.inside(p, {y, x})) continue;
      const float value = simt::to_float(simt::load(channel + (pixel.y + y) * p.from.stride[2] +
                                                    (pixel.x + x) * p.from.stride[3]));
      if (p.reduction == Reduction::kMean) {
        result += value;
      } else {
        result = first || value > result || value != value ? value : result;
        first = false;
      }
    }
  }
  const int area = p.kernel_height * p.kernel_width;  // padding counts as zeros
  return p.reduction == Reduction::kMean ? result / static_cast<float>(area) : result;
}

// Operand::kElements: loads one stage element by element and writes it to shared memory at once.
template <class D, class T>
SIMT_DEVICE void gather_rows(const Panel& to, const Problem& p, int first_row, int first) {
  using Element = typename D::Element;
  for (int i = simt::thread(); i < T::kRows * T::kDepth; i += T::kThreads) {
    const Item<T> item(p.from, T::kRows, i);
    const int vector = first + item.vector, pixel = first_row + item.row;
    const int tap = static_cast<int>(p.by_depth.quotient(vector));
    const int channel = (vector - tap * p.depth) * D::kVector;
    const Coordinates centre(p, pixel);
    const Tap at = p.taps > 1 ? find_tap(p, tap) : Tap{0, 0};
    const bool valid = pixel < p.pixels && tap < p.taps && centre.inside(p, at);
    const int64_t image = static_cast<int64_t>(pixel / p.width / p.height) * p.from.stride[0];
    const Element* const data =
        reinterpret_cast<const Element*>(p.from.data) + image + channel * p.from.stride[1];
    const int64_t offset =
        (centre.y + at.y) * p.from.stride[2] + (centre.x + at.x) * p.from.stride[3];
    union {
      Vector whole;
      typename D::Stored element[D::kVector];
    } packed;
    SIMT_UNROLL
    for (int e = 0; e < D::kVector; ++e) {
      packed.element[e] = {};
      if (!valid || channel + e >= p.channels) continue;
      const Element* const source = data + e * p.from.stride[1];
      Element element;
      if (p.reduction == Reduction::kNone) {
        element = simt::load(source + offset);
      } else {
        simt::from_float(pool_element(source, p, centre), element);
      }
      packed.element[e] = to_stored<D>(element);
    }
    *to.at(item.vector, item.row) = packed.whole;
  }
}

}  // namespace inception_fused::cuda
