// Multiply-adds in registers, for one instruction set; after vector.inl.

template <typename T>
static int64_t spin(int64_t iterations) {
  using Operand = typename OperandOf<T>::Type;
  using Sum = typename OperandOf<T>::Sum;
  constexpr int kChains = 12;  // enough to hide the latency of two multiply-add pipes
  // So small that the sums stay as they are.
  const Operand scale = reinterpret_cast<Operand>(Words{} + 0x0d800d80);
  volatile float one = 1.0f;  // which the compiler must not know
  Sum sum[kChains];
#pragma GCC unroll 16
  for (int i = 0; i < kChains; ++i) sum[i] = reinterpret_cast<Sum>(splat(one));
  for (int64_t n = 0; n < iterations; ++n) {
#pragma GCC unroll 16
    for (int i = 0; i < kChains; ++i) {
      multiply_add(sum[i], reinterpret_cast<Operand>(sum[i]), scale);
    }
  }
  Sum total = sum[0];
#pragma GCC unroll 16
  for (int i = 1; i < kChains; ++i) total += sum[i];
  volatile auto keep = total[0];
  (void)keep;
  return iterations * kChains * kLanes * 2 * kPerElement<T>;
}
