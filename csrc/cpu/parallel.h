// Threads, which come from outside.
#pragma once

#include <functional>

namespace inception_fused::cpu {

// Calls body(0) ... body(threads - 1), each once, at the same time or one after the other.
using Parallel = std::function<void(int threads, const std::function<void(int)>& body)>;

}  // namespace inception_fused::cpu
