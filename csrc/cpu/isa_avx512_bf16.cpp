#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
namespace inception_fused::cpu {
namespace avx512_bf16 {

inline constexpr int kLanes = 16;
inline constexpr int kWide = 3;  // 27 or 28 accumulators of 32 registers

template <typename T>
static constexpr int rows_of(int groups) {
  constexpr int kRows[] = {0, 14, 14, 9};
  return kRows[groups];
}

#define INCEPTION_FUSED_AVX512_BF16
#define INCEPTION_FUSED_REGISTER "v"
#include "vector.inl"

#include "gemm.inl"
#include "pool.inl"
#include "response.inl"
#include "spin.inl"
#include "transpose.inl"
#include "winograd.inl"

#include "typed.inl"

}  // namespace avx512_bf16

extern const KernelsOf<BFloat16> kAvx512Bf16;
constinit const KernelsOf<BFloat16> kAvx512Bf16 = avx512_bf16::typed<BFloat16>();

}  // namespace inception_fused::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
