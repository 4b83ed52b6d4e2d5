#include "kernels.h"

namespace inception_fused::cpu {
namespace base {

inline constexpr int kLanes = 4;
inline constexpr int kWide = 1;  // 12 accumulators of 16 registers
inline constexpr int kRows[] = {0, 3, 3, 3};

#include "gemm.inl"
#include "pool.inl"

}  // namespace base

extern const Kernels kBase;
const Kernels kBase = {"base",
                       {0, base::kRows[1], base::kRows[2], base::kRows[3]},
                       base::gemm,
                       base::max_pool,
                       base::average_pool,
                       base::transpose,
                       base::spin};

}  // namespace inception_fused::cpu
