#include <cstring>
#include <random>

#include "block.h"

#if defined(SIMT_TSAN)  // the emulator is not instrumented: it says what the kernel accesses
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace simt {

Machine* machine = nullptr;
Block* current_block = nullptr;
Lane* current = nullptr;

namespace {

constexpr int kRedZone = 128;  // bytes around each region of shared memory

Fiber* scheduler = nullptr;
std::mt19937 random_order;

// Addresses that stand for a barrier, a copy or an end, for ThreadSanitizer. A block has its own:
// what is shared by two blocks would order them.
constexpr int kTokens = 1 << 16;
char tokens[kTokens];
char end_tokens[16];  // of launches
int next_token = 0;

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

}  // namespace

char* new_token() { return &tokens[next_token++ % kTokens]; }

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

void wake(Lane& lane) {
  lane.state = Lane::State::kReady;
  lane.block->cluster->ready.push_back(&lane);
}

uint32_t random_number() { return machine->seed ? static_cast<uint32_t>(random_order()) : 0; }

[[noreturn]] void fail(const std::string& what) {
  current_block->cluster->error = what;
  yield();
  std::abort();  // a fiber with an error is never resumed
}

bool mutated(Mutation mutation, const char* operation, const Site& site) {
  if (current->thread == 0) see(operation, site);
  return machine->mutation == mutation && machine->mutated_line == site.line &&
         machine->mutated_file == base_name(site.file);
}

namespace {

void enter() {
  Fiber::entered();
  current_block->launch->kernel();
  if (current->landed < current->issued) fail("cp.async never waited for, " + where(*current));
  if (current->arrived) fail("cluster_arrive never waited for, " + where(*current));
  current->state = Lane::State::kDone;
  const bool ended = ++current_block->done == current_block->launch->threads;
  if (ended && current_block->in_flight) fail("a block ends before its copies, " + where(*current));
  release(&end_tokens[current_block->launch_index]);
  yield();
}

std::string deadlock(const Cluster& cluster) {
  std::string what = "deadlock in block " + std::to_string(cluster.blocks[0].index) + ":";
  std::map<std::string, int> places;
  for (const Block& block : cluster.blocks) {
    for (const Lane& lane : block.lanes) {
      ++places[lane.state == Lane::State::kDone ? "have exited"
                                                : "wait at " + at(lane.operation, lane.site)];
    }
  }
  for (const auto& [place, count] : places)
    what += " " + std::to_string(count) + " threads " + place + ";";
  return what;
}

void poison(Block& block) {
  constexpr int kRegions = 16;
  block.shared = Mapped(block.launch->shared_bytes + (kRegions + 1) * kRedZone, true);
  std::memset(block.shared.data(), 0xff, block.shared.bytes());  // NaN in every type
#if defined(__SANITIZE_ADDRESS__)
  __asan_poison_memory_region(block.shared.data(), block.shared.bytes());
#endif
}

void start_block(Block& block, Cluster& cluster, const Launch& launch, int launch_index,
                 int index) {
  block.cluster = &cluster;
  block.launch = &launch;
  block.index = index;
  block.launch_index = launch_index;
  block.arrived.resize(launch.threads / 32);
  block.barrier_token = new_token();
  poison(block);
  block.lanes = std::vector<Lane>(launch.threads);
  block.copies.reset(new Copy[static_cast<size_t>(launch.threads) * kMaxCopies]);
  if (launch.cluster > 1) block.barriers = std::make_unique<BarrierState[]>(kMaxBarriers);
  for (int i = 0; i < launch.threads; ++i) {
    Lane& lane = block.lanes[i];
    lane.block = &block;
    lane.thread = i;
    lane.copies = &block.copies[static_cast<size_t>(i) * kMaxCopies];
    lane.fiber = std::make_unique<Fiber>(enter, launch.merged);
  }
  for (int i = launch.threads; i-- > 0;) cluster.ready.push_back(&block.lanes[i]);
}

// Runs blocks [first, first + launch.cluster) to their end.
void run_cluster(const Launch& launch, int launch_index, int first,
                 const std::function<void()>& dependency) {
  Cluster cluster;
  cluster.blocks = std::vector<Block>(launch.cluster);
  for (char*& token : cluster.tokens) token = new_token();
  for (int i = launch.cluster; i-- > 0;) {
    start_block(cluster.blocks[i], cluster, launch, launch_index, first + i);
  }
  Fiber here;
  Block* const outer_block = current_block;
  Lane* const outer_lane = current;
  Fiber* const outer_scheduler = scheduler;
  const auto all_done = [&] {
    for (const Block& block : cluster.blocks) {
      if (block.done < launch.threads) return false;
    }
    return true;
  };
  while (!cluster.error && !all_done()) {
    if (cluster.ready.empty()) {
      for (Block& block : cluster.blocks) {
        for (Lane& lane : block.lanes) {
          if (lane.state == Lane::State::kDependency) wake(lane);
        }
      }
      if (cluster.ready.empty()) {
        cluster.error = deadlock(cluster);
        break;
      }
      dependency();
    }
    if (machine->seed) {
      std::swap(cluster.ready.back(), cluster.ready[random_order() % cluster.ready.size()]);
    }
    scheduler = &here;
    current = cluster.ready.back();
    current_block = current->block;
    cluster.ready.pop_back();
    current->fiber->resume_from(here);
  }
  current_block = outer_block;
  current = outer_lane;
  scheduler = outer_scheduler;
  for (const Block& block : cluster.blocks) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(block.shared.data(), block.shared.bytes());
#endif
    if (!cluster.error && !block.waited) {
      cluster.error = "block " + std::to_string(block.index) + " ended without dependency_wait";
    }
  }
  if (cluster.error) throw Error(*cluster.error);
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
    const Launch& launch = launches[i];
    if (launch.grid % launch.cluster) throw Error("a cluster is not whole");
    for (int b = 0; b < launch.grid; b += launch.cluster) run_cluster(launch, i, b, dependency);
    dependency();  // if none of these blocks has waited
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

void* carve(int offset, int bytes, int element, int index, const Site& site) {
  if (offset + bytes > current_block->launch->shared_bytes) {
    fail("shared memory: " + std::to_string(offset + bytes) + " bytes carved of " +
         std::to_string(current_block->launch->shared_bytes));
  }
  char* const region = current_block->shared.data() + offset + (index + 1) * kRedZone;
#if defined(__SANITIZE_ADDRESS__)
  // The red zones and what pads the region to 128 bytes stay poisoned. A second cut takes back what
  // the first one gave from here on.
  const Mapped& shared = current_block->shared;
  __asan_poison_memory_region(region, shared.data() + shared.bytes() - region);
  __asan_unpoison_memory_region(region,
                                bytes / (mutated(Mutation::kCarveShort, "carve", site) ? 2 : 1));
#endif
  return region + (mutated(Mutation::kMisplace, "carve", site) ? element / 2 : 0);
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
      if (lane.state == Lane::State::kBarrier) wake(lane);
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

}  // namespace simt
