// The running block of threads: what the files of the emulator share. Not for kernels.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cuda/simt.h"
#include "fiber.h"

namespace simt {

inline constexpr int kMaxCopies = 256;  // of one thread in flight

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
  Copy* copies = nullptr;  // a ring of kMaxCopies: copy i is at i % kMaxCopies
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
  std::unique_ptr<Copy[]> copies;  // of all lanes; pages that no copy uses are never touched
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

extern Machine* machine;
extern Block* current_block;
extern Lane* current;

const char* base_name(const char* path);
std::string at(const char* operation, const Site& site);  // for messages
std::string where(const Lane& lane);

// Suspends the running thread until something makes it ready again.
void yield();

// Ends the run with an error.
[[noreturn]] void fail(const std::string& what);

// Whether this mutation is planted at this site; notes the site.
bool mutated(Mutation mutation, const char* operation, const Site& site);

void check_aligned(const void* p, const char* operation, const Site& site);

}  // namespace simt
