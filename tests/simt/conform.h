// Runs a kernel made of simt.h's functions, on a GPU if nvcc compiles this and on the emulator if
// not, and compares what it wrote with what is expected.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include "cuda/simt.h"

namespace conform {

struct Grid {
  int blocks, threads, shared;  // shared: bytes of a block
  int cluster = 1;              // blocks
};

#ifdef __CUDACC__

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(2);
}

template <class T>
T* allocate(size_t count) {
  void* memory = nullptr;
  require(cudaMallocManaged(&memory, count * sizeof(T)), "memory");
  return static_cast<T*>(memory);
}

inline void release(void* memory) { cudaFree(memory); }

template <class Kernel>
__global__ void run_kernel(const Kernel kernel) {
  simt::dependency_wait();
  kernel();
}

inline int major() {  // of the compute capability
  int device = 0, found = 0;
  require(cudaGetDevice(&device), "device");
  require(cudaDeviceGetAttribute(&found, cudaDevAttrComputeCapabilityMajor, device), "device");
  return found;
}

inline bool has_clusters() { return major() >= 9; }

// Each begins early, as a programmatic dependent launch, where the device can, and waits first.
template <class... Kernels>
void run(const Grid& grid, const Kernels&... kernels) {
  cudaStream_t stream = nullptr;
  require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(grid.cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.blocks);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = major() < 9 ? 0 : grid.cluster > 1 ? 2 : 1;
  (require(cudaLaunchKernelEx(&config, run_kernel<Kernels>, kernels), "launch"), ...);
  require(cudaStreamSynchronize(stream), "kernel");
  require(cudaStreamDestroy(stream), "stream");
}

#else

template <class T>
T* allocate(size_t count) {
  return static_cast<T*>(std::aligned_alloc(16, (count * sizeof(T) + 15) / 16 * 16));
}

inline void release(void* memory) { std::free(memory); }

inline bool has_clusters() { return true; }

template <class... Kernels>
void run(const Grid& grid, const Kernels&... kernels) {
  simt::Machine machine;
  machine.seed = 1;
  machine.run({simt::Launch{grid.blocks, grid.threads, grid.shared,
                            [kernels] {
                              simt::dependency_wait();
                              kernels();
                            },
                            grid.cluster}...});
}

#endif

// Memory that host and device share.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : data_(allocate<T>(count)), count_(count) {
    for (size_t i = 0; i < count; ++i) data_[i] = T{};
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    for (size_t i = 0; i < count_; ++i) data_[i] = values[i];
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { release(data_); }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_;
  size_t count_;
};

inline bool is_nan(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

// One line for each function: its name, how many values were compared, how many differ.
class Report {
 public:
  // A NaN is as good as any other where `nan` says which bits are one.
  void compare(const std::string& name, const Array<uint32_t>& got,
               const std::vector<uint32_t>& expected,
               const std::function<bool(uint32_t)>& nan = nullptr) {
    size_t wrong = 0, first = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const bool same = got[i] == expected[i] || (nan && nan(got[i]) && nan(expected[i]));
      if (!same && wrong++ == 0) first = i;
    }
    if (got.size() != expected.size() || expected.empty()) ++wrong;
    std::printf("%s: %zu values, %zu wrong", name.c_str(), expected.size(), wrong);
    if (wrong) std::printf(", [%zu] is %08x not %08x", first, got[first], expected[first]);
    std::printf("\n");
    failed_ |= wrong != 0;
  }
  int code() const { return failed_ ? 1 : 0; }

 private:
  bool failed_ = false;
};

}  // namespace conform
