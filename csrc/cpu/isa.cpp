#include <algorithm>
#include <array>
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
  machine.avx512_vnni = machine.avx512 && __builtin_cpu_supports("avx512vnni");
  machine.avx512_bf16 = machine.avx512_vnni && __builtin_cpu_supports("avx512bf16");
#endif
  return machine;
}

const Kernels& pick(const Capabilities& machine, std::string_view limit) {
  constexpr std::array<std::string_view, 5> kNames{"base", "avx2", "avx512", "avx512_vnni",
                                                   "avx512_bf16"};
  const auto place = std::find(kNames.begin(), kNames.end(), limit);
  if (limit != "" && place == kNames.end()) {
    throw std::invalid_argument(
        "INCEPTION_FUSED_ISA must be base, avx2, avx512, avx512_vnni or avx512_bf16, got '" +
        std::string(limit) + "'");
  }
#if defined(__x86_64__)
  const auto most = place - kNames.begin();
  if (machine.avx512_bf16 && most >= 4) {
    static const Kernels table = [] {
      Kernels kernels = kAvx512;
      kernels.name = "avx512_bf16";
      kernels.bfloat16 = kAvx512Bf16;
      kernels.int8 = kAvx512Vnni;
      return kernels;
    }();
    return table;
  }
  if (machine.avx512_vnni && most >= 3) {
    static const Kernels table = [] {
      Kernels kernels = kAvx512;
      kernels.name = "avx512_vnni";
      kernels.int8 = kAvx512Vnni;
      return kernels;
    }();
    return table;
  }
  if (machine.avx512 && most >= 2) return kAvx512;
  if (machine.avx2 && most >= 1) return kAvx2;
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
