// csrc/cpu against loops in double, under sanitizers.
//
//   check_cpu run         each line of the standard input: NAME BATCH HEIGHT WIDTH PLAN...
//   check_cpu fuzz COUNT  the same lines; COUNT changed plans are made of each
//
// Prints what differs and exits with 1, or prints what was done.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "cpu/pack.h"
#include "equal.h"
#include "plan.h"

namespace inception_fused {
namespace {

constexpr int64_t kTiles[] = {0, 2, 3, 4};  // of Way

struct Case {
  std::string name;
  int64_t batch;
  Size image;
  std::vector<int64_t> code;
};

std::vector<Case> read() {
  std::vector<Case> cases;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    Case c;
    words >> c.name >> c.batch >> c.image.height >> c.image.width;
    for (int64_t value; words >> value;) c.code.push_back(value);
    cases.push_back(std::move(c));
  }
  return cases;
}

constexpr cpu::Precision kPrecisions[] = {cpu::Precision::kFloat32, cpu::Precision::kBFloat16,
                                          cpu::Precision::kInt8};
constexpr const char* kNames[] = {"float32", "bfloat16", "int8"};

std::string check(const std::string& name, cpu::Precision precision, Problem& problem,
                  const Way& way) {
  const std::string difference = problem.differs(way);
  if (difference.empty()) return "";
  return name + " in " + kNames[static_cast<int>(precision)] + " (" + name_of(way) +
         "): " + difference;
}

// Every case with every precision, table and layout; threads and the output's layout take turns.
int run(const std::vector<Case>& cases) {
  std::map<std::string, int> runs;
  int exact = 0;
  unsigned turn = 0;
  for (const Case& c : cases) {
    for (cpu::Precision precision : kPrecisions) {
      Problem problem(decode(c.code), precision, c.batch, c.image, 1);
      exact += problem.exact();
      for (Layout x : kLayouts) {
        ++turn;
        for (const cpu::Kernels* table : tables()) {
          const Layout out = kLayouts[(static_cast<unsigned>(x) + turn / 4) % kLayouts.size()];
          for (int64_t tile : kTiles) {
            if (tile && !problem.has_winograd(tile)) continue;
            const Way way{table, tile, x, out, static_cast<int>(1 + turn % 3), turn % 2 == 0};
            const std::string text = check(c.name, precision, problem, way);
            if (!text.empty()) {
              std::cout << text << "\n";
              return 1;
            }
            ++runs[std::string(table->name)];
          }
        }
      }
    }
  }
  std::cout << "exact " << exact << "\n";
  for (const auto& [table, count] : runs) std::cout << table << " " << count << "\n";
  return 0;
}

std::vector<int64_t> changed(std::vector<int64_t> code, std::mt19937_64& random) {
  constexpr int64_t kHostile[] = {INT64_MIN,        -2,       -1, 0, 1, 2, 3, 4, 7, 1000, INT32_MAX,
                                  int64_t{1} << 31, INT64_MAX};
  for (uint64_t n = 1 + random() % 4; n > 0 && !code.empty(); --n) {
    const auto place = static_cast<std::ptrdiff_t>(random() % code.size());
    switch (random() % 8) {
      case 0:
        code.resize(static_cast<size_t>(place));
        break;
      case 1:
        code.insert(code.begin() + place, static_cast<int64_t>(random()));
        break;
      case 2:
        code.erase(code.begin() + place);
        break;
      case 3:
        code[place] = kHostile[random() % std::size(kHostile)];
        break;
      case 4:
        code[place] = code[random() % code.size()];
        break;
      default:
        code[place] = static_cast<int64_t>(random() % 6);
    }
  }
  return code;
}

// Whether naive() can do it in a moment.
bool is_small(const Plan& plan, const std::vector<Size>& sizes) {
  for (size_t b = 0; b < sizes.size(); ++b) {
    if (plan.buffers[b] > 64 || sizes[b].height > 32 || sizes[b].width > 32) return false;
  }
  for (const Step& step : plan.steps) {
    for (const Window& w : {step.window, step.pre ? step.pre->window : Window{}}) {
      if (std::max({w.kernel.height, w.kernel.width, w.padding.height, w.padding.width}) > 16)
        return false;
    }
  }
  return true;
}

// Changed plans are refused by a PlanError or are plans: encoded again they give the same list, and
// the small ones run.
int fuzz(const std::vector<Case>& cases, int count) {
  std::mt19937_64 random(1);
  const std::vector<const cpu::Kernels*> all = tables();
  int refused = 0, unfit = 0, large = 0, ran = 0;
  for (const Case& c : cases) {
    for (int i = 0; i < count; ++i) {
      const std::vector<int64_t> code = changed(c.code, random);
      try {
        const Plan plan = decode(code);
        if (encode(plan) != code) {
          std::cout << "decode and encode of a list made from " << c.name << " differ\n";
          return 1;
        }
        const auto [least, most] = std::minmax_element(plan.buffers.begin(), plan.buffers.end());
        const cpu::Precision precision = kPrecisions[random() % 3];
        if (*most <= 1 << 20) (void)cpu::pack_layout(plan, precision, {});
        try {
          const std::vector<Size> sizes = plan.sizes(c.image);
          if (!is_small(plan, sizes)) {
            ++large;
            continue;
          }
        } catch (const PlanError&) {
          ++unfit;
          continue;
        }
        Problem problem(plan, precision, c.batch, c.image, static_cast<unsigned>(i));
        const Way way{all[random() % all.size()],
                      kTiles[random() % std::size(kTiles)],
                      kLayouts[random() % 4],
                      kLayouts[random() % 4],
                      static_cast<int>(1 + random() % 3),
                      random() % 2 == 0};
        const std::string text = check(c.name, precision, problem, way);
        if (!text.empty()) {
          std::cout << text << "\nplan:";
          for (int64_t value : code) std::cout << " " << value;
          std::cout << "\n";
          return 1;
        }
        ++ran;
      } catch (const PlanError&) {
        ++refused;
      }
    }
  }
  std::cout << "refused " << refused << "\nunfit " << unfit << "\nlarge " << large << "\nran "
            << ran << "\n";
  return 0;
}

}  // namespace
}  // namespace inception_fused

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  const auto cases = inception_fused::read();
  if (command == "run" && argc == 2) return inception_fused::run(cases);
  if (command == "fuzz" && argc == 3) return inception_fused::fuzz(cases, std::atoi(argv[2]));
  std::cerr << "usage: check_cpu run | check_cpu fuzz COUNT\n";
  return 2;
}
