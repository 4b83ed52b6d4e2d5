#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <random>

#include "cuda/simt.h"
#include "fiber.h"

#if defined(SIMT_TSAN)  // this file itself is not instrumented: it says what the kernel accesses
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read16(void*);
extern "C" void __tsan_write16(void*);
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {
namespace {

constexpr int kRedZone = 128;    // bytes around each region of shared memory
constexpr int kMaxCopies = 256;  // of one thread in flight

struct Copy {
  Vector* to;
  const void* from;
  bool valid;
  int group;
};

struct Lane {
  enum class State { kReady, kBarrier, kWarp, kDependency, kDone };
  std::unique_ptr<Fiber> fiber;
  int thread = 0;
  State state = State::kReady;
  const char* operation = "";
  Site site{"", 0};
  std::vector<Copy> copies = std::vector<Copy>(kMaxCopies);  // a ring: copy i is at i % kMaxCopies
  int64_t issued = 0, landed = 0;
  int groups = 0;  // committed
  // The operands of a warp operation, on the lane's own stack.
  uint32_t* words = nullptr;
  const Vector* row = nullptr;
  float* sums = nullptr;
  const uint32_t* a = nullptr;
  uint32_t b[2] = {};
};

struct Block {
  const Launch* launch = nullptr;
  int index = 0;
  std::vector<Lane> lanes;
  std::vector<Lane*> ready;
  std::vector<int> arrived;  // per warp, at its operation
  int at_barrier = 0;
  int done = 0;
  bool waited = false;  // for the launch before
  int launch_index = 0;
  char* barrier_token = nullptr;
  Mapped shared;
  std::optional<std::string> error;
};

Machine* machine = nullptr;
Block* current_block = nullptr;
Lane* current = nullptr;
Fiber* scheduler = nullptr;
std::mt19937 random_order;

// Addresses that stand for a barrier or an end, for ThreadSanitizer. A block has its own: what is
// shared by two blocks would order them.
constexpr int kTokens = 1 << 16;
char barrier_tokens[kTokens];
char end_tokens[16];  // of launches
int next_token = 0;

const char* base_name(const char* path) {
  const char* const slash = std::strrchr(path, '/');
  return slash ? slash + 1 : path;
}

std::string at(const char* operation, const Site& site) {
  return std::string(operation) + " (" + base_name(site.file) + ":" + std::to_string(site.line) +
         ")";
}

std::string where(const Lane& lane) {
  return "block " + std::to_string(current_block->index) + " thread " + std::to_string(lane.thread);
}

void yield() { scheduler->resume_from(*current->fiber); }

[[noreturn]] void fail(const std::string& what) {
  current_block->error = what;
  yield();
  std::abort();  // a fiber with an error is never resumed
}

// The sites seen in a run, found by pointer: comparing strings here would be a race to
// ThreadSanitizer, whose strcmp cannot know that fibers take turns.
struct SeenSite {
  const char* operation;
  Site site;
};
SeenSite seen_sites[256];
int seen_count = 0;

void see(const char* operation, const Site& site) {
  for (int i = 0; i < seen_count; ++i) {
    const SeenSite& seen = seen_sites[i];
    if (seen.site.line == site.line && seen.site.file == site.file && seen.operation == operation) {
      return;
    }
  }
  if (seen_count < static_cast<int>(std::size(seen_sites))) {
    seen_sites[seen_count++] = {operation, site};
  }
}

bool mutated(Mutation mutation, const char* operation, const Site& site) {
  if (current->thread == 0) see(operation, site);
  return machine->mutation == mutation && machine->mutated_line == site.line &&
         machine->mutated_file == base_name(site.file);
}

void release(void* token) {
#if defined(SIMT_TSAN)
  __tsan_release(token);
#else
  (void)token;
#endif
}

void acquire(void* token) {
#if defined(SIMT_TSAN)
  __tsan_acquire(token);
#else
  (void)token;
#endif
}

void check_aligned(const void* p, const char* operation, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % 16) {
    fail("misaligned address in " + at(operation, site) + ", " + where(*current));
  }
}

Buffer* watched(const void* p) {
  const char* const address = static_cast<const char*>(p);
  for (auto& [name, buffer] : machine->counters.buffers) {
    if (address >= buffer.begin && address < buffer.begin + buffer.bytes) return &buffer;
  }
  return nullptr;
}

void land(const Copy& copy) {
#if defined(SIMT_TSAN)
  if (copy.valid) __tsan_read16(const_cast<void*>(copy.from));
  __tsan_write16(copy.to);
#endif
  if (copy.valid) {
    std::memcpy(copy.to, copy.from, 16);
    if (Buffer* const buffer = watched(copy.from)) buffer->read += 16;
  } else {
    std::memset(copy.to, 0, 16);
  }
}

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
    if (lane.site.line != site.line || std::strcmp(lane.site.file, site.file)) {
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
    if (lane.state == Lane::State::kWarp) {
      lane.state = Lane::State::kReady;
      block.ready.push_back(&lane);
    }
  }
}

