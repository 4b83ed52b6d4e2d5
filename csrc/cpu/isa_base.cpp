#include "kernels.h"

namespace inception_fused::cpu {
namespace base {

inline constexpr int kLanes = 4;
inline constexpr int kWide = 1;  // 12 accumulators of 16 registers

template <typename T>
static constexpr int rows_of(int groups) {
  constexpr int kFloat32[] = {0, 3, 3, 3};
  constexpr int kNarrow[] = {0, 2, 2, 2};  // each operand is two
  return sizeof(T) == sizeof(float) ? kFloat32[groups] : kNarrow[groups];
}

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

}  // namespace base

extern const Kernels kBase;
constinit const Kernels kBase = base::table("base");

}  // namespace inception_fused::cpu
