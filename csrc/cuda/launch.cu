#include "cuda/launch.h"
#include "cuda/launch.inl"

namespace inception_fused::cuda {

#define EXTERN(D)                                                                                 \
  extern template cudaError_t launch_as<D>(bool, const Config&, const Wave&, bool, cudaStream_t); \
  extern template cudaError_t launch_pack_as<D>(const PackTask&, int, cudaStream_t);
EXTERN(Half)
EXTERN(BFloat16)
EXTERN(Tf32)
EXTERN(Bf16x3)
EXTERN(Float32)
#undef EXTERN

namespace {

const char* text_of(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&value, which, device) == cudaSuccess ? value : 0;
}

__global__ void probe_kernel() {}

}  // namespace

const char* launch(bool conv, Math math, const Config& config, const Wave& wave, bool early,
                   CUstream_st* stream) {
  return text_of(
      with_math(math, [&]<class D>() { return launch_as<D>(conv, config, wave, early, stream); }));
}

const char* launch_pack(Math math, const PackTask& task, int blocks, CUstream_st* stream) {
  return text_of(
      with_math(math, [&]<class D>() { return launch_pack_as<D>(task, blocks, stream); }));
}

bool has_code_for_current_device() {
  cudaFuncAttributes unused{};
  const bool found = cudaFuncGetAttributes(&unused, probe_kernel) == cudaSuccess;
  if (!found) cudaGetLastError();  // leaves no error for the next caller
  return found;
}

Architecture current_architecture() {
  const int sm = 10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                 attribute(cudaDevAttrComputeCapabilityMinor);
  const Architecture* const nearest = find_architecture(sm);
  Architecture architecture{};
  if (!nearest) return architecture;
  architecture = *nearest;
  architecture.sm = sm;
  architecture.processors = attribute(cudaDevAttrMultiProcessorCount);
  architecture.shared_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  architecture.shared_processor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  return architecture;
}

}  // namespace inception_fused::cuda
