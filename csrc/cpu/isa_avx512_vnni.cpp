#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512vnni,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512vnni,avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
namespace inception_fused::cpu {
namespace avx512_vnni {

inline constexpr int kLanes = 16;
inline constexpr int kWide = 3;  // 27 or 28 accumulators of 32 registers

template <typename T>
static constexpr int rows_of(int groups) {
  constexpr int kRows[] = {0, 14, 14, 9};
  return kRows[groups];
}

#define INCEPTION_FUSED_AVX512_VNNI
#define INCEPTION_FUSED_REGISTER "v"
#include "vector.inl"

#include "quantise.inl"

#include "gemm.inl"
#include "pool.inl"
#include "spin.inl"

#include "typed_int8.inl"

}  // namespace avx512_vnni

extern const KernelsOf<uint8_t> kAvx512Vnni;
constinit const KernelsOf<uint8_t> kAvx512Vnni = avx512_vnni::typed_int8();

}  // namespace inception_fused::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
