// Instances of every kernel for one dtype; each launch_<dtype>.cu includes this.
#pragma once

#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace inception_fused::cuda {

// Code older than clusters has no body for the tiles that need them; choose() takes none there.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
template <class T>
inline constexpr bool kRuns = T::kCluster == 1;
#else
template <class T>
inline constexpr bool kRuns = true;
#endif

template <class D, class T>
__global__ void __launch_bounds__(T::kThreads, 1)
    pointwise_kernel(const __grid_constant__ Wave wave) {
  if constexpr (kRuns<T>) run_pointwise<D, T>(wave);
}

template <class D, class T>
__global__ void __launch_bounds__(T::kThreads, 1) conv_kernel(const __grid_constant__ Wave wave) {
  if constexpr (kRuns<T>) run_conv<D, T>(wave);
}

template <class D>
__global__ void __launch_bounds__(kPackThreads) pack_kernel(const __grid_constant__ PackTask task) {
  run_pack<D>(task);
}

template <class D>
cudaError_t launch_as(bool conv, const Config& config, const Wave& wave, bool early,
                      cudaStream_t stream) {
  return with_shape(config.shape, [&]<class T>() {
    auto* const kernel = conv ? conv_kernel<D, T> : pointwise_kernel<D, T>;
    // Once per kernel and device would do; it is a host-side table look-up of under a microsecond.
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared);
    if (error != cudaSuccess) return error;
    cudaLaunchAttribute attributes[2]{};
    unsigned count = 0;
    if (early) {
      attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
      attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (T::kCluster > 1) {
      attributes[count].id = cudaLaunchAttributeClusterDimension;
      attributes[count++].val.clusterDim = {T::kCluster, 1, 1};
    }
    cudaLaunchConfig_t launch{};
    launch.gridDim = dim3(config.blocks);
    launch.blockDim = dim3(config.threads);
    launch.dynamicSmemBytes = config.shared;
    launch.stream = stream;
    launch.attrs = attributes;
    launch.numAttrs = count;
    return cudaLaunchKernelEx(&launch, kernel, wave);
  });
}

template <class D>
cudaError_t launch_pack_as(const PackTask& task, int blocks, cudaStream_t stream) {
  pack_kernel<D><<<blocks, kPackThreads, 0, stream>>>(task);
  return cudaGetLastError();
}

}  // namespace inception_fused::cuda
