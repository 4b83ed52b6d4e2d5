// Everything the kernels ask of the machine, in one place: thread indices, shared memory, barriers,
// asynchronous copies, matrix instructions. All PTX of the library is in this file. nvcc compiles
// it to that PTX; any other compiler gets tests/simt/emulator.h, which has the same functions.
#pragma once

#include <cstdint>

namespace simt {

struct alignas(16) Vector {  // 16 bytes: what one cp.async, one ldmatrix row or one store moves
  uint32_t word[4];
};

using Barrier = uint64_t;  // in shared memory: counts the bytes of one stage as they arrive

struct Half {  // IEEE binary16
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

enum class Product { kHalf, kBFloat16, kTf32 };  // operand type of a matrix instruction

}  // namespace simt

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_UNROLL _Pragma("unroll")

namespace simt {

SIMT_DEVICE int thread() { return threadIdx.x; }
SIMT_DEVICE int block() { return blockIdx.x; }
SIMT_DEVICE int warp() { return threadIdx.x / 32; }
SIMT_DEVICE int lane() { return threadIdx.x % 32; }

// Cuts the block's dynamic shared memory into regions, each aligned to 128 bytes (all 32 banks).
// Every thread takes the same regions in the same order; sizes are those of carved_bytes().
class Carve {
 public:
  template <class T>
  SIMT_DEVICE T* take(int count) {
    extern __shared__ __align__(128) char shared[];
    T* const region = reinterpret_cast<T*>(shared + offset_);
    offset_ += (count * static_cast<int>(sizeof(T)) + 127) / 128 * 128;
    return region;
  }

 private:
  int offset_ = 0;
};

SIMT_DEVICE void sync_block() { __syncthreads(); }

// Programmatic dependent launch: wait() returns when the launches before this one have finished and
// their writes can be read; release() lets the next launch begin when every block has called it.
SIMT_DEVICE void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

SIMT_DEVICE void dependency_release() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

SIMT_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts copying 16 bytes from global to shared memory, or zeros if not valid (then global is not
// read, but must be a pointer that may be formed).
SIMT_DEVICE void copy_async(Vector* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Clusters, from sm_90 on: the kernel's blocks in groups of adjacent indices, which run at the same
// time. Elsewhere these functions do nothing and no cluster is launched.
//
// cluster_wait() returns when all threads of the cluster have called cluster_arrive() as often as
// this one, which calls the two in turn. What was read or written before the arrival stays before
// what follows the wait.
SIMT_DEVICE void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

SIMT_DEVICE void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}

// A barrier has phases 0, 1, 2 ...: each is over when one thread has told the bytes that it expects
// and these have come. By one thread, before any other use: the cluster's barrier lies between.
SIMT_DEVICE void barrier_init(Barrier* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

SIMT_DEVICE void barrier_expect(Barrier* barrier, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
#endif
}

// Returns when the newest phase of this parity is over; then its bytes can be read.
SIMT_DEVICE void barrier_wait(Barrier* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t over = 0;
  while (!over) {
    asm volatile(
        "{\n.reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n}"
        : "=r"(over)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  }
#endif
}

// Starts copying bytes, a multiple of 16, from global memory to the same place in the shared memory
// of each block of a cluster of `blocks`, and tells the barrier at the same place of each.
SIMT_DEVICE void copy_multicast(Vector* shared, const void* global, int bytes, Barrier* barrier,
                                int blocks) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(barrier)),
      "h"(static_cast<uint16_t>((1 << blocks) - 1))
      : "memory");
#endif
}

SIMT_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when at most kPending of this thread's newest groups are still in flight.
template <int kPending>
SIMT_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements. Lane l gives the address of row l % 8 of matrix l / 8; r[i]
// receives elements (l / 4, 2 * (l % 4)) and the one beside it of matrix i.
SIMT_DEVICE void load_matrices(uint32_t (&r)[4], const Vector* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// d += a * b of 16 rows, 8 columns and a depth of 32 bytes (16 of the 16-bit types, 8 of TF32).
template <Product kProduct>
SIMT_DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kProduct == Product::kHalf) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (kProduct == Product::kBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// To TF32, to nearest, ties away from zero.
SIMT_DEVICE uint32_t round_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

SIMT_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
SIMT_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

SIMT_DEVICE float to_float(Half v) { return __half2float(__ushort_as_half(v.bits)); }
SIMT_DEVICE float to_float(BFloat16 v) { return __bfloat162float(__ushort_as_bfloat16(v.bits)); }
SIMT_DEVICE float to_float(float v) { return v; }

// To the nearest, ties to even.
SIMT_DEVICE void from_float(float v, Half& to) { to.bits = __half_as_ushort(__float2half_rn(v)); }
SIMT_DEVICE void from_float(float v, BFloat16& to) {
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
SIMT_DEVICE void from_float(float v, float& to) { to = v; }

// The larger of each pair of elements; NaN if either is.
SIMT_DEVICE uint32_t larger(uint32_t a, uint32_t b, Half) {
  uint32_t r;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
SIMT_DEVICE uint32_t larger(uint32_t a, uint32_t b, BFloat16) {
  uint32_t r;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
  return r;
}
SIMT_DEVICE uint32_t larger(uint32_t a, uint32_t b, float) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(as_float(a)), "f"(as_float(b)));
  return as_bits(r);
}

// Global memory. Plain loads, never the read-only path: the launch before may still be writing when
// this one begins.
template <class T>
SIMT_DEVICE T load(const T* global) {
  return *global;
}
template <class T>
SIMT_DEVICE void store(T* global, const T& value) {
  *global = value;
}

}  // namespace simt

#else
#include "emulator.h"
#endif
