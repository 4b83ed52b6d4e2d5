// Fibers: a stack each and a switch between them, known to ThreadSanitizer and AddressSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// `entry` must never return: it ends by switching away for good.
class Fiber {
 public:
  explicit Fiber(void (*entry)());  // not yet running
  Fiber();                          // the caller's own stack
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Suspends `from`, which must be the running fiber, and resumes this one.
  void resume_from(Fiber& from);
  // To be called first thing by `entry`.
  static void entered();

 private:
  void* top_ = nullptr;  // saved stack pointer
  char* stack_ = nullptr;
  const void* bottom_ = nullptr;  // for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace simt