Lane* warp_lane(int i) { return &current_block->lanes[current->thread / 32 * 32 + i]; }

void enter() {
  Fiber::entered();
  current_block->launch->kernel();
  if (current->landed < current->issued) fail("cp.async never waited for, " + where(*current));
  current->state = Lane::State::kDone;
  ++current_block->done;
  release(&end_tokens[current_block->launch_index]);
  yield();
}

std::string deadlock(const Block& block) {
  std::string what = "deadlock in block " + std::to_string(block.index) + ":";
  std::map<std::string, int> places;
  for (const Lane& lane : block.lanes) {
    ++places[lane.state == Lane::State::kDone ? "have exited"
                                              : "wait at " + at(lane.operation, lane.site)];
  }
  for (const auto& [place, count] : places)
    what += " " + std::to_string(count) + " threads " + place + ";";
  return what;
}

void poison(Block& block) {
  constexpr int kRegions = 16;
  block.shared = Mapped(block.launch->shared_bytes + (kRegions + 1) * kRedZone);
  std::memset(block.shared.data(), 0xff, block.shared.bytes());  // NaN in every type
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block.shared.data(), block.shared.bytes());
#endif
}

void run_block(const Launch& launch, int launch_index, int index,
               const std::function<void()>& dependency) {
  Block block;
  block.launch = &launch;
  block.index = index;
  block.launch_index = launch_index;
  block.arrived.resize(launch.threads / 32);
  block.barrier_token = &barrier_tokens[next_token++ % kTokens];
  poison(block);
  block.lanes = std::vector<Lane>(launch.threads);
  for (int i = 0; i < launch.threads; ++i) {
    block.lanes[i].thread = i;
    block.lanes[i].fiber = std::make_unique<Fiber>(enter);
    block.ready.push_back(&block.lanes[launch.threads - 1 - i]);
  }
  Fiber here;
  Block* const outer_block = current_block;
  Lane* const outer_lane = current;
  Fiber* const outer_scheduler = scheduler;
  while (block.done < launch.threads && !block.error) {
    if (block.ready.empty()) {
      for (Lane& lane : block.lanes) {
        if (lane.state == Lane::State::kDependency) {
          lane.state = Lane::State::kReady;
          block.ready.push_back(&lane);
        }
      }
      if (block.ready.empty()) {
        current_block = &block;
        block.error = deadlock(block);
        break;
      }
      dependency();
    }
    if (machine->seed) {
      std::swap(block.ready.back(), block.ready[random_order() % block.ready.size()]);
    }
    current_block = &block;
    scheduler = &here;
    current = block.ready.back();
    block.ready.pop_back();
    current->fiber->resume_from(here);
  }
  current_block = outer_block;
  current = outer_lane;
  scheduler = outer_scheduler;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(block.shared.data(), block.shared.bytes());
#endif
  if (block.error) throw Error(*block.error);
  if (!block.waited) {
    throw Error("block " + std::to_string(index) + " ended without dependency_wait");
  }
}

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

void Machine::watch(const std::string& name, const void* begin, int64_t bytes) {
  Buffer buffer;
  buffer.begin = static_cast<const char*>(begin);
  buffer.bytes = bytes;
  buffer.touched.resize(static_cast<size_t>(bytes));
  counters.buffers[name] = buffer;
}

void Machine::run(const std::vector<Launch>& launches) {
  machine = this;
  random_order.seed(seed);
  seen_count = 0;
  std::vector<char> done(launches.size(), 0);
  const std::function<void(int)> run_launch = [&](int i) {
    if (done[i]) return;
    const auto dependency = [&] {
      if (i > 0) run_launch(i - 1);
    };
    for (int b = 0; b < launches[i].grid; ++b) run_block(launches[i], i, b, dependency);
    if (launches[i].grid == 0) dependency();
    done[i] = 1;
    ++counters.launches;
  };
  if (launches.size() > std::size(end_tokens)) throw Error("too many launches");
  if (!launches.empty()) run_launch(static_cast<int>(launches.size()) - 1);
  for (char& token : end_tokens) acquire(&token);
  for (int i = 0; i < seen_count; ++i) {
    const auto& [operation, site] = seen_sites[i];
    sites.emplace(operation, base_name(site.file), site.line);
  }
}

int thread() { return current->thread; }
int block() { return current_block->index; }

