// Blocks that run together: the barrier of a cluster, barriers that count bytes, and the copies
// that they count.
#include <cstring>

#include "block.h"

#if defined(SIMT_TSAN)  // this file itself is not instrumented: it says what the kernel accesses
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_read8(void*);
extern "C" void __tsan_write8(void*);
extern "C" void __tsan_write16(void*);
#endif

namespace simt {
namespace {

// What is known of the barrier, or a place for it; nullptr if there is none. Nothing is allocated
// here: to ThreadSanitizer the threads of a kernel would race for it.
BarrierState* slot(Block& block, const Barrier* barrier) {
  for (int i = 0; block.barriers && i < kMaxBarriers; ++i) {
    BarrierState& state = block.barriers[i];
    if (!state.barrier || state.barrier == barrier) return &state;
  }
  return nullptr;
}

BarrierState& find_barrier(Block& block, const Barrier* barrier, const char* operation,
                           const Site& site) {
#if defined(SIMT_TSAN)
  __tsan_read8(const_cast<Barrier*>(barrier));
#endif
  BarrierState* const found = slot(block, barrier);
  if (!found || !found->barrier) {
    fail("barrier without barrier_init in " + at(operation, site) + ", " + where(*current));
  }
  return *found;
}

// The same place in another block of the cluster.
template <class T>
T* in_block(const Block& block, T* mine) {
  return reinterpret_cast<T*>(block.shared.data() +
                              (reinterpret_cast<char*>(mine) - current_block->shared.data()));
}

// As an agent of its own, which knows what the issuer knew and tells those who wait.
void land(const Multicast& copy, const BarrierState& barrier) {
#if defined(SIMT_TSAN)
  void* const here = __tsan_get_current_fiber();
  void* const agent = __tsan_create_fiber(0);
  __tsan_switch_to_fiber(agent, 1 /* no happens-before */);
  acquire(copy.token);
  for (int i = 0; i < copy.bytes; i += 16) __tsan_write16(copy.to + i);
#endif
  // In pieces: ThreadSanitizer takes a call of memcpy for one of the waiting thread.
  for (int i = 0; i < copy.bytes; i += 16) std::memcpy(copy.to + i, copy.from + i, 16);
#if defined(SIMT_TSAN)
  release(barrier.token);
  __tsan_switch_to_fiber(here, 1);
  __tsan_destroy_fiber(agent);
#else
  (void)barrier;
#endif
  --copy.issuer->in_flight;
}

void land_all(BarrierState& barrier) {
  for (int i = 0; i < barrier.in_flight; ++i) land(barrier.copies[i], barrier);
  barrier.in_flight = 0;
}

// Ends the phase if all has come that it waits for.
void advance(Block& block, BarrierState& barrier) {
  if (!barrier.told || barrier.missing) return;
  barrier.told = false;
  ++barrier.over;
  for (Lane& lane : block.lanes) {
    if (lane.state == Lane::State::kBytes && lane.awaited == &barrier) wake(lane);
  }
}

}  // namespace

void cluster_arrive(Site site) {
  Cluster& cluster = *current_block->cluster;
  if (current->arrived || current->cluster_phase == cluster.phase) {
    fail("second arrival in one phase in " + at("cluster_arrive", site) + ", " + where(*current));
  }
  current->arrived = true;
  current->cluster_phase = cluster.phase;
  release(cluster.tokens[cluster.phase % 2]);
  if (++cluster.arrived < static_cast<int>(cluster.blocks.size() * current_block->lanes.size())) {
    return;
  }
  cluster.arrived = 0;
  ++cluster.phase;
  for (Block& block : cluster.blocks) {
    for (Lane& lane : block.lanes) {
      if (lane.state == Lane::State::kCluster) wake(lane);
    }
  }
}

void cluster_wait(Site site) {
  if (!current->arrived) {
    fail("no arrival before " + at("cluster_wait", site) + ", " + where(*current));
  }
  if (mutated(Mutation::kSkipClusterWait, "cluster_wait", site)) return;
  current->arrived = false;
  Cluster& cluster = *current_block->cluster;
  if (current->cluster_phase == cluster.phase) {
    current->operation = "cluster_wait";
    current->site = site;
    current->state = Lane::State::kCluster;
    yield();
  }
  acquire(cluster.tokens[current->cluster_phase % 2]);
}

void barrier_init(Barrier* barrier, Site site) {
#if defined(SIMT_TSAN)
  __tsan_write8(barrier);
#endif
  *barrier = 0;
  BarrierState* const state = slot(*current_block, barrier);
  if (!state) fail("too many barriers, or no cluster, in " + at("barrier_init", site));
  state->barrier = barrier;
  state->over = state->missing = 0;
  state->in_flight = 0;
  state->told = false;
  state->token = new_token();
}

void barrier_expect(Barrier* barrier, int bytes, Site site) {
  BarrierState& state = find_barrier(*current_block, barrier, "barrier_expect", site);
  if (state.told) {
    fail("second call in one phase of " + at("barrier_expect", site) + ", " + where(*current));
  }
  state.told = true;
  state.missing += bytes;
  advance(*current_block, state);
}

void barrier_wait(Barrier* barrier, int parity, Site site) {
  BarrierState& state = find_barrier(*current_block, barrier, "barrier_wait", site);
  if (mutated(Mutation::kSkipBytes, "barrier_wait", site)) return;
  if (state.over % 2 == parity) {
    current->operation = "barrier_wait";
    current->site = site;
    current->awaited = &state;
    current->state = Lane::State::kBytes;
    yield();
  }
  land_all(state);
  acquire(state.token);
}

void copy_multicast(Vector* shared, const void* global, int bytes, Barrier* barrier, int blocks,
                    Site site) {
  if (mutated(Mutation::kMisalign, "copy_multicast", site)) {
    global = static_cast<const char*>(global) + 2;
  }
  check_aligned(shared, "copy_multicast", site);
  check_aligned(global, "copy_multicast", site);
  Cluster& cluster = *current_block->cluster;
  if (bytes <= 0 || bytes % 16 || blocks != static_cast<int>(cluster.blocks.size())) {
    fail("wrong size in " + at("copy_multicast", site) + ", " + where(*current));
  }
  detail::load_bytes(global, bytes);
  char* const token = new_token();
  release(token);
  for (Block& block : cluster.blocks) {
    if (block.done) fail("copy to a block that ends, " + at("copy_multicast", site));
    BarrierState& state = find_barrier(block, in_block(block, barrier), "copy_multicast", site);
    state.missing -= bytes;
    ++current_block->in_flight;
    if (state.in_flight == kMaxMulticasts) fail("too many copies in flight, " + where(*current));
    state.copies[state.in_flight++] = {reinterpret_cast<char*>(in_block(block, shared)),
                                       static_cast<const char*>(global), bytes, current_block,
                                       token};
    if (random_number() % 2) land_all(state);
    advance(block, state);
  }
}

}  // namespace simt
