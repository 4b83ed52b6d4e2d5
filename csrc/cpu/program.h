// A plan for images of one size, cut into tasks: what runs, in which order, on which part.
//
// Tasks of one wave are independent of each other; a wave starts when the one before has ended.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "pack.h"
#include "places.h"
#include "plan.h"

namespace inception_fused::cpu {

struct Task {
  enum class Op { kLoad, kBorder, kStep, kStore };
  Op op;
  int step = 0;         // kStep
  int buffer = 0;       // kBorder
  int64_t first = 0;    // kStep: output pixels, or Winograd's tiles, [first, last) of all images;
  int64_t last = 0;     // kBorder: images; otherwise: image rows of all images
  int first_panel = 0;  // kStep
  int last_panel = 0;
  double position = 0;  // of its rows in the images, 0 to 1; neighbours go to one thread
  double cost = 0;      // in multiply-adds, roughly
};

// What every task of a step needs to know.
struct StepInfo {
  // Of a direct convolution: offsets in the source buffer, in elements, and how many neighbours
  // each stands for. Where pixels lie without gaps, a whole row of the kernel is one tap.
  std::vector<int64_t> taps;
  int64_t depth = 0;
  std::vector<int64_t> targets;  // the buffers it writes, each once
  Size tiles;                    // Winograd's, per image
  int64_t chunk = 0;             // tiles that are transformed at a time
  int64_t v_pitch = 0;           // elements between two transformed tiles
};

// Parts of the memory that a thread has for itself while it runs a program, in elements.
struct Own {
  int64_t pooled = 0;  // pooled rows, or the squares of a pixel's channels, or floats of int8's
  int64_t v = 0;       // Winograd's transformed input tiles
  int64_t m = 0;       // and their products with the weights
  int64_t zeros = 0;   // the pixels outside the image
  int64_t size() const { return pooled + v + m + zeros; }
};

// Images [first, last) of those that a program runs.
struct Images {
  int64_t first;
  int64_t last;
  int64_t count() const { return last - first; }
};

struct Program {
  const Plan& plan;
  const PackLayout& layout;
  const Kernels& kernels;
  int64_t images;               // per run of the program
  std::vector<Place> places;    // by buffer
  std::vector<StepInfo> steps;  // by step
  std::vector<Task> tasks;      // in an order in which one thread can run them
  std::vector<int> wave_end;    // for several threads: index of the task after each wave's last
  int64_t scratch = 0;          // elements, for all images
  Own own;

  // `parts`: into about how many tasks a wave is cut, with all images in each wave; 1 if one thread
  // runs the program alone, in phases.
  Program(const Plan& plan, const PackLayout& layout, const Kernels& kernels, const Strided& x,
          const Strided& out, int64_t images, int parts);

  // Of a tile of the products, by its groups.
  const int* rows() const { return kernels.rows(layout.precision); }
  // Elements per number of a buffer.
  int64_t width(int64_t buffer) const { return width_of(layout.precision, buffer); }
  // Elements in kAlignment bytes.
  int64_t line() const { return kAlignment / bytes_of(layout.precision); }

 private:
  void add_load(Images part, int64_t parts);
  void add_border(int64_t buffer, Images part);
  void add_wave(int64_t wave, Images part, int64_t parts);
  void add_phase(const std::vector<Phase>& phases, int64_t phase, Images part);
  void end_wave();
};

inline constexpr int64_t kMaxChunk = 112;  // output pixels whose addresses are worked out at a time
inline constexpr int64_t kPoolChunk = 28;  // the same where they are pooled first

// From one product of Winograd's to the next. Not a multiple of the page, or all products of a tile
// would fall into the same few lines of the first-level cache.
inline int64_t v_plane(const StepInfo& info) { return info.chunk * info.v_pitch + kGroup; }
inline int64_t m_plane(int64_t tiles, int groups) { return (tiles * groups + 1) * kGroup; }

}  // namespace inception_fused::cpu