namespace detail {

void* carve(int offset, int bytes, int index) {
  if (offset + bytes > current_block->launch->shared_bytes) {
    fail("shared memory: " + std::to_string(offset + bytes) + " bytes carved of " +
         std::to_string(current_block->launch->shared_bytes));
  }
  char* const region = current_block->shared.data() + offset + (index + 1) * kRedZone;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(region, bytes);
#endif
  return region;
}

void load_bytes(const void* global, int bytes) {
  if (Buffer* const buffer = watched(global)) buffer->read += bytes;
}

void store_bytes(void* global, int bytes, const Site& site) {
  if (reinterpret_cast<uintptr_t>(global) % bytes) {
    fail("misaligned address in " + at("store", site) + ", " + where(*current));
  }
  if (mutated(Mutation::kWideStore, "store", site)) {
    std::memset(static_cast<char*>(global) + bytes, 0, 16);
  }
  if (Buffer* const buffer = watched(global)) {
    buffer->written += bytes;
    const int64_t first = static_cast<const char*>(global) - buffer->begin;
    for (int64_t i = first; i < first + bytes; ++i) {
      buffer->written_twice |= buffer->touched[i];
      buffer->touched[i] = true;
    }
  }
}

void copy_wait(int pending, const Site& site) {
  if (mutated(Mutation::kSkipWait, "copy_wait", site)) return;
  const int newest = current->groups - pending;
  while (current->landed < current->issued) {
    const Copy& copy = current->copies[current->landed % kMaxCopies];
    if (copy.group >= newest) break;
    land(copy);
    ++current->landed;
  }
}

void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Product product,
                  const Site& site) {
  current->sums = d;
  current->a = a;
  current->b[0] = b0;
  current->b[1] = b1;
  if (!warp_arrive("multiply_add", site)) return;
  ++machine->counters.products;
  constexpr int kMaxDepth = 16;
  float rows[16][kMaxDepth], columns[8][kMaxDepth];
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
      for (int w = 0; w < 2; ++w) columns[group][k + 4 * per_word * w] = element(lane.b[w], i);
    }
  }
  for (int l = 0; l < 32; ++l) {
    float* const sums = warp_lane(l)->sums;
    for (int i = 0; i < 4; ++i) {
      const float* const row = rows[l / 4 + 8 * (i / 2)];
      const float* const column = columns[2 * (l % 4) + i % 2];
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += row[k] * column[k];
      sums[i] += sum;
    }
  }
  warp_leave();
}

}  // namespace detail

void sync_block(Site site) {
  if (mutated(Mutation::kSkipBarrier, "sync_block", site)) return;
  if (mutated(Mutation::kSkipBarrierOnce, "sync_block", site) && current->thread == 0) return;
  Block& block = *current_block;
  current->operation = "sync_block";
  current->site = site;
  release(block.barrier_token);
  if (++block.at_barrier < static_cast<int>(block.lanes.size())) {
    current->state = Lane::State::kBarrier;
    yield();
  } else {
    block.at_barrier = 0;
    for (Lane& lane : block.lanes) {
      if (lane.site.line != site.line || std::strcmp(lane.site.file, site.file)) {
        fail("divergent barrier: " + where(lane) + " is at " + at(lane.operation, lane.site) +
             ", " + where(*current) + " at " + at("sync_block", site));
      }
    }
    for (Lane& lane : block.lanes) {
      if (lane.state == Lane::State::kBarrier) {
        lane.state = Lane::State::kReady;
        block.ready.push_back(&lane);
      }
    }
  }
  acquire(block.barrier_token);
}

void dependency_wait(Site site) {
  current_block->waited = true;
  if (mutated(Mutation::kSkipDependencyWait, "dependency_wait", site)) return;
  current->operation = "dependency_wait";
  current->site = site;
  current->state = Lane::State::kDependency;
  yield();
  const int index = current_block->launch_index;
  if (index > 0) acquire(&end_tokens[index - 1]);
}

void dependency_release() {}

void copy_async(Vector* shared, const void* global, bool valid, Site site) {
  if (mutated(Mutation::kMisalign, "copy_async", site))
    global = static_cast<const char*>(global) + 2;
  if (mutated(Mutation::kIgnoreValid, "copy_async", site)) valid = true;
  check_aligned(shared, "copy_async", site);
  check_aligned(global, "copy_async", site);
  if (current->issued - current->landed == kMaxCopies) {
    fail("too many copies in flight, " + where(*current));
  }
  current->copies[current->issued++ % kMaxCopies] = {shared, global, valid, current->groups};
}

void copy_commit() { ++current->groups; }

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

float to_float(Half v) {
  static const std::vector<float> table = [] {
    std::vector<float> values(65536);
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31,
                     mantissa = bits & 1023;
      if (exponent == 31) {
        values[bits] = as_float(sign | 0x7f800000u | mantissa << 13);
      } else if (exponent) {
        values[bits] = as_float(sign | (exponent + 112) << 23 | mantissa << 13);
      } else {
        const float magnitude = static_cast<float>(mantissa) / 16777216.0f;
        values[bits] = sign ? -magnitude : magnitude;
      }
    }
    return values;
  }();
  return table[v.bits];
}

void from_float(float v, BFloat16& to) {
  const uint32_t bits = as_bits(v);
  to.bits = static_cast<uint16_t>(v != v ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void from_float(float v, Half& to) {
  const uint32_t bits = as_bits(v);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fff;
  } else if (magnitude >= 0x477ff000u) {  // 65520 and above round to infinity
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // below the least normal number: units of 2^-24
    const float units = as_float(magnitude) * 16777216.0f;
    half = as_bits(units + 8388608.0f) & 0xffff;
  } else {
    half = (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  }
  to.bits = static_cast<uint16_t>(half | sign);
}

}  // namespace simt
