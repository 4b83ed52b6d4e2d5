#include "cuda/launch.inl"

namespace inception_fused::cuda {
template cudaError_t launch_as<BFloat16>(bool, const Config&, const Wave&, bool, cudaStream_t);
template cudaError_t launch_pack_as<BFloat16>(const PackTask&, int, cudaStream_t);
}  // namespace inception_fused::cuda
