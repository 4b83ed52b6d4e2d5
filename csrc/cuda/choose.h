// Which tile a launch gets: pure functions of the problem and the architecture, so that they are
// tested on any machine. The times are a paper model, good for ranking tiles and not yet compared
// with a GPU; every rate below says what it stands for.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "cuda/problem.h"

namespace inception_fused::cuda {

struct Shape {  // of a tile; the fields are those of Tile in tile.h
  int rows, columns, depth, warp_rows, warp_columns, warp_depth, stages;
  int cluster;  // blocks, one below the other, that share their weights by multicast
  // Per thread, upper bounds that a test holds the compiler to: older than sm_100, and from it on.
  int registers, registers_100;
  constexpr int registers_on(int sm) const { return sm < 100 ? registers : registers_100; }
  constexpr int threads() const { return 32 * warp_rows * warp_columns * warp_depth; }
};

// The first two cut the depth between four groups of warps: at batch 1 that keeps 8 warps busy on a
// tile small enough for 60 blocks and more. The clusters read weights as seldom as tiles of four
// times the rows, which would leave most of a GPU idle.
inline constexpr std::array<Shape, 10> kShapes{{
    {32, 16, 16, 2, 1, 4, 3, 1, 112, 128},
    {32, 32, 16, 1, 2, 4, 3, 1, 112, 136},
    {64, 32, 8, 2, 2, 2, 3, 1, 112, 128},
    {64, 64, 8, 2, 2, 2, 3, 1, 128, 152},
    {128, 64, 4, 4, 2, 1, 4, 1, 128, 152},
    {128, 128, 4, 4, 2, 1, 4, 1, 168, 184},
    {64, 32, 8, 2, 2, 2, 5, 4, 112, 136},
    {64, 64, 8, 2, 2, 2, 5, 4, 128, 152},
    {64, 128, 8, 2, 2, 2, 4, 4, 176, 184},
    {128, 128, 4, 4, 2, 1, 6, 4, 176, 184},
}};

// kBf16x3: float32 to 16 bits, see split.h; kFloat32: as faithful as float32.
enum class Math : int { kHalf, kBFloat16, kTf32, kBf16x3, kFloat32 };

constexpr int vector_elements(Math math) {
  return math == Math::kHalf || math == Math::kBFloat16 ? 8 : 4;
}

struct Architecture {
  int sm;                // compute capability, 10 * major + minor
  int processors;        // streaming multiprocessors
  int shared_block;      // bytes of shared memory that one block can have
  int shared_processor;  // bytes that the blocks of one multiprocessor share, 1 KiB each reserved
  double gigahertz;
  double products;    // 16-bit multiply-adds a cycle and multiprocessor by mma.sync
  double l2_bytes;    // a cycle and multiprocessor, all of them reading
  double dram_bytes;  // a nanosecond, whole device
  bool multicast;     // one read from L2 can go to all blocks of a cluster
};

// One well-known device of each architecture: A100, A10, L40S, H100 SXM, B200, RTX PRO 6000.
inline constexpr std::array<Architecture, 6> kArchitectures{{
    {80, 108, 166912, 167936, 1.41, 1024, 40, 1555, false},
    {86, 72, 101376, 102400, 1.70, 512, 24, 600, false},
    {89, 142, 101376, 102400, 2.52, 512, 24, 864, false},
    {90, 132, 232448, 233472, 1.76, 1300, 24, 3350, true},
    {100, 148, 232448, 233472, 1.85, 1024, 24, 8000, true},
    {120, 188, 101376, 102400, 2.40, 512, 24, 1792, false},
}};

// The newest architecture that is not newer than `sm`; nullptr if `sm` is older than all.
constexpr const Architecture* find_architecture(int sm) {
  const Architecture* found = nullptr;
  for (const Architecture& a : kArchitectures) {
    if (a.sm <= sm) found = &a;
  }
  return found;
}

constexpr int ceil_divide(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

constexpr int carved(int64_t vectors) {  // bytes of a region, see simt::Carve
  return static_cast<int>((vectors * 16 + 127) / 128 * 128);
}

// Bytes of shared memory of a block that computes a tile of this problem: what run_pointwise and
// run_conv carve.
constexpr int shared_bytes(const Shape& s, const Problem& p) {
  const int64_t halo_pitch = (s.rows + 2 * p.before()) | 1;
  const int64_t barriers = s.cluster > 1 ? 128 : 0;
  int64_t bytes = carved(s.stages * s.depth * s.columns);
  if (p.operand == Operand::kResident) {
    bytes += carved(8) + carved(p.depth * halo_pitch);
  } else if (p.operand == Operand::kPooled) {
    bytes += carved(s.stages * s.depth * halo_pitch) + carved(s.depth * (s.rows + 1));
  } else {
    bytes += carved(s.stages * s.depth * (s.rows + 1));
  }
  const int64_t sums = int64_t{4} * (s.warp_depth * s.rows + 1) * (s.columns + 8);
  return static_cast<int>(std::min<int64_t>(barriers + std::max(bytes, sums), INT32_MAX));
}

struct Config {
  int shape = -1;  // index into kShapes, -1: nothing fits
  int blocks = 0;
  int threads = 0;
  int shared = 0;                // bytes per block
  int blocks_per_processor = 0;  // that can be resident
  int waves = 0;                 // of blocks, so many at a time as can be resident
  double bytes = 0;              // predicted, read by or written to L2
  double nanoseconds = 0;        // predicted, without the launch itself
};

constexpr int clusters(const Shape& s, const Problem& p) {  // that share a column of tiles
  return ceil_divide(p.pixels, s.rows * s.cluster);
}

constexpr int column_tiles(const Shape& s, const Problem& p) {
  return ceil_divide(p.columns, s.columns);
}

// Bytes of global memory that all blocks of a problem read, a multicast counted once, and write.
constexpr double moved_bytes(const Shape& s, const Problem& p) {
  const double rows = p.pixels;
  const double halo = 2.0 * p.before() * (ceil_divide(p.pixels, s.rows) - 1);
  const double window = p.reduction == Reduction::kNone ? 1 : p.kernel_height * p.kernel_width;
  const double source = p.operand == Operand::kVectors    ? rows * p.taps
                        : p.operand == Operand::kElements ? rows * p.taps * window
                                                          : rows + halo;
  const double weights = 16.0 * p.taps * p.depth * p.columns * clusters(s, p);
  const double bias = 4.0 * p.columns * ceil_divide(p.pixels, s.rows);
  const double written = 16.0 * rows * p.columns / p.vector;
  return 16.0 * source * p.depth * column_tiles(s, p) + weights + bias + written;
}

// Predicted cycles of a block in a multiprocessor that holds `resident` of them.
constexpr double block_cycles(const Shape& s, const Problem& p, const Architecture& a, Math math,
                              int resident) {
  constexpr double kLatency = 700;   // of a read from L2 under load
  constexpr double kEpilogue = 900;  // sums through shared memory, bias, stores
  constexpr double kBarrier = 40;
  constexpr double kProductLatency = 35;  // of one mma.sync that waits for its ldmatrix
  constexpr double kPort = 64;            // bytes a cycle into one multiprocessor
  constexpr double kShared = 128;         // bytes a cycle, read or written
  const int steps = ceil_divide(int64_t{p.taps} * p.depth, s.depth);
  constexpr double kCost[] = {1, 1, 2, 3, 6};  // by Math: multiply-adds of 16 bits for one
  const double products =
      double(s.rows) * s.columns * s.depth * vector_elements(math) * kCost[static_cast<int>(math)];
  const int halo = s.rows + 2 * p.before();
  const bool pooled = p.operand == Operand::kPooled;
  const int streamed = p.operand == Operand::kResident ? 0 : pooled ? halo : s.rows;
  const double vectors = 16.0 * s.depth;  // bytes of a row or a column of a stage
  const double sent = vectors * (streamed + double(s.columns) / s.cluster);
  const double received = vectors * (streamed + s.columns);
  const double matrices = vectors * (s.rows * s.warp_columns + s.columns * s.warp_rows);
  const double pool = pooled ? vectors * s.rows * (p.kernel_height * p.kernel_width + 1) : 0;
  const bool splits = math == Math::kBf16x3 && p.operand == Operand::kVectors && !p.from.split;
  const double split = splits ? 2 * vectors * s.rows : 0;  // bytes read and written in place
  const double gather = p.operand == Operand::kElements ? 8.0 * s.rows * s.depth / 32 : 0;
  const double busy = std::max({products / a.products, sent / a.l2_bytes + gather, received / kPort,
                                (received + matrices + split) / kShared}) *
                      resident;
  const double chain =
      kBarrier * (pooled ? 2 : 1) + pool / kShared + kProductLatency * s.depth / s.warp_depth / 2;
  // The weights of a cluster are asked for a step later: when all of it have left a stage.
  const int ahead = s.stages - (s.cluster > 1 ? 2 : 1);
  const double step = std::max({busy, chain, kLatency / ahead});
  const double fill =
      p.operand == Operand::kResident ? 16.0 * p.depth * halo / a.l2_bytes * resident : 0;
  return kLatency + fill + steps * step + kEpilogue;
}

// What a launch of this shape would be; shape -1 if it does not fit.
constexpr Config price(const Wave& wave, int shape, const Architecture& a, Math math) {
  const Shape& s = kShapes[shape];
  Config config;
  if (s.cluster > 1 && !a.multicast) return config;
  config.threads = s.threads();
  int working = 0;  // blocks that have a pixel
  for (int i = 0; i < wave.problems; ++i) {
    const Problem& p = wave.problem[i];
    config.shared = std::max(config.shared, shared_bytes(s, p));
    config.blocks += clusters(s, p) * s.cluster * column_tiles(s, p);
    config.bytes += moved_bytes(s, p);
    working += ceil_divide(p.pixels, s.rows) * column_tiles(s, p);
  }
  if (config.shared > a.shared_block) return config;
  config.shape = shape;
  config.blocks_per_processor =
      std::max(1, std::min({a.shared_processor / (config.shared + 1024),
                            65536 / (s.registers_on(a.sm) * s.threads()), 1536 / s.threads()}));
  const int resident =
      std::min(config.blocks_per_processor, ceil_divide(std::max(working, 1), a.processors));
  double cycles = 0, longest = 0;  // of all blocks, one after the other; of one
  for (int i = 0; i < wave.problems; ++i) {
    const Problem& p = wave.problem[i];
    const double block = block_cycles(s, p, a, math, resident);
    cycles += block * ceil_divide(p.pixels, s.rows) * column_tiles(s, p);
    longest = std::max(longest, block);
  }
  config.waves = ceil_divide(working, a.processors * resident);
  config.nanoseconds = std::max(cycles / working * config.waves, longest) / a.gigahertz;
  return config;
}

// Of the shapes within kTie of the least predicted time, which is as far as the model can tell, the
// one that moves the fewest bytes; but none with fewer blocks than kBusy of the processors, which
// are 60 on an H100, unless the fastest has as few.
inline constexpr double kTie = 1.10;
inline constexpr double kBusy = 60.0 / 132;

constexpr Config choose(const Wave& wave, const Architecture& a, Math math) {
  std::array<Config, kShapes.size()> all{};
  Config best;
  for (int shape = 0; shape < static_cast<int>(all.size()); ++shape) {
    all[shape] = price(wave, shape, a, math);
    const Config& config = all[shape];
    if (config.shape >= 0 && (best.shape < 0 || config.nanoseconds < best.nanoseconds)) {
      best = config;
    }
  }
  const int blocks = std::min(best.blocks, static_cast<int>(kBusy * a.processors));
  const double nanoseconds = kTie * best.nanoseconds;
  for (const Config& config : all) {
    if (config.shape >= 0 && config.blocks >= blocks && config.nanoseconds <= nanoseconds &&
        config.bytes < best.bytes) {
      best = config;
    }
  }
  return best;
}

}  // namespace inception_fused::cuda
