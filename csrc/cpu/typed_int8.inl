// The kernels of one instruction set and int8; after their bodies.

static constexpr KernelsOf<uint8_t> typed_int8() {
  return {{0, rows_of<uint8_t>(1), rows_of<uint8_t>(2), rows_of<uint8_t>(3)},
          gemm<uint8_t>,
          max_pool<uint8_t>,
          max_pool_row<uint8_t>,
          average_pool_int8,
          quantise,
          dequantise,
          spin<uint8_t>};
}
