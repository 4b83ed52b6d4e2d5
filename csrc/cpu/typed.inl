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
          spin<T>,
          {{4, winograd_input<T, 4>, winograd_output<T, 4, 2>},
           {6, winograd_input<T, 6>, winograd_output<T, 6, 4>},
           {6, winograd_input<T, 6>, winograd_output<T, 6, 2>},
           {6, winograd_input<T, 6>, winograd_output<T, 6, 3>}}};
}
