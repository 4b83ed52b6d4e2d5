// The table of the kernels of one instruction set; after the other bodies.

static constexpr Kernels table(const char* name) {
  return {name,
          typed<float>(),
          typed<BFloat16>(),
          typed_int8(),
          {{4, winograd_input<4>, winograd_output<4, 2>},
           {6, winograd_input<6>, winograd_output<6, 4>},
           {6, winograd_input<6>, winograd_output<6, 2>},
           {6, winograd_input<6>, winograd_output<6, 3>}}};
}
