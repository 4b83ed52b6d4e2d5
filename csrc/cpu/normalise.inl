// Batch norms in training, with the ReLU behind them, for one instruction set; after vector.inl.
// What is normalised, y = z * scale + shift, is computed anew where the gradient needs its sign.

static inline Vector normalised(const float* z, const float* scale, const float* shift,
                                int64_t count) {
  return load_some(z, count) * load_some(scale, count) + load_some(shift, count);
}

// The gradient of y, where a ReLU let y through; NaN is let through.
static inline Vector let_through(Vector grad, Vector y) { return y <= 0.0f ? Vector{} : grad; }

static void normalise(Pixels<const float> z, const float* scale, const float* shift, bool with_relu,
                      int64_t pixels, int64_t channels, Pixels<float> y) {
  for (int64_t i = 0; i < pixels; ++i) {
    const float* from = z.data + i * z.pitch;
    float* to = y.data + i * y.pitch;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t count = channels - c;
      const Vector v = normalised(from + c, scale + c, shift + c, count);
      store_some(to + c, with_relu ? relu(v) : v, count);
    }
  }
}

static void normalise_sums(Pixels<const float> grad, Pixels<const float> z, const float* scale,
                           const float* shift, const float* mean, bool with_relu, int64_t pixels,
                           int64_t channels, float* work, double* sums, double* products) {
  constexpr int64_t kBlock = 64;  // pixels that are added in float32
  for (int64_t first = 0; first < pixels; first += kBlock) {
    const int64_t last = first + kBlock < pixels ? first + kBlock : pixels;
    for (int64_t c = 0; c < 2 * channels + kLanes; ++c) work[c] = 0;
    for (int64_t i = first; i < last; ++i) {
      const float* from = z.data + i * z.pitch;
      const float* own = grad.data + i * grad.pitch;
      for (int64_t c = 0; c < channels; c += kLanes) {
        const int64_t count = channels - c;
        Vector g = load_some(own + c, count);
        if (with_relu) g = let_through(g, normalised(from + c, scale + c, shift + c, count));
        const Vector d = load_some(from + c, count) - load_some(mean + c, count);
        store_some(work + c, load_some(work + c, count) + g, count);
        float* product = work + channels + c;
        store_some(product, load_some(product, count) + g * d, count);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      sums[c] += work[c];
      products[c] += work[channels + c];
    }
  }
}

static void normalise_gradient(Pixels<const float> grad, Pixels<const float> z, const float* scale,
                               const float* shift, const float* mean, const float* grad_mean,
                               const float* slope, bool with_relu, int64_t pixels, int64_t channels,
                               Pixels<float> grad_z) {
  for (int64_t i = 0; i < pixels; ++i) {
    const float* from = z.data + i * z.pitch;
    const float* own = grad.data + i * grad.pitch;
    float* to = grad_z.data + i * grad_z.pitch;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t count = channels - c;
      const Vector s = load_some(scale + c, count);
      Vector g = load_some(own + c, count);
      if (with_relu) g = let_through(g, normalised(from + c, scale + c, shift + c, count));
      const Vector d = load_some(from + c, count) - load_some(mean + c, count);
      g -= load_some(grad_mean + c, count) + d * load_some(slope + c, count);
      store_some(to + c, g * s, count);
    }
  }
}
