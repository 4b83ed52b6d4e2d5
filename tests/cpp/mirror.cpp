// What the tests see of csrc: the plan as C++ decodes it, the tables of kinds, the choice of
// kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "plan.h"

namespace py = pybind11;

namespace inception_fused {
namespace {

using Pair = std::pair<int64_t, int64_t>;

Pair pair(const Size& size) { return {size.height, size.width}; }

std::map<std::string, int64_t> kinds() {
  return {
#define KIND(name, value) {#name, static_cast<int64_t>(Kind::name)},
#include "kinds.def"
  };
}

std::map<std::string, int64_t> activations() {
  return {
#define ACTIVATION(name, value) {#name, static_cast<int64_t>(Activation::name)},
#include "kinds.def"
  };
}

std::vector<Pair> sizes(const Plan& plan, int64_t height, int64_t width) {
  std::vector<Pair> found;
  for (const Size& size : plan.sizes({height, width})) found.push_back(pair(size));
  return found;
}

}  // namespace
}  // namespace inception_fused

PYBIND11_MODULE(mirror, m) {
  using namespace inception_fused;
  py::class_<Window>(m, "Window")
      .def_property_readonly("kernel", [](const Window& w) { return pair(w.kernel); })
      .def_property_readonly("stride", [](const Window& w) { return pair(w.stride); })
      .def_property_readonly("padding", [](const Window& w) { return pair(w.padding); })
      .def_readonly("ceil_mode", &Window::ceil_mode);
  py::class_<Response>(m, "Response")
      .def_readonly("size", &Response::size)
      .def_readonly("alpha", &Response::alpha)
      .def_readonly("beta", &Response::beta)
      .def_readonly("k", &Response::k);
  py::class_<Slice>(m, "Slice")
      .def_readonly("buffer", &Slice::buffer)
      .def_readonly("offset", &Slice::offset)
      .def_readonly("channels", &Slice::channels);
  py::class_<Destination>(m, "Destination")
      .def_readonly("slice", &Destination::slice)
      .def_readonly("weight", &Destination::weight)
      .def_property_readonly(
          "activation", [](const Destination& d) { return static_cast<int64_t>(d.activation); });
  py::class_<Pool>(m, "Pool")
      .def_property_readonly("kind", [](const Pool& p) { return static_cast<int64_t>(p.kind); })
      .def_readonly("window", &Pool::window);
  py::class_<Step>(m, "Step")
      .def_property_readonly("kind", [](const Step& s) { return static_cast<int64_t>(s.kind); })
      .def_readonly("window", &Step::window)
      .def_readonly("wave", &Step::wave)
      .def_readonly("pre", &Step::pre)
      .def_property_readonly("response",
                             [](const Step& s) {
                               return s.kind == Kind::LRN ? std::optional(s.response)
                                                          : std::nullopt;
                             })
      .def_readonly("src", &Step::src)
      .def_readonly("dst", &Step::dst);
  py::class_<Plan>(m, "Plan")
      .def_readonly("buffers", &Plan::buffers)
      .def_readonly("steps", &Plan::steps)
      .def("encode", &encode)
      .def("sizes", &sizes)
      .def("weights", &Plan::weights)
      .def("weight_shape", &Plan::weight_shape);
  m.def("decode", [](const std::vector<int64_t>& code) { return decode(code); });
  m.def("kinds", &kinds);
  m.def("activations", &activations);

  // The name of the kernels that a machine with these instruction sets would run.
  m.def("pick",
        [](bool avx2, bool avx512, bool avx512_vnni, bool avx512_bf16, const std::string& limit) {
          return std::string(cpu::pick({avx2, avx512, avx512_vnni, avx512_bf16}, limit).name);
        });
  m.def("capabilities", [] {
    const cpu::Capabilities machine = cpu::capabilities();
    return std::tuple{machine.avx2, machine.avx512, machine.avx512_vnni, machine.avx512_bf16};
  });
}
