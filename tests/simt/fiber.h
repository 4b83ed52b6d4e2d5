// Fibers: a stack each and a switch between them, known to ThreadSanitizer and AddressSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// Memory of its own pages, which are used again unless it is `fresh`: then ThreadSanitizer forgets
// them, so that what two blocks do at one address is no race.
class Mapped {
 public:
  Mapped() = default;
  Mapped(size_t bytes, bool fresh);
  ~Mapped();
  Mapped(Mapped&& other) noexcept;
  Mapped& operator=(Mapped&& other) noexcept;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
  bool fresh_ = false;
};

// `entry` must never return: it ends by switching away for good.
class Fiber {
 public:
  // Not yet running. `merged`: to ThreadSanitizer it is the fiber that makes it.
  Fiber(void (*entry)(), bool merged);
  Fiber();  // the caller's own stack
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Suspends `from`, which must be the running fiber, and resumes this one.
  void resume_from(Fiber& from);
  // To be called first thing by `entry`.
  static void entered();

 private:
  void* top_ = nullptr;  // saved stack pointer
  Mapped stack_;
  const void* bottom_ = nullptr;  // for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
  bool merged_ = true;
};

}  // namespace simt
