// The emulated back end and the functions of the CUDA host code for Python: tests/emulated.py.
// Tensors come as an address, sizes and strides.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "cuda/program.h"
#include "emulated.h"

namespace py = pybind11;

namespace inception_fused::cuda {
namespace {

using View = std::tuple<uintptr_t, std::vector<int64_t>, std::vector<int64_t>>;

Strided strided(const View& view) {
  const auto& [data, size, stride] = view;
  if (size.size() != 4 || stride.size() != 4) throw py::value_error("a view has 4 dimensions");
  Strided result;
  result.data = reinterpret_cast<char*>(data);
  std::copy(size.begin(), size.end(), result.size);
  std::copy(stride.begin(), stride.end(), result.stride);
  return result;
}

const Architecture& architecture_of(int sm) {
  const Architecture* const found = find_architecture(sm);
  if (!found) throw py::value_error("no architecture is as old as sm_" + std::to_string(sm));
  return *found;
}

py::dict describe(const LaunchPlan& launch) {
  py::dict d;
  const Config& c = launch.config;
  d["conv"] = launch.conv;
  d["shape"] = c.shape;
  d["blocks"] = c.blocks;
  d["threads"] = c.threads;
  d["shared"] = c.shared;
  d["blocks_per_processor"] = c.blocks_per_processor;
  d["waves"] = c.waves;
  d["bytes"] = c.bytes;
  d["nanoseconds"] = c.nanoseconds;
  py::list operands;
  for (int i = 0; i < launch.wave.problems; ++i) {
    operands.append(static_cast<int>(launch.wave.problem[i].operand));
  }
  d["operands"] = operands;
  return d;
}

py::list describe(const Program& program) {
  py::list launches;
  for (const LaunchPlan& launch : program.launches) launches.append(describe(launch));
  return launches;
}

py::dict run(const std::vector<int64_t>& code, int math, int sm, const View& x,
             const std::vector<std::pair<View, std::pair<uintptr_t, int64_t>>>& weights,
             const View& out, uint32_t seed, std::optional<int> shape) {
  simt::Machine machine;
  machine.seed = seed;
  std::vector<Weight> views;
  for (const auto& [weight, bias] : weights) {
    views.push_back({strided(weight), reinterpret_cast<char*>(bias.first), bias.second});
  }
  const EmulatedRun done =
      run_emulated(machine, decode(code), static_cast<Math>(math), architecture_of(sm), strided(x),
                   views, strided(out), shape);
  py::dict buffers;
  for (const auto& [name, buffer] : machine.counters.buffers) {
    buffers[py::str(name)] = py::dict(
        py::arg("bytes") = buffer.bytes, py::arg("read") = buffer.read,
        py::arg("written") = buffer.written, py::arg("written_twice") = buffer.written_twice);
  }
  py::dict result;
  result["launches"] = describe(done.program);
  result["started"] = machine.counters.launches;
  result["products"] = machine.counters.products;
  result["matrix_phases"] = machine.counters.matrix_phases;
  result["matrix_waves"] = machine.counters.matrix_waves;
  result["buffers"] = buffers;
  return result;
}

// The launches for tensors of these shapes, not run.
py::list plan_launches(const std::vector<int64_t>& code, int math, int sm, const View& x,
                       const View& out) {
  return describe(build(decode(code), static_cast<Math>(math), architecture_of(sm), strided(x),
                        strided(out), nullptr, nullptr));
}

// Every shape of choose.h that fits the launch-th launch, as plan_launches describes it.
py::list alternatives(const std::vector<int64_t>& code, int math, int sm, const View& x,
                      const View& out, size_t launch) {
  const Architecture& architecture = architecture_of(sm);
  LaunchPlan plan = build(decode(code), static_cast<Math>(math), architecture, strided(x),
                          strided(out), nullptr, nullptr)
                        .launches.at(launch);
  py::list result;
  for (int shape = 0; shape < static_cast<int>(kShapes.size()); ++shape) {
    plan.config = price(plan.wave, shape, architecture, static_cast<Math>(math));
    if (plan.config.shape >= 0) result.append(describe(plan));
  }
  return result;
}

py::list shapes() {
  py::list result;
  for (const Shape& s : kShapes) {
    result.append(py::dict(
        py::arg("rows") = s.rows, py::arg("columns") = s.columns, py::arg("depth") = s.depth,
        py::arg("warp_rows") = s.warp_rows, py::arg("warp_columns") = s.warp_columns,
        py::arg("warp_depth") = s.warp_depth, py::arg("stages") = s.stages,
        py::arg("cluster") = s.cluster, py::arg("registers") = s.registers,
        py::arg("registers_100") = s.registers_100, py::arg("threads") = s.threads()));
  }
  return result;
}

py::list architectures() {
  py::list result;
  for (const Architecture& a : kArchitectures) {
    result.append(py::dict(py::arg("sm") = a.sm, py::arg("processors") = a.processors,
                           py::arg("shared_block") = a.shared_block,
                           py::arg("shared_processor") = a.shared_processor,
                           py::arg("multicast") = a.multicast));
  }
  return result;
}

}  // namespace
}  // namespace inception_fused::cuda

PYBIND11_MODULE(simt_emulator, m) {
  using namespace inception_fused;
  using namespace inception_fused::cuda;
  py::register_exception<simt::Error>(m, "Error");
  m.def("run", &run, py::arg("code"), py::arg("math"), py::arg("sm"), py::arg("x"),
        py::arg("weights"), py::arg("out"), py::arg("seed") = 0, py::arg("shape") = py::none());
  m.def("plan_launches", &plan_launches);
  m.def("alternatives", &alternatives);
  m.def("shapes", &shapes);
  m.def("architectures", &architectures);
  m.def("why_not", [](const std::vector<int64_t>& code) { return why_not(decode(code)); });
  m.def("telling_bytes", [](int math) { return telling_bytes(static_cast<Math>(math)); });
  m.def("pack_bytes", [](const std::vector<int64_t>& code, int math) {
    return pack_layout(decode(code), static_cast<Math>(math)).bytes;
  });
}
