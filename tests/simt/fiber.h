// Fibers: a stack each and a switch between them, known to ThreadSanitizer and AddressSanitizer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt {

// Memory of its own pages. Under ThreadSanitizer it is never used twice without being unmapped in
// between, so that what two blocks do at one address is no race.
class Mapped {
 public:
  Mapped() = default;
  explicit Mapped(size_t bytes);
  ~Mapped();
  Mapped(Mapped&& other) noexcept;
  Mapped& operator=(Mapped&& other) noexcept;
  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

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
  Mapped stack_;
  const void* bottom_ = nullptr;  // for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* tsan_ = nullptr;
};

}  // namespace simt
