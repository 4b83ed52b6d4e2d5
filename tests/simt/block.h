// The running block of threads: what the files of the emulator share. Not for kernels.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/simt.h"
#include "fiber.h"

namespace simt {

inline constexpr int kMaxCopies = 256;     // of one thread in flight
inline constexpr int kMaxMulticasts = 64;  // that one barrier counts, in flight
inline constexpr int kMaxBarriers = 16;    // of a block, that count bytes

struct Copy {
  Vector* to;
  const void* from;
  bool valid;
  int group;
};

struct Lane {
  enum class State { kReady, kBarrier, kWarp, kDependency, kCluster, kBytes, kDone };
  std::unique_ptr<Fiber> fiber;
  struct Block* block = nullptr;
  int thread = 0;
  State state = State::kReady;
  const char* operation = "";
  Site site{"", 0};
  Copy* copies = nullptr;  // a ring of kMaxCopies: copy i is at i % kMaxCopies
  int64_t issued = 0, landed = 0;
  int groups = 0;              // committed
  bool arrived = false;        // at the barrier of the cluster and not yet waited
  int64_t cluster_phase = -1;  // in which it arrived last
  struct BarrierState* awaited = nullptr;
  // The operands of a warp operation, on the lane's own stack.
  uint32_t* words = nullptr;
  const Vector* row = nullptr;
  float* sums = nullptr;
  const uint32_t* a = nullptr;
  uint32_t b[2] = {};
};

struct Multicast {  // to one block, asked for and not yet there
  char* to;
  const char* from;
  int bytes;
  struct Block* issuer;
  char* token;
};

struct BarrierState {
  const Barrier* barrier = nullptr;
  int64_t over = 0;                  // phases
  bool told = false;                 // the bytes of this phase
  int64_t missing = 0;               // bytes, below 0 before they are told
  Multicast copies[kMaxMulticasts];  // in flight
  int in_flight = 0;
  char* token = nullptr;
};

struct Block {
  struct Cluster* cluster = nullptr;
  const Launch* launch = nullptr;
  int index = 0;
  std::vector<Lane> lanes;
  std::unique_ptr<Copy[]> copies;  // of all lanes; pages that no copy uses are never touched
  std::vector<int> arrived;        // per warp, at its operation
  int at_barrier = 0;
  int done = 0;
  bool waited = false;  // for the launch before
  int launch_index = 0;
  char* barrier_token = nullptr;
  Mapped shared;
  std::unique_ptr<BarrierState[]> barriers;  // kMaxBarriers
  int in_flight = 0;  // copies of this block's, counted once for each destination
};

struct Cluster {  // of blocks that run at the same time; one block where the launch has no clusters
  std::vector<Block> blocks;
  std::vector<Lane*> ready;
  int arrived = 0;  // threads, in this phase
  int64_t phase = 0;
  char* tokens[2] = {};  // of even and odd phases
  std::optional<std::string> error;
};

extern Machine* machine;
extern Block* current_block;
extern Lane* current;

const char* base_name(const char* path);
std::string at(const char* operation, const Site& site);  // for messages
std::string where(const Lane& lane);

// Suspends the running thread until something makes it ready again.
void yield();

// Wakes a thread that waits in this state.
void wake(Lane& lane);

// For ThreadSanitizer: what happened before a release happens before a later acquire of the token.
char* new_token();
void release(void* token);
void acquire(void* token);

uint32_t random_number();  // 0 where the seed is

// Ends the run with an error.
[[noreturn]] void fail(const std::string& what);

// Whether this mutation is planted at this site; notes the site.
bool mutated(Mutation mutation, const char* operation, const Site& site);

void check_aligned(const void* p, const char* operation, const Site& site);

}  // namespace simt
