// What every function of csrc/cuda/simt.h must do, once for both of its implementations: compiled
// by nvcc it asks a GPU, by another compiler the emulator. What is expected is written down here,
// after the PTX instruction set's description, and uses neither of them.
//
// Prints a line for each; exit code 1 if a value is wrong, 2 if there is no GPU to ask.
#include "conform.h"
#include "cuda/problem.h"
#include "rounding.h"

namespace conform {
namespace {

using simt::Vector;

struct Indices {
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    const int i = simt::block() * 96 + simt::thread();
    simt::store(to + i, static_cast<uint32_t>(simt::block() << 24 | simt::warp() << 16 |
                                              simt::lane() << 8 | simt::thread()));
  }
};

void indices(Report& report) {
  const Array<uint32_t> got(3 * 96);
  run({3, 96, 0}, Indices{got.data()});
  std::vector<uint32_t> expected;
  for (uint32_t block = 0; block < 3; ++block) {
    for (uint32_t t = 0; t < 96; ++t) {
      expected.push_back(block << 24 | t / 32 << 16 | t % 32 << 8 | t);
    }
  }
  report.compare("thread, block, warp, lane", got, expected);
}

// Regions hold what was put in, begin at multiples of 128 bytes, and all threads see it.
struct Regions {
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    simt::Carve carve;
    uint32_t* const first = carve.take<uint32_t>(5);
    Vector* const second = carve.take<Vector>(64);
    const int t = simt::thread();
    if (t < 5) first[t] = 1000 + t;
    second[t].word[0] = t;
    simt::sync_block();
    const auto odd = reinterpret_cast<uintptr_t>(first) | reinterpret_cast<uintptr_t>(second);
    simt::store(to + t, second[(t + 33) % 64].word[0] + first[t % 5]);
    simt::store(to + 64 + t, static_cast<uint32_t>(odd % 128));
  }
};

void regions(Report& report) {
  const Array<uint32_t> got(128);
  run({1, 64, 128 + 64 * 16}, Regions{got.data()});
  std::vector<uint32_t> expected(128, 0);
  for (uint32_t t = 0; t < 64; ++t) expected[t] = (t + 33) % 64 + 1000 + t % 5;
  report.compare("Carve, sync_block", got, expected);
}

// Two groups: the older is there after copy_wait<1>, both after copy_wait<0>; a copy that is not
// valid writes zeros.
struct Copies {
  const Vector* from;
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    simt::Carve carve;
    Vector* const shared = carve.take<Vector>(64);
    const int t = simt::thread();
    for (int group = 0; group < 2; ++group) {
      shared[32 * group + t] = Vector{{7, 7, 7, 7}};
      simt::copy_async(shared + 32 * group + t, from + 32 * group + t, (t + group) % 3 != 0);
      simt::copy_commit();
    }
    simt::copy_wait<1>();
    simt::sync_block();
    const int other = t ^ 5;
    for (int w = 0; w < 4; ++w) simt::store(to + 4 * t + w, shared[other].word[w]);
    simt::copy_wait<0>();
    simt::sync_block();
    for (int w = 0; w < 4; ++w) simt::store(to + 128 + 4 * t + w, shared[32 + other].word[w]);
  }
};

void copies(Report& report) {
  const Array<Vector> from(64);
  for (uint32_t i = 0; i < 256; ++i) from[i / 4].word[i % 4] = 100 + i;
  const Array<uint32_t> got(256);
  run({1, 32, 64 * 16}, Copies{from.data(), got.data()});
  std::vector<uint32_t> expected;
  for (uint32_t group = 0; group < 2; ++group) {
    for (uint32_t t = 0; t < 32; ++t) {
      const uint32_t source = t ^ 5;
      for (uint32_t w = 0; w < 4; ++w) {
        expected.push_back((source + group) % 3 ? 100 + 4 * (32 * group + source) + w : 0);
      }
    }
  }
  report.compare("copy_async, copy_commit, copy_wait", got, expected);
}

struct Matrices {
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    simt::Carve carve;
    Vector* const rows = carve.take<Vector>(40);
    const int lane = simt::lane();
    for (uint32_t w = 0; w < 4; ++w) {  // row r holds 8r, 8r + 1 ... 8r + 7
      const uint32_t first = 8 * lane + 2 * w;
      rows[lane].word[w] = (first + 1) << 16 | first;
    }
    simt::sync_block();
    uint32_t r[4];
    simt::load_matrices(r, rows + (lane * 5 + 3) % 32);
    for (int i = 0; i < 4; ++i) simt::store(to + 4 * lane + i, r[i]);
  }
};

void matrices(Report& report) {
  const Array<uint32_t> got(128);
  run({1, 32, 40 * 16}, Matrices{got.data()});
  std::vector<uint32_t> expected;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      const uint32_t address_of = 8 * matrix + lane / 4;
      const uint32_t first = 8 * ((address_of * 5 + 3) % 32) + 2 * (lane % 4);
      expected.push_back((first + 1) << 16 | first);
    }
  }
  report.compare("load_matrices", got, expected);
}

template <simt::Product kProduct>
struct Products {
  const uint32_t *a, *b;  // [lane][register]
  float* d;
  SIMT_DEVICE void operator()() const {
    const int lane = simt::lane();
    float sums[4];
    uint32_t rows[4];
    for (int i = 0; i < 4; ++i) {
      sums[i] = simt::load(d + 4 * lane + i);
      rows[i] = simt::load(a + 4 * lane + i);
    }
    const uint32_t b0 = simt::load(b + 2 * lane), b1 = simt::load(b + 2 * lane + 1);
    simt::multiply_add<kProduct>(sums, rows, b0, b1);
    simt::multiply_add<kProduct>(sums, rows, b0, b1);
    for (int i = 0; i < 4; ++i) simt::store(d + 4 * lane + i, sums[i]);
  }
};

