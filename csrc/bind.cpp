// The operator's schemas, once for all back ends, and the module that Python imports to load them.
#include <Python.h>
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(inception_fused, m) {
  // Weights by weight index, (out, in, height, width) and (out), as one tensor for `run` on the
  // same device. `tuning` is a back end's choice per step; empty: its plainest. The CPU's is the
  // edge of Winograd's output tile, 0 for direct convolution; CUDA has none. `float32`: how a GPU
  // multiplies float32: "tf32", as torch's convolutions do by default, "bf16x3", to 16 bits, or
  // "ieee", as faithfully as float32.
  m.def(
      "pack(Tensor[] weights, Tensor[] biases, int[] plan, int[] tuning=[], *, "
      "str float32=\"tf32\") -> Tensor");
  // Weights and biases of float32 for `run` in int8; scale and zero of each buffer of the plan,
  // those of the output for nothing.
  m.def("pack_int8(Tensor[] weights, Tensor[] biases, int[] plan, float[] scales) -> Tensor");
  // The whole module: (batch, channels, height, width) in, the plan's output channels out. x and
  // pack are of one dtype, or of float32 and int8.
  m.def("run(Tensor x, Tensor pack, int[] plan) -> Tensor");
  // The same into `out`, which may be a channel range of a larger tensor.
  m.def("run.out(Tensor x, Tensor pack, int[] plan, *, Tensor(a!) out) -> ()");
  // Of training, on the CPU: float32, channels last. constants: (4, channels), those of
  // inception_fused/training/norm.py; window: kernel, stride and padding, height before width;
  // where: the number of each maximum's pixel in its window, (batch, height, width, channels).
  m.def("normalise(Tensor z, Tensor constants, bool relu, *, Tensor(a!) out) -> ()");
  m.def(
      "normalise_backward(Tensor grad, Tensor z, Tensor constants, bool relu, bool batch, *, "
      "Tensor(a!) grad_z, Tensor(b!) grad_affine) -> ()");
  m.def("max_pool(Tensor x, int[] window, *, Tensor(a!) out, Tensor(b!) where) -> ()");
  m.def("max_pool_backward(Tensor grad, Tensor where, int[] window, *, Tensor(a!) grad_x) -> ()");
  // Width of the CPU kernels of this process: floats per vector.
  m.def("cpu_lanes() -> int");
  // Whether they multiply bfloat16 in one instruction, or in several of float32.
  m.def("cpu_multiplies_bfloat16() -> bool");
  // The same of int8.
  m.def("cpu_multiplies_int8() -> bool");
  // Multiply-adds in registers on every thread, of float32, bfloat16 or int8; returns the
  // operations done.
  m.def("cpu_spin(int iterations, *, bool bfloat16=False, bool int8=False) -> int");
}

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
