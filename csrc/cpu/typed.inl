// The kernels of one instruction set and one type of elements; after their bodies.

template <typename T>
static constexpr KernelsOf<T> typed() {
  return {{0, rows_of<T>(1), rows_of<T>(2), rows_of<T>(3)},
          gemm<T>,
          max_pool<T>,
          max_pool_row<T>,
          average_pool<T>,
          response<T>,
          transpose<T>,
          spin<T>};
}
