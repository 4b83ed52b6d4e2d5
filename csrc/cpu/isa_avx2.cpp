#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
namespace inception_fused::cpu {
namespace avx2 {

inline constexpr int kLanes = 8;
inline constexpr int kWide = 1;  // 12 accumulators of 16 registers
inline constexpr int kRows[] = {0, 6, 6, 6};

#include "gemm.inl"
#include "pool.inl"
#include "winograd.inl"

#include "table.inl"

}  // namespace avx2

extern const Kernels kAvx2;
constinit const Kernels kAvx2 = avx2::table("avx2");

}  // namespace inception_fused::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
