#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
namespace inception_fused::cpu {
namespace avx512 {

inline constexpr int kLanes = 16;
inline constexpr int kWide = 3;  // 27 or 28 accumulators of 32 registers

template <typename T>
static constexpr int rows_of(int groups) {
  constexpr int kFloat32[] = {0, 14, 14, 9};
  constexpr int kNarrow[] = {0, 14, 10, 6};  // each operand is two
  return sizeof(T) == sizeof(float) ? kFloat32[groups] : kNarrow[groups];
}

#define INCEPTION_FUSED_REGISTER "v"
#include "vector.inl"

#include "quantise.inl"

#include "gemm.inl"
#include "normalise.inl"
#include "pool.inl"
#include "pool_gradient.inl"
#include "response.inl"
#include "spin.inl"
#include "transpose.inl"
#include "winograd.inl"

#include "typed.inl"
#include "typed_int8.inl"

#include "table.inl"

}  // namespace avx512

extern const Kernels kAvx512;
constinit const Kernels kAvx512 = avx512::table("avx512");

}  // namespace inception_fused::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
