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

template <typename T>
static constexpr int rows_of(int groups) {
  constexpr int kFloat32[] = {0, 6, 6, 6};
  constexpr int kNarrow[] = {0, 4, 4, 4};  // each operand is two
  return sizeof(T) == sizeof(float) ? kFloat32[groups] : kNarrow[groups];
}

#define INCEPTION_FUSED_REGISTER "x"
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

}  // namespace avx2

extern const Kernels kAvx2;
constinit const Kernels kAvx2 = avx2::table("avx2");

}  // namespace inception_fused::cpu

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
