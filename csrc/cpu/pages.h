#pragma once

#include <cstddef>

namespace inception_fused::cpu {

// Asks for large pages for fresh memory that will be read again and again, where the system gives
// them on request (Linux). Tens of megabytes of weights over pages of 4 KiB cost a walk of the page
// tables for each: GoogLeNet at batch 1 took 6 % longer (Zen 4).
void advise_huge_pages(void* memory, std::size_t bytes);

}  // namespace inception_fused::cpu
