#include "cuda/launch.inl"

namespace inception_fused::cuda {
template cudaError_t launch_as<Bf16x3>(bool, const Config&, const Wave&, bool, cudaStream_t);
template cudaError_t launch_pack_as<Bf16x3>(const PackTask&, int, cudaStream_t);
}  // namespace inception_fused::cuda
