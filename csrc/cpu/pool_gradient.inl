// Max pools in training, for one instruction set; after vector.inl. Of equal values the first is
// the maximum, of NaNs the last, as in torch.

typedef uint8_t Numbers __attribute__((vector_size(kLanes)));
typedef uint8_t UnalignedNumbers __attribute__((vector_size(kLanes), aligned(1), may_alias));

static void max_pool_numbered(const float* const* tap, const uint8_t* number, int taps,
                              int64_t channels, float* dst, uint8_t* where) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Vector most = load(tap[0] + c);
    Words chosen = uint32_t{number[0]} - Words{};
    for (int t = 1; t < taps; ++t) {
      const Vector v = load(tap[t] + c);
      const auto keeps = (v <= most) | ((most != most) & (v == v));
      most = keeps ? most : v;
      chosen = keeps ? chosen : uint32_t{number[t]} - Words{};
    }
    store(dst + c, most);
    *reinterpret_cast<UnalignedNumbers*>(where + c) = __builtin_convertvector(chosen, Numbers);
  }
  for (; c < channels; ++c) {
    float most = tap[0][c];
    uint8_t chosen = number[0];
    for (int t = 1; t < taps; ++t) {
      const float v = tap[t][c];
      if (v > most || v != v) {
        most = v;
        chosen = number[t];
      }
    }
    dst[c] = most;
    where[c] = chosen;
  }
}

static void max_pool_gradient(const float* grad, const uint8_t* where, float* const* tap,
                              const uint8_t* number, int taps, int64_t channels) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    const Vector g = load(grad + c);
    const Words chosen =
        __builtin_convertvector(*reinterpret_cast<const UnalignedNumbers*>(where + c), Words);
    for (int t = 0; t < taps; ++t) {
      const Vector own = chosen == uint32_t{number[t]} - Words{} ? g : Vector{};
      store(tap[t] + c, load(tap[t] + c) + own);
    }
  }
  for (; c < channels; ++c) {
    for (int t = 0; t < taps; ++t) {
      if (where[c] == number[t]) tap[t][c] += grad[c];
    }
  }
}
