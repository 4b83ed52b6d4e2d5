// What choose.h picks, for scripts. Arguments: none, then the shapes and architectures are printed,
// a line each. Or "plans": each line of the standard input,
//
//   sm math batch height width channels_last plan...
//
// gives a line of its launches, "conv shape blocks threads shared blocks_per_processor bytes ns"
// each.
#include <cstring>
#include <iostream>
#include <limits>
#include <sstream>
#include <string>

#include "cuda/program.h"

namespace inception_fused::cuda {
namespace {

void print_tables() {
  for (const Shape& s : kShapes) {
    std::cout << "shape " << s.rows << ' ' << s.columns << ' ' << s.depth << ' ' << s.warp_rows
              << ' ' << s.warp_columns << ' ' << s.warp_depth << ' ' << s.stages << ' ' << s.cluster
              << ' ' << s.registers << ' ' << s.registers_100 << '\n';
  }
  for (const Architecture& a : kArchitectures) {
    std::cout << "architecture " << a.sm << ' ' << a.processors << ' ' << a.shared_block << ' '
              << a.shared_processor << '\n';
  }
}

Strided tensor(int64_t batch, int64_t channels, int64_t height, int64_t width, bool channels_last) {
  const int64_t pixels = height * width;
  Strided t{nullptr, {batch, channels, height, width}, {channels * pixels, pixels, width, 1}};
  if (channels_last) {
    t.stride[1] = 1;
    t.stride[2] = width * channels;
    t.stride[3] = channels;
  }
  return t;
}

void print_launches(const std::string& line) {
  std::istringstream words(line);
  int sm = 0, math = 0;
  int64_t batch = 0, height = 0, width = 0, number = 0;
  bool channels_last = false;
  words >> sm >> math >> batch >> height >> width >> channels_last;
  std::vector<int64_t> code;
  while (words >> number) code.push_back(number);
  const Plan plan = decode(code);
  const Architecture* const architecture = find_architecture(sm);
  if (!architecture) throw PlanError("no architecture is as old as sm_" + std::to_string(sm));
  const Strided x = tensor(batch, plan.buffers[kIn], height, width, channels_last);
  const Strided out = tensor(batch, plan.buffers[kOut], height, width, channels_last);
  const Program program =
      build(plan, static_cast<Math>(math), *architecture, x, out, nullptr, nullptr);
  for (const LaunchPlan& launch : program.launches) {
    const Config& c = launch.config;
    std::cout << launch.conv << ' ' << c.shape << ' ' << c.blocks << ' ' << c.threads << ' '
              << c.shared << ' ' << c.blocks_per_processor << ' ' << c.bytes << ' ' << c.nanoseconds
              << ' ';
  }
  std::cout << '\n';
}

}  // namespace
}  // namespace inception_fused::cuda

int main(int argc, char** argv) {
  using namespace inception_fused;
  if (argc < 2 || std::strcmp(argv[1], "plans") != 0) {
    cuda::print_tables();
    return 0;
  }
  std::cout.precision(std::numeric_limits<double>::max_digits10);
  try {
    for (std::string line; std::getline(std::cin, line);) cuda::print_launches(line);
  } catch (const PlanError& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
