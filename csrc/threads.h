// Torch's pool of threads, for the CPU kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <functional>

namespace inception_fused {

// Calls body(0) ... body(threads - 1), each once, at the same time or one after the other.
inline void for_threads(int threads, const std::function<void(int)>& body) {
  if (threads == 1) return body(0);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) body(static_cast<int>(thread));
  });
}

}  // namespace inception_fused
