// Asynchronous copies and accesses to global memory, with their alignment and traffic.
#include <cstring>

#include "block.h"

#if defined(SIMT_TSAN)  // this file itself is not instrumented: it says what the kernel accesses
extern "C" void __tsan_read16(void*);
extern "C" void __tsan_write16(void*);
#endif

namespace simt {
namespace {

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

}  // namespace

void check_aligned(const void* p, const char* operation, const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % 16) {
    fail("misaligned address in " + at(operation, site) + ", " + where(*current));
  }
}

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

namespace detail {

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

}  // namespace detail
}  // namespace simt