// d += 2 * (a b) of small numbers, so that every sum is exact; some of them are subnormal halves.
template <simt::Product kProduct>
void products(Report& report, const char* name) {
  constexpr bool kTf32 = kProduct == simt::Product::kTf32;
  constexpr int kPerWord = kTf32 ? 1 : 2, kDepth = 8 * kPerWord;
  const auto a_of = [](int row, int k) { return float((row * 7 + k * 5) % 13 - 6); };
  const auto b_of = [](int k, int n) {
    const float least = kProduct == simt::Product::kHalf ? 0x1p-24f : 0x1p-100f;
    return float((k * 3 + n * 11) % 9 - 4) * (n == 7 ? least : 1.0f);
  };
  const auto c_of = [](int row, int n) { return n == 7 ? 0.0f : float(row * 8 + n); };
  const auto word = [&](const auto& at, int k) {  // registers hold neighbours along the depth
    if (kTf32) return bits_of(at(k));
    return encode<kProduct>(at(k)) | encode<kProduct>(at(k + 1)) << 16;
  };
  const Array<uint32_t> a(128), b(64);
  const Array<float> d(128);
  std::vector<uint32_t> expected;
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i % 2), k = in_group * kPerWord + kDepth / 2 * (i / 2);
      a[4 * lane + i] = word([&](int at) { return a_of(row, at); }, k);
    }
    for (int i = 0; i < 2; ++i) {
      const int k = in_group * kPerWord + kDepth / 2 * i;
      b[2 * lane + i] = word([&](int at) { return b_of(at, group); }, k);
    }
    for (int i = 0; i < 4; ++i) {
      const int row = group + 8 * (i / 2), n = 2 * in_group + i % 2;
      double sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += double(a_of(row, k)) * b_of(k, n);
      d[4 * lane + i] = c_of(row, n);
      expected.push_back(bits_of(static_cast<float>(c_of(row, n) + 2 * sum)));
    }
  }
  run({1, 32, 0}, Products<kProduct>{a.data(), b.data(), d.data()});
  const Array<uint32_t> got(128);
  for (int i = 0; i < 128; ++i) got[i] = bits_of(d[i] + 0.0f);
  report.compare(name, got, expected);
}

// A writes late and lets B begin early; B must still read what A wrote.
SIMT_HOST_DEVICE uint32_t slowly(uint32_t value) {
  for (int i = 0; i < 20000; ++i) value = value * 1664525u + 1013904223u;
  return value;
}

struct Writer {
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    simt::dependency_release();
    const int i = simt::block() * 64 + simt::thread();
    simt::store(to + i, slowly(i));
  }
};

struct Reader {
  const uint32_t* from;
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    simt::dependency_release();
    const int i = simt::block() * 64 + simt::thread();
    simt::store(to + i, simt::load(from + (i ^ 65)) + 1);
  }
};

void dependencies(Report& report) {
  const Array<uint32_t> between(256), got(256);
  run({4, 64, 0}, Writer{between.data()}, Reader{between.data(), got.data()});
  std::vector<uint32_t> expected;
  for (uint32_t i = 0; i < 256; ++i) expected.push_back(slowly(i ^ 65) + 1);
  report.compare("dependency_wait, dependency_release", got, expected);
}

// Every block of a cluster sends a quarter of what all of them read, three times over one barrier.
struct Multicasts {
  const Vector* from;
  uint32_t* to;
  SIMT_DEVICE void operator()() const {
    simt::Carve carve;
    simt::Barrier* const full = carve.take<simt::Barrier>(1);
    Vector* const shared = carve.take<Vector>(8);
    const int t = simt::thread(), rank = simt::block() % 4;
    if (t == 0) simt::barrier_init(full);
    simt::cluster_arrive();
    simt::cluster_wait();
    for (int phase = 0; phase < 3; ++phase) {
      const Vector* const source = from + (simt::block() / 4 * 3 + phase) * 8;
      if (t == 0) {
        simt::barrier_expect(full, 128);
        simt::copy_multicast(shared + 2 * rank, source + 2 * rank, 32, full, 4);
      }
      simt::barrier_wait(full, phase % 2);
      simt::store(to + (simt::block() * 3 + phase) * 32 + t, shared[t / 4].word[t % 4]);
      simt::cluster_arrive();  // has read; the next phase may write
      simt::cluster_wait();
    }
  }
};

void multicasts(Report& report) {
  const Array<Vector> from(48);
  for (uint32_t i = 0; i < 192; ++i) from[i / 4].word[i % 4] = 500 + i;
  const Array<uint32_t> got(768);
  run({8, 32, 128 + 128, 4}, Multicasts{from.data(), got.data()});
  std::vector<uint32_t> expected;
  for (uint32_t block = 0; block < 8; ++block) {
    for (uint32_t i = 0; i < 96; ++i) expected.push_back(500 + block / 4 * 96 + i);
  }
  report.compare("cluster_arrive, cluster_wait, barriers, copy_multicast", got, expected);
}

}  // namespace
}  // namespace conform

int main() {
  using namespace conform;
  Report report;
  indices(report);
  regions(report);
  copies(report);
  matrices(report);
  products<simt::Product::kHalf>(report, "multiply_add half");
  products<simt::Product::kBFloat16>(report, "multiply_add bfloat16");
  products<simt::Product::kTf32>(report, "multiply_add tf32");
  rounding(report);
  dependencies(report);
  if (has_clusters()) multicasts(report);
  return report.code();
}
