#include "fiber.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
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

constexpr size_t kStackBytes = 256 * 1024;

struct Stacks {  // freed ones are kept: a block makes hundreds
  std::vector<char*> free;
};
Stacks stacks;

char* take_stack() {
  if (!stacks.free.empty()) {
    char* const stack = stacks.free.back();
    stacks.free.pop_back();
    return stack;
  }
  void* const stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) throw std::bad_alloc();
  return static_cast<char*>(stack);
}

Fiber* running = nullptr;  // the fiber that it resumed

}  // namespace

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

Fiber::Fiber(void (*entry)()) : stack_(take_stack()) {
  bottom_ = stack_;
  size_ = kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, kStackBytes);
#endif
#if defined(SIMT_TSAN)
  tsan_ = __tsan_create_fiber(0);
#endif
  // Six registers and the return address; at `entry` the stack pointer is 8 modulo 16.
  void** frame = reinterpret_cast<void**>(stack_ + kStackBytes) - 8;
  std::memset(frame, 0, 8 * sizeof(void*));
  frame[6] = reinterpret_cast<void*>(entry);
  top_ = frame;
}

Fiber::~Fiber() {
  if (!stack_) return;
#if defined(SIMT_TSAN)
  __tsan_destroy_fiber(tsan_);
#endif
  stacks.free.push_back(stack_);
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
