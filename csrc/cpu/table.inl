// The table of the kernels of one instruction set; after the other bodies.

static constexpr Kernels table(const char* name) {
  return {name,
          typed<float>(),
          typed<BFloat16>(),
          typed_int8(),
          {normalise, normalise_sums, normalise_gradient, max_pool_numbered, max_pool_gradient}};
}
