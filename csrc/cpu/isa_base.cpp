#include "kernels.h"

namespace inception_fused::cpu {
namespace base {

inline constexpr int kLanes = 4;
inline constexpr int kWide = 1;  // 12 accumulators of 16 registers
inline constexpr int kRows[] = {0, 3, 3, 3};

#include "gemm.inl"
#include "pool.inl"
#include "winograd.inl"

#include "table.inl"

}  // namespace base

extern const Kernels kBase;
constinit const Kernels kBase = base::table("base");

}  // namespace inception_fused::cpu
