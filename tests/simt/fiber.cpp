#include "fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <new>
#include <utility>
#include <vector>

#if defined(SIMT_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__)
#error "the context switch below is written for x86-64"
#endif

// void simt_switch(void** save, void* load): pushes the callee-saved registers, stores the stack
// pointer in *save, takes `load` as the stack pointer and pops the registers that lie there.
asm(R"(
.text
.type simt_switch,@function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch,.-simt_switch
)");
extern "C" void simt_switch(void** save, void* load);

namespace simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
#if defined(SIMT_TSAN)
constexpr bool kForgets = true;
#else
constexpr bool kForgets = false;
#endif

// Pages that are free again; a block takes hundreds of stacks.
struct Free {
  std::map<size_t, std::vector<char*>> by_size;
};
Free free_pages;

Fiber* running = nullptr;  // the fiber that it resumed

}  // namespace

Mapped::Mapped(size_t bytes, bool fresh) : bytes_(bytes), fresh_(fresh) {
  auto& pages = free_pages.by_size[bytes];
  if (!pages.empty()) {
    data_ = pages.back();
    pages.pop_back();
    return;
  }
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<char*>(data);
}

Mapped::~Mapped() {
  if (!data_) return;
  if (fresh_ && kForgets) {
    munmap(data_, bytes_);
  } else {
    free_pages.by_size[bytes_].push_back(data_);
  }
}

Mapped::Mapped(Mapped&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_), fresh_(other.fresh_) {}

Mapped& Mapped::operator=(Mapped&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(fresh_, other.fresh_);
  return *this;
}

Fiber::Fiber() {
#if defined(SIMT_TSAN)
  tsan_ = __tsan_get_current_fiber();
#endif
#if defined(__SANITIZE_ADDRESS__)
  pthread_attr_t attributes;
  pthread_getattr_np(pthread_self(), &attributes);
  void* bottom = nullptr;
  pthread_attr_getstack(&attributes, &bottom, &size_);
  bottom_ = bottom;
  pthread_attr_destroy(&attributes);
#endif
}

Fiber::Fiber(void (*entry)(), bool merged) : stack_(kStackBytes, !merged), merged_(merged) {
  bottom_ = stack_.data();
  size_ = kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_.data(), kStackBytes);
#endif
#if defined(SIMT_TSAN)
  tsan_ = merged ? __tsan_get_current_fiber() : __tsan_create_fiber(0);
#endif
  // Six registers and the return address; at `entry` the stack pointer is 8 modulo 16.
  void** frame = reinterpret_cast<void**>(stack_.data() + kStackBytes) - 8;
  std::memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(entry);
  top_ = frame;
}

Fiber::~Fiber() {
#if defined(SIMT_TSAN)
  if (!merged_) __tsan_destroy_fiber(tsan_);
#endif
}

void Fiber::entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(running->fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::resume_from(Fiber& from) {
  running = this;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack_, bottom_, size_);
#endif
#if defined(SIMT_TSAN)
  __tsan_switch_to_fiber(tsan_, 1 /* no happens-before */);
#endif
  simt_switch(&from.top_, top_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace simt
