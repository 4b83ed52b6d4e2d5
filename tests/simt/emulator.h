// The functions of csrc/cuda/simt.h on a CPU, and the machine that runs them.
//
// Every CUDA thread is a fiber; the blocks of a launch, or its clusters of blocks, run one after
// the other on the calling OS thread. Shared memory holds NaN when a block starts. A cp.async reads
// and writes only when its group is waited for; a multicast then or, by the seed, at once. Matrix
// operations are a rendezvous of the 32 lanes of a warp. A seed shuffles the order in which threads
// run. Errors that a GPU would not report are thrown with a name.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#define SIMT_DEVICE inline
#define SIMT_UNROLL

namespace simt {

struct Site {  // where a primitive is called
  const char* file;
  int line;
};
#define SIMT_SITE Site site = {__builtin_FILE(), __builtin_LINE()}

// What goes wrong on purpose at one site, to show that the checkers see it.
enum class Mutation {
  kNone,
  kSkipBarrier,         // sync_block returns at once
  kSkipBarrierOnce,     // ... in thread 0 only
  kSkipWait,            // copy_wait waits for nothing
  kSkipDependencyWait,  // dependency_wait returns at once
  kIgnoreValid,         // copy_async reads even where it must fill with zeros
  kMisalign,            // copy_async reads two bytes further on
  kMisplace,            // a region of shared memory begins half an element further on
  kCarveShort,          // a region of shared memory is half as long
  kSkipClusterWait,     // cluster_wait returns at once
  kSkipBytes,           // barrier_wait returns at once
  kWideStore,           // store writes 16 bytes past its place as well
};

struct Buffer {  // a watched range of global memory and its traffic in bytes
  const char* begin = nullptr;
  int64_t bytes = 0;
  int64_t read = 0;
  int64_t written = 0;
  std::vector<bool> touched;  // bytes written so far
  bool written_twice = false;
};

struct Counters {
  int64_t products = 0;       // matrix instructions
  int64_t matrix_phases = 0;  // groups of 8 lanes of load_matrices
  int64_t matrix_waves = 0;   // times they took, 1 per phase without bank conflicts
  int64_t launches = 0;
  std::map<std::string, Buffer> buffers;
};

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Launch {
  int grid;
  int threads;
  int shared_bytes;
  std::function<void()> kernel;
  int cluster = 1;      // blocks
  bool merged = false;  // to ThreadSanitizer its threads are one: much quicker, blind to races
};

// Runs launches in order, each begun early: its threads run up to their dependency_wait before the
// launch before starts, as programmatic dependent launch allows. The worst legal order.
class Machine {
 public:
  uint32_t seed = 0;  // 0: threads in order
  Mutation mutation = Mutation::kNone;
  std::string mutated_file;  // by its last path component
  int mutated_line = 0;
  Counters counters;
  std::set<std::tuple<std::string, std::string, int>> sites;  // primitive, file, line

  void watch(const std::string& name, const void* begin, int64_t bytes);
  void run(const std::vector<Launch>& launches);
};

namespace detail {
void* carve(int offset, int bytes, int element, int index, const Site& site);
void load_bytes(const void* global, int bytes);
void store_bytes(void* global, int bytes, const Site& site);
void copy_wait(int pending, const Site& site);
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Product product,
                  const Site& site);
}  // namespace detail

int thread();
int block();
inline int warp() { return thread() / 32; }
inline int lane() { return thread() % 32; }

class Carve {
 public:
  template <class T>
  T* take(int count, SIMT_SITE) {
    const int bytes = count * static_cast<int>(sizeof(T));
    void* const region = detail::carve(offset_, bytes, sizeof(T), index_++, site);
    offset_ += (bytes + 127) / 128 * 128;
    return static_cast<T*>(region);
  }

 private:
  int offset_ = 0;
  int index_ = 0;
};

void sync_block(SIMT_SITE);
void dependency_wait(SIMT_SITE);
void dependency_release();
void copy_async(Vector* shared, const void* global, bool valid, SIMT_SITE);
void copy_commit();
void cluster_arrive(SIMT_SITE);
void cluster_wait(SIMT_SITE);
void barrier_init(Barrier* barrier, SIMT_SITE);
void barrier_expect(Barrier* barrier, int bytes, SIMT_SITE);
void barrier_wait(Barrier* barrier, int parity, SIMT_SITE);
void copy_multicast(Vector* shared, const void* global, int bytes, Barrier* barrier, int blocks,
                    SIMT_SITE);
void load_matrices(uint32_t (&r)[4], const Vector* row, SIMT_SITE);

template <int kPending>
void copy_wait(SIMT_SITE) {
  detail::copy_wait(kPending, site);
}

template <Product kProduct>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, SIMT_SITE) {
  detail::multiply_add(d, a, b0, b1, kProduct, site);
}

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float value) { return std::bit_cast<uint32_t>(value); }
inline uint32_t round_tf32(uint32_t bits) {
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;  // the one NaN that cvt gives
  const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
  return (finite ? bits + 0x1000u : bits) & 0xffffe000u;
}

float to_float(Half v);
inline float to_float(BFloat16 v) { return as_float(uint32_t{v.bits} << 16); }
inline float to_float(float v) { return v; }
void from_float(float v, Half& to);
void from_float(float v, BFloat16& to);
inline void from_float(float v, float& to) { to = v; }

inline float larger(float a, float b) {  // +0 is larger than -0
  const bool signed_zero = a == b && as_bits(a) < as_bits(b);
  return a > b || a != a || signed_zero ? a : b;
}

template <class T>
uint32_t larger(uint32_t a, uint32_t b, T) {
  uint32_t r = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    T v;
    from_float(larger(to_float(T{static_cast<uint16_t>(a >> shift)}),
                      to_float(T{static_cast<uint16_t>(b >> shift)})),
               v);
    r |= uint32_t{v.bits} << shift;
  }
  return r;
}
inline uint32_t larger(uint32_t a, uint32_t b, float) {
  return as_bits(larger(as_float(a), as_float(b)));
}

template <class T>
T load(const T* global) {
  detail::load_bytes(global, sizeof(T));
  return *global;
}
template <class T>
void store(T* global, const T& value, SIMT_SITE) {
  detail::store_bytes(global, sizeof(T), site);
  *global = value;
}

}  // namespace simt
