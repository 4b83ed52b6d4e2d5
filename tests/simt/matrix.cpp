// The operations of a whole warp.
#include <algorithm>
#include <cstring>

#include "block.h"

#if defined(SIMT_TSAN)  // this file itself is not instrumented: it says what the kernel accesses
extern "C" void __tsan_read16(void*);
#endif

namespace simt {
namespace {

// The 32 lanes of a warp meet; the last one to come gets true, runs the operation for all and calls
// warp_leave.
bool warp_arrive(const char* operation, const Site& site) {
  Block& block = *current_block;
  current->operation = operation;
  current->site = site;
  const int warp = current->thread / 32;
  if (++block.arrived[warp] < 32) {
    current->state = Lane::State::kWarp;
    yield();
    return false;
  }
  for (int i = 0; i < 32; ++i) {
    const Lane& lane = block.lanes[32 * warp + i];
    if (lane.site.line != site.line ||
        (lane.site.file != site.file && std::strcmp(lane.site.file, site.file))) {
      fail("divergent warp: " + where(lane) + " is at " + at(lane.operation, lane.site) + ", " +
           where(*current) + " at " + at(operation, site));
    }
  }
  return true;
}

void warp_leave() {
  Block& block = *current_block;
  const int warp = current->thread / 32;
  block.arrived[warp] = 0;
  for (int i = 0; i < 32; ++i) {
    Lane& lane = block.lanes[32 * warp + i];
    if (lane.state == Lane::State::kWarp) wake(lane);
  }
}

Lane* warp_lane(int i) { return &current_block->lanes[current->thread / 32 * 32 + i]; }

// How often the most wanted group of four banks is read: distinct addresses in it.
int bank_waves(const Vector* const (&address)[8]) {
  int waves[8] = {};
  for (int i = 0; i < 8; ++i) {
    const bool again = std::find(address, address + i, address[i]) != address + i;
    if (!again) ++waves[reinterpret_cast<uintptr_t>(address[i]) / 16 % 8];
  }
  return *std::max_element(waves, waves + 8);
}

}  // namespace

void load_matrices(uint32_t (&r)[4], const Vector* row, Site site) {
  check_aligned(row, "load_matrices", site);
#if defined(SIMT_TSAN)
  __tsan_read16(const_cast<Vector*>(row));
#endif
  current->words = r;
  current->row = row;
  if (!warp_arrive("load_matrices", site)) return;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const Vector* address[8];
    for (int i = 0; i < 8; ++i) {
      address[i] = warp_lane(8 * matrix + i)->row;
      Vector value;
      std::memcpy(&value, address[i], 16);
      for (int j = 0; j < 4; ++j) warp_lane(4 * i + j)->words[matrix] = value.word[j];
    }
    ++machine->counters.matrix_phases;
    machine->counters.matrix_waves += bank_waves(address);
  }
  warp_leave();
}

namespace detail {

void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Product product,
                  const Site& site) {
  current->sums = d;
  current->a = a;
  current->b[0] = b0;
  current->b[1] = b1;
  if (!warp_arrive("multiply_add", site)) return;
  ++machine->counters.products;
  constexpr int kMaxDepth = 16;
  float rows[16][kMaxDepth], columns[kMaxDepth][8];
  const int per_word = product == Product::kTf32 ? 1 : 2;
  const int depth = 8 * per_word;
  const auto element = [&](uint32_t word, int i) {
    if (product == Product::kTf32) return as_float(word & 0xffffe000u);
    const auto bits = static_cast<uint16_t>(word >> (16 * i));
    return product == Product::kHalf ? to_float(Half{bits}) : to_float(BFloat16{bits});
  };
  for (int l = 0; l < 32; ++l) {
    const Lane& lane = *warp_lane(l);
    const int group = l / 4, in_group = l % 4;
    for (int i = 0; i < per_word; ++i) {
      const int k = in_group * per_word + i;
      for (int w = 0; w < 4; ++w) {
        rows[group + 8 * (w % 2)][k + 4 * per_word * (w / 2)] = element(lane.a[w], i);
      }
      for (int w = 0; w < 2; ++w) columns[k + 4 * per_word * w][group] = element(lane.b[w], i);
    }
  }
  float products[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < depth; ++k) {
      for (int n = 0; n < 8; ++n) products[row][n] += rows[row][k] * columns[k][n];
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) {
      warp_lane(l)->sums[i] += products[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
    }
  }
  warp_leave();
}

}  // namespace detail
}  // namespace simt
