#include <cstdlib>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace inception_fused::cpu {

Capabilities capabilities() {
  Capabilities machine;
#if defined(__x86_64__)
  __builtin_cpu_init();
  machine.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  machine.avx512 = machine.avx2 && __builtin_cpu_supports("avx512f") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq");
  machine.avx512_bf16 = machine.avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return machine;
}

const Kernels& pick(const Capabilities& machine, std::string_view limit) {
  if (limit != "" && limit != "base" && limit != "avx2" && limit != "avx512" &&
      limit != "avx512_bf16") {
    throw std::invalid_argument(
        "INCEPTION_FUSED_ISA must be base, avx2, avx512 or avx512_bf16, got '" +
        std::string(limit) + "'");
  }
#if defined(__x86_64__)
  const bool unlimited = limit == "" || limit == "avx512_bf16";
  if (machine.avx512_bf16 && unlimited) {
    static const Kernels table = [] {
      Kernels kernels = kAvx512;
      kernels.name = "avx512_bf16";
      kernels.bfloat16 = kAvx512Bf16;
      return kernels;
    }();
    return table;
  }
  if (machine.avx512 && (unlimited || limit == "avx512")) return kAvx512;
  if (machine.avx2 && limit != "base") return kAvx2;
#else
  (void)machine;
#endif
  return kBase;
}

const Kernels& kernels() {
  static const Kernels& table = [&]() -> const Kernels& {
    const char* limit = std::getenv("INCEPTION_FUSED_ISA");
    return pick(capabilities(), limit ? limit : "");
  }();
  return table;
}

}  // namespace inception_fused::cpu
